"""The processor: model, cores, the features that matter to inference, and what 8-bit products need of it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FLAGS = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "avx512_vnni": {"avx512_vnni"},
    "avx_vnni": {"avx_vnni"},
    "avx512_bf16": {"avx512_bf16"},
    "amx_int8": {"amx_int8"},
    "amx_bf16": {"amx_bf16"},
    "neon": {"asimd", "neon", "AdvSIMD"},
    "dotprod": {"asimddp", "FEAT_DotProd"},
    "i8mm": {"i8mm", "FEAT_I8MM"},
    "bf16": {"bf16", "FEAT_BF16"},
}
"""Feature that matters to inference -> the flags by which systems name it."""

_X86 = ("avx2", "avx512", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM = ("neon", "dotprod", "i8mm", "bf16")
_BYTE_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm")
"""Features that multiply bytes and add the products in 32 bits."""


def has_byte_products(features: Mapping[str, bool]) -> bool:
    """Tell whether a processor multiplies bytes and adds the products in 32 bits."""
    return any(features.get(name) for name in _BYTE_PRODUCTS)


TARGETS: Mapping[str, Mapping[str, bool]] = {
    "x86-avx2": {"avx2": True},
    "x86-vnni": {"avx2": True, "avx_vnni": True},
    "arm64": {"neon": True},
}
"""Name of a kind of processor -> the features that decide how an artifact for it is made."""


def target_of(features: Mapping[str, bool] | None) -> str:
    """Return which of `TARGETS` a processor is.

    One that the system does not describe, and one that is neither x86 nor ARM, counts as `x86-avx2`: what is made for
    that is right on all others as well.

    Args:
        features: `cpu()["features"]`; None where the system tells nothing.
    """
    if "neon" in features if features is not None else _is_arm():
        return "arm64"
    return "x86-vnni" if features is not None and has_byte_products(features) else "x86-avx2"


def target_for(stated: str) -> str:
    """Return the kind of processor that a recipe's `export.target` names; `auto` names this machine's."""
    return target_of(cpu()["features"]) if stated == "auto" else stated


def weight_bits(features: Mapping[str, bool] | None) -> tuple[int, str]:
    """Return how many bits of an 8-bit weight may be used with 8-bit inputs, and why.

    x86 processors without VNNI multiply unsigned by signed bytes and add two products in 16 bits, where
    2 · 255 · 127 does not fit and is cut off; 2 · 255 · 63 does. ARM kernels widen first.

    Args:
        features: `cpu()["features"]`; None where the system tells nothing.
    """
    target = target_of(features)
    if target == "arm64":
        return 8, "ARM kernels widen bytes before they add"
    if target == "x86-vnni":
        return 8, "the processor adds byte products in 32 bits"
    return 7, "without VNNI, x86 adds pairs of byte products in 16 bits, where 8-bit weights overflow"


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return model, cores and the features that matter to inference.

    Args:
        cpuinfo: Linux' description of the processor; where it is absent, other systems are asked in their ways.
    """
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else _sysctl()
    flags = set(re.findall(r"[A-Za-z0-9_]+", " ".join(re.findall(r"(?im)^(?:flags|features)\s*:(.*)$", text))))
    names = re.findall(r"(?m)^(?:model name|Model|Processor)\s*:\s*(.+)$", text)
    arm = _is_arm() or "asimd" in flags
    features = {name: bool(_FLAGS[name] & flags) for name in (_ARM if arm else _X86)}
    return {
        "model": names[0].strip() if names else platform.processor() or platform.machine(),
        "cores": _cores(),
        "features": features if flags else None,
    }


def _is_arm() -> bool:
    return platform.machine().lower() in ("arm64", "aarch64")


def _sysctl() -> str:
    """Return what macOS says of its processor in the form of /proc/cpuinfo; nothing elsewhere."""
    if sys.platform != "darwin":
        return ""
    import subprocess

    try:
        done = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    brand = re.findall(r"(?m)^machdep\.cpu\.brand_string: (.+)$", done.stdout)
    intel = re.findall(r"(?m)^machdep\.cpu\.(?:leaf7_)?features: (.+)$", done.stdout)
    arm = re.findall(r"(?m)^hw\.optional\.(?:arm\.)?(\w+): 1$", done.stdout)
    return f"model name : {(brand or ['?'])[0]}\nflags : {' '.join([*intel, *arm]).replace('AVX', 'avx')}\n"


def _cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
