"""The commands of the command line as Python functions, with the same settings, checks and messages."""
