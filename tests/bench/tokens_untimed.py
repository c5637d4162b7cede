"""Token passes measured in PyTorch, without artifacts: what `--no-timing` shows of them in a tenth of the time."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]


def reduced_quality(spec: Result) -> Result:
    """Return rows by line; takes `model`, `images`, `lines` of one pass each, and `samples` (None: all images)."""
    import numpy as np
    import torch
    import yaml

    from compressor.data.reading import DataRequest, load_data
    from compressor.model.cost import count_flops
    from compressor.model.folder import open_model
    from compressor.passes import methods
    from compressor.passes.base import Target

    source = open_model(spec["model"])
    data = load_data(DataRequest(spec["images"], (), spec["samples"], 0, 0, "evaluation"), source.task, source.path)
    inputs, labels = [torch.as_tensor(batch["pixel_values"]) for batch in data.batches], data.labels

    def classes(model: Any) -> Any:
        with torch.inference_mode():
            return np.concatenate([model(pixel_values=batch).logits.argmax(-1).numpy() for batch in inputs])

    dense, rows = classes(source.load()), {}
    for line in spec["lines"]:
        ((name, options),) = yaml.safe_load(line).items()
        made = methods()[name](methods()[name].Options(**options))
        folder = source.with_blueprint(made.plan(source, Target()))
        ours = classes(folder.load())
        rows[line] = {
            "metrics": {"accuracy": float((ours == labels).mean()), "top1": float((ours == dense).mean())},
            "dense_metrics": {"accuracy": float((dense == labels).mean())},
            "ratios": {"flops": count_flops(folder, 0) / count_flops(source, 0)},
            "verdict": "in PyTorch, not exported",
            "failed": [],
        }
    return rows
