"""Reasons of failed judgements: what happened, what is allowed, what to try."""

from __future__ import annotations

import pytest

from compressor.verification.quality import check_bounds, check_weight_only
from compressor.verification.reasons import explained
from compressor.verification.verdict import Check


@pytest.mark.parametrize(
    ("bounds", "value", "passes", "reason"),
    [
        (
            {"perplexity_increase": {"max": 0.01}},
            1.4121,
            ["rtn"],
            "perplexity rose by 141 %, from 1.655 to 3.992; 1 % is allowed. Try groups of 32, gptq, or 8 bits",
        ),
        (
            {"accuracy_drop": {"max": 0.01}},
            0.055,
            ["width", "rtn"],
            "accuracy fell by 0.055, from 0.8 to 0.745; 0.01 is allowed. Try a smaller sparsity or reduction, or more"
            " calibration samples, or groups of 32, gptq, or 8 bits",
        ),
        (
            {"size_ratio": {"max": 0.5}},
            0.61,
            ["width"],
            "size ratio is 0.61; 0.5 is allowed. Try fewer bits, larger groups, or a larger sparsity",
        ),
        (
            {"latency_decode_ms": {"max": 2.0}},
            3.5,
            [],
            "latency decode ms is 3.5 ms; 2 ms is allowed. Try a larger sparsity, or 8-bit weights and inputs; on a"
            " busy machine, measure again",
        ),
        (
            {"kl": {"max": 0.01}},
            0.06,
            ["gptq"],
            "KL to dense is 0.06; 0.01 is allowed. Try smaller groups, or more bits (bits: auto spends them where they"
            " count)",
        ),
        ({"top1": {"min": 0.9}}, 0.85, [], "top-1 agreement is 0.85; 0.9 is required. Try weaker settings"),
    ],
)
def test_a_missed_bound(bounds: dict[str, dict[str, float]], value: float, passes: list[str], reason: str) -> None:
    ours, dense = {"perplexity": 3.992, "accuracy": 0.745}, {"perplexity": 1.655, "accuracy": 0.8}
    (name,) = bounds
    (check,) = (check for check in check_bounds({name: value}, bounds) if check.name == f"bounds.{name}")
    assert explained(check, ours, dense, passes).reason == reason


def test_a_gate_names_its_key() -> None:
    checks = check_weight_only({"kl": 0.5}, {}, alone=True, step=None)
    (check,) = (explained(check, {"kl": 0.5}, {}, ["rtn"]) for check in checks)
    assert check.reason == (
        "KL to dense is 0.5; 0.01 is allowed (verify.quality.weight_only.kl takes another bound). Try groups of 32,"
        " gptq, or 8 bits"
    )


@pytest.mark.parametrize(
    "check",
    [
        Check("bounds.size_ratio", True, 0.4, {"max": 0.5}),
        Check("bounds.speedup", False, None, {"min": 1.0}, reason="not measured"),
        Check("files.seal", False, reason="changed"),
    ],
)
def test_other_checks_keep_what_they_say(check: Check) -> None:
    assert explained(check, {}, {}, []) is check
