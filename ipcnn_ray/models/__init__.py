"""The networks, plain and interpretable, built from one table; weight files."""
