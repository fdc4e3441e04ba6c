"""Metrics, statistics, probes, retrieval and embeddings."""
