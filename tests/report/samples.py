"""Realistic reports of the kinds that the pipeline writes."""

from __future__ import annotations

from typing import Any

ENVIRONMENT = {
    "compressor": "0.1.0",
    "python": "3.11.2",
    "torch": "2.13.0",
    "onnxruntime": "1.31.1",
    "processor": {"name": "Intel(R) Xeon(R) Platinum 8481C", "cores": 2, "features": ["avx512_vnni", "amx_int8"]},
    "threads": 1,
}

RECIPE = """\
# SmolLM2 for a small board
version: 1
name: smollm2-edge
model: {id: HuggingFaceTB/SmolLM2-135M, task: auto, dtype: auto}
passes:
  - cfsp: {sparsity: 0.3}
  - rsq: {bits: 4, group_size: 32}
export: {format: onnx, opset: auto}
"""

_KEPT = [1216, 1184, 1152, 1120, 1088, 1088, 1056, 1056, 1024, 1024, 1024, 992, 992, 960, 960]
_KEPT += [960, 960, 992, 992, 1024, 1024, 1056, 1056, 1088, 1120, 1152, 1184, 1216, 1248, 1216]


def check(name: str, value: Any, passed: bool = True, unit: str = "", reason: str = "", **bound: Any) -> dict[str, Any]:
    """Return one check in the form of report.json."""
    entry = {"name": name, "value": value, "bound": bound or None, "passed": passed, "unit": unit}
    return {**entry, "reason": reason} if reason else entry


def decoder() -> dict[str, Any]:
    """A language model, pruned per layer and quantized, with everything measured."""
    return {
        "version": 1,
        "verdict": "passed",
        "model": {"id": "HuggingFaceTB/SmolLM2-135M", "parameters": 134_515_008, "task": "text-generation"},
        "passes": [
            {
                "name": "cfsp",
                "family": "structure",
                "seconds": 71.4,
                "parameters_before": 134_515_008,
                "parameters_after": 110_626_752,
                "quality_after": {"perplexity": 19.08, "kl": 0.0412},
                "layers": [
                    {"index": i, "intermediate_size_before": 1536, "intermediate_size_after": w}
                    for i, w in enumerate(_KEPT)
                ],
            },
            {
                "name": "rsq",
                "family": "quantize",
                "seconds": 48.9,
                "parameters_before": 110_626_752,
                "parameters_after": 110_626_752,
                "quality_after": {"perplexity": 19.61, "kl": 0.0603},
                "layers": [{"index": i, "bits_before": 32, "bits_after": 4} for i in range(30)],
            },
        ],
        "dense": {
            "parameters": 134_515_008,
            "bytes": 538_402_816,
            "flops": 137_742_188_544,
            "metrics": {"perplexity": 18.32},
            "samples": 64,
            "intervals": {"perplexity": [17.44, 19.25]},
            "latency_ms": {"prefill": 412.7, "decode": 23.41},
        },
        "compressed": {
            "parameters": 110_626_752,
            "bytes": 138_921_004,
            "flops": 113_280_421_888,
            "metrics": {"perplexity": 19.61, "kl": 0.0603, "top1": 0.8917},
            "samples": 64,
            "intervals": {
                "perplexity": [18.66, 20.61],
                "perplexity_increase": [0.0651, 0.0759],
                "kl": [0.0571, 0.0637],
            },
            "latency_ms": {"prefill": 318.2, "decode": 8.06},
        },
        "ratios": {
            "bytes": 0.258,
            "parameters": 0.8224,
            "flops": 0.8224,
            "speedup": {"prefill": 1.297, "decode": 2.904},
            "speedup_interval": {"prefill": [1.274, 1.322], "decode": [2.861, 2.939]},
        },
        "checks": [
            check("onnx.checker", True),
            check("session.loads", True),
            check("parity.logits.max_abs", 3.1e-6, unit="logit", max=1e-3),
            check("parity.greedy.agreement", 1.0, min=1.0),
            check("determinism", True),
            check("tokenizer.matches", True),
            check("quality.perplexity_increase", 0.0704, max=0.15),
            check("bounds.size_ratio", 0.258, unit="x", max=0.4),
            check("bounds.speedup_decode", 2.904, unit="x", min=1.3),
        ],
        "seconds": {"load": 1.2, "calibrate": 6.4, "passes": 120.3, "export": 14.1, "verify": 61.7, "total": 203.7},
        "peak_memory_bytes": 1_243_611_136,
        "environment": ENVIRONMENT,
        "greedy": [
            {
                "prompt": "The harbour was built in",
                "dense": " 1904 and\nis still in use.",
                "compressed": " 1904 by the | company.",
                "tokens": 32,
                "differs_at": 2,
            },
            {"prompt": "=", "dense": " Birds =", "compressed": " Birds =", "tokens": 2, "differs_at": None},
        ],
    }


