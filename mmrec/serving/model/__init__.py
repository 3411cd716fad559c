"""The model that answers and its export: run in batches, and searched."""
