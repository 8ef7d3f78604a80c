"""`python -m tunesmith`: the `tunesmith` command."""

from tunesmith.cli import entry

if __name__ == "__main__":
    entry()
