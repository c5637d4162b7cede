"""Model folders: config, tokenizer, processor, safetensors header and directory entries altered."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

from compressor.data.preprocessors import load_processor, load_tokenizer
from compressor.model.folder import open_model
from compressor.pipeline.inspect import inspect
from tests.fuzz.mutations import alter_bytes, alter_entry, alter_json, as_text, is_plain, odd, write
from tests.pico import make_pico

_SENTENCE = "The old clock counted seven apples by the harbour.\n\tÅ \U0001f600 "
_EXTRA = {
    "model.safetensors.index.json": '{"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "../secret.txt"}}',
    "adapter_config.json": '{"peft_type": "LORA"}',
    "chat_template.jinja": "{{ messages[0].content }}",
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true, "word_embedding_dimension": 48}',
    "modules.json": '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]',
    "special_tokens_map.json": '{"pad_token": "[PAD]"}',
    "added_tokens.json": '{"<new>": 319}',
    "vocab.txt": "[PAD]\n[UNK]\na\nb\n",
}
_FILES = ("config.json",) * 5 + ("model.safetensors",) * 4 + ("tokenizer.json",) * 3 + ("tokenizer_config.json",) * 2


class Models:
    """Makes model folders and reads them."""

    codes = (3, 5)
    allowed: tuple[str, ...] = ()

    def __init__(self, scratch: Path) -> None:
        """Make one small model with a BPE tokenizer, one with WordPiece, one for images."""
        self._bases = [
            make_pico(family, scratch / "models" / family, num_hidden_layers=1) for family in ("llama", "bert", "vit")
        ]

    def attempt(self, rng: Random, folder: Path) -> str:
        """Read an altered model as the commands do before any pass; raises what that raises."""
        base = rng.choice(self._bases)
        target = Path(shutil.copytree(base, folder / "model"))
        for _ in range(rng.choice((1, 1, 1, 2))):
            _alter(rng, target)
        model = open_model(target)
        model.weights.names()
        if rng.random() < 0.2:
            inspect(target)
        if model.task == "image-classification":
            load_processor(target)
        else:
            load_tokenizer(target)(_SENTENCE, truncation=True, max_length=8)
        return "accepted"


def _alter(rng: Random, folder: Path) -> None:
    way = rng.random()
    if way < 0.08:
        _foreign_code(rng, folder)
        return
    name = rng.choice(list(_EXTRA) if way < 0.2 else ("preprocessor_config.json", *_FILES))
    path = folder / name
    if name in _EXTRA and not os.path.lexists(path):
        path.parent.mkdir(exist_ok=True)
        write(path, _EXTRA[name])
    if not is_plain(path) or rng.random() < 0.1:
        if os.path.lexists(path):
            alter_entry(rng, path)
    elif path.suffix == ".safetensors":
        path.write_bytes(_alter_tensors(rng, path.read_bytes()))
    elif path.suffix == ".json":
        write(path, alter_json(rng, path.read_bytes().decode("utf-8", "surrogateescape")))
    else:
        path.write_bytes(alter_bytes(rng, path.read_bytes()))


def _alter_tensors(rng: Random, data: bytes) -> bytes:
    """Alter the header of a safetensors file, its length, or bytes anywhere."""
    way = rng.random()
    if way < 0.25:
        return alter_bytes(rng, data)
    size = int.from_bytes(data[:8], "little")
    if way < 0.35 or size > len(data) - 8:
        return rng.choice((0, 1, size - 1, size + 1, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
    try:
        header = alter_json(rng, data[8 : 8 + size].decode()).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # it was altered before
        return alter_bytes(rng, data)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _foreign_code(rng: Random, folder: Path) -> None:
    """Let a config name code that lies in the folder."""
    (folder / "evil.py").write_text("raise SystemExit('the code of the model ran')\n")
    kind, file = rng.choice(
        (
            ("AutoConfig", "config.json"),
            ("AutoModel", "config.json"),
            ("AutoTokenizer", "tokenizer_config.json"),
            ("AutoImageProcessor", "preprocessor_config.json"),
        )
    )
    path = folder / file
    if not is_plain(path):
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["auto_map"] = {kind: rng.choice(("evil.Evil", [None, "evil.Evil"], odd(rng)))}
    except (OSError, ValueError, TypeError, RecursionError):  # it was altered before, or is not of this family
        return
    if rng.random() < 0.5:
        settings |= {"tokenizer_class": "Evil", "image_processor_type": "Evil"}
    write(path, as_text(settings))
