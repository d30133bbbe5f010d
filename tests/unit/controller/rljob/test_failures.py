"""What a failed attempt is said to have failed from."""

from dataclasses import replace

from crescendo.controller.operator.failures import classify
from crescendo.controller.operator.resource import Attempt

FAILED = Attempt(1, "math-1", "uid", False, False, "Failed", "FAILED", "AppFailed", "", "cluster")
OF_RAY = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):"


def test_of_the_last_lines_of_a_run_its_last_error_is_shown() -> None:
    earlier = ("error: it was away", "the run failed (controller ended with code 75). Log: controller.log")
    last = ("error: no key.", "  Fix: give one.", "the run failed (controller ended with code 2). Log: controller.log")
    lines = (OF_RAY, *earlier, *["12:00 worker.lost ..."] * 5, *last, "When it is fixed, continue with: ...", "")
    found = classify(replace(FAILED, message="\n".join(lines)))
    assert (found.reason, found.message) == ("InvalidRun", "exit code 2: no key.\n  Fix: give one.")


def test_without_an_error_among_them_all_is_shown() -> None:
    message = f"{OF_RAY}\nKilled, no error: at all"
    assert classify(replace(FAILED, message=message)).message == message
    assert classify(replace(FAILED, message="error: of KubeRay")).message == "error: of KubeRay"
    assert classify(FAILED).message == "RayJob math-1 failed (AppFailed)"
