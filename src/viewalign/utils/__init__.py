"""Helpers for all packages."""
