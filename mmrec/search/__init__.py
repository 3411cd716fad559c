"""Nearest posts by vector: one file a store behind one protocol."""
