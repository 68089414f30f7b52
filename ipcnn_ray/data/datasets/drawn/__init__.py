"""Drawn animals: the dataset that needs no download."""
