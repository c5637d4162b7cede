"""Exported folders in optimum's ORTModel classes.

optimum-onnx wants an older transformers than we do, so it lives in an environment of its own: the test makes one (some
minutes, needs the package index), or uses the one whose interpreter `COMPRESSOR_OPTIMUM_PYTHON` names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.exporters.conftest import Exported

REQUIREMENTS = ("transformers==4.57.6", "optimum-onnx==0.1.0", "onnxruntime", "torch")
RUN = """
import sys
import numpy as np, torch
from optimum import onnxruntime as classes
folder, name, given, output, out = sys.argv[1:]
model = getattr(classes, name).from_pretrained(folder)
feed = {key: torch.from_numpy(value) for key, value in np.load(given).items()}
np.save(out, model(**feed)[output].detach().numpy())
"""


@pytest.fixture(scope="session")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("COMPRESSOR_OPTIMUM_PYTHON"):
        return Path(given)
    if not os.environ.get("COMPRESSOR_TEST_OPTIMUM"):
        pytest.skip("set COMPRESSOR_TEST_OPTIMUM=1 to build an environment with optimum-onnx (large download)")
    folder = tmp_path_factory.mktemp("optimum") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "architecture", "name", "output"),
    [
        ("bert", "BertModel", "ORTModelForFeatureExtraction", "last_hidden_state"),
        ("bert", "BertForSequenceClassification", "ORTModelForSequenceClassification", "logits"),
        ("vit", "ViTForImageClassification", "ORTModelForImageClassification", "logits"),
    ],
)
def test_ort_model_classes(
    optimum: Path, exported: Exported, tmp_path: Path, family: str, architecture: str, name: str, output: str
) -> None:
    import torch
    import transformers

    source, out = exported(family, architecture=architecture)
    random = np.random.default_rng(0)
    if family == "vit":
        feed = {"pixel_values": random.standard_normal((3, 3, 32, 32)).astype(np.float32)}
    else:
        ids = random.integers(0, 300, (3, 11))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    np.savez(tmp_path / "given.npz", **feed)
    arguments = [str(out), name, str(tmp_path / "given.npz"), output, str(tmp_path / "made.npy")]
    subprocess.run([str(optimum), "-c", RUN, *arguments], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    model = getattr(transformers, architecture).from_pretrained(source).eval()
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(value) for key, value in feed.items()})[output].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "made.npy"), expected, atol=1e-4, rtol=0)
