"""Fixtures and rules that every test shares."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread and no network: results do not depend on the machine. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parent.parent


def real_data() -> Path | None:
    """Return the folder of real models and data, or None where there is none."""
    folder = Path(os.environ.get("COMPRESSOR_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    return folder.resolve() if (folder / "README.md").is_file() else None


REPRESENTATIVE = {"llama", "opt", "bert", "vit"}
"""One family of each kind: gated and plain decoders, a post-norm encoder, an image model."""


LONG = (
    "test_readme.py",
    "test_api.py",
    "/contract/",
    "/pipeline/test_run.py",
    "/pipeline/",
    "/exporters/",
    "/verification/",
)
"""Parts of the names of files whose tests run the whole program or export models, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark runs on the other families `exhaustive`; skip the tests marked `real` where their data is not there.

    Long files come first: when they are done, short ones keep all workers of a parallel run busy to its end.
    """
    items.sort(key=lambda item: [part in item.nodeid for part in LONG], reverse=True)
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")  # type: ignore[attr-defined]
        if isinstance(family, str) and family not in REPRESENTATIVE:
            item.add_marker(pytest.mark.exhaustive)
    if real_data() is not None:
        return
    skip = pytest.mark.skip(reason="real models and data are not here: set COMPRESSOR_TEST_DATA to their folder")
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def kept_traces() -> Iterator[None]:
    """Exports in this process trace no model twice. Not where torch would have to be loaded for it."""
    if "torch" not in sys.modules:
        yield
        return
    from tests.traces import keeping_traces

    with keeping_traces():
        yield


@pytest.fixture(scope="module", autouse=True)
def kept_apart() -> None:
    """What the tests before have left alive is not looked through again by every collection.

    A walk collects after each forward pass, which takes over a second where thousands of tests have run before.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real models and data; skips the test where it is not there."""
    folder = real_data()
    if folder is None:
        pytest.skip("real models and data are not here: set COMPRESSOR_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return `make_pico(family, **overrides)` with each model built once; treat its folder as read-only."""
    from tests.pico import make_pico

    root = tmp_path_factory.mktemp("pico")
    built: dict[str, Path] = {}

    def build(family: str, **overrides: Any) -> Path:
        key = repr((family, sorted(overrides.items())))
        if key not in built:
            built[key] = make_pico(family, root / f"{len(built):03d}-{family}", **overrides)
        return built[key]

    return build
