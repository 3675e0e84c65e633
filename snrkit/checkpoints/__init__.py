"""Checkpoints: ours (tensors and JSON only, whole or absent), one file per foreign origin beside it."""
