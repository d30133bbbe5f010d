"""The rollout service: inference engines that claim trajectories, generate, and flush.

Started by entry point (`crescendo.rollout.service:start`), never imported by another service. See service.py
for the calls, phase.py for a rollout phase, weights.py for updates, engine/ for what generates.
"""
