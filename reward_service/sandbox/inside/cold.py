"""A candidate in a fresh interpreter, in a jail that somebody else has made (bubblewrap, runsc).

Run as `python -I -S .../inside/cold.py FOLDER [filter]`, FOLDER holding the package `crescendo`, as the first program
of its jail; `filter`: install the system-call filter too. Standard input begins with a `Start` (wire.py); what follows
it is the candidate's. The first byte of standard output says that the candidate starts: a candidate cannot take it
back, so its absence means that the jail failed.
"""

import os
import sys

STARTED = b"\x06"
# What a bare interpreter has mapped; there is no /proc to ask.
MAPPED_BYTES = 64 << 20


def main() -> None:
    """Files, limits, the filter, the candidate; never returns."""
    sys.path.insert(0, sys.argv[1])
    from crescendo.reward_service.sandbox.inside import candidate, wire

    start, contents = wire.read_start(0)
    candidate.write_files(contents)
    candidate.apply_limits(start, MAPPED_BYTES, counts_processes=True)
    if "filter" in sys.argv[2:]:
        from crescendo.reward_service.sandbox.inside import kernel, seccomp

        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.install_seccomp(seccomp.build(may_fork=True))
    sys.path.pop(0)
    os.closerange(3, 1 << 16)
    os.write(1, STARTED)
    candidate.run(start, contents[start.entry], os.getcwd())


if __name__ == "__main__":
    main()
