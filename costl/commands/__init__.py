"""The command line: one file for each group of commands, and `main`, which starts them all."""

from costl.commands.root import main

__all__ = ["main"]
