"""What the commands that measure compute, and how it is shown."""
