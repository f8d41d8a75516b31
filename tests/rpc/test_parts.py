"""The small parts: timers, budgets, limits, targets, statuses."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from rpc.client import Channel
from rpc.limits import Budget, Limits, Rate
from rpc.resolver import Target, parse_target
from rpc.server import Server
from rpc.status import RpcError, Status, status_of_http, status_of_reset
from rpc.timers import RESOLUTION, Timers
from tests.rpc.support import PATIENCE, echo, run

# -- timers ------------------------------------------------------------------------------------------------


class Alarm:
    def __init__(self, when: float) -> None:
        self.when = when
        self.rang: list[float] = []

    def expire(self) -> None:
        self.rang.append(asyncio.get_running_loop().time())


def test_alarms_ring_once_never_early_and_hardly_late() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers = Timers.of(loop)
        assert Timers.of(loop) is timers
        dice = random.Random(1)
        alarms = [
            Alarm(loop.time() + dice.choice([0.0, 0.001, 1.0, 50.0]) * dice.random()) for _ in range(500)
        ]
        silent = [Alarm(alarm.when) for alarm in alarms[:50]]
        for alarm in alarms:
            timers.add(alarm.when, alarm)
        for alarm in silent:
            timers.add(alarm.when, alarm).discard(alarm)
        await asyncio.sleep(51)
        for alarm in alarms:
            (rang,) = alarm.rang
            assert alarm.when <= rang <= alarm.when + RESOLUTION + 1e-6
        assert not any(alarm.rang for alarm in silent)
        assert repr(timers) == "<Timers 0 deadlines in 0 buckets>"

    run(main)


def test_buckets_that_became_empty_wake_nobody() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers = Timers.of(loop)
        start = loop.time()
        first, last = Alarm(start + 1), Alarm(start + 3)
        for alarm in (first, last):
            timers.add(alarm.when, alarm)
        for step in range(100):
            taken_back = Alarm(start + 2 + step / 200)
            timers.add(taken_back.when, taken_back).discard(taken_back)
        await asyncio.sleep(1.5)
        assert len(first.rang) == 1
        assert repr(timers) == "<Timers 1 deadlines in 1 buckets>"
        await asyncio.sleep(2)
        assert len(last.rang) == 1

    run(main)


def test_an_alarm_set_by_an_alarm_does_not_delay_the_others() -> None:
    class Again(Alarm):
        def expire(self) -> None:
            super().expire()
            Timers.of(asyncio.get_running_loop()).add(self.when + 100, Alarm(0))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers = Timers.of(loop)
        start = loop.time()
        timers.add(start + 1, Again(start + 1))
        second = Alarm(start + 2)
        timers.add(start + 2, second)
        await asyncio.sleep(3)
        assert second.rang == [pytest.approx(start + 2, abs=2 * RESOLUTION)]

    run(main)


def test_an_alarm_that_fails_does_not_stop_the_others() -> None:
    class Broken(Alarm):
        def expire(self) -> None:
            raise RuntimeError("broken")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reported: list[dict[str, object]] = []
        loop.set_exception_handler(lambda loop, context: reported.append(context))
        when = loop.time() + 1
        second = Alarm(when)
        for alarm in (Broken(when), second, Broken(when)):
            Timers.of(loop).add(when, alarm)
        await asyncio.sleep(2)
        assert len(second.rang) == 1
        assert [str(context["exception"]) for context in reported] == ["broken", "broken"]

    run(main)


# -- limits ------------------------------------------------------------------------------------------------


def test_a_budget_allows_its_burst_and_its_rate() -> None:
    budget = Budget(Rate(burst=10, per_second=2), now=0.0)
    assert [budget.take(0.0) for _ in range(11)] == [True] * 10 + [False]
    budget = Budget(Rate(burst=10, per_second=2), now=0.0)
    assert all(budget.take(second / 2) for second in range(1000))
    assert sum(budget.take(1e6) for _ in range(100)) <= 11  # a long rest earns no more than the burst


def test_a_budget_can_be_earned() -> None:
    budget = Budget(Rate(burst=1, per_second=1), now=0.0)
    assert all(budget.take(0.0, earned=count) for count in range(1, 1000))
    assert [budget.take(0.0, earned=999) for _ in range(3)][-1] is False


@pytest.mark.parametrize(
    ("field", "value"),
    [("streams", 0), ("message_bytes", -1), ("preface_seconds", 0.0), ("idle_seconds", -1.0)],
)
def test_limits_that_make_no_sense(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{field}: {value} must be positive"):
        Limits(**{field: value})  # type: ignore[arg-type]


def test_rates_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"Limits\.resets: .*burst=0"):
        Limits(resets=Rate(burst=0, per_second=1))


# -- sockets -----------------------------------------------------------------------------------------------


def test_a_unix_socket_belongs_to_the_last_who_listens(short_dir: Path) -> None:
    path = short_dir / "s.sock"

    async def main() -> None:
        old, new = Server({b"/a/b": echo}), Server({b"/a/b": echo})
        await old.listen_unix(path)
        await new.listen_unix(path)
        await old.close()
        channel = Channel(f"unix:{path}")
        assert await channel.unary("/a/b", b"x", timeout=PATIENCE) == b"x"
        await channel.close()
        await new.close()
        assert not path.exists()

    run(main, virtual=False)


# -- routes, targets, statuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"a/b", b"/a", b"/a/b/c", b""])
def test_paths_that_are_no_methods(path: bytes) -> None:
    with pytest.raises(ValueError, match="is not /service/method"):
        Server({path: echo})


def test_one_path_has_one_handler() -> None:
    with pytest.raises(ValueError, match="have a unary and a streaming handler"):
        Server({b"/a/b": echo}, stream_handlers={b"/a/b": lambda call: None})


@pytest.mark.parametrize(
    ("text", "target", "authority"),
    [
        ("host:1", Target("host", 1), "host:1"),
        ("10.0.0.1:65535", Target("10.0.0.1", 65535), "10.0.0.1:65535"),
        ("[::1]:80", Target("::1", 80), "[::1]:80"),
        ("unix:/a/b.sock", Target("", 0, "/a/b.sock"), "localhost"),
    ],
)
def test_targets(text: str, target: Target, authority: str) -> None:
    assert parse_target(text) == target
    assert target.authority == authority


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":1", "::1:80", "host:0", "host:65536", "host:x", "unix:"]
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="target"):
        parse_target(text)


def test_statuses_of_other_layers() -> None:
    assert [
        status_of_http(code)
        for code in (b"400", b"401", b"403", b"404", b"429", b"502", b"503", b"504", b"500", b"odd")
    ] == [
        Status.INTERNAL,
        Status.UNAUTHENTICATED,
        Status.PERMISSION_DENIED,
        Status.UNIMPLEMENTED,
        Status.UNAVAILABLE,
        Status.UNAVAILABLE,
        Status.UNAVAILABLE,
        Status.UNAVAILABLE,
        Status.UNKNOWN,
        Status.UNKNOWN,
    ]
    assert status_of_reset(7) is Status.UNAVAILABLE
    assert status_of_reset(8) is Status.CANCELLED
    assert status_of_reset(2) is Status.INTERNAL


def test_an_error_reads_well() -> None:
    error = RpcError(Status.NOT_FOUND, "no such thing", trailing=[(b"a", b"1")])
    assert str(error) == "NOT_FOUND: no such thing"
    assert error.trailing == ((b"a", b"1"),)
    assert not error.retriable
