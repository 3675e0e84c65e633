"""The entry of the console script, and of `python -m snrkit`, the form that torchrun needs."""

import os

from snrkit.base.signals import end_at_once, handle


def main() -> None:
    """Run the command line; whenever a signal arrives, also while torch is imported, one line and an exit code."""
    handle(end_at_once)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torch logs frames where a process is gone, which we say ourselves
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from snrkit.commands.cli import main as run

    run()


if __name__ == "__main__":
    main()
