"""The pages of the service: a dialogue at /, annotation at /annotate."""
