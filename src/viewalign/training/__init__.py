"""The loop, schedules, checkpoints, monitors and processes."""
