"""Parts of `slicegpt`."""
