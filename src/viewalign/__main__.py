"""`python -m viewalign` is the command `viewalign`."""

from viewalign.cli.main import run

run()
