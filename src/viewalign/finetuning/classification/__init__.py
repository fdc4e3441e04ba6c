"""Fine-tuning for classification and regression: one target per case."""
