"""Runs `costl` in a checkout: `python cli.py extract --videos dir/` does what the installed `costl` and `python -m costl` do."""

from costl.commands import main

if __name__ == "__main__":
    main(prog_name="costl")
