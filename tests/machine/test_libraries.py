"""What libraries do behind our back: no telemetry, and so nothing under the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SESSION = """
from pathlib import Path
from compressor.measure.onnx_runner import OnnxRunner
OnnxRunner(Path("."))
"""


def test_a_session_leaves_the_home_folder_empty(tmp_path: Path, repository: Path) -> None:
    from onnx import TensorProto, helper, save_model

    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("pixel_values", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["pixel_values"], ["logits"])], "g", values[:1], values[1:])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), here / "model.onnx")
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {"HOME": str(home), "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", SESSION], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


def test_what_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.machine.libraries import no_telemetry

    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    no_telemetry()
    assert (os.environ["HF_HUB_DISABLE_TELEMETRY"], os.environ["ORT_DISABLE_TELEMETRY"]) == ("0", "1")
