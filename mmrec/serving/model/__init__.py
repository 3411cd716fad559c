"""The model that answers: loaded, run in batches, and swapped for another."""
