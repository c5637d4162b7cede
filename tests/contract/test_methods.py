"""What every method must do on every family: the options come from its shipped recipe."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from compressor.errors import CompressorError
from compressor.exporters.onnx import OnnxOptions, export_onnx
from compressor.measure.onnx_runner import OnnxRunner
from compressor.model.cost import count_flops, stored_bytes
from compressor.model.folder import ModelFolder, open_model
from compressor.model.image_places import image_features
from compressor.passes import methods
from compressor.passes.apply import Setting, apply_pass
from compressor.passes.base import Target
from compressor.passes.preset import Preset
from compressor.passes.tokens.llm_tokens import LlmTokens
from compressor.passes.tokens.visual_tokens import VisualTokens
from tests.core.test_gates import silent_share
from tests.core.test_loading import COVERED, inputs_of
from tests.core.toy import batches_of

Pico = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"
PLENTY = 1 << 30


def recipe_options() -> dict[str, dict[str, Any]]:
    """Return method -> the options of the first shipped recipe that uses it."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(RECIPES.rglob("*.yaml")):
        for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["passes"]:
            for name, options in entry.items():
                found.setdefault(name, options or {})
    return found


OPTIONS = recipe_options()
# Quantization reads weights as matrices, whatever they are for: one family of each kind shows it.
KINDS = {
    "structure": COVERED,
    "tokens": ["vit", "deit", "dinov2_with_registers", "clip_vision_model", "llava_vision", "llama", "bert"],
    "activation": ["llama", "opt", "bert"],
    "quantize": ["llama", "mistral", "bert", "vit", "dinov2", "clip_vision_model", "llava_vision"],
}
# What each family is to lessen: parameters, operations at a fixed input, inputs that are read, bits.
GAIN: dict[str, Callable[[ModelFolder], float]] = {
    "structure": lambda model: model.parameters,
    "tokens": lambda model: count_flops(model, 96),
    "activation": lambda model: 1 - silent_share(model) if model.blueprint.gates else 1.0,
    "quantize": lambda model: stored_bytes(model, 4),
}
# Token methods are presets of one mechanism: the papers' formulas are compared in tests/methods/test_tokens.py.
SHOWN = {"tome", "token-transforming", "fastervlm", "fastv"}
EACH_KIND = {"llama", "opt", "bert", "vit"}


def shown_elsewhere(name: str, family: str) -> bool:
    """Tell whether another case of those that always run shows what this one does."""
    method = methods()[name]
    if method.family == "tokens":
        return name not in SHOWN or family == "bert"  # texts: tests/methods/test_text_tokens.py
    if method.family == "activation":
        return family != "llama" or name not in ("chess", "teal")
    if method.family == "structure":  # the mechanism itself runs on every family
        return isinstance(method, Preset) and family not in EACH_KIND
    return method.family == "quantize" and name != "gptq" and family in ("mistral", "clip_vision_model", "llava_vision")


def inside_language_model(name: str) -> bool:
    """Tell whether a method lets image tokens go inside a language model."""
    return LlmTokens in (methods()[name], getattr(methods()[name], "of", None))


def options_of(name: str) -> dict[str, Any]:
    """Return the options with which a method is shown on pico-models."""
    span = {"image": {"start": 2, "count": 16}, "layers": [1]} if inside_language_model(name) else {}
    return {**OPTIONS[name], **span}


def families_of(name: str) -> list[str]:
    """Return the families that a method is shown on: one that it refuses among them, where it takes few."""
    method = methods()[name]
    if inside_language_model(name):
        return ["mistral", "opt"]
    behind_encoder = VisualTokens in (method, getattr(method, "of", None))
    return ["vit", "llava_vision"] if behind_encoder else KINDS[method.family]


CASES = [
    pytest.param(name, family, marks=[pytest.mark.exhaustive] * shown_elsewhere(name, family))
    for name in OPTIONS
    for family in families_of(name)
]


def exports_alike(name: str, family: str) -> bool:
    """Tell whether the graph differs from another case's only in widths, or in which values lie on the same grids."""
    method = methods()[name]
    structure = isinstance(method, Preset) and method.family == "structure"
    return structure or (name in ("awq", "hqq", "rsq") and family != "llama")


EXPORTED = [
    pytest.param(*case.values, marks=[*case.marks, *[pytest.mark.exhaustive] * exports_alike(*case.values)])
    for case in CASES
]
Compressed = tuple[ModelFolder, ModelFolder, Any]


def compress(pico: Pico, name: str, family: str, work: Path, cache: int = PLENTY) -> Compressed:
    """Return the source, the compressed model and its changes; skips families that the method refuses by name."""
    method = methods()[name]
    source = open_model(pico(family))
    options = options_of(name)
    if "accuracy_level" in method.Options.model_fields:
        options["accuracy_level"] = 0  # so that the artifact computes what the model in PyTorch does
    instance = method(method.Options(**options))
    try:
        instance.plan(source, Target())
    except CompressorError as error:
        assert error.exit_code in (2, 3)
        assert family in str(error) or source.task in str(error), "a refusal names the family or the task"
        pytest.skip(f"{name} refuses {family}: {error.message}")
    model, changes = apply_pass(
        instance, source, batches_of(source), Setting(work=work, fingerprint="contract", cache_bytes=cache)
    )
    return source, model, changes


