"""`run` and `plan`: what they hand to the pipeline, and what they make of its answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

REPORT = {
    "version": 1,
    "verdict": "passed",
    "model": {"id": "demo", "parameters": 1000, "task": "text-generation"},
    "passes": [
        {"name": "toy", "family": "structure", "seconds": 1.5, "parameters_before": 1000, "parameters_after": 800}
    ],
    "dense": {"parameters": 1000, "bytes": 4000, "metrics": {"perplexity": 4.0}, "latency_ms": {"prefill": 2.0}},
    "compressed": {"parameters": 800, "bytes": 3200, "metrics": {"perplexity": 4.2}, "latency_ms": {"prefill": 1.6}},
    "ratios": {"bytes": 0.8, "parameters": 0.8, "speedup": {"prefill": 1.25}},
    "checks": [
        {"name": "parity.logits.max_abs", "value": 1e-5, "bound": {"max": 1e-3}, "passed": True, "unit": "logit"}
    ],
    "seconds": {"total": 3.0},
    "peak_memory_bytes": 1,
    "environment": {},
}
FAILED = {
    **REPORT,
    "verdict": "failed",
    "artifact": "out.rejected",
    "checks": [
        *REPORT["checks"],
        {"name": "bounds.kl", "value": 2.0, "passed": False, "reason": "bounds.kl is 2, allowed is at most 1"},
    ],
}


@pytest.fixture
def asked(pipeline):
    """Return what `pipeline.run` was called with; it answers with `answer["report"]`."""
    calls = {"report": REPORT}

    def run(recipe, **given):
        calls.update(recipe=recipe, **given)
        print("chatter of a library")
        given["progress"].stage("prune", 2)
        given["progress"].advance("block 0")
        return calls["report"]

    pipeline.run = run
    return calls


def test_defaults(cli, plain, asked):
    done = cli("run", "plain.yaml")
    assert done.exit_code == 0, done.stderr
    assert (asked["model"], asked["out"], asked["resume"]) == (None, Path("plain"), False)
    assert asked["recipe"].name == "plain" and asked["recipe"].folder == plain.parent
    assert done.stdout.startswith("PASSED  demo")
    assert "chatter" not in done.stdout and "chatter" in done.stderr
    assert "prune: 2 steps" in done.stderr


def test_everything_given(cli, plain, asked):
    done = cli(
        "run",
        plain,
        "-m",
        "other/model",
        "-o",
        "out",
        "--resume",
        "-q",
        "--set",
        "name=mine",
        "--set",
        "verify.kl.max=1",
    )
    assert done.exit_code == 0
    assert (asked["model"], asked["out"], asked["resume"]) == ("other/model", Path("out"), True)
    assert asked["recipe"].name == "mine" and asked["recipe"].bounds == {"kl": {"max": 1.0}}
    assert done.stderr == "chatter of a library\n"


def test_json_is_the_report_alone(cli, plain, asked):
    asked["report"] = {**REPORT, "extra": float("nan")}
    done = cli("run", plain, "--json")
    assert json.loads(done.stdout) == {**REPORT, "extra": None}


def test_a_failed_verdict_ends_with_4_and_its_reasons(cli, plain, asked):
    asked["report"] = FAILED
    for flags in ([], ["--json"]):
        done = cli("run", plain, "-q", *flags)
        assert done.exit_code == 4
        assert done.stdout
        assert "error: verification failed: 1 of 2 checks\n  bounds.kl is 2, allowed is at most 1\n" in done.stderr
        assert "next:  out.rejected/report.html shows all figures.\n" in done.stderr
        assert json.loads(done.stdout) == FAILED if flags else done.stdout.startswith("FAILED  demo")


def test_a_shipped_recipe_by_name(cli, plain, asked, monkeypatch):
    import compressor

    recipes = plain.parent / "recipes" / "demo"
    recipes.mkdir(parents=True)
    plain.rename(recipes / "mine.yaml")
    monkeypatch.setattr(compressor, "__path__", [*compressor.__path__, str(plain.parent)])
    monkeypatch.chdir(recipes)
    assert cli("run", "demo/mine", "-q").exit_code == 0
    assert asked["recipe"].name == "plain"


def test_the_model_is_not_overwritten_by_its_artifact(cli, plain, asked, tmp_path):
    (tmp_path / "model").mkdir()
    for arguments in (["-m", "model"], ["--set", "model.id=./model"]):
        done = cli("run", plain, *arguments, "-o", tmp_path / "model")
        assert done.exit_code == 2 and "this is the model to compress" in done.stderr
    assert "recipe" not in asked


def test_plan(cli, plain, pipeline):
    planned = {"model": {"id": "demo"}, "dense": {"parameters": 1000}, "planned": {"parameters": 800}, "ratios": {}}
    pipeline.plan = lambda recipe, *, model: {**planned, "asked": model}
    assert json.loads(cli("plan", plain, "-m", "x", "--json").stdout) == {**planned, "asked": "x"}
    done = cli("plan", plain)
    assert done.exit_code == 0
    assert done.stdout.startswith("Plan  demo") and "800" in done.stdout
