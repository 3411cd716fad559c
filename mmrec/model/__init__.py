"""From encoded content to item vectors, from item vectors to user vectors, and a score that compares the two."""
