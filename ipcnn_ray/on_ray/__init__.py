"""Runs and searches on Ray; the only place that imports ray."""
