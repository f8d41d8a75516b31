"""What operators see and do, over the admin port: rollback, pin, put, verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from shared.frames import Activate, Notice, Prepared, Subscribe
from shared.frames import Snapshot as SnapshotFrame
from shared.snapshot import digest_of
from sidecar.source import Text
from tests.sidecar.steered import Steered, steered
from tests.sidecar.test_config import Shelf, run, run_dir
from tests.sidecar.texts import BROKEN, config, expression

__all__ = ["run_dir"]

KEY = "config-map/a"
TEXTS: dict[str, Text] = {
    KEY: config("v1", compute_id="e"),
    "config-map/b": config(),
    "expression-config/e": expression("x"),
    "service-config": b'{"compression-enabled": true}',
}


def story(
    run_dir: Path, tell: Callable[[Steered], Coroutine[Any, Any, None]], texts: dict[str, Text]
) -> None:
    async def main() -> None:
        async with steered(run_dir, Shelf(texts)) as pod:
            await tell(pod)

    run(main())


def v(number: int) -> bytes:
    return config(f"v{number}", compute_id="e")


def test_everything_that_is_served_is_listed(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        pod.shelf.put_all({**TEXTS, KEY: BROKEN, "config-map/new": BROKEN})
        await pod.worker.until_serving(a="kept", new="refused")
        answer = await pod.get("/config")
        items = {item["key"]: item for item in answer["items"]}
        assert items.keys() == {*TEXTS, "config-map/new"}
        states = {key: item["state"] for key, item in items.items()}
        assert states[KEY] == "kept"
        assert states["config-map/new"] == "refused"
        assert states["config-map/b"] == states["expression-config/e"] == states["service-config"] == "active"
        assert "is no JSON" in items[KEY]["reasons"][0]
        assert items[KEY]["revision"] == 1
        assert items[KEY]["source_revision"] == 2
        assert items[KEY]["since"] > 1_700_000_000
        assert answer["workers"] == [
            {
                "worker": 0,
                "pid": answer["workers"][0]["pid"],
                "version": answer["active"],
                "is_late": False,
                "retiring": 0,
            }
        ]
        shown = await pod.get("/config/show", key="a")
        assert shown["verdict"]["ok"] is False
        assert "v1" in shown["text"]
        status = await pod.get("/status")
        assert status["pending"] is None

    story(run_dir, tell, TEXTS)


def test_rollback_holds_until_the_source_has_a_newer_version(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        pod.shelf.put_all({**TEXTS, KEY: v(2)})
        await pod.until_served("v2")
        answer = await pod.post("/config/rollback", key="a")
        assert answer["override"]["kind"] == "rolled back"
        await pod.until_served("v1")
        pod.shelf.put_all({**TEXTS, KEY: v(2), "config-map/c": config()})  # something else changes
        await pod.worker.until_serving(c="configs")
        await pod.until_served("v1")
        shown = await pod.get("/config/show", key="a")
        assert (shown["state"], shown["revision"], shown["source_revision"]) == ("active", 1, 2)
        pod.shelf.put_all({**TEXTS, KEY: v(3)})
        await pod.until_served("v3")
        assert (await pod.get("/config/show", key="a"))["override"] is None

    story(run_dir, tell, TEXTS)


def test_plans_of_older_versions_that_are_still_in_use_are_shown(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        for plans in (2, 0):
            pod.worker.link.retiring(plans)
            while (await pod.get("/status"))["workers"][0]["retiring"] != plans:
                pass  # it is on its way

    story(run_dir, tell, TEXTS)


def test_a_pin_holds_whatever_the_source_gets(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        assert (await pod.post("/config/pin", key="a"))["override"]["kind"] == "pinned"
        pod.shelf.put_all({**TEXTS, KEY: v(2), "config-map/c": config()})
        await pod.worker.until_serving(c="configs")
        await pod.until_served("v1")
        without: dict[str, Text] = {key: text for key, text in TEXTS.items() if key != KEY}  # even deleted
        pod.shelf.put_all({**without, "config-map/d": config()})
        await pod.worker.until_serving(d="configs")
        await pod.until_served("v1")
        pod.shelf.put_all({**TEXTS, KEY: v(2)})
        await pod.post("/config/unpin", key="a")
        await pod.until_served("v2")
        status, answer = await pod.ask("POST", "/config/unpin", key="a")
        assert status == 409
        assert "neither pinned nor rolled back" in answer["error"]

    story(run_dir, tell, TEXTS)


def test_an_edit_that_is_taken_back_is_late_no_more(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf(TEXTS)
        async with steered(run_dir, shelf, limit=0.05) as pod:
            await pod.until_served("v1")
            before = pod.worker.link.version
            # It serves, and then never answers.
            reader, hanging = await asyncio.open_unix_connection(str(run_dir / "config.sock"))
            hanging.write(Subscribe(1, os.getpid()).encode() + Prepared(before, {}).encode())
            told = (Notice(""), SnapshotFrame(before, 0), Activate(before))
            await reader.readexactly(sum(len(frame.encode()) for frame in told))
            shelf.put_all({**TEXTS, KEY: v(2)})
            while (await pod.get("/config/show", key="a"))["state"] != "late":
                pass  # it is being prepared
            shelf.put_all(TEXTS)
            while (item := await pod.get("/config/show", key="a"))["source_revision"] != 3:
                pass  # not read yet
            assert (item["state"], item["reasons"]) == ("active", [])
            hanging.close()

    run(main())


def test_a_rollback_outlives_the_process(run_dir: Path) -> None:
    async def main() -> None:
        shelf = Shelf(TEXTS)
        async with steered(run_dir, shelf) as pod:
            await pod.until_served("v1")
            shelf.put_all({**TEXTS, KEY: v(2)})
            await pod.until_served("v2")
            await pod.post("/config/rollback", key="a")
            await pod.until_served("v1")
        async with steered(run_dir, shelf) as pod:
            await pod.until_served("v1")
            assert (await pod.get("/config/show", key="a"))["override"]["kind"] == "rolled back"
            entries = (await pod.get("/config/history", key="a"))["versions"]
            assert [entry["revision"] for entry in entries] == [1, 2, 1]
            await pod.post("/config/rollback", key="a", to=entries[1]["digest"][:8])
            await pod.until_served("v2")

    run(main())


def test_a_rollback_can_be_written_to_the_source(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        pod.shelf.put_all({**TEXTS, KEY: v(2)})
        await pod.until_served("v2")
        answer = await pod.post("/config/rollback", key="a", write="1")
        assert answer["written"] is True
        await pod.until_served("v1")
        assert pod.shelf.texts is not None
        assert b"v1" in pod.shelf.texts[KEY]  # type: ignore[operator]
        assert (await pod.get("/config/show", key="a"))["override"] is None

    story(run_dir, tell, TEXTS)


def test_an_expression_can_be_rolled_back_and_only_its_configs_change(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        pod.shelf.put_all({**TEXTS, "expression-config/e": expression("x 2 *")})
        await pod.worker.until(lambda worker: worker.active["expressions"] == {"e": "x 2 *"})
        await pod.post("/config/rollback", key="expression-config/e")
        await pod.worker.until(lambda worker: worker.active["expressions"] == {"e": "x"})

    story(run_dir, tell, TEXTS)


def test_put_checks_shows_and_writes_by_compare_and_swap(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        new = config("v2", compute_id="e", endpoint="other:9000")
        found = await pod.post("/config/check", new, key="a")
        assert found["verdict"]["ok"]
        assert found["diff"]["endpoints"] == {"added": ["other:9000"], "removed": ["models"]}
        assert found["diff"]["plan"]["new"] == ["fetch", "rank", "mix"]
        paths = [change["path"] for change in found["diff"]["changes"]]
        assert "component_config.predator_components[0].model_end_point" in paths
        pod.shelf.put_all({**TEXTS, KEY: v(3)})
        await pod.until_served("v3")
        status, answer = await pod.ask("POST", "/config/put", new, key="a", revision=str(found["revision"]))
        assert status == 409
        assert "was changed meanwhile" in answer["error"]
        found = await pod.post("/config/check", new, key="a")
        written = await pod.post("/config/put", new, key="a", revision=str(found["revision"]))
        assert written["digest"] == digest_of(new)
        await pod.until_served("other:9000")

    story(run_dir, tell, TEXTS)


@pytest.mark.parametrize(
    ("key", "text", "piece"),
    [
        ("a", BROKEN, "is no JSON"),
        ("a", config("v2", compute_id="nothing"), "there is no expression 'nothing'"),
        ("expression-config/e", expression("x +"), ""),
        ("service-config", b'{"v2-logging-type": "csv"}', "expected one of proto, arrow, parquet"),
    ],
)
def test_put_refuses_what_would_be_refused(run_dir: Path, key: str, text: bytes, piece: str) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        status, answer = await pod.ask("POST", "/config/put", text, key=key, revision="1")
        assert status == 422
        assert piece in answer["verdict"]["errors"][0]
        assert pod.shelf.texts == TEXTS

    story(run_dir, tell, TEXTS)


@pytest.mark.parametrize(
    "key",
    [
        "expression-config/../../outside",
        "expression-config/team/e",
        "expression-config/",
        "expression-config/.e",
        "expression-config/a\0b",
        "service-config/compression-enabled",
        "..",
    ],
)
def test_nothing_is_written_where_nobody_reads(run_dir: Path, key: str) -> None:
    async def tell(pod: Steered) -> None:
        for path in ("/config/check", "/config/put"):
            status, answer = await pod.ask("POST", path, expression("x"), key=key, revision="0")
            assert status == 422
            assert "does not begin with a dot" in answer["error"]
            assert repr(key) in answer["error"] or repr(f"config-map/{key}") in answer["error"]
        assert pod.shelf.texts == TEXTS

    story(run_dir, tell, TEXTS)


def test_what_cannot_be_done_says_why(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        for method, path, query, status, piece in (
            ("GET", "/nothing", {}, 404, "no such path"),
            ("GET", "/config/pin", {"key": "a"}, 405, "only POST"),
            ("GET", "/config/show", {}, 400, "which one?"),
            ("GET", "/config/show", {"key": "nothing"}, 404, "config-map/nothing: is not in the source"),
            ("POST", "/config/rollback", {"key": "a"}, 404, "nothing else was served before"),
            ("POST", "/config/rollback", {"key": "a", "to": "zz"}, 404, "no version 'zz' is remembered"),
            ("POST", "/config/put", {"key": "a", "revision": "x"}, 400, "revision 'x'"),
            ("GET", "/config/diff", {"key": "a", "old": "zz"}, 404, "no version 'zz'"),
        ):
            found, answer = await pod.ask(method, path, **query)  # type: ignore[arg-type]
            assert (found, piece in answer["error"]) == (status, True), (path, found, answer)

    story(run_dir, tell, TEXTS)


def test_a_web_page_cannot_steer(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        def request() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", pod.port, timeout=30)
            with contextlib.closing(connection):
                connection.request("POST", "/config/pin?key=a", headers={"Origin": "http://evil.example"})
                return connection.getresponse().status

        assert await asyncio.to_thread(request) == 403

    story(run_dir, tell, TEXTS)


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff" * 40 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 9000]
)
def test_garbage_on_the_admin_port_is_answered_and_ends(run_dir: Path, garbage: bytes) -> None:
    async def tell(pod: Steered) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", pod.port)
        writer.write(garbage)
        assert (await reader.readline()).startswith(b"HTTP/1.1 4")
        writer.close()
        assert (await pod.get("/status"))["active"]

    story(run_dir, tell, TEXTS)


def test_diff_of_two_versions(run_dir: Path) -> None:
    async def tell(pod: Steered) -> None:
        await pod.until_served("v1")
        pod.shelf.put_all({**TEXTS, KEY: v(2)})
        await pod.until_served("v2")
        new, old = (entry["digest"] for entry in (await pod.get("/config/history", key="a"))["versions"])
        found = await pod.get("/config/diff", key="a", old=old, new=new)
        assert {"path": found["changes"][0]["path"], "old": "v1", "new": "v2"} == found["changes"][0]
        assert (await pod.get("/config/diff", key="a"))["count"] == 0

    story(run_dir, tell, TEXTS)
