"""What CI runs once more."""

import pytest

from tests.failed import NEEDS, ROOT, once_more


def test_a_test_alone_or_a_file_of_the_cluster_with_what_it_needs() -> None:
    failed = [
        "tests/unit/a.py::test_one[x y]",
        "tests/unit/b.py",
        "tests/cluster/test_queue.py::test_two",
        "tests/cluster/test_queue.py::test_three",
        "tests/cluster/node/test_long_job.py::test_four",
        "tests/cluster/node/test_console.py::test_five",
    ]
    assert once_more(failed) == [
        "tests/unit/a.py::test_one[x y]",
        "tests/unit/b.py",
        "tests/cluster/test_queue.py",
        "tests/cluster/node/test_long_job.py",
        "tests/cluster/node/test_short_jobs.py",
        "tests/cluster/node/test_console.py",
    ]


@pytest.mark.parametrize("path", [path for file, needs in NEEDS.items() for path in (file, *needs)])
def test_what_is_needed_is_there(path: str) -> None:
    assert (ROOT / path).exists()
