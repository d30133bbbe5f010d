"""The un-sandboxed check: runs programs with their tests as they stand, in one process each. For bench_leetcode only.

`python -I -S bare_check.py` reads a prelude as JSON, then one list a line, [program, tests, seconds], and writes a line
for each, `pass` or why not. It believes what the process says: exactly what the judge does not do.
"""

import json
import os
import resource
import signal
import sys

MAX_BYTES = 2 << 30


def main() -> None:
    """Answers line by line."""
    prelude = json.loads(sys.stdin.readline())
    exec(prelude, {"__name__": "prelude"})  # so that no child has to import
    for line in sys.stdin:
        program, tests, seconds = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            os.write(writing, run(prelude, program, tests, seconds).encode("utf-8", "replace")[:500])
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        text = said.decode("utf-8", "replace") if not status else f"status {status}"
        print(" ".join(text.split()) or "said nothing", flush=True)


def run(prelude: str, program: str, tests: str, seconds: float) -> str:
    """In the child: `pass` or the exception."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.setrecursionlimit(10_000)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        namespace: dict[str, object] = {"__name__": "solution"}
        exec(prelude, namespace)
        exec(compile(program, "solution.py", "exec"), namespace)
        exec(tests, namespace)
    except BaseException as error:  # noqa: BLE001 - told
        return f"{type(error).__name__}: {error}"
    return "pass"


if __name__ == "__main__":
    main()
