"""The place of an artifact, refused early, and the folder beside it, left only where there is something to resume."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from compressor.errors import DataError, ResourceError, UsageError
from compressor.pipeline.work import DENSE_MARK, check_target, locked, work_folder


def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    targets = [tmp_path / "file" / "out"]
    if Path("/proc/self").is_dir():  # where even root makes no folder
        targets += [Path("/proc/x"), Path("/proc/x/y")]
    for target in targets:
        with pytest.raises(UsageError, match=f"-o {target}: .* cannot be written") as caught:
            check_target(target)
        assert caught.value.hint
    check_target(tmp_path / "new" / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["file"], "nothing is left of the attempt"


def test_a_full_disk_is_not_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(ResourceError, match="No space left"):
        check_target(tmp_path / "out")


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
    for resume in (True, False):
        with pytest.raises(DataError), locked(work, resume=resume):
            raise DataError("wrong")
        assert work.exists() == resume
