"""Every way to end: exit codes, one block on stderr, no traceback unless asked for."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from compressor.errors import (
    CompressorError,
    DataError,
    Interrupted,
    ModelError,
    ResourceError,
    UsageError,
    VerificationError,
)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (UsageError("wrong", hint="do this"), 2, "error: wrong\nnext:  do this\n"),
        (ModelError("broken"), 3, "error: broken\n"),
        (DataError("too short"), 3, "error: too short\n"),
        (VerificationError("missed"), 4, "error: missed\n"),
        (ResourceError("full"), 5, "error: full\n"),
        (Interrupted("stopped"), 130, "error: stopped\n"),
        (CompressorError("[bold]odd[/bold] \x1b[31mname"), 1, "error: [bold]odd[/bold] �[31mname\n"),
        (MemoryError(), 5, "error: out of memory\n"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), 5, "error: out of memory: CUDA out of memory."),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            5,
            "error: out of memory: ",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "error: out of memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 5, "error: out of memory\n"),
        (ImportError("\n\nIMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!\n"), 5, "error: out of"),
        (
            caused(RuntimeError("Failed to import transformers.models"), MemoryError()),
            5,
            "error: out of memory: Failed",
        ),
        (ImportError("No module named 'nowhere'"), 1, "error: internal error: ImportError"),
        (OSError(errno.ENOSPC, "No space left", "/x/model.onnx"), 5, "error: no room left on disk (/x/model.onnx)\n"),
        (OSError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied\nnext:  Check the path"),
        (OSError(errno.EIO, "Input/output error", "/x"), 1, "error: internal error: OSError: [Errno 5]"),
        (
            KeyboardInterrupt(),
            130,
            "error: interrupted\nnext:  What is finished is kept; the same command with --resume",
        ),
        (ValueError("odd\nsecond line"), 1, "error: internal error: ValueError: odd\nnext:  Please report this"),
        (KeyError(), 1, "error: internal error: KeyError: no message\n"),
    ],
)
def test_what_is_raised_becomes_a_code_and_a_message(cli, plain, pipeline, raised, code, shown):
    def fail(*args, **kwargs):
        raise raised

    pipeline.run = fail
    done = cli("run", plain, "-q")
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.startswith(shown)
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(cli, plain, pipeline, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("odd")

    pipeline.run = fail
    done = cli("--debug", "run", plain)
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr and "ValueError: odd" in done.stderr
    monkeypatch.setenv("COMPRESSOR_DEBUG", "1")
    assert "Traceback" in cli("run", plain).stderr


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "x.yaml", "--resum"], "No such option: --resum"),
        (["bench", "x", "--threads", "0"], "Invalid value for '--threads'"),
        (["eval", "x"], "Missing option '--data'"),
        (["eval", "x", "--data", "y", "--metric", "klx"], "'klx' is not one of"),
        (["recipes", "shw"], "No such command 'shw'"),
    ],
)
def test_usage_errors(cli, arguments, shown):
    done = cli(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert shown in done.stderr


def test_all_recipe_errors_at_once(cli, tmp_path):
    (tmp_path / "r.yaml").write_text("version: 1\nname: x\npasses:\n  - toy: {sparsity: 2}\n  - tyo: {}\n")
    done = cli("run", "r.yaml", "--set", "verify.kl.mx=1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: r.yaml: 3 problems\n"
        "  line 4: passes[0].toy.sparsity: must be less than 1.0, got 2\n"
        "  line 5: passes[1].tyo: unknown method (did you mean 'toy'?); allowed: toy, bare\n"
        "  --set verify.kl.mx=1: unknown key (did you mean 'max'?); allowed: min, max\n"
    )


def test_a_real_process_says_the_same(process, tmp_path):
    (tmp_path / "r.yaml").write_text("version: 1\nname: x\npasses: []\nexport: {format: onxx}\n")
    done = process("run", "r.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    expected = "line 4: export.format: allowed: onnx, ort or safetensors, got 'onxx' (did you mean 'onnx'?)"
    assert done.stderr == f"error: r.yaml: 1 problem\n  {expected}\n"


def test_nobody_reads_the_output(process):
    done = process(
        code="import sys, os; os.close(1); from compressor.cli import main; sys.argv[1:] = ['recipes', 'list']; main()"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_in_a_real_process(repository, tmp_path):
    (tmp_path / "r.yaml").write_text("version: 1\nname: x\npasses: []\n")
    code = (
        "import sys, time, types\n"
        "stub = types.ModuleType('compressor.pipeline')\n"
        "def run(*args, **kwargs):\n"
        "    print('begun', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "stub.run = run\n"
        "sys.modules['compressor.pipeline'] = stub\n"
        "import compressor\n"
        "compressor.pipeline = stub\n"
        "from compressor.cli import main\n"
        "sys.argv[1:] = ['run', 'r.yaml', '-q']\n"
        "main()\n"
    )
    import os

    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        # A job runner may have started us with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.startswith("error: interrupted\nnext:  What is finished is kept") and "Traceback" not in err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("command", ["--help", "recipes list", "recipes schema", "recipes show nothing"])
def test_ends_like_other_tools_where_nobody_reads(command: str, stream: str) -> None:
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
    with os.fdopen(write, "wb"):
        done = subprocess.run([sys.executable, "-m", "compressor", *command.split()], **streams, check=False)
    fails = command.endswith("nothing")
    if fails == (stream == "stderr"):
        assert done.returncode == 141 and not done.stdout and not done.stderr
    else:
        assert done.returncode == (2 if fails else 0)


HEAVY = (
    "import atexit, sys, types, typer, compressor.cli as cli\n"
    "sys.modules['torch'] = types.ModuleType('torch')\n"
    "atexit.register(lambda: print('cleaned up', file=sys.stderr, flush=True))\n"
    "@cli.app.command()\n"
    "def told() -> None:\n"
    "    sys.stdout.write('all of it')\n"
    "    raise typer.Exit(4)\n"
    "sys.argv[1:] = ['told']\n"
    "cli.main()\n"
)


def test_ends_at_once_where_torch_is_loaded(process):
    done = process(code=HEAVY)
    assert (done.returncode, done.stdout, done.stderr) == (4, "all of it", "cleaned up\n")
    full = process(code=f"import sys; sys.stdout = open('/dev/full', 'w'); exec({HEAVY!r})")
    assert full.returncode == 5 and "no room left on disk" in full.stderr and "cleaned up" in full.stderr


def test_the_collector_is_off_for_imports_alone():
    from compressor.machine.libraries import without_collector

    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt), without_collector():
        assert not gc.isenabled()
        raise KeyboardInterrupt
    assert gc.isenabled()
    gc.disable()
    with without_collector():
        pass
    assert not gc.isenabled()  # whoever switched it off
    gc.enable()
