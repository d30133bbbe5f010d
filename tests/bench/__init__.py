"""Benchmarks: each measures our figure and a baseline in one run and prints one JSON line (`make bench BENCH=name`)."""
