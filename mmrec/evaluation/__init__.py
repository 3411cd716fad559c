"""Honest figures: full-catalogue ranks, baselines in the same table, ceilings, intervals, slices, knock-outs, a report."""
