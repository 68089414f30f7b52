"""A bucket for the tests of the storage."""

from fake_s3 import fake_s3

__all__ = ["fake_s3"]
