"""Samplers fitted to the flow of the network itself."""
