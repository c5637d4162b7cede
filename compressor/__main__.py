"""`python -m compressor` is `compressor`."""

from __future__ import annotations

import os
import sys

# Python has put the working folder first: a `json.py` or `numpy.py` of somebody's in it is not ours to import.
if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0]) == os.path.realpath(os.curdir):
    del sys.path[0]

from compressor.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
