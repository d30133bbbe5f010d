"""The answers' way out of a sandbox: frames on what was standard output, which the candidate then no longer has.

    case number (4 bytes), status (1), length (4), payload

The candidate shares the process and could write here too. That gains it nothing: a frame is an answer, an answer still
has to equal the expected value, which is not in the sandbox, and a stream that is not one frame a case in order is
refused whole.
"""

import os
import struct
from collections.abc import Callable

HEAD = struct.Struct("<IcI")
BEFORE_CASES = 0xFFFFFFFF

VALUE = b"V"  # a value (wire)
RAISED = b"E"  # an exception: its type's name and its text (wire)
LATE = b"T"  # the case's deadline passed
UNSENDABLE = b"U"  # a value that cannot travel: why (wire)

Send = Callable[[int, bytes, bytes], None]


def open_channel() -> Send:
    """Moves standard output away, points 1 at the null device, and returns what sends a frame."""
    descriptor = os.dup(1)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    except OSError:  # a jail without a null device: what the candidate prints counts as its standard error
        os.dup2(2, 1)
    write = os.write

    def send(number: int, status: bytes, payload: bytes) -> None:
        data = memoryview(HEAD.pack(number, status, len(payload)) + payload)
        while data:
            data = data[write(descriptor, data) :]

    return send
