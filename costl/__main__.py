"""`python -m costl`: the command line where `costl` itself is not on the path."""

from costl.commands import main

if __name__ == "__main__":
    main(prog_name="costl")
