"""Metrics of interpretability: one class in one file each."""
