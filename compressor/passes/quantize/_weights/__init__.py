"""What the weight-only methods share: linears, quantizers, rotation, choice of bits."""
