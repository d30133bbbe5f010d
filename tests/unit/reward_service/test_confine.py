"""What a worker may do, seen in processes of their own, and what its environment holds."""

import os
import subprocess
import sys

import pytest

from crescendo.common.errors import ConfigError
from crescendo.reward_service.service_options import ServiceOptions
from crescendo.reward_service.workers.confine import clean_environment

CONFINED = """
import os, resource, socket, sys
from crescendo.reward_service.workers import confine
has_left = confine.leave_network()
confine.confine(64 << 20)
"""


def run_confined(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CONFINED + body],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_memory_is_limited_above_the_start() -> None:
    body = "\nbytes(32 << 20)\ntry:\n bytes(128 << 20)\nexcept MemoryError:\n print('limited')"
    assert run_confined(body) == "limited"


def test_no_file_can_be_written(tmp_path: object) -> None:
    body = f"""
with open({str(tmp_path)!r} + '/file', 'wb', buffering=0) as file:
    try:
        file.write(b'x')
    except OSError as error:
        print(type(error).__name__, error.errno)
"""
    assert run_confined(body) == "OSError 27"


def test_posture() -> None:
    body = """
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(status['NoNewPrivs'].strip(), int(status['CapEff'], 16), int(status['CapPrm'], 16))
print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 32)
"""
    assert run_confined(body) == "1 0 0\n(0, 0) True"


def test_the_network_is_out_of_reach_where_namespaces_are_permitted() -> None:
    body = """
with socket.socket() as probe:
    probe.settimeout(5)
    try:
        probe.connect(('127.0.0.1', 1))
    except OSError as error:
        print(has_left, error.errno)
"""
    has_left, number = run_confined(body).split()
    # 101: network is unreachable (loopback is down in a new namespace); 111: refused, so there is a network.
    assert (has_left, number) in {("True", "101"), ("False", "111")}


def test_the_environment_is_allow_listed() -> None:
    found = clean_environment({"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "s", "PYTHONPATH": "/evil"})
    assert found["PATH"] == "/bin"
    assert "s" not in found.values()
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PYTHONPATH", "HOME"} & set(found)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("reward", ("torch", "transformers", "vllm", "ray", "redis", "math_verify", "sympy", "reasoning_gym")),
        ("executor", ("torch", "transformers", "vllm", "ray", "redis", "math_verify", "sympy", "reasoning_gym")),
        ("workers.zygote", ("grpc", "torch")),
    ],
)
def test_processes_load_only_what_they_need(module: str, forbidden: tuple[str, ...]) -> None:
    body = f"import sys, crescendo.reward_service.{module}; print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_service_options_are_typed_and_named_when_wrong() -> None:
    options = ServiceOptions.parse({"workers": "3", "item_deadline_s": "2.5", "port": "0", "scorers": "math_answer"})
    assert (options.grading.workers, options.grading.item_deadline_s, options.grading.attempts) == (3, 2.5, 3)
    assert options.preload == ("math_verify", "latex2sympy2_extended")
    assert "reasoning_gym" in ServiceOptions.parse({}).preload
    for wrong in ({"workers": "0"}, {"workers": "two"}, {"regrade_share": "2"}, {"port": "70000"}, {"wrokers": "2"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServiceOptions.parse(wrong)
