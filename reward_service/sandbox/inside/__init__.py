"""What runs inside a jail before the candidate does: standard library only, no secret, nothing of the service.

These modules are loaded by a bare interpreter (`python -I -S`), never by the executor itself, except `seccomp`,
`facts` and `wire`, which are pure. A candidate can read every line of them in its own memory.
"""
