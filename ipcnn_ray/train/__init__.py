"""The training loop, against a small Runtime interface."""
