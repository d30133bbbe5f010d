"""Judging of programs: what runs in the sandbox, what is compared outside, and why no candidate can say a verdict.

docs/decisions/0014-judge.md tells the reasons. `messages` carries programs and outcomes between processes.
"""
