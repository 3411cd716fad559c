"""Training: the loop, the optimiser, checkpoints that survive anything, and where metrics are sent."""
