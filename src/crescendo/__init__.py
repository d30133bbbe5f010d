"""Crescendo: reinforcement learning for reasoning language models, on Kubernetes or on a laptop."""

import os

# gRPC would hook into every fork of a process that uses it. Our children exec at once and need no gRPC of their
# parent's; with the hooks, a child that forked at a bad moment never reached its exec, and its parent waited for it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

__version__ = "0.1.0"
