"""Where training looks, how much it counts, what is clipped and averaged, and the loop."""
