"""The HTTP face of both tiers."""
