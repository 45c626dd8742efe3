"""The ranks of one training or evaluation: they meet in time, and end together."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, NoReturn

import torch
from lightning import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from bts_lightning.errors import EveryRankError, UserError, visible
from bts_lightning.runs.heart import Heart, Link, LostRank
from bts_lightning.runs.processes import end_with_parent, outlive_parent

# How many seconds the ranks wait for each other at the start.
WAIT_VARIABLE = "BTS_WAIT_FOR_RANKS"
_WAIT = 300.0
# So long the ranks that were told of a loss may take to end by themselves.
_PATIENCE = 4.0
_INTERRUPTED = "was interrupted"
# Bytes.
_LONGEST_GREETING = 1024
_meetings = count()


def from_all_ranks(trainer: Trainer, items: list[Any]) -> list[Any]:
    """Join the lists of all ranks, in their order."""
    if trainer.world_size == 1:
        return items
    parts: list[list[Any]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


@contextmanager
def together(trainer: Trainer, go_on: str) -> Iterator[None]:
    """Let no rank wait for one that is gone; the first rank says in one line which one it was.

    Args:
        trainer: used in the block.
        go_on: what the user can do then.
    """
    strategy = trainer.strategy
    if not isinstance(strategy.launcher, _SubprocessScriptLauncher) or trainer.world_size == 1:
        yield
        return
    ranks = strategy._launcher = _Ranks(trainer, go_on)
    try:
        yield
    except EveryRankError:
        ranks.leave()
        raise
    except BaseException as error:
        ranks.fail(error)
        raise
    ranks.leave()


class _Ranks(_SubprocessScriptLauncher):
    """Start the processes of this machine as Lightning does, and look after all of them.

    Lightning looks after its children by itself, and kills the first rank as soon as one has ended
    badly: before that one could say why.
    """

    def __init__(self, trainer: Trainer, go_on: str) -> None:
        strategy: Any = trainer.strategy
        super().__init__(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes)
        self._rank, self._world, self._go_on = trainer.global_rank, trainer.world_size, go_on
        self._local_rank, self._node = trainer.local_rank, trainer.node_rank
        self._heart: Heart | None = None
        self._store: TCPStore | None = None
        # A process may train and then evaluate, and torchrun may start it again.
        self._key = f"bts/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_meetings)}"

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Call the function once all ranks are there."""
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()  # from here on there is nobody to create
        if self._local_rank and self._rank:
            end_with_parent()
        links = self._wait_for_others() if self._rank == 0 else self._join()
        self._heart = Heart(self._rank, links, self._end)
        outlive_parent()  # for as long as it takes to say that it is gone
        return super().launch(function, *args, trainer=trainer, **kwargs)

    def kill(self, signum: Any) -> None:
        """Pass a signal on, but let no rank seem lost that is only to end after an interrupt."""
        if signum != signal.SIGKILL:
            super().kill(signum)

    def leave(self) -> None:
        """End in order."""
        if self._heart is not None:
            self._heart.leave()
            if self._local_rank:
                end_with_parent()

    def fail(self, error: BaseException) -> None:
        """Tell the others of an error, unless it has come of another rank's loss; end quietly then.

        What returns from here is this rank's to tell.
        """
        if self._heart is None:
            self._end_children(patience=0)
            return
        loss = self._heart.fail(_why(error))
        self._end_children(_PATIENCE)
        if loss.rank != self._rank:
            if self._speaks(loss):
                raise UserError(self._line(loss)) from error
            raise SystemExit(2)
        if self._rank and isinstance(error, UserError | KeyboardInterrupt | SystemExit):
            raise SystemExit(2)  # the first rank tells it
        if loss.why == _INTERRUPTED:
            raise UserError(self._line(loss)) from error
        if self._rank == 0 and not isinstance(error, UserError | SystemExit):
            self._print(loss)

    def _end(self, loss: LostRank) -> NoReturn:
        """End the process from beside its main thread, which waits for the lost rank."""
        if self._speaks(loss):
            self._print(loss)
        self._end_children(_PATIENCE)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(2)

    def _print(self, loss: LostRank) -> None:
        print(f"error: {visible(self._line(loss))}", file=sys.stderr, flush=True)

    def _line(self, loss: LostRank) -> str:
        return f"{loss}; {self._go_on}"

    def _speaks(self, loss: LostRank) -> bool:
        """Choose one of a machine, and the first rank alone while it is there."""
        assert self._heart is not None
        first = self._local_rank == (1 if self._node == 0 and self._rank else 0)
        return self._heart.is_witness and first

    def _end_children(self, patience: float) -> None:
        """Leave no process: those that are stopped cannot end by themselves."""
        until = time.monotonic() + patience
        for child in self.procs:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))
            child.kill()
        heart = self._heart
        if self._rank and heart and heart.is_witness and heart.lost and heart.lost.rank == 0:
            first = heart.links[0]
            if first.host == socket.gethostname() and first.pid == os.getppid():
                os.kill(first.pid, signal.SIGKILL)

    def _wait_for_others(self) -> list[Link]:
        """Give the connections to all other ranks, as the first one."""
        environment, wait = self.cluster_environment, _wait()
        until = time.monotonic() + wait
        # Where torchrun has a store of its own, everybody is its guest.
        is_master = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._store = self._open_store(is_master=is_master, seconds=wait)
        token = secrets.token_hex(8)
        missing = set(range(1, self._world))
        links: list[Link] = []
        with _listen(environment.main_address not in ("127.0.0.1", "localhost")) as listener:
            self._store.set(self._key, json.dumps([listener.getsockname()[1], token]))
            while missing:
                self._check_arrival(missing, until, wait)
                listener.settimeout(0.5)
                with suppress(TimeoutError):
                    link = _greeted(listener.accept()[0], token)
                    if link is not None:
                        missing.discard(link.rank)
                        links.append(link)
        for link in links:
            link.send(json.dumps([socket.gethostname(), os.getpid()]).encode())
        return links

    def _check_arrival(self, missing: set[int], until: float, wait: float) -> None:
        for local_rank, child in enumerate(self.procs, start=1):
            if child.poll() is not None and local_rank in missing:
                why = f"ended with status {child.returncode} before the start"
                raise UserError(self._line(LostRank(local_rank, socket.gethostname(), why)))
        if time.monotonic() > until:
            some = sorted(missing)[:8]
            named = ", ".join(map(str, some)) + (", …" if len(missing) > len(some) else "")
            raise UserError(
                f"rank {named} of {self._world} did not come within {wait:g} s; start the same "
                f"command on each of {self.num_nodes} machines (trainer.num_nodes), or wait "
                f"longer: {WAIT_VARIABLE}=SECONDS"
            )

    def _join(self) -> list[Link]:
        """Give the connection to the first rank, once all have come to it."""
        environment, wait = self.cluster_environment, _wait()
        place = (environment.main_address, environment.main_port)
        until = time.monotonic() + wait
        missing = UserError(
            f"rank 0 is not at {place[0]}:{place[1]} after {wait:g} s; look at what it says, or "
            f"wait longer: {WAIT_VARIABLE}=SECONDS"
        )
        # torch would print each attempt.
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(place, timeout=wait):
                break
            time.sleep(0.2)
        else:
            raise missing
        try:
            self._store = self._open_store(is_master=False, seconds=wait)
            port, token = json.loads(self._store.get(self._key))
            connection = socket.create_connection((place[0], port), timeout=wait)
            hello = [token, self._rank, socket.gethostname(), os.getpid()]
            connection.sendall(json.dumps(hello).encode() + b"\n")
            answer = _first_line(connection, wait)
        except (DistError, OSError) as error:
            raise missing from error
        if not answer:
            raise SystemExit(2)  # the first rank has said who is missing
        host, pid = json.loads(answer)
        return [Link(0, host, pid, connection)]

    def _open_store(self, *, is_master: bool, seconds: float) -> TCPStore:
        """Open what torch opens a moment later, in the same place; the two share one server."""
        environment = self.cluster_environment
        return TCPStore(
            environment.main_address,
            environment.main_port,
            self._world,
            is_master=is_master,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )


