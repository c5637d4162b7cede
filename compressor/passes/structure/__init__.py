"""Structured pruning: fewer or narrower matrices."""
