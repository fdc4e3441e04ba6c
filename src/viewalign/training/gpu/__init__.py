"""Checks and measurements of training on a GPU, for `viewalign doctor --gpu` and `benchmarks/gpu`."""
