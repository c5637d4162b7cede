"""Whether config.json, tokenizer and image processor are those of the model that the reference was made with.

The process that runs the compressed model writes into the reference, beside the outputs, what the folder's other files
say and do: config.json itself, the hash of each file, what the tokenizer makes of texts and of every entry of its
vocabulary, what the chat template renders, what the processor makes of two images. An artifact is held to all of that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor._lazy import lazy
from compressor.architectures import OWN_TYPE
from compressor.data.preprocessors import TOKENIZER, library_calls, load_processor, load_tokenizer, try_tokenizer
from compressor.errors import DataError, ModelError
from compressor.measure.runner import first_line, read_config
from compressor.model.folder import open_model
from compressor.model.image_places import PROCESSOR, told_alike
from compressor.model.source import OWN_CLASS
from compressor.storage.companions import COMPANIONS, companion_files
from compressor.storage.json_files import read_json
from compressor.storage.tensors import sha256_of
from compressor.verification.tokens import PROBE
from compressor.verification.verdict import Check, failed, yes

tokenizers = lazy("tokenizers")

TEXTS = (
    PROBE,
    "Straße, Ελλάδα, Привет, مرحبا, हिन्दी, 日本語のテスト, 한국어, Việt, ½ №5 ﬁn, e\u0301",
    "\U0001f600\U0001f469\u200d\U0001f467 \u00a0\u2009\u3000\ufeff \x00\x07 \U00020000",
    "  leading and   inner spaces\t\ttabs\n\n\nlines\r\nand trailing  ",
    "def f(x): return {'a': [1, 2.5e-3], \"b\": x**2} != None  # 1234567890 https://example.org/?q=a&b=c_d",
    "ANTIDISESTABLISHMENTARIANISM antidisestablishmentarianism aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa zzqxjkvw'll we're I'd",
    " ".join(["once upon a time there was a little girl"] * 40),
    "a",
    "",
)
_PARTS = 16
_MESSAGES = [
    {"role": "user", "content": "Hello, who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": " Two lines\nand <b>1 < 2</b>. "},
]
_SIZES = ((61, 97), (320, 240))
_PIXELS = 64
_PIXEL_ERROR = 0.02
"""Of a processed image: another release of Pillow may round a pixel to the next of 256 values (0.017 after scaling)."""
_EXPORTED = ("dtype", "torch_dtype", "quantization_config", "auto_map")
"""Keys of config.json that an export to safetensors sets."""
_CHANGED = {
    *("compression", "compression_grids", "per_layer_config", "tie_word_embeddings", "transformers_version"),
    *("hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "layer_types"),
    *("intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim", "_name_or_path"),
}
"""Keys of config.json that passes change, and those that say nothing of the model."""
_DESCRIBING = ("paths", "head_dim")
"""Keys of its `compression` section that are there for the modelling file."""


def companion_record(folder: Path, inputs: str) -> dict[str, Any]:
    """Return what a model folder's files beside the weights say and do, as JSON values.

    Raises:
        ModelError: the tokenizer, the chat template or the image processor cannot be used.
    """
    record: dict[str, Any] = {
        "config": read_config(folder),
        "files": {name: sha256_of(folder / name) for name in companion_files(folder)},
    }
    if (folder / "tokenizer.json").is_file():
        record["texts"], record["entries"] = tokenized(folder)
    if has_chat_template(folder):
        record["chat"] = rendered_chat(folder)
    if inputs == "pixels" and (folder / "preprocessor_config.json").is_file():
        record["images"] = processed_images(folder)
    return record


def check_companions(folder: Path, record: Mapping[str, Any], *, exported: bool) -> list[Check]:
    """Hold the files beside the model to what was recorded when the reference was made.

    Args:
        folder: the artifact.
        record: what `companion_record` returned for the model folder.
        exported: whether the artifact is a checkpoint, in whose config.json the export sets some keys.
    """
    checks = [_check_config(folder, record, exported)]
    found = {name: sha256_of(folder / name) for name in companion_files(folder)}
    stated = record.get("files", {})
    wrong = sorted(name for name in found.keys() | stated.keys() if found.get(name) != stated.get(name))
    reason = f"not as it was when the model was exported: {', '.join(wrong)}"
    checks.append(yes("companions.files", not wrong, reason))
    for name, keys, check in (
        ("tokenizer", ("texts", "entries"), _check_tokenizer),
        ("tokenizer.chat", ("chat",), _check_chat),
        ("processor", ("images",), _check_images),
    ):
        if all(key in record for key in keys):
            try:
                checks += check(folder, record)
            except (ModelError, DataError) as error:
                checks.append(failed(f"{name}.usable", error))
    return checks


def _check_config(folder: Path, record: Mapping[str, Any], exported: bool) -> Check:
    try:
        found = read_json(folder / "config.json")
    except ModelError as error:
        return failed("config.recorded", error)
    keys = differing_keys(comparable(found, exported=exported), comparable(record["config"], exported=exported))
    reason = f"config.json is not as it was when the model was exported: {', '.join(keys)}"
    return yes("config.recorded", not keys, reason)


def comparable(config: Mapping[str, Any], *, exported: bool) -> dict[str, Any]:
    """Return config.json without what the export to safetensors sets in it, where `exported`."""
    kept = dict(config)
    if not exported:
        return kept
    kept = {key: value for key, value in kept.items() if key not in _EXPORTED}
    section = kept.get("compression")
    if isinstance(section, dict):
        kept["compression"] = {key: value for key, value in section.items() if key not in _DESCRIBING}
    kept["model_type"] = str(kept.get("model_type")).removeprefix(OWN_TYPE)
    kept["architectures"] = [str(name).removeprefix(OWN_CLASS) for name in kept.get("architectures") or ()]
    return kept


def differing_keys(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ, with both values, shortened."""
    names = sorted(key for key in found.keys() | wanted.keys() if found.get(key, ...) != wanted.get(key, ...))
    return [f"{key} ({_shown(found, key)} instead of {_shown(wanted, key)})" for key in names]


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in document.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return out


