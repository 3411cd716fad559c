"""What the service remembers, and the places that keep it."""
