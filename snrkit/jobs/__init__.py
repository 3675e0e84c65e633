"""What the commands do, composed from the layers below: open, loop, write. Imported by the command line only."""
