"""Pretraining methods, one file each, and shared helpers."""
