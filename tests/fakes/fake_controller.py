"""A scripted controller: `python -m fake_controller --run-folder DIR`, with this folder on PYTHONPATH.

Serves ControllerService over a made-up run of three stages that advances an iteration every TICK_S, and
writes the run folder's files as the real one does. CRESCENDO_FAKE says how it behaves: done (ends by itself
after some iterations, promoted on the way), endless, fail, die (by SIGKILL), deaf (ignores StopRun and
SIGTERM) or silent (never serves). It leaves a process in a session of its own behind, as a killed Ray would.
The verbs that were called are in verbs.jsonl.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from crescendo.common.rpc import guarded, guarded_stream, serve
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.telemetry import JsonlWriter
from crescendo.proto.v1 import common_pb2, controller_pb2, controller_pb2_grpc

TICK_S = float(os.environ.get("CRESCENDO_FAKE_TICK_S", "0.05"))
STAGES = (("short", 32, 20), ("medium", 64, 40), ("long", 96, 60))
HOSTILE = '<script>document.title="hacked"</script><img src=x onerror=alert(1)>'


class FakeRun(controller_pb2_grpc.ControllerServiceServicer):
    """The scripted run and its service in one."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.begun = time.monotonic()
        self.ended = asyncio.Event()
        self.status = controller_pb2.RunStatus(
            run_id=folder.run_id(), name=folder.root.name, phase="start", max_iterations=60, committed_iteration=-1
        )
        self.rows: list[controller_pb2.MetricsRow] = []
        self.events: list[controller_pb2.Event] = []
        self.samples: list[controller_pb2.Sample] = []
        self.verbs = JsonlWriter(folder.root / "verbs.jsonl")
        self.files = {name: JsonlWriter(getattr(folder, name)) for name in ("metrics", "events", "samples")}
        self.stage = 0
        self.promotes = os.environ.get("CRESCENDO_FAKE", "done") == "done"
        self.entered = [0, -1, -1]
        self.show_stages()

    def show_stages(self) -> None:
        del self.status.stages[:]
        for number, (name, tokens, _) in enumerate(STAGES):
            state = "active" if number == self.stage else "done" if number < self.stage else "waiting"
            self.status.stages.add(
                name=name,
                state=state,
                max_response_tokens=tokens,
                entered_iteration=self.entered[number],
                left_by="length_turn" if state == "done" else "",
                accuracy=0.3 + 0.2 * number if state == "done" else 0.0,
                gate="length_turn" if number < 2 else "plateau",
                gate_report=""
                if state != "active"
                else "clip_ratio 0.043 (>= 0.06), length_slope 0.21 (> 0), accuracy_slope 0.004 (<= 0.002)",
            )
        self.status.stage = STAGES[self.stage][0]

    def event(self, kind: str, message: str, severity: str = "info") -> None:
        row = {"sequence": len(self.events) + 1, "unix_seconds": time.time(), "kind": kind, "message": message,
               "facts": {"clip_ratio": "0.07"}, "severity": severity}  # fmt: skip
        self.events.append(controller_pb2.Event(**row))
        self.files["events"].write(row)
        self.status.message = message

    def iterate(self) -> None:
        number = self.status.iteration = self.status.iteration + 1
        self.status.step = "rl"
        progress = number / 60
        wave = math.sin(number * 1.7)
        values = {
            "iteration": float(number),
            "reward": 0.1 + 0.8 * progress + 0.03 * wave,
            "accuracy": 0.1 + 0.8 * progress + 0.02 * wave,
            "length": 20 + 40 * progress + wave,
            "clip_ratio": max(0.0, 0.1 * (1 - (number % 20) / 20)),
            "branch": 0.0,
        }
        if number % 5 == 0:
            values["validation_accuracy"] = 0.08 + 0.85 * progress
        self.rows.append(controller_pb2.MetricsRow(row=len(self.rows), stage=self.status.stage, values=values))
        self.files["metrics"].write({"stage": self.status.stage, "unix_seconds": time.time(), **values})
        self.status.metrics.clear()
        self.status.metrics.update(values)
        self.span(number)
        self.sample(number)
        self.status.weight_version = number
        del self.status.workers[:]
        for role, name, state in (("trainer", "trainer-0", "idle"), ("rollout", "rollout-0", "generating"),
                                  ("reward", "reward-0", "serving"), ("executor", "exec-0", "serving")):  # fmt: skip
            version = number if role in ("trainer", "rollout") else 0
            self.status.workers.add(
                worker_id=name, role=role, state=state, weight_version=version, admitted=role == "rollout",
                uptime_seconds=time.monotonic() - self.begun, resident_bytes=1 << 30, pid=os.getpid(),
            )  # fmt: skip
        if self.promotes and self.stage < 2 and number == STAGES[self.stage][2]:
            self.promote("length_turn")
        if number % 10 == 0:
            self.status.committed_iteration = number
            self.event("run.committed", f"iteration {number} is committed")

    def promote(self, by: str) -> None:
        self.stage += 1
        self.entered[self.stage] = self.status.iteration + 1
        self.event("stage.promoted", f"{STAGES[self.stage - 1][0]} left by {by} for {STAGES[self.stage][0]}")
        self.show_stages()

    def span(self, number: int) -> None:
        start = self.status.timeline[-1].end_seconds if self.status.timeline else 0.0
        for phase, seconds in (("rollout", 1.2), ("score", 0.1), ("train", 0.7), ("publish", 0.15)):
            self.status.timeline.add(phase=phase, iteration=number, start_seconds=start, end_seconds=start + seconds)
            start += seconds
        self.status.phase = "rollout"
        self.status.phase_progress = (number % 7) / 7
        self.status.tokens_per_second = 11_800.0
        self.status.eta_seconds = float(60 - number)
        self.status.elapsed_seconds = start

    def sample(self, number: int) -> None:
        right = number % 2 == 0
        verdict = common_pb2.VERDICT_CORRECT if right else common_pb2.VERDICT_WRONG
        sample = controller_pb2.Sample(
            trajectory_id=f"b0-i{number:06d}-d0000-s000", iteration=number, prompt="3a1b2c3?",
            response="a1=4b2=6c3=9#9$" if right else HOSTILE, gold_answer="9", reward=float(right),
            components=[common_pb2.RewardComponent(name="clock_sum", raw=float(right), weight=1, verdict=verdict)],
            finish_reason=common_pb2.FINISH_REASON_STOP, num_tokens=15, num_segments=1 + number % 2,
        )  # fmt: skip
        self.samples.append(sample)
        self.files["samples"].write(
            {
                "trajectory_id": sample.trajectory_id, "iteration": number, "prompt": sample.prompt,
                "response": sample.response, "gold_answer": "9", "reward": sample.reward,
                "finish_reason": "FINISH_REASON_STOP", "num_tokens": 15, "num_segments": sample.num_segments,
                "components": [{"name": "clock_sum", "raw": sample.reward, "weight": 1.0,
                                "verdict": common_pb2.Verdict.Name(verdict)}],
            }
        )  # fmt: skip

    def finish(self) -> None:
        self.status.phase = "done"
        self.event("run.done", "final accuracy 0.930")
        stages = [
            {"name": name, "entered_iteration": max(entered, 0), "left_by": "length_turn", "accuracy": 0.5}
            for (name, _, _), entered in zip(STAGES, self.entered, strict=True)
        ]
        summary = {
            "name": self.folder.root.name,
            "accuracy": {"sft": 0.11, "final": 0.93},
            "stages": stages,
            "seconds": {"start": 12.0, "sft": 60.0, "rollout": 70.0, "train": 30.0},
            "checks": {"logprob_max_diff": 5.1e-6},
        }
        self.folder.summary.write_text(json.dumps(summary))

    # The service --------------------------------------------------------------------------------------

    @guarded
    async def GetStatus(self, request, context):
        return controller_pb2.GetRunStatusResponse(status=self.status)

    @guarded_stream
    async def WatchStatus(self, request, context):
        while True:
            yield controller_pb2.WatchStatusResponse(status=self.status)
            await asyncio.sleep(0.05)

    @guarded
    async def ListMetrics(self, request, context):
        return controller_pb2.ListMetricsResponse(rows=self.rows[max(0, request.after_row) :])

    @guarded
    async def ListEvents(self, request, context):
        return controller_pb2.ListEventsResponse(events=[e for e in self.events if e.sequence > request.after_sequence])

    @guarded
    async def ListSamples(self, request, context):
        newest = list(reversed(self.samples))
        return controller_pb2.ListSamplesResponse(samples=newest[: request.limit or len(newest)])

    @guarded
    async def PauseRun(self, request, context):
        self.verbs.write({"verb": "pause"})
        self.status.paused = True
        return controller_pb2.PauseRunResponse()

    @guarded
    async def ResumeRun(self, request, context):
        self.verbs.write({"verb": "resume"})
        self.status.paused = False
        return controller_pb2.ResumeRunResponse()

    @guarded
    async def PromoteStage(self, request, context):
        self.verbs.write({"verb": "promote", "stage": request.stage})
        self.promote("manual")
        return controller_pb2.PromoteStageResponse(stage=STAGES[self.stage][0])

    @guarded
    async def ScaleEngines(self, request, context):
        self.verbs.write({"verb": "scale", "num_engines": request.num_engines})
        return controller_pb2.ScaleEnginesResponse()

    @guarded
    async def StopRun(self, request, context):
        self.verbs.write({"verb": "stop", "commit": request.commit})
        if os.environ.get("CRESCENDO_FAKE") != "deaf":
            self.status.phase = "stopped"
            self.ended.set()
        return controller_pb2.StopRunResponse()


