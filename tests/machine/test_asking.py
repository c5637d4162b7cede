"""A question to a process of its own: what comes back, and what becomes of errors on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import CompressorError, ModelError, ResourceError, UsageError, VerificationError
from compressor.machine import asking
from compressor.machine.asking import answer, ask
from compressor.machine.fresh import Ended


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `ask` call a function instead of a process; it carries out the request."""

    def use(carry_out: Any, code: int | None = None) -> None:
        def run(module: str, request: str, place: str, **options: Any) -> Ended:
            if code is None:
                return Ended(answer(Path(request), Path(place), carry_out), "", "")
            return Ended(code, "", "KeyError: 3")

        monkeypatch.setattr(asking, "run_preloaded", run)

    return use


def crashed(done: Ended) -> CompressorError:
    return VerificationError(f"ended with {done.code}: {done.last_line}")


def test_an_answer_comes_back(child: Any) -> None:
    child(lambda request: {"twice": 2 * json.loads(request.read_text())["number"]})
    assert ask("any", {"number": 4}, crashed=crashed) == {"twice": 8}


@pytest.mark.parametrize(
    ("error", "kind"),
    [(UsageError("u", hint="h"), UsageError), (ModelError("m"), ModelError), (MemoryError(), ResourceError)],
)
def test_errors_keep_class_and_hint(error: Exception, kind: type[CompressorError], child: Any) -> None:
    def fail(request: Path) -> dict[str, Any]:
        raise error

    child(fail)
    with pytest.raises(kind) as caught:
        ask("any", {}, crashed=crashed)
    assert type(caught.value) is kind
    if isinstance(error, CompressorError):
        assert (caught.value.message, caught.value.hint) == (error.message, error.hint)


def test_no_answer(child: Any) -> None:
    child(None, code=-8)
    with pytest.raises(VerificationError, match="ended with -8: KeyError: 3"):
        ask("any", {}, crashed=crashed)


def test_the_exit_code(tmp_path: Path) -> None:
    def state(request: Path) -> dict[str, Any]:
        return {"exit_code": 4}

    def fail(request: Path) -> dict[str, Any]:
        raise KeyError(3)

    place = tmp_path / "answer.json"
    assert answer(place, place, state) == 4 and json.loads(place.read_text()) == {"exit_code": 4}
    assert answer(place, place, lambda request: {}) == 0
    assert answer(place, place, fail, known=lambda error: ModelError("found")) == 3
    with pytest.raises(KeyError):
        answer(place, place, fail)
