"""A rollout phase whose tokens do not depend on the moment: `run.deterministic`.

What an engine computes for one response depends, in the last bits, on which others are in the same step. So
everything that can be claimed is claimed first and admitted at once, in the ledger's order, while the engine stands
idle; nothing is admitted while it works. The engine thread runs in lockstep with the event loop (thread.py), so that
a response that ends by a rule of ours leaves before the next step. Requests carry seeds of run, trajectory and
position (phase.py).

Used by RolloutService in place of RolloutPhase; lives as that does.
"""

import asyncio

from crescendo.buffer.protocol import Claim
from crescendo.rollout.phase import CLAIM_WAIT_S, RolloutPhase

CLAIM_AT_ONCE = 4096


class OrderedPhase(RolloutPhase):
    """RolloutPhase that admits work only while the engine is idle."""

    async def _claim_loop(self) -> None:
        while not self._stopping:
            claims = await self._claim_everything()
            self._nothing_to_claim = not claims
            self._launch(claims)
            while self._by_request and not self._stopping:
                await self._wait_until_idle(CLAIM_WAIT_S)
            if not claims:
                await asyncio.sleep(CLAIM_WAIT_S / 2)

    async def _claim_everything(self) -> list[Claim]:
        claims: list[Claim] = []
        while not self._stopping:
            more = await self._insist(self._claim, CLAIM_AT_ONCE, while_stopping=False)
            claims += more or ()
            if not more:
                break
        return claims