def _shown(config: Mapping[str, Any], key: str) -> str:
    text = repr(config[key]) if key in config else "nothing"
    return text if len(text) <= 40 else f"{text[:37]}..."


def tokenized(folder: Path) -> tuple[list[list[int]], list[str]]:
    """Return the ids of `TEXTS` and of the added tokens in a row, and digests over parts of the vocabulary.

    A digest covers, for each id, the entry, the text that it decodes to and the ids that this text encodes to: so every
    entry and nearly every merge is used.

    Raises:
        ModelError: the tokenizer cannot be used.
    """
    file = folder / TOKENIZER
    what = f"the tokenizer of {folder.name}"
    try:
        with library_calls(what):
            try_tokenizer(file, what)
            fast = tokenizers.Tokenizer.from_file(str(file))
            added = [token.content for _, token in sorted(fast.get_added_tokens_decoder().items())]
            texts = [list(fast.encode(text).ids) for text in (*TEXTS, " x".join(added[:64]))]
            texts.append(list(fast.encode(PROBE, TEXTS[2]).ids))
            fast.no_padding()
            fast.no_truncation()
            ids = sorted(set(fast.get_vocab(with_added_tokens=True).values()))
            decoded = fast.decode_batch([[number] for number in ids], skip_special_tokens=False)
            encoded = fast.encode_batch(decoded, add_special_tokens=False)
            rows = zip(ids, decoded, encoded, strict=True)
            lines = [f"{i}\0{fast.id_to_token(i)}\0{text}\0{e.ids}\n" for i, text, e in rows]
    except DataError as error:
        raise ModelError(error.message, hint=error.hint) from error
    size = max(1, -(-len(lines) // _PARTS))
    parts = ("".join(lines[start : start + size]) for start in range(0, len(lines), size))
    return texts, [hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:16] for part in parts]


def _check_tokenizer(folder: Path, record: Mapping[str, Any]) -> list[Check]:
    texts, entries = tokenized(folder)
    wrong = [str(i) for i, (a, b) in enumerate(zip(texts, record["texts"], strict=False)) if a != b]
    reason = f"the tokenizer gives other ids for the recorded texts {', '.join(wrong)} than it gave at export"
    checks = [yes("tokenizer.texts", not wrong and len(texts) == len(record["texts"]), reason)]
    parts = [str(i + 1) for i, (a, b) in enumerate(zip(entries, record["entries"], strict=False)) if a != b]
    where = f"in part {', '.join(parts)} of {len(entries)}" if parts else "in their number"
    reason = f"entries of the vocabulary, or the merges that make them, differ from those at export {where}"
    return [*checks, yes("tokenizer.entries", entries == record["entries"], reason)]


def has_chat_template(folder: Path) -> bool:
    """Tell whether the tokenizer of a folder has a chat template."""
    settings = folder / "tokenizer_config.json"
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def rendered_chat(folder: Path) -> str:
    """Return a short conversation as the chat template renders it, on a fixed day; its error if it refuses it.

    Raises:
        ModelError: transformers cannot read the tokenizer.
    """
    try:
        tokenizer = load_tokenizer(folder, folder.name)
    except DataError as error:
        raise ModelError(error.message, hint=error.hint) from error
    try:
        text = tokenizer.apply_chat_template(
            _MESSAGES, tokenize=False, add_generation_prompt=True, strftime_now=lambda form: "1 January 2025"
        )
    except Exception as error:  # a template may refuse a conversation, by an exception of its own
        return f"error: {first_line(error)}"
    return str(text)


def _check_chat(folder: Path, record: Mapping[str, Any]) -> list[Check]:
    if not has_chat_template(folder):
        return [yes("tokenizer.chat", False, "the chat template is missing")]
    reason = "the chat template renders a conversation differently than at export"
    return [yes("tokenizer.chat", rendered_chat(folder) == record["chat"], reason)]


def processed_images(folder: Path) -> list[dict[str, Any]]:
    """Return shape, mean of each channel and some pixels of two seeded images as the image processor prepares them.

    Raises:
        DataError: there is no image processor, or transformers cannot read it.
        ModelError: it fails on an image.
    """
    from PIL import Image

    processor = load_processor(folder)
    grey = read_config(folder).get("num_channels") == 1
    found = []
    for number, (width, height) in enumerate(_SIZES):
        raw = np.random.PCG64(number).random_raw(height * width * 3) >> np.uint64(56)
        small = Image.fromarray(raw.astype(np.uint8).reshape(height, width, 3)).convert("L" if grey else "RGB")
        try:
            pixels = np.asarray(processor(images=[small], return_tensors="np")["pixel_values"], np.float64)[0]
        except Exception as error:  # processors raise what the operation at fault raises
            raise ModelError(f"the image processor of {folder.name} fails: {first_line(error)}") from error
        flat = pixels.reshape(-1)
        chosen = (np.arange(_PIXELS) * 2654435761) % flat.size
        found.append(
            {
                "shape": list(pixels.shape),
                "means": [round(float(mean), 5) for mean in pixels.reshape(len(pixels), -1).mean(axis=1)],
                "pixels": [round(float(value), 4) for value in flat[chosen]],
            }
        )
    return found


def _check_images(folder: Path, record: Mapping[str, Any]) -> list[Check]:
    found = processed_images(folder)
    shapes = [image["shape"] for image in found]
    wanted = [image["shape"] for image in record["images"]]
    reason = f"the processor makes images of {shapes}, at export it made {wanted}"
    checks = [yes("processor.shape", shapes == wanted, reason)]
    if shapes != wanted:
        return checks
    pairs = [(a[key], b[key]) for a, b in zip(found, record["images"], strict=True) for key in ("means", "pixels")]
    error = max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)
    reason = f"pixels differ by up to {error:.3g} from those at export; allowed is {_PIXEL_ERROR}"
    return [*checks, yes("processor.pixels", error <= _PIXEL_ERROR, reason, value=error)]


def check_same(folder: Path, dense: Path) -> list[Check]:
    """Compare the other files with those of the dense model, config.json up to the keys that passes change.

    Raises:
        ModelError: the dense model's config.json cannot be read, or settings of either's processor.
    """
    names = {*COMPANIONS, *companion_files(dense)}
    wrong = sorted(name for name in names if _digest(folder / name) != _digest(dense / name))
    if PROCESSOR in wrong and told_alike(folder, dense, open_model(folder)):
        wrong.remove(PROCESSOR)
    reason = f"not the dense model's: {', '.join(wrong)}"
    checks = [yes("companions.same", not wrong, reason)]
    try:
        found = read_json(folder / "config.json")
    except ModelError as error:
        return [*checks, failed("config.same", error)]
    sides = [comparable(config, exported=True) for config in (found, read_config(dense))]
    keys = differing_keys(*({k: v for k, v in side.items() if k not in _CHANGED} for side in sides))
    reason = f"config.json differs from the dense model's where no pass changes it: {', '.join(keys)}"
    return [*checks, yes("config.same", not keys, reason)]


def _digest(file: Path) -> str | None:
    return sha256_of(file) if file.is_file() else None
