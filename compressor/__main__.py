"""`python -m compressor` is `compressor`."""

from __future__ import annotations

from compressor.cli import main

if __name__ == "__main__":
    main()
