"""`python -m snrkit`, the form that torchrun needs."""

from snrkit.commands.cli import main

if __name__ == "__main__":
    main()
