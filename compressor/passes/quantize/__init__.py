"""Quantization: weights on grids of few values, and products in 8-bit integers."""
