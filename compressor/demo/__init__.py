"""The embedded default model: a small trained Llama, and the generated stories that it was trained on.

`grammar` writes the stories, `train` makes the files below from them (`make demo-model`).
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent

MODEL_DIR = _HERE / "model"
"""A plain Hugging Face folder: config.json, model.safetensors, tokenizer files."""

TRAIN_TEXT = _HERE / "train.txt"
"""The head of the training text; calibration data `demo:train`."""

VALID_TEXT = _HERE / "valid.txt"
"""Stories that training never sees; evaluation data `demo:valid`."""
