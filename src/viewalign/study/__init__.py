"""A grid of pretraining, judging and seeds: planned, run, resumed, and told in one table."""
