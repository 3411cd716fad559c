"""What the page at / shows: for people who would rather look than read."""
