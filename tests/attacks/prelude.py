"""What attack programs import as `attack`. Runs inside jails only, in whatever interpreter they have.

A program prints `held ...` where it was refused and `BROKEN name` where it was not.
"""

import ctypes
import errno

# Numbers on x86-64, where the attack programs run.
NUMBERS = {
    "clone": 56,
    "ptrace": 101,
    "syslog": 103,
    "setuid": 105,
    "setgid": 106,
    "setgroups": 116,
    "setresuid": 117,
    "shmget": 29,
    "semget": 64,
    "msgget": 68,
    "capset": 126,
    "rt_sigqueueinfo": 129,
    "uselib": 134,
    "personality": 135,
    "ustat": 136,
    "sysfs": 139,
    "vhangup": 153,
    "modify_ldt": 154,
    "pivot_root": 155,
    "prctl": 157,
    "adjtimex": 159,
    "chroot": 161,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "reboot": 169,
    "sethostname": 170,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "lookup_dcookie": 212,
    "remap_file_pages": 216,
    "clock_settime": 227,
    "mq_open": 240,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "migrate_pages": 256,
    "unshare": 272,
    "splice": 275,
    "tee": 276,
    "vmsplice": 278,
    "move_pages": 279,
    "inotify_init1": 294,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "kcmp": 312,
    "finit_module": 313,
    "seccomp": 317,
    "memfd_create": 319,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "pidfd_open": 434,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "memfd_secret": 447,
}
# What a filter answers. Anything else comes from a kernel that was reached.
REFUSALS = {errno.ENOSYS, errno.EPERM, errno.EACCES}

_libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """Makes a system call, which must be refused before its arguments matter."""
    result = _libc.syscall(NUMBERS[name], *[ctypes.c_long(value) for value in arguments])
    error = ctypes.get_errno()
    if result == -1 and error in REFUSALS:
        print("held", name, errno.errorcode[error], flush=True)
    else:
        print("BROKEN", name, result, error, flush=True)


def refused(action, *arguments):
    """Does something that must raise."""
    name = getattr(action, "__name__", "action")
    try:
        result = action(*arguments)
    except (OSError, MemoryError, ImportError, ValueError) as error:
        print("held", name, type(error).__name__, error, flush=True)
    else:
        print("BROKEN", name, repr(result)[:80], flush=True)
