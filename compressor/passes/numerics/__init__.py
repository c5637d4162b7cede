"""Mathematics on tensors that several passes share, with no model in sight."""