@pytest.fixture(scope="module")
def compressed(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Compressed]:
    """Return `compressed(name, family)`: what `compress` returns, each made once; read-only."""
    root = tmp_path_factory.mktemp("compressed")
    return functools.cache(lambda name, family: compress(pico, name, family, root / f"{name}-{family}"))


@pytest.fixture(scope="module")
def reload() -> Iterator[Callable[..., str]]:
    """Return `reload(loader, ...)`, which asks a fresh process to load a folder; it answers with what went wrong."""
    with ExitStack() as started:

        @functools.cache
        def process(loader: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "tests.contract.reloading", loader]
            return started.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
            )

        def ask(loader: str, *words: Path | str) -> str:
            to, answers = process(loader).stdin, process(loader).stdout
            assert to is not None and answers is not None
            print(json.dumps([str(word) for word in words]), file=to, flush=True)
            return str(json.loads(answers.readline()))

        yield ask


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def test_every_method_has_a_recipe() -> None:
    assert sorted(OPTIONS) == sorted(methods())


@pytest.mark.parametrize(("name", "family"), CASES)
def test_changes_what_it_planned_and_reports_it(
    compressed: Callable[[str, str], Compressed], name: str, family: str
) -> None:
    source, model, changes = compressed(name, family)
    method = methods()[name]
    instance = method(method.Options(**options_of(name)))
    planned = source.with_blueprint(instance.plan(source, Target()))
    assert model.parameters == planned.parameters
    assert stored_bytes(model, 4) == stored_bytes(planned, 4)
    gain = image_features if name == "mmtok" and family == "llava_vision" else GAIN[method.family]
    before, after = gain(source), gain(model)  # MMTok lessens the work of the language model alone
    assert after < before or instance.needs.dtype is not None, "what a family is for has become less"
    assert model.parameters == sum(int(np.prod(model.weights.shape(n))) for n in model.weights.names())
    assert len(changes) == len(source.shapes.layers)
    assert all(np.isfinite(value) for change in changes for value in change.figures.values())


@pytest.mark.parametrize(("name", "family"), CASES)
def test_same_bytes_whatever_the_memory(
    compressed: Callable[[str, str], Compressed], pico: Pico, name: str, family: str, tmp_path: Path
) -> None:
    _, model, _ = compressed(name, family)
    compress(pico, name, family, tmp_path, cache=0)
    assert weights(tmp_path) == weights(model.path)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_reloads_in_a_fresh_process(
    compressed: Callable[[str, str], Compressed], reload: Callable[..., str], name: str, family: str, tmp_path: Path
) -> None:
    source, model, _ = compressed(name, family)
    inputs = inputs_of(source)
    with torch.no_grad():
        here = model.load()(**inputs)[0].numpy()
    np.savez(tmp_path / "inputs.npz", **{key: value.numpy() for key, value in inputs.items()})
    loader = "load" if "compression" in (model.path / "config.json").read_text() else "stock"
    assert reload(loader, model.path, source.task, tmp_path) == ""
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), here)


@pytest.mark.parametrize(("name", "family"), EXPORTED)
def test_exports_with_parity(
    compressed: Callable[[str, str], Compressed], name: str, family: str, tmp_path: Path
) -> None:
    source, model, _ = compressed(name, family)
    export_onnx(model, tmp_path, OnnxOptions())
    inputs = inputs_of(source)
    with torch.no_grad():
        expected = model.load()(**inputs)[0].numpy()
    actual = OnnxRunner(tmp_path).forward({key: value.numpy() for key, value in inputs.items()})
    if any(spec.activations != "float" for spec in model.grids.values()):
        cosine = (actual * expected).sum(-1) / np.linalg.norm(actual, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert cosine.mean() > 0.99, "8-bit activations move the output, but not far"
        return
    np.testing.assert_allclose(actual, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_bad_options_are_refused(name: str) -> None:
    options = methods()[name].Options
    with pytest.raises(ValidationError):
        options(**OPTIONS[name], no_such_option=1)
    for key, value in OPTIONS[name].items():
        if isinstance(value, float):
            for bad in (-0.1, 1.0, 1.5, float("nan"), "much"):
                with pytest.raises(ValidationError):
                    options(**{**OPTIONS[name], key: bad})
        if isinstance(value, str):
            with pytest.raises(ValidationError):
                options(**{**OPTIONS[name], key: "no-such-choice"})


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_is_documented(name: str) -> None:
    method = methods()[name]
    assert method.summary and method.__doc__
    for key, field in method.Options.model_fields.items():
        assert field.description, f"{name}.{key} has no description"
    assert (RECIPES.parent / "docs" / "methods" / f"{name}.md").is_file()


def test_importing_the_methods_does_not_import_torch() -> None:
    code = "import sys; from compressor.passes import methods; methods(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
