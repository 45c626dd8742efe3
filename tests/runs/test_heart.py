"""Two ranks listen to each other: who is gone, silent or failing is told, and nobody else."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from queue import Empty, Queue

import pytest

from bts_lightning.runs import heart
from bts_lightning.runs.heart import Heart, Link, LostRank

SILENT_AFTER = 0.4
_begun: list[Heart] = []


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart, "_BEAT_EVERY", 0.05)
    monkeypatch.setattr(heart, "_GRACE", 0.05)


class Ends(Queue[LostRank]):
    """Collects what a heart ends its process for."""

    def nothing(self) -> None:
        with pytest.raises(Empty):
            self.get(timeout=2 * SILENT_AFTER)


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second
        while _begun:
            _begun.pop().leave()
        for thread in threading.enumerate():
            if thread.name == "heartbeat":
                thread.join()


def first_rank(connection: socket.socket, ends: Ends) -> Heart:
    _begun.append(Heart(0, [Link(1, "there", 7, connection)], ends.put, SILENT_AFTER))
    return _begun[-1]


def second_rank(connection: socket.socket, ends: Ends) -> Heart:
    _begun.append(Heart(1, [Link(0, "here", 6, connection)], ends.put, SILENT_AFTER))
    return _begun[-1]


def test_two_that_beat_go_on_and_part_in_peace(
    pair: tuple[socket.socket, socket.socket], ends: Ends
) -> None:
    hearts = [first_rank(pair[0], ends), second_rank(pair[1], ends)]
    ends.nothing()
    hearts[1].leave()
    ends.nothing()
    assert not hearts[0].links


def test_who_is_killed_is_lost_at_once(
    pair: tuple[socket.socket, socket.socket], ends: Ends
) -> None:
    first_rank(pair[0], ends)
    pair[1].close()
    assert str(ends.get(timeout=5)) == "rank 1 on there was killed, or its machine is gone"


def test_who_says_nothing_is_lost_after_a_while(
    pair: tuple[socket.socket, socket.socket], ends: Ends
) -> None:
    began = time.monotonic()
    listener = second_rank(pair[1], ends)
    assert ends.get(timeout=5).why == "gave no sign of life for 0.4 s"
    assert time.monotonic() - began > SILENT_AFTER
    assert listener.is_witness


def test_who_was_stopped_itself_does_not_blame_the_others(
    pair: tuple[socket.socket, socket.socket], ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = Heart._listen

    def late(self: Heart) -> None:
        # As after Ctrl-Z and fg: nobody has beaten meanwhile.
        time.sleep(3 * SILENT_AFTER)
        monkeypatch.setattr(Heart, "_listen", listen)

    monkeypatch.setattr(Heart, "_listen", late)
    first_rank(pair[0], ends)
    time.sleep(2 * SILENT_AFTER)
    for _ in range(10):
        time.sleep(0.1)
        pair[1].sendall(b"\n")
    assert ends.empty()


def test_what_fails_is_told_by_the_first_rank(
    pair: tuple[socket.socket, socket.socket], ends: Ends
) -> None:
    hearts = [first_rank(pair[0], ends), second_rank(pair[1], ends)]
    said = hearts[1].fail("failed: no memory")
    assert said == LostRank(1, socket.gethostname(), "failed: no memory")
    assert ends.get(timeout=5) == said
    assert hearts[0].is_witness


def test_who_fails_for_want_of_another_learns_whose(
    pair: tuple[socket.socket, socket.socket], ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heart, "_GRACE", 1.0)
    second = second_rank(pair[1], ends)
    pair[0].sendall(json.dumps({"rank": 2, "host": "x", "why": "was killed"}).encode() + b"\n")
    assert second.fail("failed: connection closed by peer") == LostRank(2, "x", "was killed")
    assert not second.is_witness, "the first rank tells it"
    ends.nothing()
