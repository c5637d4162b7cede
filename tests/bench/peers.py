"""What other quantizers make of the same model: jobs for `tests.bench.jobs`, each in a process of its own.

ONNX Runtime's quantizers work on our dense export, so that graph and runtime are the same; onnxruntime-genai's builder
starts from the checkpoint; llm-compressor lives in an environment of its own (`$COMPRESSOR_BENCH_LLMCOMPRESSOR` names
its interpreter) and leaves a checkpoint that is measured in PyTorch, as its format has no ONNX form.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

Result = dict[str, Any]
LLMCOMPRESSOR = "COMPRESSOR_BENCH_LLMCOMPRESSOR"


def ort_nbits(spec: Result) -> Result:
    """Quantize the weights of the export `model` with MatMulNBitsQuantizer: `bits`, `block`, `symmetric`, `algorithm`.

    The head stays as it is, as in our recipes.
    """
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as library

    out = _copied(spec)
    graph = onnx.load(out / "model.onnx")
    size, symmetric = spec["block"], spec["symmetric"]
    config = {
        "default": None,
        "hqq": library.HQQWeightOnlyQuantConfig(block_size=size, bits=spec["bits"]),
        "k_quant": library.KQuantWeightOnlyQuantConfig(),
    }[spec["algorithm"]]
    start = time.process_time()
    quantizer = library.MatMulNBitsQuantizer(
        graph,
        bits=spec["bits"],
        block_size=size,
        is_symmetric=symmetric,
        accuracy_level=4,
        nodes_to_exclude=[node.name for node in graph.graph.node if "lm_head" in node.name],
        algo_config=config,
    )
    quantizer.process()
    seconds = time.process_time() - start
    _save(quantizer.model.model, out)
    return {"cpu_seconds": seconds}


def ort_dynamic(spec: Result) -> Result:
    """Quantize the export `model` with quantize_dynamic, per channel, signed bytes, embeddings included."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = _copied(spec)
    graph = onnx.load(out / "model.onnx")
    del graph.graph.value_info[:]
    start = time.process_time()
    quantize_dynamic(
        graph,
        str(out / "model.onnx"),
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=spec.get("operators", ["MatMul", "Gather"]),
        # Shape inference knows no type of what contrib operators give.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    (out / "model.onnx.data").unlink(missing_ok=True)
    return {"cpu_seconds": time.process_time() - start}


def genai_int4(spec: Result) -> Result:
    """Build `model` with onnxruntime-genai's builder in 4 bits: `options` are its own, such as int4_algo_config."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    from tests.bench.jobs import state_head_size

    out, model = Path(spec["out"]), str(spec["model"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    given = (model, model, str(out), "int4", "cpu", str(out / "cache"))
    start = time.process_time()
    create_model(*given, **parse_extra_options(*given, list(spec["options"])))
    seconds = time.process_time() - start
    shutil.copyfile(Path(model) / "config.json", out / "config.json")
    state_head_size(out)
    return {"cpu_seconds": seconds}


def llmcompressor_gptq(spec: Result) -> Result:
    """Run llm-compressor's GPTQ on `model` with the same windows: `data`, `samples`, `length`, `group`, `symmetric`."""
    from compressor.data.reading import DataRequest, load_data
    from compressor.model.folder import open_model

    out = Path(spec["out"])
    shutil.rmtree(out, ignore_errors=True)
    source = open_model(spec["model"])
    request = DataRequest(spec["data"], (), spec["samples"], spec["length"], 0, "calibration")
    data = load_data(request, source.task, source.path)
    out.mkdir(parents=True)
    windows = out.parent / f"{out.name}-windows.json"
    windows.write_text(json.dumps(data.windows.tolist()), encoding="utf-8")  # type: ignore[union-attr]
    facts = {"model": str(source.path), "out": str(out), "windows": str(windows), **_only(spec, "group", "symmetric")}
    start = os.times()
    subprocess.run([os.environ[LLMCOMPRESSOR], "-c", _LLMCOMPRESSOR, json.dumps(facts)], check=True)
    end = os.times()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, out / name)
    return {"cpu_seconds": end.children_user - start.children_user + end.children_system - start.children_system}


_LLMCOMPRESSOR = """
import json, sys
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM
facts = json.loads(sys.argv[1])
torch.set_num_threads(1)
windows = json.load(open(facts["windows"]))
data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(w) for w in windows]})
model = AutoModelForCausalLM.from_pretrained(facts["model"], dtype=torch.float32)
weights = {"num_bits": 4, "type": "int", "symmetric": facts["symmetric"], "strategy": "group",
           "group_size": facts["group"], "actorder": "static"}
modifier = GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])
length, count = len(windows[0]), len(windows)
oneshot(model=model, dataset=data, recipe=modifier, max_seq_length=length, num_calibration_samples=count)
# Weights as the format will hold them, dequantised: measured in PyTorch like any other checkpoint.
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
for module in model.modules():
    scheme, scale = getattr(module, "quantization_scheme", None), getattr(module, "weight_scale", None)
    if scheme is not None and scale is not None:
        zero = getattr(module, "weight_zero_point", None)
        module.weight.data = fake_quantize(module.weight, scale, zero, scheme.weights)
from safetensors.torch import save_file
left_out = ("_scale", "_zero_point", "_g_idx") + (("lm_head.weight",) if model.config.tie_word_embeddings else ())
state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.endswith(left_out)}
save_file(state, facts["out"] + "/model.safetensors", metadata={"format": "pt"})
"""


def measured_quality(spec: Result) -> Result:
    """Measure the folder `ours` against `dense` on `data` (`samples` of `length`), each in its own runtime."""
    from compressor.data.reading import DataRequest, load_data
    from compressor.measure.benchmark import file_bytes
    from compressor.measure.evaluation import measure
    from compressor.measure.opening import open_runner

    dense, ours = open_runner(Path(spec["dense"]), 1), open_runner(Path(spec["ours"]), 1)
    request = DataRequest(spec["data"], (), spec["samples"], spec["length"], 0, "evaluation")
    found = measure(ours, load_data(request, dense.task, Path(spec["tokenizer"])), dense)
    return {
        "ours": found.ours,
        "dense": found.dense,
        "bytes": file_bytes(Path(spec["ours"])),
        "dense_bytes": file_bytes(Path(spec["dense"])),
    }


def _only(spec: Result, *keys: str) -> Result:
    return {key: spec[key] for key in keys}


def _copied(spec: Result) -> Path:
    """Copy the export `model` to `out`."""
    out = Path(spec["out"])
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(spec["model"], out)
    return out


def _save(graph: Any, out: Path) -> None:
    """Write a graph into one file; small models alone are measured so."""
    import onnx

    onnx.save(graph, out / "model.onnx")
    (out / "model.onnx.data").unlink(missing_ok=True)
