"""A model without and with weights: folders, skeletons, names of tensors, what they cost."""
