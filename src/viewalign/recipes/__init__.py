"""Recipes: YAML files, and loading one with overrides."""
