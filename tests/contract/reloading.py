"""A program that loads model folders, as somebody who has not made them does; `stock` loading uses no compressor.

    python -m tests.contract.reloading load|stock

Reads lines of JSON, [FOLDER, TASK, WORK]: runs the model of FOLDER on `inputs.npz` in WORK; `out.npy` goes there.
Answers each with what went wrong, as JSON: nothing where it is empty.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
import transformers

CLASSES = {"text-generation": "AutoModelForCausalLM", "image-classification": "AutoModelForImageClassification"}


def run(loader: str, folder: str, task: str, work: str) -> None:
    """Load a folder and run it."""
    if loader == "load":
        import compressor

        model = compressor.load(folder)
    else:
        stated = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
        # AutoModel knows no class for that one
        kind = stated if stated == "SiglipTextModel" else CLASSES.get(task, "AutoModel")
        model = getattr(transformers, kind).from_pretrained(folder).eval()
        assert not any(module.startswith("compressor") for module in sys.modules)
    inputs = {key: torch.from_numpy(value) for key, value in np.load(f"{work}/inputs.npz").items()}
    with torch.no_grad():
        np.save(f"{work}/out.npy", model(**inputs)[0].numpy())


def main(loader: str) -> None:
    """Answer requests until there are no more; what libraries print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        wrong = ""
        try:
            run(loader, *json.loads(line))
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps(wrong), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
