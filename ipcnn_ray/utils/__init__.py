"""Helpers without knowledge of experiments: files, locks, text, MATLAB files."""
