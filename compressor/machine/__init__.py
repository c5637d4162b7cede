"""The machine that everything runs on: memory, processor, progress, what is installed."""
