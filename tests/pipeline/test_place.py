"""The place of an artifact: refused early, replaced without a loss, brought back after a kill at any moment."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import CompressorError, ResourceError, UsageError
from compressor.pipeline import place
from compressor.pipeline.place import check_target, located, old_folder, put_in_place, rejected_folder, restore
from compressor.pipeline.work import locked, work_folder
from compressor.verification import manifest as manifests

FILES = ("model.onnx", "config.json", "verification/reference.safetensors")
REPORTS = ("report.json", "README.md", "junit.xml")


def artifact(folder: Path, text: str, files: tuple[str, ...] = FILES) -> Path:
    """Write what a run leaves, each file with the same text."""
    for name in (*files, *REPORTS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    content = {"version": 1, "outputs": dict.fromkeys(files, "sha")}
    content["seal"] = manifests._digest(content)
    (folder / "compression.json").write_text(json.dumps(content))
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Return every file and link in a folder with its content, and empty folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path.relative_to(folder).as_posix()] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_text()
        elif not path.is_dir() or not any(path.iterdir()):
            found[path.relative_to(folder).as_posix()] = "empty"
    return found


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


def _any_manifest(out: Path) -> None:
    out.mkdir()
    (out / "compression.json").write_text("{}")


def _edited_manifest(out: Path) -> None:
    text = (artifact(out, "old") / "compression.json").read_text()
    (out / "compression.json").write_text(text.replace("config.json", "notes.txt"))


def _deep_manifest(out: Path) -> None:
    (artifact(out, "old") / "compression.json").write_text("[" * 100_000)


def _manifest_elsewhere(out: Path) -> None:
    (artifact(out, "old") / "compression.json").rename(out.parent / "compression.json")
    (out / "compression.json").symlink_to("../compression.json")


def _own_file(out: Path) -> None:
    (artifact(out, "old") / "notes.txt").write_text("mine")


def _own_file_deep(out: Path) -> None:
    (artifact(out, "old") / "verification" / "notes.txt").write_text("mine")


def _empty_folder(out: Path) -> None:
    (artifact(out, "old") / "plots").mkdir()


def _linked_folder(out: Path) -> None:
    (artifact(out, "old") / "verification").rename(out.parent / "elsewhere")
    (out / "verification").symlink_to("../elsewhere")


def _pipe(out: Path) -> None:
    (artifact(out, "old") / "report.json").unlink()
    os.mkfifo(out / "report.json")


def _rejected_of_somebody(out: Path) -> None:
    artifact(out, "old")
    rejected_folder(out).mkdir()
    (rejected_folder(out) / "a").write_text("mine")


def _old_of_somebody(out: Path) -> None:
    old_folder(out).mkdir()
    (old_folder(out) / "a").write_text("mine")


def _work_elsewhere(out: Path) -> None:
    (out.parent / "precious").mkdir()
    (out.parent / "precious" / "a").write_text("mine")
    work_folder(out).symlink_to("precious")


def _dangling(out: Path) -> None:
    out.symlink_to("nowhere")


@pytest.mark.parametrize(
    "build",
    [
        _any_manifest,
        _edited_manifest,
        _deep_manifest,
        _manifest_elsewhere,
        _own_file,
        _own_file_deep,
        _empty_folder,
        _linked_folder,
        _pipe,
        _rejected_of_somebody,
        _old_of_somebody,
        _work_elsewhere,
        _dangling,
    ],
)
def test_what_is_not_ours_is_refused_before_work(tmp_path: Path, build: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    build(out)
    before = tree(tmp_path)
    with pytest.raises(UsageError) as caught:
        check_target(located(out))
    assert caught.value.hint
    restore(out)
    assert tree(tmp_path) == before


def test_a_mount_point_is_refused() -> None:
    with pytest.raises(UsageError, match="mount point"):
        check_target(Path("/"))


@pytest.mark.parametrize("swaps", [True, False])
def test_a_clone_keeps_its_history(tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(place, "_swap", lambda first, second: False)
    out = artifact(tmp_path / "out", "old", (*FILES, "vocab.txt"))
    (out / ".git" / "objects").mkdir(parents=True)
    (out / ".git" / "HEAD").write_text("main")
    (out / ".gitattributes").write_text("*.onnx filter=lfs")
    check_target(out)
    put_in_place(artifact(tmp_path / "ready", "new"), out)
    new = tree(artifact(tmp_path / "wanted", "new"))
    assert tree(out) == new | {".git/HEAD": "main", ".git/objects": "empty", ".gitattributes": "*.onnx filter=lfs"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "wanted"}


def test_a_linked_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    out = artifact(tmp_path / "out", "old")
    (out / "model.onnx").rename(tmp_path / "blob")
    (out / "model.onnx").symlink_to("../blob")
    check_target(out)
    put_in_place(artifact(tmp_path / "ready", "new"), out)
    assert (tmp_path / "blob").read_text() == "old"
    assert tree(out) == tree(artifact(tmp_path / "wanted", "new"))


@pytest.mark.parametrize("held", [False, True])
def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, held: bool) -> None:
    real = tmp_path / "disk" / "real"
    real.mkdir(parents=True)
    if held:
        artifact(real, "old")
    (tmp_path / "out").symlink_to(real)
    out = located(tmp_path / "out")
    assert out == real
    check_target(out)
    put_in_place(artifact(tmp_path / "ready", "new"), out)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "out" / "model.onnx").read_text() == "new"


def test_what_came_during_the_run_is_not_lost(tmp_path: Path) -> None:
    out = artifact(tmp_path / "out", "old")
    check_target(out)
    (out / "notes.txt").write_text("mine")
    put_in_place(artifact(tmp_path / "ready", "new"), out)
    assert (out / "notes.txt").read_text() == "mine" and (out / "model.onnx").read_text() == "new"

    (out / "compression.json").unlink()
    with pytest.raises(UsageError, match="changed during the run"):
        put_in_place(artifact(tmp_path / "ready", "newer"), out)
    assert (out / "notes.txt").read_text() == "mine" and (tmp_path / "ready" / "model.onnx").is_file()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("swaps", [True, False])
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change of the file system is once the last one; the next start leaves an artifact, whole, and `.git`."""
    swap = place._swap if swaps else lambda first, second: False
    steps = {"done": 0, "allowed": 0}

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if steps["done"] == steps["allowed"]:
                raise Killed
            steps["done"] += 1
            return call(*args, **kwargs)

        return step

    for allowed in range(40):
        here = tmp_path / str(allowed)
        out = artifact(here / "out", "old")
        (out / ".git").mkdir()
        (out / ".git" / "HEAD").write_text("main")
        ready = artifact(here / "ready", "new")
        steps.update(done=0, allowed=allowed)
        with monkeypatch.context() as patch:
            patch.setattr(place, "_swap", counted(swap))
            patch.setattr(os, "rmdir", counted(os.rmdir))
            for name in ("rename", "unlink", "rmdir"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                put_in_place(ready, out)
                finished = True
            except Killed:
                finished = False
        said = restore(out)
        assert (out / ".git" / "HEAD").read_text() == "main"
        texts = {text for name, text in tree(out).items() if name not in (".git/HEAD", "compression.json")}
        assert texts in ({"old"}, {"new"}) and not old_folder(out).exists()
        assert said is None or texts == {"old"}
        if finished:
            assert texts == {"new"}
            return
    pytest.fail("the replacement did not come to an end")


def test_an_artifact_is_brought_back_but_not_from_a_run_at_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    artifact(old_folder(out), "old")
    with pytest.raises(Killed), locked(work_folder(out), resume=False):
        assert restore(out) is None and not out.exists()
        raise Killed
    assert "it is back" in str(restore(out))
    assert (out / "model.onnx").read_text() == "old"
    assert restore("a\0b") is None and restore("x" * 5000) is None


def test_every_command_that_takes_a_folder_brings_it_back(tmp_path: Path) -> None:
    from compressor import pipeline
    from compressor.machine.progress import NullProgress

    quiet = NullProgress()
    commands: list[Callable[[Path], object]] = [
        pipeline.inspect,
        lambda out: pipeline.verify(out, progress=quiet, bounds=tmp_path / "none.yaml"),
        lambda out: pipeline.bench(str(out), progress=quiet),
        lambda out: pipeline.evaluate(str(out), data="none.txt", progress=quiet),
    ]
    for number, command in enumerate(commands):
        out = tmp_path / str(number)
        artifact(old_folder(out), "old")
        with pytest.raises(CompressorError):  # it is no model that could be loaded
            command(out)
        assert (out / "config.json").read_text() == "old"
