"""The frozen Pydantic models of an experiment, from YAML to the runs of a search."""
