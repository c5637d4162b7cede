"""Whether the tokenizer or image processor in a folder is the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor._lazy import lazy
from compressor.data.preprocessors import TOKENIZER, library_calls, load_tokenizer, try_tokenizer
from compressor.errors import DataError, ModelError
from compressor.measure.runner import stated_family
from compressor.storage.files import own_file
from compressor.storage.json_files import read_json
from compressor.storage.tensors import sha256_of
from compressor.verification.verdict import Check, yes

tokenizers = lazy("tokenizers")

PROBE = "In 1984, Zoë's 3 quick brown foxes (and 12 dogs!) jumped over the lazy café: naïve? Yes - 100% so.\n"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
_COMPARED = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "preprocessor_config.json")


def probe_record(folder: Path) -> dict[str, Any] | None:
    """Return a probe text and the token ids that the folder's tokenizer gives for it; None without a tokenizer."""
    if not _has_tokenizer(folder):
        return None
    ids, _ = _encode(folder)
    return {"text": PROBE, "ids": ids}


def check_tokenizer(folder: Path, manifest: Mapping[str, Any], dense: Path | None) -> list[Check]:
    """Check the tokenizer against the embedding, the manifest's probe and the dense model's files."""
    checks = []
    if dense is not None:
        differing = [n for n in _COMPARED if (dense / n).is_file() and not _same(folder / n, dense / n)]
        reason = f"{', '.join(differing)} is not the dense model's: the tokenizer or processor is foreign"
        checks.append(yes("tokenizer.same", not differing, reason))
    recorded = manifest.get("tokenizer")
    if not _has_tokenizer(folder):
        lost = recorded is not None or (dense is not None and _has_tokenizer(dense))
        return [*checks, yes("tokenizer.present", not lost, "the tokenizer is missing from the folder", damaged=True)]
    try:
        ids, size = _encode(folder, recorded["text"] if isinstance(recorded, dict) else PROBE)
    except ModelError as error:
        return [*checks, yes("tokenizer.present", False, error.message, damaged=True)]
    config = read_json(folder / "config.json")
    family, stated = stated_family(config), config.get("vocab_size")
    rows = stated if isinstance(stated, int) else 0
    reason = f"the tokenizer has {size} tokens, the model's embedding {rows} rows: it is another model's tokenizer"
    if family is None or family.inputs == "tokens":  # an image model has no use for one that lies beside it
        checks.append(yes("tokenizer.vocabulary", size <= rows, reason, value=size))
    expected = recorded.get("ids") if isinstance(recorded, dict) else None
    reason = "the tokenizer gives other token ids for the probe text than those recorded at export"
    checks.append(yes("tokenizer.probe", ids == expected, reason))
    return checks


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _same(file: Path, other: Path) -> bool:
    return file.is_file() and sha256_of(file) == sha256_of(other)


def _encode(folder: Path, text: str = PROBE) -> tuple[list[int], int]:
    """Return the ids of a text and the number of tokens that the tokenizer knows (highest id + 1).

    Raises:
        ModelError: the tokenizer cannot be used.
    """
    what = f"the tokenizer of {folder.name}"
    try:
        file = own_file(folder, TOKENIZER)
        if file is None:
            slow = load_tokenizer(folder, folder.name)
            with library_calls(what):
                return list(slow(text)["input_ids"]), max(slow.get_vocab().values(), default=-1) + 1
        try_tokenizer(file, what)
        with library_calls(what):
            fast = tokenizers.Tokenizer.from_file(str(file))
            vocabulary = fast.get_vocab(with_added_tokens=True)
            return list(fast.encode(text).ids), max(vocabulary.values(), default=-1) + 1
    except DataError as error:
        raise ModelError(error.message, hint=error.hint) from error
