"""`inspect`, `verify`, `bench`, `eval`: what they ask of the layers below, and how they show the answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from compressor.data.kinds import TextData
from compressor.measure.scores import Quality
from compressor.verification import Check, Verdict


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    manifest = {"model": "demo", "task": "text-generation", "precision": "float32", "passes": [{"name": "toy"}]}
    (folder / "compression.json").write_text(json.dumps(manifest))
    (folder / "recipe.yaml").write_text(
        "version: 1\nname: x\npasses: []\nevaluation: {data: valid.txt, samples: 4, length: 16, metrics: [kl]}\n"
        "verify: {kl: {max: 0.1}}\n"
    )
    (tmp_path / "valid.txt").write_text("words " * 100)
    return folder


@pytest.fixture
def verdicts(monkeypatch):
    """Return the jobs that were verified; each passes unless `verdicts.failing` is set."""
    asked = SimpleNamespace(jobs=[], checks=(Check("files.present", True),))

    def run_fresh(job, advance=None):
        asked.jobs.append(job)
        return Verdict(asked.checks, compressed={"parameters": 5, "bytes": 20, "metrics": {}, "latency_ms": {}})

    monkeypatch.setattr("compressor.pipeline.judge.run_fresh", run_fresh)
    monkeypatch.setattr("compressor.pipeline.judge.check_reports", lambda folder, manifest: [])
    monkeypatch.setattr("compressor.pipeline.judge.check_recipe", lambda folder, manifest: [])
    monkeypatch.setattr("compressor.pipeline.judge.source_against", lambda *asked: [Check("source.stock", True)])
    return asked


def test_inspect(cli, pipeline):
    info = {"path": "m", "kind": "model", "family": "llama", "parameters": 1000, "layers": []}
    pipeline.inspect = lambda path: {**info, "path": path}
    assert json.loads(cli("inspect", "m", "--json").stdout) == info
    done = cli("inspect", "m")
    assert done.stdout.startswith("m\n") and "llama" in done.stdout


def test_verify_alone(cli, artifact, verdicts):
    done = cli("verify", artifact, "-q")
    assert done.exit_code == 0, done.stderr
    (job,) = verdicts.jobs
    assert (job.artifact, job.dense, job.bounds, job.data, job.timing) == (artifact, None, {}, None, False)
    assert job.passes == ("toy",)
    assert done.stdout.startswith("PASSED  demo · text-generation")


def test_verify_against_the_dense_model_takes_bounds_and_data_of_the_recipe(cli, artifact, verdicts, tmp_path):
    (tmp_path / "dense").mkdir()
    done = cli("verify", artifact, "--against", "dense", "--threads", 2, "-q")
    assert done.exit_code == 0, done.stderr
    (job,) = verdicts.jobs
    assert (job.dense, job.bounds, job.threads, job.timing) == (Path("dense"), {"kl": {"max": 0.1}}, 2, True)
    assert (job.data.data, job.data.samples, job.data.length, job.metrics) == ("valid.txt", 4, 16, ("kl",))


def test_verify_with_a_recipe_that_cannot_be_read(cli, artifact, verdicts, tmp_path):
    (tmp_path / "dense").mkdir()
    (artifact / "recipe.yaml").write_text("verify: {kll: {max: 1}}")
    done = cli("verify", artifact, "--against", "dense", "-q")
    assert (done.exit_code, verdicts.jobs) == (4, [])
    assert "verify.kll: unknown key (did you mean 'kl'?)" in done.stderr and "--bounds FILE" in done.stderr


def test_verify_counts_operations_where_both_models_can_be_read(cli, artifact, verdicts, tmp_path, monkeypatch):
    (tmp_path / "dense").mkdir()
    config = SimpleNamespace(max_position_embeddings=8)
    for module in ("judge", "stated"):
        monkeypatch.setattr(
            f"compressor.pipeline.{module}.open_model", lambda folder: SimpleNamespace(name=folder.name, config=config)
        )
    counts = {"dense": 100, "artifact": 80}
    monkeypatch.setattr("compressor.pipeline.judge.count_flops", lambda model, length: counts[model.name] * length)
    assert cli("verify", artifact, "--against", "dense", "-q").exit_code == 0
    (job,) = verdicts.jobs
    assert (job.data.length, job.flops) == (8, (800, 640)), "not more tokens than the model has positions"


def test_verify_with_own_bounds_and_data(cli, artifact, verdicts, tmp_path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "bounds.yaml").write_text("speedup: {min: 1.5}")
    (tmp_path / "other.txt").write_text("words")
    given = ["--bounds", "bounds.yaml", "--data", "other.txt", "--no-timing"]
    assert cli("verify", artifact, "--against", "dense", *given).exit_code == 0
    (job,) = verdicts.jobs
    assert (job.bounds, job.data.data, job.metrics, job.timing) == ({"speedup": {"min": 1.5}}, "other.txt", (), False)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (None, ("onnx", "auto", None, "float32", "auto", "auto")),
        ({"export": {"format": "tflite"}}, ("onnx", "auto", None, "float32", "auto", "auto")),
        (
            {"model": {"task": "feature-extraction", "dtype": "float16"}, "export": {"format": "ort", "opset": 19}},
            ("ort", "auto", 19, "float32", "feature-extraction", "float16"),
        ),
        (
            {"export": {"format": "onnx", "graph": "portable", "dtype": "float16"}},
            ("onnx", "portable", None, "float16", "auto", "auto"),
        ),
    ],
)
def test_the_dense_model_is_exported_as_the_artifact_was(
    cli, artifact, verdicts, tmp_path, monkeypatch, recipe, expected
):
    (artifact / "model.onnx").write_bytes(b"")
    manifest = json.loads((artifact / "compression.json").read_text())
    # Half the weights are no reason to halve the dense model's: the run compares with what export.dtype says.
    (artifact / "compression.json").write_text(json.dumps({**manifest, "precision": "float16", "recipe": recipe}))
    (tmp_path / "dense").mkdir()
    exported = []

    def exporter(format):
        def export(source, out, options, advance):
            exported.append((format, options.graph, options.opset, options.dtype, source.task, source.dtype))
            (out / "model.onnx").write_bytes(b"")

        return export

    def open_model(folder, *, task="auto", dtype="auto", part=None):
        return SimpleNamespace(task=task, dtype=dtype, config=SimpleNamespace(max_position_embeddings=8))

    monkeypatch.setattr("compressor.exporters.onnx.export_onnx", exporter("onnx"))
    monkeypatch.setattr("compressor.exporters.ort.export_ort", exporter("ort"))
    monkeypatch.setattr("compressor.pipeline.judge.open_model", open_model)
    monkeypatch.setattr("compressor.pipeline.judge.count_flops", lambda model, length: 1)
    done = cli("verify", artifact, "--against", "dense", "-q")
    assert done.exit_code == 0, done.stderr
    assert exported == [expected]
    assert not verdicts.jobs[0].dense.exists(), "the export is temporary"


@pytest.mark.parametrize(("damaged", "code"), [(False, 4), (True, 3)])
def test_verify_that_fails(cli, artifact, verdicts, damaged, code):
    verdicts.checks = (Check("files.hashes", False, reason="model.onnx was changed", damaged=damaged),)
    done = cli("verify", artifact, "--json", "-q")
    assert done.exit_code == code
    assert json.loads(done.stdout)["verdict"] == "failed"
    assert done.stderr == "error: verification failed: 1 of 1 checks\n  files.hashes: model.onnx was changed\n"


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["nowhere"], 3, "nowhere: no such artifact folder"),
        (["artifact", "--bounds", "none.yaml"], 2, "none.yaml: 1 problem"),
        (["artifact", "--bounds", "bad.yaml"], 2, "line 1: kll: unknown key (did you mean 'kl'?)"),
        (["artifact", "--data", "none.txt"], 3, "evaluation.data: none.txt: no such file"),
        (["artifact", "--against", "./none"], 3, "./none: no such folder"),
    ],
)
def test_verify_with_wrong_arguments(cli, artifact, verdicts, tmp_path, arguments, code, shown):
    (tmp_path / "bad.yaml").write_text("kll: {max: 1}")
    done = cli("verify", *arguments, "-q")
    assert (done.exit_code, done.stdout, verdicts.jobs) == (code, "", [])
    assert shown in done.stderr


def test_verify_reads_a_broken_manifest_as_none(cli, artifact, verdicts):
    for text in ("[1", "[1]", '{"passes": 3}', '{"passes": [3]}'):
        (artifact / "compression.json").write_text(text)
        assert cli("verify", artifact, "-q").exit_code == 0
        assert verdicts.jobs[-1].passes == ()


TIMING = {
    "threads": 1,
    "rounds": 7,
    "phases": [
        {"name": "prefill", "batch": 2, "length": 64, "ours": {"per_second": 500.0}},
        {"name": "decode", "batch": 2, "length": 64, "ours": {"per_second": 20.0}},
    ],
    "latency_ms": {"ours": {"prefill": 4.0, "decode": 1.0}, "other": {"prefill": 8.0, "decode": 1.5}},
    "speedup": {"prefill": 2.0, "decode": 1.5},
    "footprint": {},
}


def test_bench(cli, artifact, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    asked = {}

    def compare(ours, other, **given):
        asked.update(ours=ours, other=other, **given)
        return SimpleNamespace(to_json=lambda: TIMING)

    monkeypatch.setattr("compressor.pipeline.judge.compare", compare)
    done = cli("bench", artifact, "--against", "other", "--batch", 2, "--length", 64, "--rounds", 7, "-q")
    assert done.exit_code == 0, done.stderr
    assert asked == {"ours": artifact, "other": Path("other"), "threads": 1, "batch": 2, "length": 64, "rounds": 7}
    assert "prefill" in done.stdout and "500" in done.stdout and "batch 2, length 64, rounds 7" in done.stdout
    assert json.loads(cli("bench", artifact, "--json").stdout) == TIMING
    assert asked["other"] is None


def test_eval(cli, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "dense").mkdir()
    asked = {}

    def measure(runner, data, metrics, reference):
        asked.update(metrics=metrics, reference=reference)
        return Quality({"perplexity": 4.5, "kl": float("nan")}, {}, False, True, None, 3)

    def load(request, task, folder):
        asked.update(request=request, folder=folder)
        return TextData(np.zeros((3, 4), np.int64))

    config = SimpleNamespace(max_position_embeddings=256)
    monkeypatch.setattr("compressor.pipeline.judge.open_model", lambda folder: SimpleNamespace(config=config))
    monkeypatch.setattr(
        "compressor.pipeline.judge.open_runner", lambda folder, threads: SimpleNamespace(task="text-generation")
    )
    monkeypatch.setattr("compressor.pipeline.judge.load_data", load)
    monkeypatch.setattr("compressor.pipeline.judge.measure", measure)
    arguments = ["--metric", "perplexity", "--metric", "kl", "--against", "dense", "--samples", 3, "--length", 4, "-q"]
    done = cli("eval", "model", "--data", "valid.txt", *arguments)
    assert done.exit_code == 0, done.stderr
    assert asked["metrics"] == ["perplexity", "kl"] and asked["reference"] is not None
    assert (asked["request"].data, asked["request"].samples, asked["request"].length) == ("valid.txt", 3, 4)
    assert "perplexity" in done.stdout and "4.5" in done.stdout
    shown = json.loads(cli("eval", "model", "--data", "valid.txt", "--json").stdout)
    assert shown["metrics"] == {"perplexity": 4.5, "kl": None} and shown["samples"] == 3
    assert (asked["reference"], asked["request"].length) == (None, 256)


def test_eval_refuses_more_tokens_than_the_model_has_positions(cli, tmp_path, monkeypatch):
    for name in ("model", "dense"):
        (tmp_path / name).mkdir()
    positions = {"model": 256, "dense": 128}

    def open_model(folder):
        config = SimpleNamespace(max_position_embeddings=positions[folder.name])
        return SimpleNamespace(config=config, task="text-generation", family=SimpleNamespace(inputs="tokens"))

    monkeypatch.setattr("compressor.pipeline.judge.open_model", open_model)
    for given, limit in ((["--length", 300], 256), (["--length", 200, "--against", "dense"], 128)):
        done = cli("eval", "model", "--data", "valid.txt", *given, "-q")
        assert (done.exit_code, done.stdout) == (3, "")
        assert f"error: --length: {given[1]} tokens; the model has {limit} positions\n" in done.stderr
        assert f"next:  Set --length to at most {limit}.\n" in done.stderr
