"""Search for better settings: the space, the study, and what it came to."""
