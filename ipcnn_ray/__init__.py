"""Distributed training of interpretable CNNs: spec -> runs -> Ray -> metrics -> MLflow."""

__version__ = "0.1.0"
