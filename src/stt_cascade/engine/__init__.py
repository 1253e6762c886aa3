"""What turns samples into text."""