def failed() -> dict[str, Any]:
    """The same run, too slow and with a damaged graph."""
    report = decoder()
    report["verdict"] = "failed"
    report["compressed"]["latency_ms"] = {"prefill": 431.0, "decode": 24.9}
    report["ratios"]["speedup"] = {"prefill": 0.958, "decode": 0.940}
    report["ratios"]["speedup_interval"] = {}
    reason = "the artifact is slower than the dense export and worse in quality: it is dominated"
    report["checks"][-1] = check("bounds.speedup_decode", 0.94, False, "x", reason, min=1.3)
    report["checks"][2] = check("parity.logits.max_abs", 4.2, False, "logit", max=1e-3)
    return report


def encoder() -> dict[str, Any]:
    """A sentence encoder, with one latency and one speed-up."""
    return {
        "version": 1,
        "verdict": "passed",
        "model": {
            "id": "/home/someone/models/all-MiniLM-L6-v2",
            "parameters": 22_713_216,
            "task": "feature-extraction",
        },
        "passes": [
            {
                "name": "width",
                "family": "structure",
                "seconds": 9.1,
                "parameters_before": 22_713_216,
                "parameters_after": 20_591_616,
                "quality_after": {"cosine": 0.9812, "cosine_min": 0.9541, "spearman": 0.8601},
                "layers": [
                    {"index": i, "intermediate_size_before": 1536, "intermediate_size_after": 1075} for i in range(6)
                ],
            }
        ],
        "dense": {
            "parameters": 22_713_216,
            "bytes": 90_391_552,
            "flops": 2_725_773_312,
            "metrics": {"spearman": 0.8672},
            "latency_ms": {"forward": 9.83},
        },
        "compressed": {
            "parameters": 20_591_616,
            "bytes": 81_905_664,
            "flops": 2_182_643_712,
            "metrics": {"spearman": 0.8601, "cosine": 0.9812, "cosine_min": 0.9541},
            "latency_ms": {"forward": 7.95},
        },
        "ratios": {"bytes": 0.906, "parameters": 0.9066, "flops": 0.8007, "speedup": {"forward": 1.236}},
        "checks": [
            check("parity.last_hidden_state.max_abs", 3.9e-6, max=1e-4),
            check("quality.cosine_min", 0.9541, min=0.9),
        ],
        "seconds": {"load": 0.4, "calibrate": 2.2, "passes": 9.1, "export": 8.0, "verify": 12.6, "total": 32.3},
        "peak_memory_bytes": 611_000_000,
        "environment": ENVIRONMENT,
    }


def image() -> dict[str, Any]:
    """An image classifier exported to safetensors, heads and channels pruned, without theoretical figures."""
    report = encoder()
    report["model"] = {"id": "WinKawaks/vit-tiny-patch16-224", "parameters": 5_717_416, "task": "image-classification"}
    report["passes"][0]["layers"] = [
        {
            "index": i,
            "intermediate_size_before": 768,
            "intermediate_size_after": 768 - 32 * (i + 1),
            "num_attention_heads_before": 3,
            "num_attention_heads_after": 3 if i % 2 else 2,
        }
        for i in range(12)
    ]
    report["passes"][0]["quality_after"] = {"accuracy": 0.731, "top1": 0.912}
    report["dense"].update(parameters=5_717_416, bytes=22_883_904, flops=None, metrics={"accuracy": 0.754})
    report["compressed"].update(parameters=4_910_000, bytes=19_650_000, flops=None)
    report["compressed"]["metrics"] = {"accuracy": 0.731, "top1": 0.912}
    report["ratios"].update(bytes=0.8587, parameters=0.8588, flops=None)
    report["checks"] = [check("quality.top1", 0.912, min=0.9), check("quality.accuracy_drop", 0.023, max=0.05)]
    return report


def bare() -> dict[str, Any]:
    """The least that a report may hold: no data to evaluate on, nothing timed."""
    return {
        "version": 1,
        "verdict": "failed",
        "model": {"id": "pico", "parameters": None, "task": ""},
        "checks": [check("session.loads", None, False, reason="model.onnx.data ends before its last tensor")],
    }


def hostile(text: str) -> dict[str, Any]:
    """A failed report with `text` in every place for words from a model, a recipe, a machine or an error."""
    report = decoder()
    report["verdict"] = "failed"
    report["model"].update(id=text, task=text)
    report["passes"][0].update(name=text, family=text, notes=[text])
    report["passes"][0]["layers"] = [{"index": i, f"{text}_before": 2 + i, f"{text}_after": 1} for i in range(2)]
    report["checks"] = [
        check(f"{text}.0", text, False, text, text, equal=text),
        check(f"{text}.1", None, False),
        check(f"{text}.2", text, True, text, equal=text),
        check(f"{text}.3", True),
    ]
    for entry in report["passes"]:
        entry["quality_after"][text] = 1.0
    for side in ("dense", "compressed"):
        report[side]["metrics"][text] = 1.0
        report[side]["latency_ms"][text] = 2.0
    report["ratios"]["speedup"][text] = 1.0
    report["seconds"][text] = 3.0
    report["greedy"] = [{"prompt": text, "dense": text, "compressed": text, "tokens": 1, "differs_at": None}]
    report["environment"] = {text: text, "compressor": text, "nested": {text: [text]}}
    return report


REPORTS = {"decoder": decoder, "failed": failed, "encoder": encoder, "image": image, "bare": bare}
