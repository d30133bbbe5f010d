"""The run: loop, scoring loop, stages, curriculum, leases, recovery, launch."""
