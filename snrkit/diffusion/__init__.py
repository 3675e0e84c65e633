"""The three equations: levels and processes (state), predictions and denoisers (belief), in one scaling or another."""
