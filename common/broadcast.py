"""The process group of one round of the weight channel `nccl`: the trainer's publisher is rank 0, engines the others.

Both sides make it from a GroupHandle, for one version, and close it afterwards: it shares nothing with Megatron's or
vLLM's groups, so that a lost member breaks this round alone. PyTorch is passed in, since this package loads none.
Whatever can hang runs in a thread of its own (`watched`), beside which the connections to the other members are
watched: the end of one tells of a death at once. NCCL is used without blocking calls, which alone can be aborted.
"""

import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from crescendo.common.errors import CrescendoError, DeadlineError, WorkerLostError
from crescendo.common.rpc.wire import Deadline, Wire
from crescendo.proto.v1 import weights_pb2

log = logging.getLogger(__name__)

NONBLOCKING_TIMEOUT = "TORCH_NCCL_NONBLOCKING_TIMEOUT"  # in seconds; PyTorch reads it once in a process
POLL_S = 0.0002

T = TypeVar("T")


class BroadcastGroup:
    """One member's seat."""

    def __init__(self, torch: Any, handle: weights_pb2.GroupHandle, *, own_host: str, store: Any = None) -> None:
        """Blocks until all members have met; raises RuntimeError as PyTorch does.

        torch: the module; own_host: this machine's address as the other members see it; store: rank 0's own.
        """
        distributed = torch.distributed
        timeout = timedelta(seconds=handle.timeout_seconds)
        if store is None:
            host, _, port = handle.store.rpartition(":")
            store = distributed.TCPStore(host, int(port), timeout=timeout, wait_for_workers=False)
        self._options = distributed.BroadcastOptions()
        self._options.rootRank = self._options.rootTensor = 0
        self._options.timeout, self._options.asyncOp = timeout, True
        if handle.backend == "nccl":
            os.environ.setdefault(NONBLOCKING_TIMEOUT, str(max(1, int(handle.timeout_seconds))))
            options = distributed.ProcessGroupNCCL.Options()
            options.config.blocking = False
            options._timeout = 2 * timeout  # its watchdog ends the process: whoever calls gives up before
            self._group = distributed.ProcessGroupNCCL(store, handle.rank, handle.size, options)
            self._group.eager_connect_single_device(torch.device("cuda", torch.cuda.current_device()))
        else:
            options = distributed.ProcessGroupGloo._Options()
            options._devices = [distributed.ProcessGroupGloo.create_device(hostname=own_host)]
            options._timeout = timeout
            self._group = distributed.ProcessGroupGloo(store, handle.rank, handle.size, options)

    def broadcast(self, data: Any) -> None:
        """[N] uint8 from rank 0 to all; blocks until it is here, or sent. Raises RuntimeError as PyTorch does."""
        work = self._group.broadcast([data], self._options)
        while not work.is_completed():
            time.sleep(POLL_S)
        work.wait()

    def close(self, *, broken: bool) -> None:
        """Ends it. broken: what still runs in it fails, in NCCL at once, in gloo at its time limit; nobody waits."""
        held = [self._group]
        del self._group

        def end() -> None:
            try:
                held.pop().abort()
            except RuntimeError as error:
                log.debug("a broken group: %s", error)

        if sys.is_finalizing():  # no thread can be started any more, and the sockets end with the process
            return
        if broken:
            threading.Thread(target=end, name="broadcast-end", daemon=True).start()
        else:
            end()


def watched(
    work: Callable[[], T], wires: Sequence[Wire], receive: Callable[[Wire], None], deadline: Deadline, *, answers: bool
) -> T:
    """What work gives, done in another thread, which is left behind when it hangs.

    receive: takes the message that came on a wire, and raises if that, or its end, means the end of the work; answers:
    whether one message is awaited on each wire. Raises WorkerLostError where PyTorch failed, DeadlineError in time.
    """
    ended, end = socket.socketpair()
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        with end:
            try:
                results.append(work())
            except (RuntimeError, CrescendoError) as error:
                errors.append(error)

    with ended, selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        for wire in wires:
            selector.register(wire.socket, selectors.EVENT_READ, wire)
        threading.Thread(target=run, name="broadcast", daemon=True).start()
        while len(selector.get_map()) > (0 if answers else len(wires)):
            for key, _ in selector.select(deadline.remaining_s):
                selector.unregister(key.fileobj)
                if key.data is not None:
                    receive(key.data)
                elif errors:
                    raise WorkerLostError(f"the broadcast broke: {errors[0]}") from errors[0]
            if deadline.passed:
                raise DeadlineError("the weights were not passed on in time.")
    return results[0]
