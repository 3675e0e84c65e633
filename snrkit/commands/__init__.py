"""One file a command: open, loop, write."""
