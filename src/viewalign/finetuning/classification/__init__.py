"""Classification and regression: one answer per case."""
