"""Datasets with landmarks, the memory-mapped store of crops, and batches."""
