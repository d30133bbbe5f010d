"""Builds all that tests/cluster run, in the order in which they need it: `python -m tests.cluster.kube.ahead`.

Started beside other work by `.ci/run` and `make test-cluster`, it takes only what processor time that leaves: programs,
and beside them, because those compile and these download, images. What a test asks for meanwhile, it waits for or
builds itself; what cannot be built here, the tests that need it say.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.cluster.kube import build, cert_manager, images, kueue
from tests.cluster.node.installed import obstacles

LOWEST: Final = 19
Step = Callable[[], object]
PROGRAMS: Final[tuple[Step, ...]] = (build.build, kueue.build, cert_manager.build)
A_NODES_PROGRAMS: Final[tuple[Step, ...]] = (
    build.build, lambda: build.build(node=True), images.build_tools, kueue.build, cert_manager.build,
)  # fmt: skip
IMAGES: Final[tuple[Step, ...]] = (images.build_base, images.build_ours)


def strand(steps: tuple[Step, ...]) -> bool:
    """Takes each step; whether all could be taken."""
    well = True
    for step in steps:
        try:
            step()
        except (RuntimeError, subprocess.SubprocessError) as error:
            print(f"ahead: {error}", file=sys.stderr, flush=True)
            well = False
    return well


def main() -> int:
    """Builds what this machine can run; 1 when something could not be built."""
    os.nice(LOWEST)
    if missing := obstacles():
        print(f"ahead: no real node here, which needs what this machine lacks: {', '.join(missing)}", flush=True)
        return 0 if strand(PROGRAMS) else 1
    with ThreadPoolExecutor(2) as strands:
        well = list(strands.map(strand, (A_NODES_PROGRAMS, IMAGES)))
    images.prune()
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
