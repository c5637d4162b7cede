"""The library under test: the one that $COMPRESSOR_KERNELS_LIBRARY or the installed wheel has, else one built here."""

import os
import shutil

import pytest

import compressor_kernels as ck


@pytest.fixture(scope="session", autouse=True)
def library(tmp_path_factory):
    try:
        return ck.library_path()
    except ck.LibraryError:
        if os.environ.get("COMPRESSOR_KERNELS_LIBRARY"):
            raise
    if not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("no library and no C compiler")
    path = ck.build(tmp_path_factory.mktemp("library") / "libcompressor_kernels.so")
    os.environ["COMPRESSOR_KERNELS_LIBRARY"] = str(path)
    return path


@pytest.fixture(autouse=True)
def best_path():
    """Each test starts on the best code path."""
    ck.select_path()
    yield
    ck.select_path()
