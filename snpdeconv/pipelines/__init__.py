"""Floor 6: what the commands do, composed of the floors below."""
