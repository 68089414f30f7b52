"""Stand-ins for what tests must not depend on: an S3 server, workers, a tracker, recorded experiments, tiny runs."""
