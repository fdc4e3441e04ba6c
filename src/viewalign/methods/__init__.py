"""Pretraining methods: one file each, one line in the registry, one recipe."""
