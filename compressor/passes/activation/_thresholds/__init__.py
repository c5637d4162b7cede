"""Parts of `thresholds`."""
