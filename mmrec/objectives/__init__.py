"""Losses and the drawing of negatives: pure functions of tensors, knowing nothing else of mmrec."""
