"""Scores of images: feature extractors, streaming statistics, and torch-fidelity's metrics behind one door."""
