"""Comparison of pretrainings (arms) over seeds by several evaluations, in one table."""
