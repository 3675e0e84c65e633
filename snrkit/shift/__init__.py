"""The instrument: how far a sampler's states are from the level that the network is told, with nulls and error bars."""
