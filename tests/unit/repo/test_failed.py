"""What CI runs once more."""

from tests.failed import once_more


def test_a_test_alone_a_file_of_the_cluster_or_the_story_of_the_node() -> None:
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
        "tests/cluster/node",
    ]
