"""Grids, solvers, corrections, and the one loop that puts them together."""
