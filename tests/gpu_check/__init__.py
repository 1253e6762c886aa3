"""`make gpu-check`: whether the engine is right and quick on a machine's GPU, without a network."""
