"""The files beside config.json and the weights that make a folder usable: tokenizer, processor, generation."""

from __future__ import annotations

import shutil
from pathlib import Path

from compressor.storage.files import own_file

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
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def copy_companions(source: Path, out: Path) -> list[Path]:
    """Copy the files of `COMPANIONS` that `source` has into `out`; return the copies.

    Raises:
        ModelError: one of them leads outside the folder.
    """
    copies = []
    for name in COMPANIONS:
        file = own_file(source, name)
        if file is not None:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            # The contents alone: a hub folder holds read-only links.
            shutil.copyfile(file, out / name)
            copies.append(out / name)
    return copies
