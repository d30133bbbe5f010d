"""Builds all that tests/cluster run, in the order in which they need it: `python -m tests.cluster.kube.ahead`.

Started beside other work by `.ci/run` and `make test-cluster`, it takes only what processor time that leaves. What a
test asks for meanwhile, it waits for or builds itself; what cannot be built here, the tests that need it say.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from tests.cluster.kube import build, cert_manager, images, kueue
from tests.cluster.node.installed import obstacles

LOWEST: Final = 19


def for_a_node() -> None:
    """The programs and images of a node, where this machine can host one."""
    if missing := obstacles():
        raise RuntimeError(f"a real node needs what this machine lacks: {', '.join(missing)}")
    build.build(node=True)
    images.main()


def main() -> int:
    """Builds what can be built; 1 when something could not."""
    os.nice(LOWEST)
    steps: tuple[Callable[[], None], ...] = (build.build, for_a_node, kueue.build, cert_manager.build)
    failed = 0
    for step in steps:
        try:
            step()
        except (RuntimeError, subprocess.SubprocessError) as error:
            print(f"ahead: {error}", file=sys.stderr, flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
