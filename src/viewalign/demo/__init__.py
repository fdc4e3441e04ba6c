"""The demo of `viewalign demo`."""
