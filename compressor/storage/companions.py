"""The files beside config.json and the weights that make a folder usable: tokenizer, processor, generation."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from compressor.errors import ModelError
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json_value

MODULES = "modules.json"
"""Where sentence-transformers keeps the list of a model's modules, each in a folder of its own."""
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    MODULES,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
_OF_IMAGES = ("preprocessor_config.json", "processor_config.json")
_IN_MODULES = ("config.json", "model.safetensors")
"""Files of a module's folder."""
_TEMPLATES = "additional_chat_templates"


def companion_files(folder: Path) -> list[str]:
    """Return the relative paths of the companions that a folder has, those that another companion names included.

    Raises:
        ModelError: a companion that names others cannot be read, or names a place outside of the folder.
    """
    modules = [module["path"] for module in module_list(folder)]
    named = [f"{path}/{name}" for path in modules if path for name in _IN_MODULES]
    templates = [f"{_TEMPLATES}/{file.name}" for file in sorted((folder / _TEMPLATES).glob("*.jinja"))]
    names = dict.fromkeys((*COMPANIONS, *named, *templates, *_tokenizer_files(folder)))
    return [name for name in names if own_file(folder, name) is not None]


def copy_companions(source: Path, out: Path, inputs: str | None = None) -> list[Path]:
    """Copy the files of `companion_files` into `out`; return the copies.

    Args:
        source: a model folder.
        out: existing folder.
        inputs: `tokens` or `pixels`, for a tower that reads these alone: what prepares the others stays behind.

    Raises:
        ModelError: as `companion_files` does.
    """
    copies = []
    for name in companion_files(source):
        if inputs is not None and (name in _OF_IMAGES) != (inputs == "pixels"):
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        # The contents alone: a hub folder holds read-only links.
        shutil.copyfile(source / name, out / name)
        copies.append(out / name)
    return copies


def module_list(folder: Path) -> list[dict[str, str]]:
    """Return `type` and `path` of the modules in modules.json, in order; none without that file.

    Raises:
        ModelError: it cannot be read, is no list of modules, or names a place outside of the folder.
    """
    if not (folder / MODULES).is_file():
        return []
    found = read_companion(folder, MODULES, list)
    modules = []
    for module in found:
        given = module if isinstance(module, dict) else {}
        kind, path = given.get("type"), given.get("path")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise ModelError(f"{MODULES}: an entry is {str(module)[:80]}; allowed: an object with a type and a path")
        modules.append({"type": kind, "path": _inside(path, MODULES)})
    return modules


def _tokenizer_files(folder: Path) -> list[str]:
    """Return the tokenizer files for single releases of transformers that tokenizer_config.json names."""
    name = "tokenizer_config.json"
    if not (folder / name).is_file():
        return []
    stated = read_companion(folder, name, dict).get("fast_tokenizer_files") or []
    return [_inside(file, name) for file in stated if isinstance(file, str)] if isinstance(stated, list) else []


def _inside(path: str, where: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ModelError(f"{where} names {path!r}, which lies outside of the model's folder")
    return path.rstrip("/")


def read_companion(folder: Path, name: str, kind: type) -> Any:
    """Return what a JSON file of a model folder holds: a `kind`, which is dict or list.

    Raises:
        ModelError: it is missing, cannot be read, or holds something else.
    """
    file = own_file(folder, name)
    if file is None:
        raise ModelError(f"{name} cannot be read: there is no such file in {folder.name}")
    found = read_json_value(file, name=name)
    if not isinstance(found, kind):
        wanted = "an object" if kind is dict else "a list"
        raise ModelError(f"{name} cannot be read: it holds a {type(found).__name__}; allowed: {wanted}")
    return found
