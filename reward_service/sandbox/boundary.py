"""Whose kernel this is, found out from inside. Pure apart from `read`, which collects what is judged.

gVisor: both the version that its kernel invents (always 4.4.0 with one build date) and its own lines in the kernel
log, which only that kernel writes. Kata: a hypervisor (CPUID's bit, in /proc/cpuinfo) and the shared file system that
only Kata's agent mounts (source `kataShared`, or `none` beneath /run/kata-containers). Either fact alone proves
nothing: any virtual machine has the bit. What cannot be proved is called shared-kernel, the weakest.
"""

import contextlib
import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

from crescendo.reward_service.sandbox.protocol import Boundary

_READ_ALL = 3  # syslog(2)
_LOG_BYTES = 1 << 16
_GVISOR_RELEASE = "4.4.0"
_GVISOR_LOG = "Starting gVisor"


@dataclass(frozen=True)
class KernelFacts:
    """What the kernel says about itself."""

    release: str
    log: str
    cpuinfo: str
    mounts: str

    @classmethod
    def read(cls) -> "KernelFacts":
        """Of the kernel under this process; what cannot be read is empty."""
        return cls(platform.release(), _kernel_log(), _text("/proc/cpuinfo"), _text("/proc/self/mountinfo"))


def boundary_of(facts: KernelFacts) -> tuple[Boundary, str]:
    """The boundary, and its proof in words."""
    if facts.release == _GVISOR_RELEASE and _GVISOR_LOG in facts.log:
        return Boundary.GVISOR, f"the kernel calls itself {facts.release} and its log says `{_GVISOR_LOG}`"
    is_virtual = any(
        "hypervisor" in line.split() for line in facts.cpuinfo.splitlines() if line.startswith(("flags", "Features"))
    )
    if is_virtual and "kataShared" in facts.mounts:
        return Boundary.KATA, "a hypervisor runs this kernel, and a `kataShared` file system is mounted"
    return Boundary.SHARED_KERNEL, "neither gVisor nor Kata could be proved"


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""


def _kernel_log() -> str:
    buffer = ctypes.create_string_buffer(_LOG_BYTES)
    length = ctypes.CDLL(None).klogctl(_READ_ALL, buffer, _LOG_BYTES)
    return buffer.raw[: max(0, length)].decode(errors="replace")
