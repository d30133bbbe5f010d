"""Runtime profiles: what kinds of program the sandbox runs. A new one is one more entry, the service untouched.

A profile says what its entry file is called and what its zygote imports ahead, so that a warm start has it loaded.
One zygote serves all profiles with the same imports.
"""

from dataclasses import dataclass

# What programs in programming contests and LeetCode-style tests import.
COMMON_IMPORTS = (
    *("abc", "array", "ast", "bisect", "bz2", "calendar", "cmath", "collections", "collections.abc", "copy"),
    *("ctypes", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect"),
    *("io", "itertools", "json", "lzma", "math", "numbers", "operator", "queue", "random", "re", "statistics"),
    *("string", "struct", "textwrap", "threading", "time", "traceback", "types", "typing", "zlib", "_sitebuiltins"),
)


@dataclass(frozen=True)
class Profile:
    """One kind of program."""

    name: str
    entry: str
    imports: tuple[str, ...]


PROFILES = {
    profile.name: profile
    for profile in (
        # A Python program with modules and data beside it: a driver that calls a candidate's functions, say.
        Profile("python", "main.py", COMMON_IMPORTS),
        # One file that reads standard input and writes standard output, as in programming contests.
        Profile("stdin-judge", "main.py", COMMON_IMPORTS),
    )
}
