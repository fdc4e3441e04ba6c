"""The training loop, data loading, schedules, logs and processes."""
