"""Open streams are remembered, over ones are forgotten, all are ended together."""

from __future__ import annotations

from typing import cast

from frontdoor.streams import Streams
from rpc.server import StreamCall


class Call:
    def __init__(self) -> None:
        self.over = False
        self.ended = 0

    def end(self) -> None:
        self.ended += 1


def test_all_are_handled_and_those_that_are_open_ended_once() -> None:
    handled: list[object] = []
    streams = Streams({b"/s/Watch": handled.append})
    calls = [Call() for _ in range(3)]
    for call in calls:
        streams.handlers[b"/s/Watch"](cast(StreamCall, call))
    assert handled == calls
    streams.end()
    streams.end()
    assert [call.ended for call in calls] == [1, 1, 1]


def test_what_comes_after_the_end_is_ended_at_once() -> None:
    """Such calls cross the notice of a shutdown on the wire."""
    handled: list[object] = []
    streams = Streams({b"/s/Watch": handled.append})
    streams.end()
    call = Call()
    streams.handlers[b"/s/Watch"](cast(StreamCall, call))
    assert (handled, call.ended) == ([], 1)


def test_what_is_over_is_not_kept_for_ever() -> None:
    streams = Streams({b"/s/Watch": lambda call: None})
    for _ in range(10_000):
        call = Call()
        streams.handlers[b"/s/Watch"](cast(StreamCall, call))
        call.over = True
    assert int(repr(streams).split()[1]) <= 64
