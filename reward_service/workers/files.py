"""What a worker may still read: Python's and the service's own code. Everything else, the run's token among it, is out.

By Landlock, where the kernel offers it (Linux 5.13; without it a worker reads what its user reads). From ABI 4 on it
takes TCP away too, and from ABI 6 on signals to processes outside and abstract sockets. System calls are not filtered
here, so that the jail is still called `process`.
"""

import os
import sys
from pathlib import Path

import crescendo
from crescendo.reward_service.sandbox.inside import kernel

_READ_FILE, _READ_DIR = 4, 8
_DEVICES = ("/dev/null", "/dev/urandom")
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_PARTS = ("common", "proto", "reward_service")  # packages of ours that scorers import


def restrict_files() -> bool:
    """Confines this process for good; it must have no_new_privs. Returns False where there is no Landlock."""
    abi = kernel.landlock_abi()
    if abi < 1:
        return False
    # linux/landlock.h: 13 rights in ABI 1, then REFER (2), TRUNCATE (3) and IOCTL_DEV (5).
    handled = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1
    ruleset = kernel.landlock_ruleset(handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    try:
        for path in readable_paths():
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                kernel.landlock_allow(ruleset, descriptor, _READ_FILE | (_READ_DIR if path.is_dir() else 0))
            finally:
                os.close(descriptor)
        kernel.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)
    return True


def readable_paths() -> list[Path]:
    """Existing files and folders, links resolved: an editable install links to folders elsewhere."""
    package = Path(crescendo.__file__).parent
    wanted = [
        *(Path(prefix) for prefix in (sys.prefix, sys.base_prefix)),
        *(Path(name) for name in (*_DEVICES, *_SYSTEM)),
        *(package / part for part in _PARTS),
        package / "__init__.py",
    ]
    # A prefix of /usr is fine; one of / would be everything.
    found = {path.resolve() for path in wanted if path.exists()} - {Path("/")}
    return sorted(found)
