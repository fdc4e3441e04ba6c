"""Recipes: YAML files of settings, and the way from a name and overrides to a checked `Recipe`."""
