"""Per-image noise schedules made of power spectra: all that knows of them."""
