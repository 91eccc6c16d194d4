"""Where policies decide in real time: requests in, steps out to workers, tokens back."""
