"""RLHF for text-to-image diffusion over a dialogue, distributed on Ray."""

__version__ = "0.1.0"
