"""What lies on disk: tensors, grids of quantized weights, packed codes, an artifact's companions."""
