"""Losses: tensors in, scalars out. They know no network."""
