"""The read-only file system of a namespaced jail: the standard library at its own path, three devices, nothing else.

Built once by the zygote in its own mount namespace, and never writable from then on; every run gets a copy of the
mount table and one fresh tmpfs on /work. There is no interpreter in it (a candidate may not start programs), no /proc,
no /sys and no /etc.
"""

import os
import sys

from crescendo.reward_service.sandbox.inside import kernel

WORK = "/work"
_BASE = "/tmp"  # covered by the view while it is made; the former root is gone after
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_MASKED = ("site-packages", "dist-packages")
_EMPTY = "/empty"
_READ_ONLY = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID
# Flags of a mount that a less privileged namespace must keep: statvfs(3) to mount(2).
_KEPT_FLAGS = {os.ST_NOSUID: kernel.MS_NOSUID, os.ST_NODEV: kernel.MS_NODEV, os.ST_NOEXEC: kernel.MS_NOEXEC}
_KEPT_TIMES = {os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}


def library_folders() -> list[str]:
    """Folders of the standard library, outermost first, without those that lie in others."""
    folders: list[str] = []
    for path in (os.path.dirname(os.__file__), *sys.path):
        real = os.path.realpath(path)
        if os.path.isdir(real) and not any(real == other or real.startswith(other + "/") for other in folders):
            folders.append(real)
    return folders


def masked_folders(folder: str) -> list[str]:
    """Folders of installed packages inside a library folder: not part of the standard library."""
    return [path for name in _MASKED if os.path.isdir(path := os.path.join(folder, name))]


def build() -> None:
    """Makes the view the root of this mount namespace. Needs CAP_SYS_ADMIN over it."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    folders = library_folders()
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*folders, *_DEVICES)}
    kernel.mount("tmpfs", _BASE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=256k,nr_inodes=256,mode=755")
    for name in (WORK, _EMPTY):
        os.mkdir(_BASE + name)
    os.symlink(WORK, _BASE + "/tmp")
    try:
        for path, descriptor in sources.items():
            _bind(f"/proc/self/fd/{descriptor}", path, is_device=path in _DEVICES)
    finally:
        for descriptor in sources.values():
            os.close(descriptor)
    for folder in folders:
        for masked in masked_folders(folder):
            kernel.mount(_BASE + _EMPTY, _BASE + masked, None, kernel.MS_BIND)
            kernel.mount("none", _BASE + masked, None, _READ_ONLY | kernel.MS_NODEV)
    os.chdir(_BASE)
    kernel.pivot_to_here()
    kernel.mount("none", "/", None, _READ_ONLY | kernel.MS_NODEV)


def _bind(source: str, path: str, *, is_device: bool) -> None:
    target = _BASE + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if is_device:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    else:
        os.mkdir(target)
    kernel.mount(source, target, None, kernel.MS_BIND)
    found = os.statvfs(target).f_flag
    flags = _READ_ONLY | (0 if is_device else kernel.MS_NODEV)
    for kept in (_KEPT_FLAGS, _KEPT_TIMES):
        flags |= sum(flag for bit, flag in kept.items() if found & bit)
    kernel.mount("none", target, None, flags)
