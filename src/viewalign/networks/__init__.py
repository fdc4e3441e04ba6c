"""Backbones, heads, the EMA teacher and masks; independent of data."""
