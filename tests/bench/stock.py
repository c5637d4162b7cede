"""What the stock model takes by itself: a job for `tests.bench.jobs`."""

from __future__ import annotations

import time
from typing import Any

Result = dict[str, Any]


def forward(spec: Result) -> Result:
    """Return the CPU seconds of one forward pass of the stock `model` over `samples` of `length` tokens of `data`."""
    import torch
    import transformers

    from compressor.data.reading import DataRequest, load_data, model_batches
    from compressor.model.folder import open_model

    source = open_model(spec["model"])
    request = DataRequest(spec["data"], (), spec["samples"], spec["length"], 0, "calibration")
    batches = list(model_batches(load_data(request, source.task, source.path)))
    model = transformers.AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32).eval()
    with torch.no_grad():
        model(torch.as_tensor(batches[0]["input_ids"]), use_cache=False)
        start = time.process_time()
        for batch in batches:
            model(torch.as_tensor(batch["input_ids"]), use_cache=False)
    return {"cpu_seconds": time.process_time() - start}