def leave_orphan(folder: RunFolder) -> None:
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
    (folder.root / "orphan.pid").write_text(str(orphan.pid))


async def run(folder: RunFolder, behaviour: str) -> int:
    if behaviour == "silent":
        await asyncio.sleep(120)
    fake = FakeRun(folder)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if behaviour == "deaf" else fake.ended.set)
    server = await serve(
        lambda s: controller_pb2_grpc.add_ControllerServiceServicer_to_server(fake, s),
        ["crescendo.v1.ControllerService"],
        token=folder.read_token(),
    )
    write_atomically(folder.controller, json.dumps({"address": server.address, "pid": os.getpid()}))
    fake.event("run.started", "the run starts")
    code = 0
    while not fake.ended.is_set():
        await asyncio.sleep(TICK_S)
        if fake.status.paused:
            continue
        if fake.status.iteration < 60:
            fake.iterate()
        elif behaviour == "done":
            fake.finish()
            break
        if behaviour == "fail" and fake.status.iteration == 3:
            fake.status.phase, fake.status.failure = "failed", "engine rollout-0 never became ready."
            code = 3
            break
        if behaviour == "die" and fake.status.iteration == 3:
            print("Fatal: out of memory", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.2)
    await server.stop(0.1)
    folder.controller.unlink(missing_ok=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-folder", type=Path, required=True)
    folder = RunFolder.open_existing(parser.parse_args().run_folder)
    leave_orphan(folder)
    return asyncio.run(run(folder, os.environ.get("CRESCENDO_FAKE", "done")))


if __name__ == "__main__":
    sys.exit(main())
