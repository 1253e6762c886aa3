"""From a caller's bytes to 16 kHz mono samples, and where in them somebody speaks."""
