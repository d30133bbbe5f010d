"""Crescendo: reinforcement learning for reasoning language models, on Kubernetes or on a laptop."""

__version__ = "0.1.0"
