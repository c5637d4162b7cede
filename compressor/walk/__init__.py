"""The block walk: calibration runs through a model one block at a time."""
