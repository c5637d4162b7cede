"""Calibration and evaluation data: text, tables and images become samples of one kind."""
