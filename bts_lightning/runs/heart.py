"""A heartbeat between the processes of one training: none waits for another one that is gone."""

import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from threading import Event, Lock, Thread
from weakref import WeakSet

_BEAT_EVERY = 1.0
# The beat needs the interpreter for an instant. Code that keeps it for itself, as a compiler may,
# gives it back sooner than this; whoever is stopped, or swapped out for so long, is lost.
SILENT_AFTER = 15.0
# So long a main thread that stumbled over the loss may take to come to `fail`.
_GRACE = 3.0
_BYE = b"bye"
_sockets: WeakSet[socket.socket] = WeakSet()


@dataclass(frozen=True)
class LostRank:
    """A rank that cannot go on."""

    rank: int
    host: str
    why: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} {self.why}"


@dataclass(eq=False)
class Link:
    """The connection to another rank."""

    rank: int
    host: str
    pid: int
    socket: socket.socket
    heard: float = field(default_factory=time.monotonic)
    rest: bytes = b""

    def __post_init__(self) -> None:
        self.socket.setblocking(False)
        _sockets.add(self.socket)

    def send(self, line: bytes) -> None:
        """Send a line if the other one takes it; whether it lives is seen where it is listened."""
        with suppress(OSError):
            self.socket.sendall(line + b"\n")

    def receive(self) -> list[bytes] | None:
        """Give the lines that have come, or None if the other one has gone."""
        try:
            data = self.socket.recv(2**16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        return lines if data else None


class Heart:
    """Beat for this rank and listen to others: the first to all, all others to the first.

    Args:
        rank: of this process.
        links: the connections.
        end: is called with the loss in a thread of ours, when another rank is lost and the main
            thread does not come to `fail`, because it waits for the lost one.
        silent_after: seconds after which a rank that says nothing is lost.
    """

    def __init__(
        self,
        rank: int,
        links: Iterable[Link],
        end: Callable[[LostRank], None],
        silent_after: float = SILENT_AFTER,
    ) -> None:
        self.rank, self.links = rank, {link.rank: link for link in links}
        self.lost: LostRank | None = None
        # Whether it was found out here, and nobody else is going to tell of it.
        self.is_witness = False
        self._end, self._silent_after = end, silent_after
        self._noted, self._taken, self._lock = Event(), Lock(), Lock()
        Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def leave(self) -> None:
        """Say goodbye, and watch no longer."""
        for link in list(self.links.values()):
            link.send(_BYE)
            self._forget(link)

    def fail(self, why: str) -> LostRank:
        """Tell the others that this rank cannot go on; give the one that was the first."""
        # What failed here may have failed because another one is gone.
        if not self._noted.wait(2.0):
            self._note(LostRank(self.rank, socket.gethostname(), why), is_witness=True)
        # Never given back: once the thread ends the process, nothing else is said.
        self._taken.acquire()
        assert self.lost is not None
        return self.lost

    def _beat(self) -> None:
        looked, beaten = time.monotonic(), 0.0
        while self.links and self.lost is None:
            self._listen()
            now = time.monotonic()
            for link in list(self.links.values()):
                # Who was stopped itself, as by Ctrl-Z, has not listened either.
                if now - looked > self._silent_after / 2:
                    link.heard = now
                if now - beaten > _BEAT_EVERY / 2:
                    link.send(b"")
                if now - link.heard > self._silent_after:
                    why = f"gave no sign of life for {self._silent_after:g} s"
                    self._note(LostRank(link.rank, link.host, why), is_witness=True)
            beaten = now if now - beaten > _BEAT_EVERY / 2 else beaten
            looked = now
        if self.lost is None or self.lost.rank == self.rank:
            return
        time.sleep(_GRACE)
        if self._taken.acquire(blocking=False):
            self._end(self.lost)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for link in list(self.links.values()):
                selector.register(link.socket, selectors.EVENT_READ, link)
            heard = [key.data for key, _ in selector.select(_BEAT_EVERY)]
        for link in heard:
            lines = link.receive()
            if lines is None and link.rank in self.links:
                self._note(
                    LostRank(link.rank, link.host, "was killed, or its machine is gone"), True
                )
            for line in lines or ():
                if line == _BYE:
                    self._forget(link)
                elif line:
                    # The first rank tells of all, and has been told of itself by nobody.
                    self._note(LostRank(**json.loads(line)), is_witness=self.rank == 0)

    def _note(self, loss: LostRank, is_witness: bool) -> None:
        with self._lock:
            if self.lost is not None:
                return
            self.lost, self.is_witness = loss, is_witness
        for link in list(self.links.values()):
            link.send(json.dumps(asdict(loss)).encode())
        self._noted.set()

    def _forget(self, link: Link) -> None:
        self.links.pop(link.rank, None)


def _let_go() -> None:
    """Let no reader of data that was forked hold a connection open that its rank has lost."""
    while _sockets:
        os.close(_sockets.pop().detach())


os.register_at_fork(after_in_child=_let_go)
