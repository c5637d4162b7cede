"""The C code by itself: under sanitizers, on another processor, beside an old ONNX Runtime, and its build."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

import compressor_kernels as ck
from compressor_kernels._build import SOURCE, run, sources

DRIVER = Path(__file__).parent / "driver.c"


def driver(folder, cc, flags, machine=None):
    """Build the fuzzer with all sources but ONNX Runtime's."""
    common = [cc, "-std=c11", "-ffp-contract=fast", *flags]
    objects = []
    for file, extra in sources(machine):
        if file.name != "ort.c":
            objects.append(str(folder / f"{file.stem}.o"))
            run([*common, *extra, "-c", str(file), "-o", objects[-1]])
    program = folder / "driver"
    run([*common, f"-I{SOURCE}", str(DRIVER), *objects, "-lm", "-pthread", "-o", str(program)])
    return str(program)


def test_random_shapes_under_sanitizers(tmp_path):
    if not shutil.which("cc"):
        pytest.skip("no C compiler cc")
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = driver(tmp_path, "cc", checks)
    done = subprocess.run([program, "60", "1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [name for name, usable in ck.paths().items() if usable]


def test_neon_under_qemu(tmp_path):
    """The NEON path, and the portable one as compilers without vectors in the language see it."""
    cc, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    if missing := [tool for tool in (cc, emulator) if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)} (packages gcc-aarch64-linux-gnu, qemu-user)")
    program = driver(tmp_path, cc, ("-O1", "-static", "-DCK_PLAIN_C"), "aarch64")
    done = subprocess.run([emulator, program, "25", "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["neon", "portable"]


def test_an_older_onnx_runtime_is_refused():
    """Its table for version 17 is null; the error is made with the first version's."""
    said = []
    status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(lambda code, text: said.append(text) or 1)
    oldest = ctypes.cast((ctypes.c_void_p * 1)(ctypes.cast(status, ctypes.c_void_p)), ctypes.c_void_p)
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda version: oldest.value if version == 1 else None)
    version = ctypes.create_string_buffer(b"1.16.3")
    name = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(version))
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(function, ctypes.c_void_p) for function in (get, name)))
    register = ctypes.CDLL(str(ck.library_path())).RegisterCustomOps
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    assert register(None, base) == 1
    assert said == [b"compressor-kernels needs ONNX Runtime 1.17 or newer, this is 1.16.3"]


def test_a_build_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ck.BuildError, match="no C compiler 'no-such-compiler'.*apt install gcc"):
        ck.build(tmp_path / "lib.so")
    if shutil.which("cc"):
        with pytest.raises(ck.BuildError, match=r"failed:[\s\S]*no-such-flag"):
            ck.build(tmp_path / "lib.so", cc="cc", flags=("--no-such-flag",))
    assert not (tmp_path / "lib.so").exists()
