"""Losses: tensors in, scalars out. Knows no network.

Every masked or weighted mean is taken per view first and then plainly over views, so that processes of equal share
agree with one process; a view of which nothing counts adds 0 to the sum and 1 to the denominator.
"""
