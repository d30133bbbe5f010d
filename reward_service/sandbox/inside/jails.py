"""The two jails that a zygote forks candidates into: `namespaces` and `landlock`.

Each has the same life: `prepare` once, in the zygote, before it takes requests; around each fork `before_fork` and
`after_fork`; in the child `enter` (all that does not depend on the program) and `seal` (once the program is here).
After `seal` the process can reach nothing but its own descriptors and what docs/security.md lists.
"""

import os
import signal
from pathlib import Path
from typing import Protocol

from crescendo.reward_service.sandbox.inside import kernel, seccomp, view
from crescendo.reward_service.sandbox.inside.packets import ForkRequest
from crescendo.reward_service.sandbox.inside.wire import Start

INNER_ID = 1000
_OWN_NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWCGROUP
)
_OOM_FIRST = b"1000"


class Jail(Protocol):
    """See the module's docstring."""

    counts_processes: bool

    def prepare(self) -> None:
        """Makes the zygote what its children start from."""

    def before_fork(self) -> None:
        """In the zygote."""

    def after_fork(self) -> None:
        """In the zygote, also if the fork failed."""

    def enter(self, shape: ForkRequest) -> None:
        """In the child, before its program has come."""

    def seal(self, start: Start) -> str:
        """In the child, with the program: the last privileges go. Returns the program's folder."""


def leave_root(uid: int, *, keep_capabilities: bool) -> None:
    """Root becomes `uid` for good, with capabilities only if a user namespace is still to be made."""
    if os.geteuid() != 0:
        return
    if keep_capabilities:
        kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
    else:
        kernel.drop_bounding_set()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if keep_capabilities:
        kernel.raise_capabilities()


class Namespaces:
    """User, PID, mount, network, IPC, UTS and cgroup namespaces of its own, in the read-only view, and a filter."""

    counts_processes = True

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._filter = seccomp.build(may_fork=True)
        self._proc = -1
        self._pid_namespace = -1

    def prepare(self) -> None:
        """Returns in the zygote proper, first process of a PID namespace; the caller's process waits for it."""
        self._proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        is_root = os.geteuid() == 0
        if is_root:  # as root, so that libraries in a folder that only root may enter can be bound
            kernel.unshare(kernel.CLONE_NEWNS)
            view.build()
        leave_root(self._uid, keep_capabilities=True)
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(_OWN_NAMESPACES | kernel.CLONE_NEWPID)
        self._map_ids(0, uid, gid)
        if child := os.fork():
            _wait_and_end(child)
        kernel.die_with_parent(signal.SIGKILL)
        if not is_root:
            view.build()
        self._pid_namespace = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)

    def before_fork(self) -> None:
        """The next child is the first process of a new PID namespace."""
        kernel.unshare(kernel.CLONE_NEWPID)

    def after_fork(self) -> None:
        """Further children would join that namespace; undo it, so that the next `unshare` is allowed."""
        kernel.setns(self._pid_namespace, kernel.CLONE_NEWPID)

    def enter(self, shape: ForkRequest) -> None:
        """Fresh namespaces, a fresh tmpfs, and no capability, privilege or refused call from here on."""
        kernel.unshare(_OWN_NAMESPACES)
        self._map_ids(INNER_ID, 0, 0)
        self._write("oom_score_adj", _OOM_FIRST)
        kernel.mount(
            "tmpfs",
            view.WORK,
            "tmpfs",
            kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC,
            # The root folder is an inode too, and so are the program's own files.
            f"size={shape.files_bytes},nr_inodes={shape.num_files + 1},mode=700",
        )
        os.chdir(view.WORK)
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.install_seccomp(self._filter)

    def seal(self, start: Start) -> str:
        """Nothing is left to give up."""
        return view.WORK

    def _map_ids(self, inside: int, outer_uid: int, outer_gid: int) -> None:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # a change of credentials hides these files from their own process
        self._write("setgroups", b"deny")
        self._write("uid_map", f"{inside} {outer_uid} 1".encode())
        self._write("gid_map", f"{inside} {outer_gid} 1".encode())

    def _write(self, name: str, value: bytes) -> None:
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=self._proc)
        try:
            os.write(descriptor, value)
        finally:
            os.close(descriptor)


# linux/landlock.h. Every right of ABI 6 is handled; what no rule allows is refused.
_FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 2, 4, 8
_FS_ALL = (1 << 16) - 1
_NET_ALL = 3  # bind and connect TCP
_SCOPE_ALL = 3  # abstract UNIX sockets, signals
LANDLOCK_ABI = 6


class Landlock:
    """A process that may read the standard library and its own files, and do nothing else; needs no privilege."""

    counts_processes = False

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._filter = seccomp.build(may_fork=False, has_scratch=False)
        self._rules: list[tuple[int, int]] = []

    def prepare(self) -> None:
        """Opens what candidates may read, and makes itself unreadable for processes of the same user."""
        leave_root(self._uid, keep_capabilities=False)
        kernel.die_with_parent(signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        if not os.access(os.__file__, os.R_OK):
            raise PermissionError(f"user {os.geteuid()} cannot read the interpreter's library at {os.__file__}")
        if kernel.landlock_abi() < LANDLOCK_ABI:
            raise OSError(f"Landlock has ABI {kernel.landlock_abi()} here; {LANDLOCK_ABI} is needed (Linux 6.12)")
        for path, access in readable_paths():
            self._rules.append((os.open(path, os.O_PATH | os.O_CLOEXEC), access))

    def before_fork(self) -> None:
        """Nothing."""

    def after_fork(self) -> None:
        """Nothing."""

    def enter(self, shape: ForkRequest) -> None:
        """A session of its own was made by the caller; the zygote's end ends it."""
        kernel.die_with_parent(signal.SIGKILL)

    def seal(self, start: Start) -> str:
        """Restricts itself to the library and the program's folder, read-only, then refuses calls."""
        ruleset = kernel.landlock_ruleset(_FS_ALL, _NET_ALL, _SCOPE_ALL)
        for descriptor, access in self._rules:
            kernel.landlock_allow(ruleset, descriptor, access)
        kernel.landlock_allow(ruleset, os.open(start.folder, os.O_PATH | os.O_CLOEXEC), _FS_READ_FILE | _FS_READ_DIR)
        os.chdir(start.folder)
        kernel.landlock_restrict(ruleset)
        kernel.drop_capabilities()
        kernel.install_seccomp(self._filter)
        return start.folder


def readable_paths() -> list[tuple[str, int]]:
    """(path, Landlock rights) of the standard library without installed packages, and of three devices.

    Rules are about subtrees and cannot take away, so each entry of a library folder has a rule of its own. Names in
    installed packages' folders can be listed (the import system lists the folder above); files there cannot be read.
    """
    rules = [
        ("/dev/null", _FS_READ_FILE | _FS_WRITE_FILE),
        ("/dev/zero", _FS_READ_FILE),
        ("/dev/urandom", _FS_READ_FILE),
    ]
    for folder in view.library_folders():
        rules.append((folder, _FS_READ_DIR))
        masked = set(view.masked_folders(folder))
        for entry in Path(folder).iterdir():
            if str(entry) not in masked and os.access(entry, os.R_OK):
                rules.append((str(entry), _FS_READ_FILE | (_FS_READ_DIR if entry.is_dir() else 0)))
    return rules


def _wait_and_end(child: int) -> None:
    """What is left of the launcher: it holds nothing, and ends with its child; its end ends the child."""
    os.closerange(0, 4096)
    kernel.die_with_parent(signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


JAILS: dict[str, type[Namespaces] | type[Landlock]] = {"namespaces": Namespaces, "landlock": Landlock}
