"""Parts of `width`."""
