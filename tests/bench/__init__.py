"""Benchmarks: `python -m tests.bench` measures the figures that README, recipes and docs/figures state."""
