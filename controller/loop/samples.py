"""Samples for people, and canaries from real responses: taken from each trained batch."""

from collections.abc import Sequence

from crescendo.common.types import Group, Trajectory
from crescendo.controller.loop import batches
from crescendo.controller.loop.parts import Parts
from crescendo.proto.v1 import controller_pb2

SAMPLES_AN_ITERATION = 4


async def show_samples(parts: Parts, groups: Sequence[Group]) -> None:
    """Puts a right and a wrong response of the newest groups on the board; renews the canaries."""
    shown = list(groups[-(SAMPLES_AN_ITERATION // 2) :])
    prompts = await parts.buffer.load_prompts([group.group_id for group in shown])
    canaries: list[list[int]] = []
    for group, prompt in zip(shown, prompts, strict=True):
        contrast = [trajectory.trajectory_id for trajectory in _contrast(batches.scored(group))]
        for trajectory in await parts.buffer.load_trajectories(contrast):
            tokens = trajectory.token_ids.tolist()
            canaries.append([*prompt.token_ids, *tokens])
            parts.board.sample(
                controller_pb2.Sample(
                    trajectory_id=trajectory.trajectory_id,
                    iteration=group.iteration,
                    prompt="".join(part.text for part in prompt.parts),
                    response=parts.tokenizer.decode(tokens),
                    gold_answer=", ".join(prompt.gold_answers),
                    reward=trajectory.reward,
                    components=trajectory.components,
                    finish_reason=trajectory.finish_reason,
                    num_tokens=trajectory.num_tokens,
                    num_segments=trajectory.num_segments,
                )
            )
    if canaries:
        parts.sync.canaries = canaries[: parts.config.rollout.num_canaries]


def _contrast(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    right = next((trajectory for trajectory in trajectories if batches.is_correct(trajectory)), None)
    wrong = next((trajectory for trajectory in trajectories if not batches.is_correct(trajectory)), None)
    return [trajectory for trajectory in (right, wrong) if trajectory is not None]
