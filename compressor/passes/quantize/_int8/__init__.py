"""What the 8-bit methods share: linears, ranges, sensitivity, smoothing."""
