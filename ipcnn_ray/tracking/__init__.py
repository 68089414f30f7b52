"""The record of runs and the storage of their files, each behind one protocol."""
