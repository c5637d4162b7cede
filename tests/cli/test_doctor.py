"""`doctor`: what is there, what is missing, how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import tomllib
from types import SimpleNamespace

import pytest

from compressor.machine import doctor, processor

X86 = """processor : 0
model name : Intel(R) Xeon(R) Platinum
flags : fpu avx2 avx512f avx512_vnni amx_int8 avx512_bf16
"""
ARM = """processor : 0
Features : fp asimd asimddp i8mm bf16
CPU part : 0xd40
"""
ELSEWHERE = ["no-such-thing; extra == 'test'", "no-such-thing; python_version < '3'"]
"""Requirements that do not hold here."""


def test_this_machine(cli):
    done = cli("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == (1 if facts["problems"] else 0)
    assert facts["python"] == platform.python_version()
    torch = next(item for item in facts["packages"] if item["name"] == "torch")
    assert torch["version"] == importlib.metadata.version("torch")
    assert facts["cpu"]["cores"] >= 1
    assert "CPUExecutionProvider" in facts["runtime"]["onnxruntime_providers"]
    assert facts["memory"]["total_bytes"] > facts["memory"]["available_bytes"] > 0
    assert facts["disk"]["working_folder"]["free_bytes"] > 0


def test_every_extra_is_listed(repository):
    stated = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(stated)


def test_table(cli, monkeypatch):
    facts = doctor.examine()
    facts.update(problems=[], advice=["pip install 'compressor[genai]'   # runs decoders"])
    monkeypatch.setattr(doctor, "examine", lambda: facts)
    done = cli("doctor")
    assert done.exit_code == 0
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert importlib.metadata.version("torch") in rows["torch"]
    assert "Advice\n  pip install 'compressor[genai]'   # runs decoders\n" in done.stdout
    assert done.stdout.endswith("Everything that is needed is there.\n")


def test_missing_and_wrong_packages(cli, monkeypatch):
    monkeypatch.setattr(
        doctor, "_requirements", lambda: ["no-such-thing>=1,<2", "numpy<1 ; python_version > '3'", "rich", *ELSEWHERE]
    )
    missing, wrong, fine = doctor.required_packages()
    assert missing["problem"] == "missing; get it with: pip install 'no-such-thing<2,>=1'"
    assert wrong["problem"] == f"{importlib.metadata.version('numpy')} is not <1; get it with: pip install 'numpy<1'"
    assert fine["problem"] is None
    done = cli("doctor")
    assert done.exit_code == 1
    assert "Missing\n  no-such-thing: missing; get it with: pip install 'no-such-thing<2,>=1'\n" in done.stdout
    assert "Everything" not in done.stdout


def test_without_packaging(monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    (missing,) = doctor.required_packages()
    assert missing["problem"] == "missing; get it with: pip install packaging"


def test_a_checkout_that_is_not_installed(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    assert [item["problem"] for item in doctor.required_packages()] == [None] * 10


def test_extras_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"genai": ("no-such-thing", "no_such_thing", "runs decoders")})
    (extra,) = doctor.examine()["extras"]
    assert extra["install"] == "pip install 'compressor[genai]'" and extra["version"] is None
    assert doctor.examine()["advice"][0] == "pip install 'compressor[genai]'   # runs decoders"


def test_a_library_that_does_not_start(monkeypatch):
    def broken(name):
        if name == "onnxruntime":
            raise ImportError("libfoo.so: cannot open")
        return SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 1 // 0))

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    facts, problems = doctor._runtime()
    assert facts == {"onnxruntime_providers": None, "cuda": None, "torch_threads": None}
    assert problems == [
        "onnxruntime cannot be imported: libfoo.so: cannot open",
        "torch: ZeroDivisionError: integer division or modulo by zero",
    ]


@pytest.mark.parametrize(
    ("text", "machine", "model", "on", "off"),
    [
        (
            X86,
            "x86_64",
            "Intel(R) Xeon(R) Platinum",
            {"avx2", "avx512", "avx512_vnni", "amx_int8", "avx512_bf16"},
            {"amx_bf16"},
        ),
        (ARM, "aarch64", None, {"neon", "dotprod", "i8mm", "bf16"}, set()),
    ],
)
def test_features_of_processors(tmp_path, monkeypatch, text, machine, model, on, off):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    found = doctor.cpu(path)
    assert {name for name, there in found["features"].items() if there} == on
    assert off <= set(found["features"])
    assert model is None or found["model"] == model


def test_mac(tmp_path, monkeypatch):
    said = (
        "machdep.cpu.brand_string: Apple M2\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.AdvSIMD: 1\n"
        "hw.optional.arm.FEAT_BF16: 0\n"
    )
    monkeypatch.setattr(processor.sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: SimpleNamespace(stdout=said))
    found = doctor.cpu(tmp_path / "none")
    assert found["model"] == "Apple M2"
    assert found["features"] == {"neon": True, "dotprod": True, "i8mm": False, "bf16": False}


def test_an_unknown_system_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(processor.sys, "platform", "win32")
    assert doctor.cpu(tmp_path / "none")["features"] is None
