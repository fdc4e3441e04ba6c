"""Evaluation of encoders, of segmentations and of predictions for whole cases."""
