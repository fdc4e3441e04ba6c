"""How good segmentations are: overlap and surfaces against references, with intervals, for any folder."""
