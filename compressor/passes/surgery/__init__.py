"""Reads and writes of modules that several passes share."""
