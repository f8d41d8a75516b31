"""`inferflow config` against a real admin port: what it prints, what it returns, what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.frontdoor.process import free_port
from tests.sidecar.steered import Steered, steered
from tests.sidecar.test_config import Shelf, run, run_dir
from tests.sidecar.texts import BROKEN, config, expression

__all__ = ["run_dir"]

KEY = "config-map/a"
TEXTS = {KEY: config("v1", compute_id="e"), "expression-config/e": expression("x")}
Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str]:
        code = main(["config", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def story(run_dir: Path, tell: Callable[[Steered], Coroutine[Any, Any, None]], monkeypatch: Any) -> None:
    async def with_pod() -> None:
        async with steered(run_dir, Shelf(TEXTS)) as pod:
            monkeypatch.setenv("INFERFLOW_ADMIN_PORT", str(pod.port))
            await pod.until_served("v1")
            await tell(pod)

    run(with_pod())


def test_a_night_with_a_bad_version(run_dir: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell(pod: Steered) -> None:
        async def call(*arguments: str) -> tuple[int, str]:
            return await asyncio.to_thread(cli, *arguments)

        code, out = await call("list")
        assert code == 0
        assert "active" in out
        assert f"worker 0 (pid {os.getpid()})" in out

        pod.shelf.put_all({**TEXTS, KEY: config("v2", compute_id="e")})
        await pod.until_served("v2")
        code, out = await call("history", "a")
        assert (code, len(out.splitlines())) == (0, 3)
        older = out.splitlines()[2].split()[0]
        code, out = await call("diff", "a", "--old", older)
        assert code == 0
        assert '"v1"' in out
        assert '"v2"' in out

        code, out = await call("rollback", "a")
        assert (code, out) == (
            0,
            f"a: back to version {older}, until the source has a newer one (`unpin` ends it)\n",
        )
        await pod.until_served("v1")
        code, out = await call("list")
        assert "active, rolled back" in out
        assert (await call("pin", "a"))[0] == 0
        code, out = await call("unpin", "a")
        assert (code, out) == (0, "a: follows the source again\n")
        await pod.until_served("v2")
        code, out = await call("unpin", "a")
        assert code == 1
        assert "neither pinned nor rolled back" in out

        pod.shelf.put_all({**TEXTS, KEY: BROKEN})
        await pod.worker.until_serving(a="kept")
        code, out = await call("list")
        assert code == 1
        assert "newest refused" in out
        assert "is no JSON" in out
        code, out = await call("show", "a", "--json")
        assert json.loads(out)["verdict"]["ok"] is False
        code, out = await call("show", "a", "--text")
        assert json.loads(out)["component_config"]

    story(run_dir, tell, monkeypatch)


def test_put(run_dir: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell(pod: Steered) -> None:
        async def call(*arguments: str) -> tuple[int, str]:
            return await asyncio.to_thread(cli, *arguments)

        file = tmp_path / "a.json"
        file.write_bytes(config("v2", compute_id="e", endpoint="other:9000"))
        code, out = await call("put", str(file), "--dry-run")
        assert code == 0
        assert "endpoints: + other:9000, - models" in out
        assert out.endswith("would be written to config-map/a\n")
        assert pod.shelf.texts == TEXTS
        code, out = await call("put", str(file))
        assert (code, out.splitlines()[-1]) == (0, "written to config-map/a")
        await pod.until_served("other:9000")

        file.write_bytes(BROKEN)
        code, out = await call("put", str(file))
        assert code == 1
        assert "refused" in out
        assert "is no JSON" in out
        assert pod.shelf.texts is not None
        assert pod.shelf.texts[KEY] != BROKEN

    story(run_dir, tell, monkeypatch)


def test_without_a_pod(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLOW_ADMIN_PORT", str(free_port()))
    code, out = cli("list")
    assert code == 3
    assert "no pod answers on 127.0.0.1:" in out


def test_bad_settings_are_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERFLOW_ADMIN_PORT", "x")
    code, out = cli("list")
    assert code == 2
    assert "INFERFLOW_ADMIN_PORT" in out
