"""Everything that reads or writes weights: checkpoints, run folders, exports."""
