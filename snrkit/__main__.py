"""`python -m snrkit`, the form that torchrun needs."""

from snrkit.cli import app

if __name__ == "__main__":
    app()
