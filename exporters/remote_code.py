"""The self-contained modelling file of a checkpoint that stock classes alone do not describe."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.architectures import OWN_TYPE, Family
from compressor.architectures.tasks import TASKS
from compressor.model import llava_vision
from compressor.model.blueprint import SECTION
from compressor.model.folder import ModelFolder
from compressor.model.source import OWN_CLASS

MODULE = "modeling_compressed"
_PARTS = ("modeling_tokens", "modeling_ends", "modeling_llm")
_PLACE = "# the text of these modules comes to stand here\n"
_HERE = "# --- from here on, a part of the modelling file ---"
_END = "# --- up to here ---"


def paths_of(family: Family) -> dict[str, Any]:
    """Return the family's table as the JSON that the modelling file reads."""
    attention, ffn = family.attention, family.ffn
    return {
        "blocks": family.blocks,
        "embeddings": list(family.embeddings),
        "vectors": list(family.embedding_biases),
        "final_norm": family.final_norm,
        "heads": [] if family.projected else list(family.heads),
        "head_reads": family.head_reads,
        "residual": family.residual,
        "attention_norm": attention.norm,
        "attention_module": attention.module,
        "attention_readers": [attention.query.path, attention.key.path, attention.value.path],
        "attention_output": attention.output,
        "attention_scale": attention.scale,
        "ffn_norm": ffn.norm,
        "ffn_module": ffn.module,
        "ffn_readers": list(ffn.reader_paths),
        "activation": ffn.activation,
        "ffn_writer": ffn.writer,
        "ffn_scale": ffn.scale,
        "selector": family.selector,
        "feature_selector": family.feature_selector,
    }


def add_remote_code(model: ModelFolder, config: dict[str, Any], out: Path) -> Path:
    """Write the modelling file into `out` and complete `config` with what it reads; return the file."""
    source, completed = remote_code(model, config)
    config.update(completed)
    file = out / f"{MODULE}.py"
    file.write_text(source, encoding="utf-8")
    return file


def _template() -> str:
    """Return the text of the modelling file before names are filled in: the template with its parts."""
    here = Path(__file__).resolve().parent
    text, parts = (here / "modeling_template.py").read_text(encoding="utf-8"), []
    for name in _PARTS:
        text, imports = re.subn(rf"from compressor\.exporters\.{name} import (\(.*?\)|.*?)\n", "", text, flags=re.S)
        assert imports == 1, "the template imports what it uses of each part"
        part = (here / f"{name}.py").read_text(encoding="utf-8")
        parts.append(part.partition(_HERE)[2].strip())
    before, line, after = text.partition(_PLACE)
    assert line, "the template says where the parts come to stand"
    return "\n\n\n".join([before.rstrip(), *parts, after.lstrip("\n")])


def _with_own_class(text: str, model: str, config: str) -> str:
    """Return the text of the modelling file with a class of ours, and its config's, in the place of stock ones."""
    file = Path(inspect.getfile(llava_vision))
    imports, _, own = file.read_text(encoding="utf-8").partition(_HERE)
    lines = [line for line in imports.splitlines() if line.startswith("from transformers")]
    given = "\n".join([*lines, "", "", own.partition(_END)[0].strip()])
    for stock, found in (("PreTrainedModel as Base", model), ("PretrainedConfig as BaseConfig", config)):
        text = text.replace(f"from transformers import {stock}\n", "")
        given += f"\n\n\n{stock.rpartition(' ')[2]} = {found}"
    before, line, after = text.partition("OWN_TYPE = ")
    return f"{before.rstrip()}\n\n\n{given}\n\n{line}{after}"


def remote_code(model: ModelFolder, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the text of the modelling file, and config.json completed with what it reads.

    Stock transformers chooses its class by `model_type` alone. Where the model computes something else than stock
    modules with its weights would, `model_type` therefore becomes one that stock transformers refuses.
    """
    skeleton = model.skeleton()
    source = _template()
    if model.family.own:
        source = _with_own_class(source, type(skeleton).__name__, type(model.config).__name__)
    for stock, found in (("PreTrainedModel as Base", skeleton), ("PretrainedConfig as BaseConfig", model.config)):
        alias = stock.rpartition(" ")[2]
        imported = f"from transformers import {type(found).__name__} as {alias}"
        source = source.replace(f"from transformers import {stock}", imported)
    reads = {"paths": paths_of(model.family), "head_dim": model.shapes.head_dim}
    completed = {**config, SECTION: {**config[SECTION], **reads}}
    name, auto_map = "CompressedModel", {}
    if model.family.own or not model.blueprint.computes_as_stock:
        kind = f"{OWN_TYPE}{config['model_type'].removeprefix(OWN_TYPE)}"
        name = f"{OWN_CLASS}{type(skeleton).__name__}"
        source = source.replace('OWN_TYPE = ""', f'OWN_TYPE = "{kind}"').replace("CompressedModel", name)
        completed["model_type"], completed["architectures"] = kind, [name]
        auto_map["AutoConfig"] = f"{MODULE}.CompressedConfig"
    completed["auto_map"] = {TASKS[model.task].auto_class: f"{MODULE}.{name}", **auto_map}
    return source, completed
