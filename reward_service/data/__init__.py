"""Filters of prompt sets: what a reward service cannot grade, or a policy could get without reasoning, is left out.

Each filter looks at one question after the other and says why it should go, or nothing. They run in the command
`crescendo data` (cli/data.py), which reads the files and writes what is kept; no service imports them. Every filter
is linear in a question's length, and none reads more than MAX_CHARACTERS of it: data sets hold strange rows.
"""

from crescendo.reward_service.data.attempts import AttemptOptions, Attempts, Prompts, Tally
from crescendo.reward_service.data.check import CheckLimits, Checks
from crescendo.reward_service.data.grader import Grader
from crescendo.reward_service.data.kinds import answer_refused, kind_refused
from crescendo.reward_service.data.near_duplicates import NearDuplicates
from crescendo.reward_service.data.overlap import Overlap
from crescendo.reward_service.data.questions import MAX_CHARACTERS, Question, Refusal
from crescendo.reward_service.data.report import Report

__all__ = [
    "MAX_CHARACTERS",
    "AttemptOptions",
    "Attempts",
    "CheckLimits",
    "Checks",
    "Grader",
    "NearDuplicates",
    "Overlap",
    "Prompts",
    "Question",
    "Refusal",
    "Report",
    "Tally",
    "answer_refused",
    "kind_refused",
]
