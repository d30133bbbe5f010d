"""The trainer's end of the channels that engines fetch from: a small server, a thread a connection.

Made by a channel, lives as long as it. A request that carries an older fence than one seen before is refused, so an
engine that slept through the loss of its controller gets nothing; so is one without the token or certificate.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from crescendo.common.errors import CrescendoError, EnvironmentProblem
from crescendo.common.fence import FenceGuard
from crescendo.common.rpc import to_detail
from crescendo.common.rpc.server import ADDRESS_VARIABLE, LOOPBACK
from crescendo.common.rpc.wire import Deadline, Guard, Wire
from crescendo.proto.v1 import weights_pb2

log = logging.getLogger(__name__)

CALLERS = frozenset({"worker", "controller"})  # a job's certificates know these two
IDLE_S = 60.0  # a connection without a request for so long is closed
EXCHANGE_S = 600.0  # one request with its answer
BACKLOG = 128

# Answers a request on its connection, within the deadline; raises a CrescendoError, which the peer is told.
Answer = Callable[[Wire, weights_pb2.WeightRequest, Deadline], None]


class WeightServer:
    """Listens from its making to `close`. address: host:port, or the path of a Unix socket."""

    def __init__(self, answer: Answer, *, token: str, path: Path | None = None) -> None:
        """path: of a Unix socket in its place. Raises EnvironmentProblem when the address cannot be used."""
        self._answer = answer
        self._guard = Guard(token, CALLERS)
        self._fences = FenceGuard()
        self._fence_lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._path = path
        self._listener = self._listen(path)
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="weights", daemon=True)
        self._thread.start()

    def _listen(self, path: Path | None) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX if path is not None else socket.AF_INET)
        try:
            if path is not None:
                path.unlink(missing_ok=True)
                listener.bind(str(path))
                path.chmod(0o600)
                self.address = str(path)
            else:
                host = LOOPBACK if self._guard.files is None else os.environ.get(ADDRESS_VARIABLE, LOOPBACK)
                listener.bind((host, 0))
                self.address = f"{host}:{listener.getsockname()[1]}"
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise EnvironmentProblem(
                f"the weight channel cannot listen at {path or os.environ.get(ADDRESS_VARIABLE, LOOPBACK)}: {error}.",
                field=ADDRESS_VARIABLE,
                fix="Set POD_IP to an address of this machine, or choose another trainer.weight_channel.",
            ) from None
        return listener

    def close(self) -> None:
        """Stops listening and ends every connection."""
        self._closing = True
        with self._open_lock:
            doomed = [self._listener, *self._open]
        for one in doomed:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("a connection had ended already")
        self._listener.close()
        self._thread.join(IDLE_S)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return  # the listener was closed
            name = ":".join(map(str, peer[:2])) if peer else "the peer"
            threading.Thread(target=self._serve, args=(connection, name), name="weights", daemon=True).start()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        with self._open_lock:
            self._open.add(connection)
        try:
            wire = self._guard.accept(connection, peer, Deadline.after(IDLE_S))
            connection = wire.socket
            while not self._closing:
                request = wire.receive(weights_pb2.WeightRequest, Deadline.after(IDLE_S))
                self._reply(wire, request, Deadline.after(EXCHANGE_S))
        except CrescendoError as error:
            log.debug("%s left: %s", peer, error)
        finally:
            with self._open_lock:
                self._open.discard(connection)
            connection.close()

    def _reply(self, wire: Wire, request: weights_pb2.WeightRequest, deadline: Deadline) -> None:
        try:
            self._guard.check(request.token)
            with self._fence_lock:
                self._fences.check(request.fence)
            self._answer(wire, request, deadline)
        except CrescendoError as error:
            wire.send(weights_pb2.WeightReply(error=to_detail(error)), deadline)
            raise
