"""Labelled cases: definition, table, folds, prepared tensors."""
