"""Math verdicts per second through the reward service, against bare math-verify in one process per core.

Same inputs, same settings, in turns: `python tests/bench/bench_math.py` prints one JSON object. `ours` goes
over gRPC through both services with the hard kill on; `baseline` is a loop over parse and verify without any
time-out. The target for `ratio` is 0.9. `agreement` is the share of equal verdicts. `scorer_ratio` compares
with our own scorer in such a loop: what the two services and the pool cost, without what extraction gains.

`poison` is the other figure: a batch of which 1 % never end, against the same batch without them. Its time must be at
most 1.1 times the clean batch's plus the deadlines of the poison, shared by the workers: `poison_share` at most 1.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import ServiceSpec
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc

START_S = 120.0
TOKEN = "bench"
Pair = tuple[str, str]
POISON = r"\boxed{99999999999!}"
POISON_DEADLINE_S = 1.0

THOUGHTS = (
    "We first write the equation again and collect the terms on the left side.",
    "Wait, the sign of the second term is wrong, so let me check it once more.",
    "Dividing both sides by $2$ gives a simpler expression.",
    "If $n = 3$ then the sum is $\\frac{3 \\cdot 4}{2} = 6$, which agrees.",
    "So the remaining factor must be positive.",
)


def make_pairs(count: int, seed: int) -> list[Pair]:
    """(gold, response) pairs: eight responses a problem, about half of them right."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < count:
        gold, right, wrong = _problem(rng)
        for _ in range(8):
            thoughts = " ".join(rng.choice(THOUGHTS) for _ in range(rng.randint(5, 40)))
            answer = right if rng.random() < 0.5 else wrong
            pairs.append((gold, f"{thoughts} Therefore the answer is $\\boxed{{{answer}}}$."))
    rng.shuffle(pairs)
    return pairs[:count]


def _problem(rng: random.Random) -> tuple[str, str, str]:
    a, b, c = rng.randint(2, 97), rng.randint(2, 97), rng.randint(2, 13)
    forms = (
        (f"{a * b}", f"{a * b}", f"{a * b + 1}"),
        (f"\\frac{{{a}}}{{{b + a}}}", f"\\frac{{{2 * a}}}{{{2 * (b + a)}}}", f"\\frac{{{a + 1}}}{{{b + a}}}"),
        (f"{a}\\sqrt{{{c}}}", f"\\sqrt{{{a * a * c}}}", f"{a + 1}\\sqrt{{{c}}}"),
        (f"x^2-{a * a}", f"(x-{a})(x+{a})", f"(x-{a})(x+{a + 1})"),
        (f"\\{{{a}, {b + 100}\\}}", f"\\{{{b + 100}, {a}\\}}", f"\\{{{a}, {b}\\}}"),
        (f"{a}.5", f"\\frac{{{2 * a + 1}}}{{2}}", f"{a}.25"),
        (f"({a}, {b})", f"({a}, {b})", f"({b + 100}, {a})"),
    )
    return rng.choice(forms)


def bare_loop(pipe: Connection) -> None:
    """One baseline process: grades each list of pairs that it is sent."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all", equations=False
    )
    targets = [
        LatexExtractionConfig(normalization_config=normalization, boxed_match_priority=0),
        ExprExtractionConfig(),
    ]
    while pairs := pipe.recv():
        verdicts: list[bool] = []
        for gold, response in pairs:
            wanted = parse(f"\\boxed{{{gold}}}", targets, parsing_timeout=None)
            found = parse(response, targets, parsing_timeout=None)
            verdicts.append(bool(verify(wanted, found, timeout_seconds=None)))
        pipe.send(verdicts)


def in_own_session(loop: Callable[[Connection], None], pipe: Connection) -> None:
    """Runs a loop in a session of its own, as workers run: the kernel may share a busy machine out by session."""
    os.setsid()
    loop(pipe)


def scorer_loop(pipe: Connection) -> None:
    """The same with the service's scorer, called directly."""
    from crescendo.reward_service.scorers.base import Sample
    from crescendo.reward_service.scorers.math_answer import MathOptions, score

    while pairs := pipe.recv():
        outcomes = [score(Sample(response, (gold,)), MathOptions()) for gold, response in pairs]
        pipe.send([outcome.verdict == common_pb2.VERDICT_CORRECT for outcome in outcomes])


