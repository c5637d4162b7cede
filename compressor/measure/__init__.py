"""Runs models, originals and artifacts alike: quality on data, speed side by side."""
