"""Backbones, heads, the EMA teacher and masks. They know no data."""
