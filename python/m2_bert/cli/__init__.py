"""The command `m2-bert`: what the package does, from a terminal.

Results go to standard output (with --json as JSON and nothing else), progress and warnings to
standard error. Exit codes: 0 done, 1 an error, told in one line, 2 wrong usage, 130 interrupted.
"""

from m2_bert.cli.app import app, main

__all__ = ["app", "main"]
