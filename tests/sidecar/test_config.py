"""The config sidecar with real sockets and real links: first in this process, then as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from shared.config_link import ConfigLink, Outcome
from shared.frames import Activate, Notice, Prepared, Subscribe
from shared.frames import Snapshot as SnapshotFrame
from shared.rundir import UnixListener
from shared.snapshot import Snapshot
from sidecar.config import ConfigSidecar
from sidecar.source import SourceError, Text
from tests.sidecar.texts import BROKEN, config, expression

TIMEOUT = 60  # seconds; far more than anything here takes


@pytest.fixture
def run_dir() -> Iterator[Path]:
    # Not tmp_path: the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="config-") as name:
        yield Path(name)


def run(main: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main, TIMEOUT)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


class Worker:
    """A worker's link, and all that it was told. `cannot` are configs that it cannot serve, by endpoint;
    `unreachable` those whose endpoint does not answer."""

    def __init__(self, path: Path, index: int = 0) -> None:
        self.snapshots: dict[int, dict[str, Any]] = {}
        self.activated: list[int] = []
        self.cannot: dict[str, str] = {}
        self.unreachable: dict[str, str] = {}
        self.notices: list[str] = []
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.link = ConfigLink(loop, path, worker=index, follower=self)
        self.link.start()

    async def prepare(self, version: int, document: bytes) -> Outcome:
        snapshot = Snapshot.decode(document)
        head = snapshot.head
        assert head.version == version
        texts = {name: snapshot.document(name).decode() for name in head.configs}
        self.snapshots[version] = {**msgspec.structs.asdict(head), "configs": texts}
        self._changed.set()
        old = self.active["configs"] if self.link.version else {}
        return Outcome(
            {
                name: reason
                for name, text in texts.items()
                for word, reason in self.cannot.items()
                if word in text
            },
            {
                name: reason
                for name, text in texts.items()
                for word, reason in self.unreachable.items()
                if word in text and word not in old.get(name, "")
            },
        )

    def activate(self, version: int) -> None:
        self.activated.append(version)
        self._changed.set()

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self._changed.set()

    def saved(self) -> tuple[int, bytes] | None:
        return None

    @property
    def active(self) -> dict[str, Any]:
        """The active snapshot."""
        return self.snapshots[self.link.version]

    async def until(self, condition: Callable[[Worker], bool]) -> Worker:
        """Waits for something to be true of this worker."""
        while not (self.activated and condition(self)):
            self._changed.clear()
            await self._changed.wait()
            await asyncio.sleep(0)
        return self

    async def until_noticed(self, text: str) -> Worker:
        """Waits for this notice."""
        while text not in self.notices:
            self._changed.clear()
            await self._changed.wait()
        return self

    async def until_serving(self, **places: str) -> Worker:
        """Waits until these configs are where they are said to be: in `configs`, `kept`, `waiting` or `refused`."""

        def there(worker: Worker) -> bool:
            active = worker.active
            return all(
                name in active[place]
                and (place != "configs" or name not in {**active["kept"], **active["waiting"]})
                for name, place in places.items()
            )

        return await self.until(there)


# ---------------------------------------------------------------- in this process


class Shelf:
    """A source whose texts the test changes."""

    def __init__(self, texts: Mapping[str, Text]) -> None:
        self.texts: dict[str, Text] | None = dict(texts)
        self.numbers = dict.fromkeys(texts, 1)
        self._changed = asyncio.Event()

    def read(self) -> Mapping[str, Text]:
        if self.texts is None:
            raise SourceError("the shelf is away")
        return dict(self.texts)

    async def changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def place(self, key: str) -> str:
        return key

    def revision(self, key: str) -> int:
        return self.numbers.get(key, 0)

    async def put(self, key: str, text: bytes, revision: int) -> bool:
        if self.texts is None:
            raise SourceError("the shelf is away")
        if revision != self.revision(key):
            return False
        self.put_all({**self.texts, key: text})
        return True

    def put_all(self, texts: dict[str, Text] | None) -> None:
        for key, text in (texts or {}).items():
            if self.texts is None or self.texts.get(key) != text:
                self.numbers[key] = self.numbers.get(key, 0) + 1
        self.texts = texts
        self._changed.set()


def on_shelf(run_dir: Path, shelf: Shelf, limit: float) -> ConfigSidecar:
    """A sidecar whose source is a shelf, and whose socket `config.sock`."""
    return ConfigSidecar(
        asyncio.get_running_loop(),
        UnixListener(run_dir / "config.sock"),
        shelf,
        run_dir / "state",
        check_expressions=True,
        limit=limit,
    )


@contextlib.asynccontextmanager
async def sidecar(run_dir: Path, shelf: Shelf, limit: float = 30) -> AsyncIterator[Path]:
    """A running sidecar; gives the path of its socket."""
    path = run_dir / "config.sock"
    one = on_shelf(run_dir, shelf, limit)
    assert repr(one).startswith("<ConfigSidecar <Activation active")
    stop = asyncio.Event()
    running = asyncio.create_task(one.run(stop))
    try:
        yield path
    finally:
        stop.set()
        await running
    assert not path.exists()


def test_two_workers_get_the_same_version_and_its_changes(run_dir: Path) -> None:
    async def main() -> None:
        texts: dict[str, Text] = {
            "config-map/a": config(compute_id="e"),
            "expression-config/e": expression("x"),
        }
        shelf = Shelf(texts)
        async with sidecar(run_dir, shelf) as path:
            workers = [Worker(path, index) for index in range(2)]
            for worker in workers:
                await worker.until_serving(a="configs")
            first, second = workers
            assert first.link.version == second.link.version
            assert first.active["expressions"] == {"e": "x"}
            shelf.put_all({**texts, "config-map/b": config()})
            for worker in workers:
                await worker.until_serving(a="configs", b="configs")
            assert first.active == second.active
            shelf.put_all({"config-map/b": config()})
            for worker in workers:
                await worker.until(lambda worker: list(worker.active["configs"]) == ["b"])
            assert first.activated == sorted(first.activated) == second.activated
            for worker in workers:
                await worker.link.close()

    run(main())


def test_no_configs_are_a_version_that_workers_can_be_ready_with(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({})
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until(lambda worker: worker.active["configs"] == {})
            await worker.until_noticed("there is no model config, so every request is refused: config-map/…")
            shelf.put_all({"config-map/a": config()})
            await worker.until_serving(a="configs")
            await worker.until_noticed("")
            await worker.link.close()

    run(main())


def test_a_source_that_is_away_changes_nothing(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config()})
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_serving(a="configs")
            shelf.put_all(None)
            await worker.until(lambda worker: worker.notices[-1] != "")
            shelf.put_all({"config-map/a": config(), "config-map/b": config()})
            await worker.until_serving(a="configs", b="configs")
            assert len(worker.activated) == 2
            await worker.link.close()

    run(main())


def test_nothing_is_served_before_the_source_could_be_read_once(run_dir: Path) -> None:
    """A pod that knows no configs is not ready: it must not take requests from others that do."""

    async def main() -> None:
        shelf = Shelf({})
        shelf.texts = None
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_noticed(
                "configs cannot be read, there are none yet: the shelf is away"
            )
            assert worker.activated == []
            shelf.put_all({"config-map/a": config()})
            await worker.until_serving(a="configs")
            await worker.link.close()

    run(main())


def test_a_broken_edit_is_kept_out_and_named(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config(), "config-map/b": BROKEN})
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_serving(a="configs", b="refused")
            assert "is no JSON" in worker.active["refused"]["b"]
            good = worker.active["configs"]["a"]
            shelf.put_all({"config-map/a": BROKEN, "config-map/b": BROKEN})
            await worker.until_serving(a="kept", b="refused")  # after the time to settle
            assert worker.active["configs"]["a"] == good
            await worker.link.close()

    run(main())


def test_what_a_worker_cannot_serve_is_taken_back(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config(), "config-map/b": config()})
        async with sidecar(run_dir, shelf) as path:
            worker, other = Worker(path, 0), Worker(path, 1)
            await worker.until_serving(a="configs")
            await other.until_serving(a="configs")
            good = worker.active["configs"]["a"]
            worker.cannot = other.cannot = {"faraway": "no such host"}
            shelf.put_all({"config-map/a": config(endpoint="faraway"), "config-map/b": config("mrp")})
            for one in (worker, other):
                await one.until_serving(a="kept", b="configs")
                assert one.active["configs"]["a"] == good
                assert one.active["kept"]["a"] == "no such host"
                assert "mrp" in one.active["configs"]["b"]
                assert all(
                    "faraway" not in json.dumps(one.snapshots[version]["configs"])
                    for version in one.activated
                )
                await one.link.close()

    run(main())


def test_a_worker_that_hangs_keeps_a_version_out_until_it_is_gone(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config()})
        async with sidecar(run_dir, shelf, limit=0.05) as path:
            worker = await Worker(path).until_serving(a="configs")
            before = worker.link.version
            # It serves, and then never answers.
            reader, hanging = await asyncio.open_unix_connection(str(path))
            hanging.write(Subscribe(1, os.getpid()).encode() + Prepared(before, {}).encode())
            told = (Notice(""), SnapshotFrame(before, 0), Activate(before))
            await reader.readexactly(sum(len(frame.encode()) for frame in told))
            shelf.put_all({"config-map/a": config(), "config-map/b": config()})
            await worker.until(lambda worker: len(worker.snapshots) == 2)
            await asyncio.sleep(0.2)
            assert worker.link.version == before
            hanging.close()
            await worker.until_serving(b="configs")
            await worker.link.close()

    run(main())


def test_a_new_endpoint_that_does_not_answer_keeps_its_config_back_and_no_other(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config(), "config-map/b": config()})
        async with sidecar(run_dir, shelf) as path:
            workers = [Worker(path, 0), Worker(path, 1)]
            for one in workers:
                await one.until_serving(a="configs", b="configs")
                one.unreachable = {"faraway": "waiting for endpoint faraway:8090"}
            shelf.put_all({"config-map/a": config(endpoint="faraway"), "config-map/b": config("mrp")})
            for one in workers:
                await one.until_serving(a="waiting", b="configs")
                assert "faraway" not in one.active["configs"]["a"]
                assert one.active["waiting"] == {"a": "waiting for endpoint faraway:8090"}
                await one.until(lambda one: "mrp" in one.active["configs"]["b"])
            for one in workers:
                one.unreachable = {}
                one.link.connected(["a"])
            for one in workers:
                await one.until(lambda one: "faraway" in one.active["configs"]["a"])
                assert one.active["waiting"] == {}
                await one.link.close()

    run(main())


def test_at_a_cold_start_a_config_is_served_whether_its_endpoint_answers_or_not(run_dir: Path) -> None:
    async def main() -> None:
        async with sidecar(run_dir, Shelf({"config-map/a": config(endpoint="faraway")})) as path:
            worker = Worker(path)
            worker.unreachable = {"faraway": "waiting for endpoint faraway:8090"}
            await worker.until_serving(a="configs")
            await worker.link.close()

    run(main())


def test_workers_are_told_that_the_source_is_away(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config()})
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_serving(a="configs")
            shelf.put_all(None)
            await worker.until(lambda worker: "the shelf is away" in worker.notices[-1])
            other = await Worker(path, 1).until_serving(a="configs")
            assert "the last good ones are served: the shelf is away" in other.notices[-1]
            shelf.put_all({"config-map/a": config()})
            for one in (worker, other):
                await one.until(lambda one: one.notices[-1] == "")
                await one.link.close()

    run(main())


@pytest.mark.parametrize("garbage", [b"\xff" * 50, b"\x09\x00\x00\x00\x13" + bytes(8)])
def test_garbage_on_the_socket_ends_that_connection_only(run_dir: Path, garbage: bytes) -> None:
    async def main() -> None:
        async with sidecar(run_dir, Shelf({"config-map/a": config()})) as path:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(garbage)
            assert await reader.read() == b""
            writer.close()
            worker = await Worker(path).until_serving(a="configs")
            await worker.link.close()

    run(main())


def test_answers_that_nobody_asked_for_end_that_connection_only(run_dir: Path) -> None:
    async def main() -> None:
        async with sidecar(run_dir, Shelf({"config-map/a": config()})) as path:
            for frames in (
                Prepared(5, {}).encode(),
                Subscribe(1, 1).encode() * 2,
                Subscribe(1, 1).encode() + Prepared(5, {}).encode(),
            ):
                reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(frames)
                await reader.read()
                writer.close()
            worker = await Worker(path).until_serving(a="configs")
            await worker.link.close()

    run(main())


def test_a_new_sidecar_goes_on_where_the_old_one_stopped(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config(), "config-map/b": BROKEN})
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_serving(a="configs", b="refused")
            version = worker.link.version
        async with sidecar(run_dir, shelf) as path:
            second = await Worker(path, 1).until_serving(a="configs", b="refused")
            assert second.link.version == version, "the same content is the same version"
        shelf.texts = {"config-map/a": BROKEN}
        async with sidecar(run_dir, shelf) as path:
            await worker.until_serving(a="kept")
            await second.until_serving(a="kept")
            assert worker.link.version > version
            assert worker.activated == [version, worker.link.version]
        await worker.link.close()
        await second.link.close()

    run(main())


def test_a_new_sidecar_whose_source_is_away_serves_what_was_good(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf({"config-map/a": config()})
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_serving(a="configs")
            await worker.link.close()
        shelf.texts = None
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_serving(a="configs")
            await worker.link.close()

    run(main())


def test_a_source_that_has_lost_everything_is_not_taken_for_emptied(run_dir: Path) -> None:
    """A wiped store, a volume that was not mounted. But a config that is deleted among others is gone."""

    async def main() -> None:
        shelf = Shelf(
            {"config-map/a": config(), "config-map/b": config(), "expression-config/e": expression("x")}
        )
        async with sidecar(run_dir, shelf) as path:
            worker = await Worker(path).until_serving(a="configs", b="configs")
            shelf.put_all({"expression-config/e": expression("x")})
            await worker.until_noticed(
                "configs cannot be read, the last good ones are served: config-map/…: "
                "there is no model config any more; taken for lost, not for deleted"
            )
            assert worker.active["configs"].keys() == {"a", "b"}
        async with sidecar(run_dir, shelf) as path:
            other = await Worker(path, 1).until_serving(a="configs", b="configs")
            shelf.put_all({"config-map/b": config("cost")})
            await other.until(lambda worker: worker.active["configs"].keys() == {"b"})
            await other.until_noticed("")
            await worker.link.close()
            await other.link.close()

    run(main())


@pytest.mark.parametrize("state", ["{", '{"version": 99999999999999, "configs": {"a": 1}}'])
def test_state_that_cannot_be_used_is_no_obstacle(run_dir: Path, state: str) -> None:
    async def main() -> None:
        (run_dir / "state").mkdir()
        for name in ("active.snapshot", "history.json"):
            (run_dir / "state" / name).write_text(state)
        async with sidecar(run_dir, Shelf({"config-map/a": config()})) as path:
            worker = await Worker(path).until_serving(a="configs")
            assert worker.link.version < 99999999999999
            await worker.link.close()

    run(main())


def test_state_that_cannot_be_saved_is_no_obstacle(run_dir: Path) -> None:
    async def main() -> None:
        (run_dir / "state" / "active.snapshot").mkdir(parents=True)
        async with sidecar(run_dir, Shelf({"config-map/a": config()})) as path:
            worker = await Worker(path).until_serving(a="configs")
            await worker.link.close()

    run(main())


# ---------------------------------------------------------------- a process of its own


class Process:
    """`python -m sidecar.config` on a directory; its log lines as they come."""

    def __init__(self, root: Path, **environment: str) -> None:
        (root / "configs" / "config-map").mkdir(parents=True, exist_ok=True)
        self.configs = root / "configs" / "config-map"
        self.socket = root / "run" / "config.sock"
        environment = {
            "PATH": os.environ["PATH"],
            "INFERFLOW_CONFIG_DIR": str(root / "configs"),
            "INFERFLOW_RUN_DIR": str(root / "run"),
            "INFERFLOW_STATE_DIR": str(root / "state"),
            **environment,
        }
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "sidecar.config"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """The exit code, and everything it has written."""
        self.popen.send_signal(number)
        output, _ = self.popen.communicate(timeout=TIMEOUT)
        return self.popen.returncode, output


@pytest.fixture
def process(run_dir: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(**environment: str) -> Process:
        started.append(Process(run_dir, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.popen.poll() is None:
            one.end(signal.SIGKILL)


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
def test_process_is_killed_restarted_and_stopped(process: Callable[..., Process]) -> None:
    async def main() -> None:
        first = process()
        (first.configs / "a.json").write_bytes(config())
        worker = await Worker(first.socket).until_serving(a="configs")
        version = worker.link.version

        first.end(signal.SIGKILL)
        assert first.socket.exists(), "nobody could remove it"
        second = process()
        other = await Worker(second.socket, 1).until_serving(a="configs")
        assert other.link.version == version
        assert worker.link.version == version

        (second.configs / "b.json").write_bytes(BROKEN)
        (second.configs / "a.json").write_bytes(BROKEN)
        for one in (worker, other):
            await one.until_serving(a="kept", b="refused")

        code, output = second.end(signal.SIGTERM)
        assert code == 0
        assert not second.socket.exists()
        refused = [line for line in lines(output) if line["level"] == "error"]
        assert {line["place"] for line in refused} == {
            str(second.configs / "a.json"),
            str(second.configs / "b.json"),
        }
        assert all("is no JSON" in line["errors"][0] for line in refused)
        assert [line["message"] for line in lines(output)][-1] == "config sidecar stopped"
        await worker.link.close()
        await other.link.close()

    run(main())


@pytest.mark.slow
def test_a_second_process_does_not_take_the_place_of_the_first(process: Callable[..., Process]) -> None:
    async def main() -> None:
        first = process()
        worker = await Worker(first.socket).until(lambda worker: True)
        second = process()
        output, _ = second.popen.communicate(timeout=TIMEOUT)
        assert second.popen.returncode == 1
        assert "another process listens there" in output
        await worker.link.close()
        assert first.end(signal.SIGTERM)[0] == 0

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ETCD_SERVER": "ftp://localhost:2379"}, "ETCD_SERVER='ftp://localhost:2379': must be"),
        ({"APP_LOG_LEVEL": "loud"}, "APP_LOG_LEVEL"),
    ],
)
def test_what_keeps_it_from_starting_is_said(
    process: Callable[..., Process], environment: dict[str, str], message: str
) -> None:
    one = process(**environment)
    output, _ = one.popen.communicate(timeout=TIMEOUT)
    assert one.popen.returncode == 1
    assert message in output
    assert "Traceback" not in output
