"""The folder in which a run works: left only where there is something to resume, and never taken from anybody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.errors import DataError, UsageError
from compressor.pipeline.work import DENSE_MARK, is_working, locked, work_folder


@pytest.mark.parametrize("kind", [DataError, KeyboardInterrupt])
@pytest.mark.parametrize("finished", [None, "pass-0/state.json", DENSE_MARK])
def test_only_what_can_be_resumed_is_kept(tmp_path: Path, kind: type[BaseException], finished: str | None) -> None:
    work = work_folder(tmp_path / "out")
    with pytest.raises(kind) as caught, locked(work, resume=False):
        (work / "pass-0").mkdir()
        (work / "pass-0" / "block-0000.safetensors.part").write_bytes(b"x")
        if finished is not None:
            (work / finished).write_text("{}")
        raise kind("wrong")
    assert work.exists() == (finished is not None)
    if isinstance(caught.value, DataError):
        kept = "What was finished is kept; the same command with --resume goes on from it."
        assert caught.value.hint == (kept if finished else None)


def test_what_an_earlier_run_finished_survives_a_resumed_one_that_fails(tmp_path: Path) -> None:
    work = work_folder(tmp_path / "out")
    (work / "pass-0").mkdir(parents=True)
    (work / "pass-0" / "state.json").write_text("{}")
    (work / "lock").touch()
    for resume in (True, False):
        with pytest.raises(DataError), locked(work, resume=resume):
            raise DataError("wrong")
        assert work.exists() == resume


def test_one_run_at_a_time(tmp_path: Path) -> None:
    work = work_folder(tmp_path / "out")
    assert not is_working(work)
    with pytest.raises(DataError), locked(work, resume=False):
        assert is_working(work)
        with pytest.raises(UsageError, match="another run"), locked(work, resume=True):
            pass
        raise DataError("wrong")


@pytest.mark.parametrize("where", [".out.work", ".out.work/lock", ".out.work/pass-0", ".out.work/pass-0/state.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_links_in_the_place_of_a_work_folder_lead_nowhere(tmp_path: Path, where: str, resume: bool) -> None:
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "lock").write_text("mine")
    link = tmp_path / where
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.parent != tmp_path:
        (tmp_path / ".out.work" / "lock").touch()
    link.unlink(missing_ok=True)
    link.symlink_to(precious / "deep" / ("lock" if link.suffix or link.name == "lock" else ""))
    with pytest.raises(UsageError, match="link|not of a run"), locked(work_folder(tmp_path / "out"), resume=resume):
        pass
    assert (precious / "deep" / "lock").read_text() == "mine"
    assert link.is_symlink()


def test_a_folder_of_somebody_else_is_not_worked_in(tmp_path: Path) -> None:
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not of a run"), locked(work_folder(tmp_path / "out"), resume=False):
        pass
    assert (tmp_path / ".out.work" / "notes.txt").read_text() == "mine"
