"""The whole workflow on synthetic data."""
