"""Backbones, heads and the teacher. Knows no data."""
