"""Grades answers for the filters, in an executor: what reads them is as confined as in training."""

from collections.abc import Mapping, Sequence

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.data.questions import Question
from crescendo.reward_service.dispatch import Dispatcher, worst_case_s
from crescendo.reward_service.executors import Executors
from crescendo.reward_service.scorers import check_chain

ATTEMPTS = 3


class Grader:
    """`Grader(executors, "math_answer", {})`, then `correct`. deadline_s: wall-clock limit of one answer."""

    def __init__(self, executors: Executors, scorer: str, options: Mapping[str, str], deadline_s: float) -> None:
        """Raises RequestError when there is no such scorer, or it has no such option."""
        self._chain = [reward_pb2.ScorerSpec(name=scorer, weight=1.0, options=options)]
        check_chain(self._chain)
        self._dispatcher = Dispatcher(executors, ATTEMPTS, regrade_share=0.0)
        self._deadline_s = deadline_s

    async def correct(self, answers: Sequence[tuple[Question, str]]) -> list[bool | None]:
        """Whether each text answers its question; None where the service could not tell (a fault, no scorer).

        Raises a CrescendoError when no executor answers.
        """
        items = [
            reward_pb2.ScoreItem(
                item_id=str(place),
                response=text.encode("utf-8", "replace"),
                prompt=question.text.encode("utf-8", "replace"),
                gold_answers=question.golds,
                chain=self._chain,
                finish_reason=common_pb2.FINISH_REASON_STOP,
            )
            for place, (question, text) in enumerate(answers)
        ]
        results = await self._dispatcher.score(
            items, self._deadline_s, worst_case_s(len(items), self._deadline_s, ATTEMPTS)
        )
        return [_verdict(result) for result in results]


def _verdict(result: reward_pb2.ScoreResult) -> bool | None:
    if result.HasField("fault"):
        if result.fault.code == RequestError.__name__:
            raise RequestError(result.fault.message, field=result.fault.field, fix=result.fault.fix)
        return None
    return result.components[0].verdict == common_pb2.VERDICT_CORRECT
