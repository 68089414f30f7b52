"""A package of somebody else: one template shape, one dataset and one metric, each in one file."""
