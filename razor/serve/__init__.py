"""Ways to talk to a finished model."""
