"""The columns of an archive file: one row a trajectory. docs/archive.md tells the same for people.

Shapes: P prompt tokens, T response tokens, S segments, C reward components.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from crescendo.common.types import Group, IntArray, Trajectory
from crescendo.proto.v1 import common_pb2

SCHEMA_VERSION = 1
VERSION_KEY = b"crescendo.schema_version"

Decode = Callable[[IntArray], str]
"""Text of token ids; special tokens are left out."""

_SEGMENT = pa.struct(
    [
        ("weight_version", pa.int64()),
        ("iteration", pa.int64()),
        ("stage", pa.string()),
        ("branch", pa.int64()),
        ("num_tokens", pa.int32()),
        ("tool_turn", pa.bool_()),
        ("worker_id", pa.string()),
    ]
)
_COMPONENT = pa.struct(
    [
        ("name", pa.string()),
        ("raw", pa.float64()),
        ("weight", pa.float64()),
        ("verdict", pa.string()),
        ("detail", pa.string()),
    ]
)
_PART = pa.struct([("role", pa.string()), ("text", pa.string()), ("image", pa.string())])

SCHEMA = pa.schema(
    [
        ("group_id", pa.string()),
        ("trajectory_id", pa.string()),
        ("branch", pa.int64()),
        ("iteration", pa.int64()),
        ("consumed_iteration", pa.int64()),
        ("stage", pa.string()),
        ("group_state", pa.string()),
        ("group_drop_reason", pa.string()),
        ("prompt_id", pa.string()),
        ("domain", pa.string()),
        ("prompt", pa.list_(_PART)),
        ("prompt_text", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("gold_answers", pa.list_(pa.string())),
        ("state", pa.string()),
        ("drop_reason", pa.string()),
        ("finish_reason", pa.string()),
        ("attempts", pa.int32()),
        ("spans", pa.int32()),
        ("num_tokens", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("segments", pa.list_(_SEGMENT)),
        ("reward", pa.float64()),
        ("components", pa.list_(_COMPONENT)),
    ]
)


@dataclass(frozen=True)
class Payload:
    """A group with its trajectories, and its prompt."""

    group: Group
    prompt: common_pb2.Prompt


def file_schema(run_id: str, *, chat_template: bool) -> pa.Schema:
    """The schema with what a file tells about itself."""
    facts = {VERSION_KEY: str(SCHEMA_VERSION), b"crescendo.run_id": run_id}
    return SCHEMA.with_metadata({**facts, b"crescendo.chat_template": "true" if chat_template else "false"})


def record_batch(payloads: Sequence[Payload], decode: Decode | None, decode_prompt: Decode | None) -> pa.RecordBatch:
    """Rows of whole groups; texts are null without a decoder."""
    rows: list[dict[str, Any]] = []
    trajectories: list[Trajectory] = []
    for payload in payloads:
        shared = _group_values(payload, decode_prompt)
        for trajectory in payload.group.trajectories:
            rows.append({**shared, **_trajectory_values(trajectory, decode)})
            trajectories.append(trajectory)
    masks = [_joined([one.loss_mask for one in each.segments], np.bool_) for each in trajectories]
    arrays = {
        "token_ids": _lists([each.token_ids for each in trajectories], pa.int32()),
        "log_probs": _lists([each.log_probs for each in trajectories], pa.float32()),
        "loss_mask": _lists(masks, pa.bool_()),
        "prompt_token_ids": _lists([each.prompt_token_ids for each in trajectories], pa.int32()),
    }
    columns = [
        arrays[field.name] if field.name in arrays else pa.array([row[field.name] for row in rows], field.type)
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _group_values(payload: Payload, decode_prompt: Decode | None) -> dict[str, Any]:
    group, prompt = payload.group, payload.prompt
    return {
        "group_id": group.group_id,
        "branch": group.branch,
        "iteration": group.iteration,
        "consumed_iteration": group.consumed_iteration if group.consumed_iteration >= 0 else None,
        "stage": group.stage,
        "group_state": group.state.value,
        "group_drop_reason": group.drop_reason,
        "prompt_id": group.prompt_id,
        "domain": prompt.domain,
        "prompt": [{"role": part.role, "text": part.text, "image": part.image.digest} for part in prompt.parts],
        "prompt_text": decode_prompt(np.array(prompt.token_ids, dtype=np.int32)) if decode_prompt else None,
        "gold_answers": list(prompt.gold_answers),
    }


def _trajectory_values(trajectory: Trajectory, decode: Decode | None) -> dict[str, Any]:
    return {
        "trajectory_id": trajectory.trajectory_id,
        "state": trajectory.state.value,
        "drop_reason": trajectory.drop_reason,
        "finish_reason": common_pb2.FinishReason.Name(trajectory.finish_reason).removeprefix("FINISH_REASON_").lower(),
        "attempts": trajectory.attempts,
        "spans": trajectory.spans,
        "num_tokens": trajectory.num_tokens,
        "text": decode(trajectory.token_ids) if decode else None,
        "segments": [
            {
                "weight_version": segment.weight_version,
                "iteration": segment.iteration,
                "stage": segment.stage,
                "branch": segment.branch,
                "num_tokens": len(segment.token_ids),
                "tool_turn": segment.tool_turn,
                "worker_id": segment.worker_id,
            }
            for segment in trajectory.segments
        ],
        "reward": trajectory.reward,
        "components": [
            {
                "name": component.name,
                "raw": component.raw,
                "weight": component.weight,
                "verdict": common_pb2.Verdict.Name(component.verdict).removeprefix("VERDICT_").lower(),
                "detail": component.detail,
            }
            for component in trajectory.components
        ],
    }


def _joined(parts: Sequence[Any], kind: Any) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)


def _lists(rows: Sequence[Any], kind: pa.DataType) -> pa.ListArray:
    """Arrays of different lengths as one column, without a Python object a value."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    values = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))
