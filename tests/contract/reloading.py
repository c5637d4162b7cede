"""A program: load a model folder, run it on the inputs beside it, keep the outputs; stock loading uses no compressor.

python -m tests.contract.reloading FOLDER TASK load|stock
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

CLASSES = {"text-generation": "AutoModelForCausalLM", "image-classification": "AutoModelForImageClassification"}


def main(folder: str, task: str, loader: str) -> None:
    """Read `inputs.npz` and write `out.npy`, both in `folder`."""
    if loader == "load":
        import compressor

        model = compressor.load(folder)
    else:
        before = set(sys.modules)
        stated = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
        kind = (
            stated if stated == "SiglipTextModel" else CLASSES.get(task, "AutoModel")
        )  # AutoModel knows no class for it
        model = getattr(transformers, kind).from_pretrained(folder).eval()
        assert not any(module.startswith("compressor") for module in set(sys.modules) - before)
    inputs = {key: torch.from_numpy(value) for key, value in np.load(folder + "/inputs.npz").items()}
    with torch.no_grad():
        np.save(folder + "/out.npy", model(**inputs)[0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
