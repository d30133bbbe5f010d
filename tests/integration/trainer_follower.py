"""A trainer rank that is not rank 0, as a process: `python trainer_follower.py SPEC_JSON`."""

import asyncio
import sys

from crescendo.common.service import ServiceSpec
from crescendo.trainer.service import Follower, start


async def main() -> None:
    service = await start(ServiceSpec.from_json(sys.argv[1]))
    assert isinstance(service, Follower)
    await service.wait()
    await service.stop(1.0)


if __name__ == "__main__":
    asyncio.run(main())
