"""Models of odd shapes, and exports that several tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

Exported = Callable[..., tuple[Path, Path]]


@pytest.fixture
def traced_anew() -> Iterator[None]:
    """Every export traces its model, for tests of how that is done."""
    from tests.traces import tracing_anew

    with tracing_anew():
        yield


@pytest.fixture(scope="session")
def exported(pico: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return `export(family, graph="auto", **overrides)`, which gives source and artifact, each exported once."""
    from compressor.exporters.onnx import OnnxOptions, export_onnx
    from compressor.model.folder import open_model

    root = tmp_path_factory.mktemp("exported")
    built: dict[str, tuple[Path, Path]] = {}

    def export(family: str, graph: Any = "auto", precision: Any = "float32", **overrides: Any) -> tuple[Path, Path]:
        overrides.setdefault("num_hidden_layers", 2)
        key = repr((family, graph, precision, sorted(overrides.items())))
        if key not in built:
            out = root / f"{len(built):03d}-{family}-{graph}"
            out.mkdir()
            source = pico(family, **overrides)
            export_onnx(open_model(source), out, OnnxOptions(graph=graph, dtype=precision))
            built[key] = (source, out)
        return built[key]

    return export


def write_shaped(base: Path, folder: Path, changes: Sequence[dict[str, Any]], *, shortcuts: bool = False) -> Path:
    """Write a model of random weights whose blocks have the shapes of `base` but for these changes."""
    import torch

    from compressor.model.blueprint import compression_section
    from compressor.model.folder import open_model
    from compressor.storage.tensors import Plan, write_safetensors

    source = open_model(base)
    layers = tuple(replace(layer, **change) for layer, change in zip(source.shapes.layers, changes, strict=True))
    shapes = replace(source.shapes, layers=layers, shortcuts=shortcuts)
    shaped = source.with_blueprint(source.blueprint.with_shapes(shapes))
    folder.mkdir(parents=True)
    for file in base.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    config["compression"] = compression_section(shaped.blueprint)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(3)

    def made(shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        noise = torch.randn(shape, generator=generator)
        value = 1 + 0.2 * noise if len(shape) == 1 else noise / shape[1] ** 0.5
        return lambda: value

    state = shaped.skeleton().state_dict()
    if shaped.blueprint.tied:
        del state["lm_head.weight"]
    write_safetensors(
        folder / "model.safetensors",
        [Plan(name, "float32", tuple(t.shape), made(tuple(t.shape))) for name, t in sorted(state.items())],
    )
    return folder


def write_uneven(base: Path, folder: Path, *, shortcuts: bool) -> Path:
    """Write a Llama whose blocks differ in FFN width, heads, and (with shortcuts) in residual width."""
    residual = [(48, 40, 40), (40, 40, 36), (36, 44, 44)] if shortcuts else [(48, 48, 48)] * 3
    changes = [
        {"intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": groups, "residual": stream}
        for ffn, heads, groups, stream in zip([96, 77, 33], [6, 4, 3], [2, 1, 3], residual, strict=True)
    ]
    return write_shaped(base, folder, changes, shortcuts=shortcuts)


@pytest.fixture(scope="session", params=[False, True], ids=["widths", "shortcuts"])
def uneven(
    request: pytest.FixtureRequest, pico: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A compressed folder with other shapes in each block, and its ONNX export."""
    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    root = tmp_path_factory.mktemp("uneven")
    base = pico("llama", head_dim=16, tie_word_embeddings=False)
    source = write_uneven(base, root / "source", shortcuts=request.param)
    out = root / "out"
    out.mkdir()
    export_onnx(open_model(source), out)
    return source, out
