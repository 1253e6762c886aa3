"""The decision between the two tiers, and the way to the second."""
