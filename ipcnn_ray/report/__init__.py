"""Recorded numbers to tables and pictures."""
