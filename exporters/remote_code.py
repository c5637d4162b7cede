"""The self-contained modelling file of a checkpoint whose layers have widths of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.architectures import Family
from compressor.architectures.tasks import TASKS
from compressor.model.folder import ModelFolder

MODULE = "modeling_compressed"


def paths_of(family: Family) -> dict[str, Any]:
    """Return the family's table as the JSON that the modelling file reads."""
    attention, ffn = family.attention, family.ffn
    return {
        "blocks": family.blocks,
        "embeddings": list(family.embeddings),
        "vectors": list(family.embedding_biases),
        "final_norm": family.final_norm,
        "heads": list(family.heads),
        "residual": family.residual,
        "attention_norm": attention.norm,
        "attention_module": attention.module,
        "attention_readers": [attention.query.path, attention.key.path, attention.value.path],
        "attention_output": attention.output,
        "ffn_norm": ffn.norm,
        "ffn_module": ffn.module,
        "ffn_readers": list(ffn.reader_paths),
        "activation": ffn.activation,
        "ffn_writer": ffn.writer,
    }


def add_remote_code(model: ModelFolder, config: dict[str, Any], out: Path) -> Path:
    """Write the modelling file into `out` and complete `config` with what it reads; return the file."""
    base = type(model.skeleton()).__name__
    source = (Path(__file__).resolve().parent / "modeling_template.py").read_text(encoding="utf-8")
    source = source.replace(
        "from transformers import PreTrainedModel as Base", f"from transformers import {base} as Base"
    )
    file = out / f"{MODULE}.py"
    file.write_text(source, encoding="utf-8")
    section = config["compression"]
    section.update(paths=paths_of(model.family), head_dim=model.shapes.head_dim)
    config["auto_map"] = {TASKS[model.task].auto_class: f"{MODULE}.CompressedModel"}
    return file
