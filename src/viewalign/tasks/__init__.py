"""Labelled cases: task definition, manifest, cross-validation folds and preprocessing."""
