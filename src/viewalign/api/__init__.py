"""The verbs of the command line as Python calls, with the same settings, checks and messages."""
