"""Metrics of interpretability, each in a file; the two ablations share one."""
