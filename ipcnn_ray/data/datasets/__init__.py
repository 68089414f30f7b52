"""Datasets, one file each; see `dataset.py`."""
