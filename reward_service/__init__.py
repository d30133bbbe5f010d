"""The reward service: what a response is worth, and nothing that the response can reach.

Two processes. `reward` (reward.py) has the token, the queue and the retries; model text passes through it as
bytes. `executor` (executor.py) has neither token nor secret; what reads model text runs in its worker
processes (workers/), which apply scorers (scorers/).

    controller -- Score --> reward -- Execute --> executor -- pipe --> worker  (forked by the zygote)

Both are started by entry point (`crescendo.services`) or by `python -m crescendo.reward_service`.
"""