class Loops:
    """A loop in one process a core."""

    def __init__(self, num_processes: int, loop: Callable[[Connection], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=in_own_session, args=(loop, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def grade(self, pairs: list[Pair]) -> list[bool]:
        """Verdicts in order."""
        count = len(self._pipes)
        for place, pipe in enumerate(self._pipes):
            pipe.send(pairs[place::count])
        verdicts = [False] * len(pairs)
        for place, pipe in enumerate(self._pipes):
            verdicts[place::count] = pipe.recv()
        return verdicts

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send([])
            process.join(10)


class Services:
    """Both services as the controller starts them."""

    def __init__(self, folder: Path, workers: int) -> None:
        options = {"workers": str(workers), "scorers": "math_answer"}
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        executor = self._start("executor", ServiceSpec("executor", "e", "", "bench", "", options=options))
        spec = ServiceSpec("reward", "r", "", "bench", TOKEN, address=executor, options=options)
        self.address = self._start("reward", spec)

    def _start(self, role: str, spec: ServiceSpec) -> str:
        spec_file, ready_file = self._folder / f"{role}.json", self._folder / f"{role}.ready"
        spec_file.write_text(spec.to_json())
        command = [sys.executable, "-m", "crescendo.reward_service", role]
        process = subprocess.Popen([*command, "--spec-file", str(spec_file), "--ready-file", str(ready_file)])
        self._processes.append(process)
        deadline = time.monotonic() + START_S
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{role} did not start")
            time.sleep(0.05)
        return ready_file.read_text()

    def close(self) -> None:
        """Drains and ends both."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)


async def connect(address: str) -> Client[reward_pb2_grpc.RewardServiceStub]:
    """A client on the running loop."""
    return Client(Endpoint(address, TOKEN), reward_pb2_grpc.RewardServiceStub)


async def grade(
    client: Client[reward_pb2_grpc.RewardServiceStub], pairs: list[Pair], deadline_s: float = 0.0
) -> list[bool]:
    """Verdicts of the service, in order. deadline_s: of one item; 0 is the service's default."""
    chain = [reward_pb2.ScorerSpec(name="math_answer", weight=1.0)]
    items = [
        reward_pb2.ScoreItem(item_id=str(i), response=response.encode(), gold_answers=[gold], chain=chain)
        for i, (gold, response) in enumerate(pairs)
    ]
    response = await client.call(
        client.stub.Score, reward_pb2.ScoreRequest(items=items, deadline_seconds=deadline_s), timeout_s=900.0
    )
    return [result.components[0].verdict == common_pb2.VERDICT_CORRECT for result in response.results]


def poisoned(pairs: list[Pair], seed: int) -> list[Pair]:
    """The same with 1 % of the responses replaced by work without end."""
    places = set(random.Random(seed).sample(range(len(pairs)), len(pairs) // 100))
    return [(gold, POISON if place in places else response) for place, (gold, response) in enumerate(pairs)]


def poison_figures(grade_all: Callable[[list[Pair]], list[bool]], num_pairs: int, cores: int) -> dict[str, float]:
    """How long the clean and the poisoned batch take, and the poisoned one's share of what it may."""
    pairs = make_pairs(num_pairs, seed=99)
    _, clean = timed(grade_all, pairs)
    verdicts, rate = timed(grade_all, poisoned(pairs, seed=7))
    clean_s, poisoned_s = num_pairs / clean, num_pairs / rate
    allowed_s = 1.1 * clean_s + (num_pairs // 100) * POISON_DEADLINE_S / cores
    return {
        "clean_s": round(clean_s, 2),
        "poisoned_s": round(poisoned_s, 2),
        "poison_share": round(poisoned_s / allowed_s, 3),
        "poison_right": sum(verdicts),
    }


def timed(action: Callable[[list[Pair]], list[bool]], pairs: list[Pair]) -> tuple[list[bool], float]:
    """Verdicts, and verdicts per second."""
    started_s = time.perf_counter()
    verdicts = action(pairs)
    return verdicts, len(pairs) / (time.perf_counter() - started_s)


def measure(num_pairs: int, rounds: int, cores: int, batch: int) -> dict[str, object]:
    """Runs all in turns, after one round of warm-up, and returns the medians; then the poisoned batch."""
    rates: dict[str, list[float]] = {"ours": [], "baseline": [], "scorer": []}
    agreements: list[float] = []
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        services, baseline, scorer = Services(Path(folder), cores), Loops(cores, bare_loop), Loops(cores, scorer_loop)
        client = runner.run(connect(services.address))
        actions = {
            "baseline": baseline.grade,
            "ours": lambda pairs: runner.run(grade(client, pairs)),
            "scorer": scorer.grade,
        }
        try:
            for turn in range(rounds + 1):
                pairs = make_pairs(num_pairs, seed=turn)
                found = {name: timed(action, pairs) for name, action in actions.items()}
                equal = zip(found["ours"][0], found["baseline"][0], strict=True)
                agreements.append(statistics.fmean(a == b for a, b in equal))
                if turn:
                    for name, (_, rate) in found.items():
                        rates[name].append(rate)
            poison = poison_figures(lambda pairs: runner.run(grade(client, pairs, POISON_DEADLINE_S)), batch, cores)
        finally:
            runner.run(client.close())
            for running in (services, baseline, scorer):
                running.close()

    def ratio(below: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates["ours"], rates[below], strict=True)), 3)

    return {
        "name": "math",
        "ours": round(statistics.median(rates["ours"]), 1),
        "baseline": round(statistics.median(rates["baseline"]), 1),
        "ratio": ratio("baseline"),
        "scorer_ratio": ratio("scorer"),
        "unit": "verdicts/s",
        "agreement": round(statistics.fmean(agreements), 5),
        "cores": cores,
        "pairs": num_pairs,
        "rounds": rounds,
        "poison": poison,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=10_000, help="items of the batch that is poisoned")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.pairs, arguments.rounds, arguments.cores, arguments.batch)))


if __name__ == "__main__":
    main()
