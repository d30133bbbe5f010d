"""Tests and figures that need a GPU. They run on a bare machine with PyTorch: no vLLM, no Megatron, no registry.

`PYTHONPATH=src python3 -m tests.gpu.figures` prints the figures as JSON; `--dry` runs the same code tiny, on cores.
What needs more than PyTorch says so where it is missing.
"""
