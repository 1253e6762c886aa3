"""Measuring the engine against its peers."""