def _wait() -> float:
    given = os.environ.get(WAIT_VARIABLE, str(_WAIT))
    try:
        return float(given)
    except ValueError as error:
        raise UserError(f"{WAIT_VARIABLE} is {given}; give a number of seconds") from error


def _why(error: BaseException) -> str:
    # Lightning makes an exit of an interrupt.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit):
        return "was told to end"
    said = " ".join(str(error).split())
    return f"failed: {said if isinstance(error, UserError) else f'{type(error).__name__}: {said}'}"


def _greeted(connection: socket.socket, token: str) -> Link | None:
    """Give the connection to a rank that says who it is; anybody else is sent away."""
    try:
        said, rank, host, pid = json.loads(_first_line(connection, 5.0))
    except (OSError, ValueError, TypeError):
        said = None
    if said != token:
        connection.close()
        return None
    return Link(rank, host, pid, connection)


def _first_line(connection: socket.socket, seconds: float) -> bytes:
    """Read what a rank says first; a stranger may say anything, and for ever."""
    until, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_GREETING:
        connection.settimeout(max(0.001, until - time.monotonic()))
        if not (piece := connection.recv(1)):
            break
        line += piece
    return line


def _listen(everywhere: bool) -> socket.socket:
    if not everywhere:
        return socket.create_server(("127.0.0.1", 0))
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both)
