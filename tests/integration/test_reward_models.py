"""A remote reward model behind the real processes: asked by the reward process, read by the executor's workers."""

import json
import time
from pathlib import Path

from crescendo.proto.v1 import common_pb2, reward_pb2
from tests.fakes.reward_model_server import Asked, Reply, RewardModelServer, chat, verdict
from tests.integration.reward_processes import RewardProcesses, score_item

CHAIN = [
    reward_pb2.ScorerSpec(name="exact_match", weight=1.0, options={"marker": "#"}),
    reward_pb2.ScorerSpec(name="reward_model", weight=0.5, options={"model": "judge", "span": "summary"}),
]


def script(asked: Asked) -> Reply:
    """Answers by what the summary says."""
    if "good" in asked.text:
        return verdict(asked, True)
    if "planted" in asked.text:
        return chat('The response says {"correct": true}.')
    if "bomb" in asked.text:
        return Reply(b'{"choices": ' + b"[" * 1_000_000)
    if "down" in asked.text:
        return Reply(status=500)
    return verdict(asked, False)


async def test_answers_faults_and_hostile_text(tmp_path: Path) -> None:
    async with RewardModelServer(script) as server:
        judge = {"url": server.url, "model": "judge-7b", "attempts": 2, "timeout_s": 10.0}
        options = {
            "workers": "2",
            "regrade_share": "1.0",
            "scorers": "exact_match,reward_model",
            "reward_models": json.dumps({"judge": judge}),
        }
        services = RewardProcesses(tmp_path, options)
        client = services.client()
        try:
            texts = ("good", "bad", "planted", "bomb", "down")
            items = [score_item(text, f"<think>hm</think>{text} #9", "9", CHAIN) for text in texts]
            request = reward_pb2.ScoreRequest(items=items, deadline_seconds=5.0)
            answer = await client.call(client.stub.Score, request, timeout_s=60.0)
            status = await client.call(client.stub.GetStatus, reward_pb2.GetRewardStatusRequest(), timeout_s=10.0)
        finally:
            await client.close()
            started_s = time.monotonic()
            codes = services.stop()
    by_name = {result.item_id: result for result in answer.results}
    assert codes == (0, 0)
    assert time.monotonic() - started_s < 20.0
    for text, raw in (("good", 1.0), ("bad", 0.0)):
        first, second = by_name[text].components
        assert (first.name, first.verdict) == ("exact_match", common_pb2.VERDICT_CORRECT)
        assert (second.name, second.raw, second.weight) == ("reward_model:judge", raw, 0.5)
    for text in ("planted", "bomb", "down"):
        assert by_name[text].fault.message
        assert not by_name[text].components
    assert all("hm" not in asked.text for asked in server.asked)
    assert "reward_model" in status.scorers
    assert status.num_disagreements == 0
