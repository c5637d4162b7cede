"""safetensors folders: stock transformers loads them, the bytes are the same, shards agree with the single file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compressor.exporters.safetensors import export_safetensors
from compressor.model.folder import load, open_model
from tests.exporters.conftest import write_uneven
from tests.exporters.session import stock


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_stock_transformers_loads_it(pico: Callable[..., Path], tmp_path: Path, family: str) -> None:
    source = pico(family)
    result = export_safetensors(open_model(source), tmp_path)
    assert {file.name for file in result.files} == {file.name for file in source.iterdir()}
    assert same(stock(tmp_path), stock(source))


def test_image_model_keeps_its_stored_names(pico: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    source = pico("vit")
    export_safetensors(open_model(source), tmp_path)
    model, info = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert same(model, ViTForImageClassification.from_pretrained(source))


def test_shards(pico: Callable[..., Path], tmp_path: Path) -> None:
    source = pico("llama", tie_word_embeddings=False)
    export_safetensors(open_model(source), tmp_path, shard_bytes=150_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2 and all((tmp_path / shard).is_file() for shard in shards)
    assert not (tmp_path / "model.safetensors").exists()
    assert same(stock(tmp_path), stock(source)) and same(load(tmp_path), load(source))


def test_same_bytes(pico: Callable[..., Path], tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        export_safetensors(open_model(pico("qwen3")), folder)
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


@pytest.mark.parametrize("keys", [{"torch_dtype": "float16"}, {"torch_dtype": "float16", "dtype": "float32"}])
def test_only_one_key_states_the_dtype(pico: Callable[..., Path], tmp_path: Path, keys: dict[str, str]) -> None:
    """Stock transformers reads `dtype` where both are there, older programs read `torch_dtype`."""
    from transformers import AutoConfig

    source, out = Path(shutil.copytree(pico("llama"), tmp_path / "source")), tmp_path / "out"
    out.mkdir()
    config = json.loads((source / "config.json").read_text())
    config.pop("dtype", None)
    (source / "config.json").write_text(json.dumps({**config, **keys}))
    export_safetensors(open_model(source), out, dtype="bfloat16")
    assert "torch_dtype" not in json.loads((out / "config.json").read_text())
    assert AutoConfig.from_pretrained(out).dtype == torch.bfloat16


def test_shapes_that_differ_from_block_to_block(pico: Callable[..., Path], tmp_path: Path) -> None:
    source = write_uneven(pico("llama", tie_word_embeddings=False), tmp_path / "source", shortcuts=True)
    out = tmp_path / "out"
    out.mkdir()
    export_safetensors(open_model(source), out)
    assert same(load(out), load(source))
    from transformers import AutoModelForCausalLM

    # Loaded the way a user without this package loads it: by the modelling file in the folder.
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, load(source)(ids).logits, atol=1e-5, rtol=0)


def test_another_type(pico: Callable[..., Path], tmp_path: Path) -> None:
    source = pico("llama")
    export_safetensors(open_model(source), tmp_path, dtype="bfloat16")
    model = load(tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in load(source).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(torch.bfloat16))
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * (source / "model.safetensors").stat().st_size
