"""`.ci/run` ends with what its tests ended with, whatever became of what it started beside them."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.repo.tree import ROOT

STUBS = {
    "bin/make": """#!/bin/sh
while [ "$2" = lint ] && [ ! -s build/ahead.log ]; do sleep 0.01; done
[ "$2" != "$BROKEN" ]
""",
    "bin/apt-get": "#!/bin/sh\n",  # a machine that lacks a package must not get it from a unit test
    ".venv/bin/pytest": '#!/bin/sh\necho again: "$@"\nexit "$AGAIN"\n',
    ".venv/bin/python": '#!/bin/sh\ncase "$2" in *ahead) echo built; exec sleep "$BUILDS_S";; *) echo a_test;; esac\n',
}


@pytest.mark.parametrize("builds_s", ["0", "60"])
@pytest.mark.parametrize(
    ("broken", "again", "ends_with"),
    [("", "1", 0), ("lint", "0", 1), ("test", "0", 0), ("test", "3", 3), ("test-cluster", "0", 0),
     ("test-cluster", "3", 3)],
)  # fmt: skip
def test_it_ends_with_what_its_tests_ended_with(
    tmp_path: Path, broken: str, again: str, ends_with: int, builds_s: str
) -> None:
    script = tmp_path / ".ci/run"
    for name, text in {".ci/run": (ROOT / ".ci/run").read_text(), **STUBS}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "BROKEN": broken, "AGAIN": again, "BUILDS_S": builds_s,
    }  # fmt: skip
    ended = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == ends_with, ended.stdout + ended.stderr
    assert ended.stdout.endswith("built\n")
    assert ("again: a_test" in ended.stdout) == broken.startswith("test")
