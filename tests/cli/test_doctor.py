"""`inferflow doctor`: what it finds, and what it says to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from cli import main as cli
from cli.doctor import Finding, examine
from tests.e2e.asking import config
from tests.frontdoor.process import free_port
from tests.kafka import Topic, mock_broker


def environ(home: Path, **more: str) -> dict[str, str]:
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    (home / "configs" / "config-map").mkdir(parents=True, exist_ok=True)
    return {
        "INFERFLOW_RUN_DIR": str(home / "run"),
        "INFERFLOW_STATE_DIR": str(home / "state"),
        "INFERFLOW_CONFIG_DIR": str(home / "configs"),
        "INFERFLOW_WORKERS": "1",
        "INFERFLOW_MATRIX_BYTES": "64MiB",
        **more,
    }


def found(environment: Mapping[str, str]) -> dict[str, Finding]:
    return {one.subject: one for one in examine(environment)}


def test_bad_settings_are_all_there_is_to_say(tmp_path: Path) -> None:
    findings = list(examine(environ(tmp_path, APP_PORT="none", INFERFLOW_WORKERS="0")))
    assert [one.level for one in findings] == ["bad", "bad"]
    assert "APP_PORT='none'" in findings[0].text


def test_every_finding_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "configs" / "config-map").mkdir(parents=True)
    (tmp_path / "configs" / "config-map" / "broken.json").write_text("{}")
    (tmp_path / "configs" / "config-map" / "shop.json").write_bytes(config())
    port = str(free_port())
    findings = found(
        environ(
            tmp_path,
            INFERFLOW_WORKERS="1000",
            INFERFLOW_WORKRES="2",
            INFERFLOW_STATSD_SOCKET=str(tmp_path / "nobody"),
            EXTERNAL_SERVICE_ONFS_FS_HOST="127.0.0.1",
            EXTERNAL_SERVICE_ONFS_FS_PORT=port,
            EXTERNAL_SERVICE_PREDATOR_PORT=port,
            INFERFLOW_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        )
    )
    assert findings[f"trace collector 127.0.0.1:{port}"].level == "bad"
    assert findings["environment"].text == "INFERFLOW_WORKRES is no setting; did you mean INFERFLOW_WORKERS?"
    for subject in (
        "cores",
        "memory",
        "metrics agent",
        "config broken",
        f"feature store 127.0.0.1:{port}",
        f"model server 127.0.0.1:{port}",
    ):
        assert findings[subject].level in ("bad", "warning"), subject
        assert findings[subject].advice, subject
    assert findings["config shop"] == Finding("ok", "config shop", "can be served")
    assert all(one.advice or one.level == "ok" for one in findings.values())


def test_upstreams_that_answer(tmp_path: Path) -> None:
    (tmp_path / "configs" / "config-map").mkdir(parents=True)
    (tmp_path / "configs" / "config-map" / "shop.json").write_bytes(config())

    with socket.create_server(
        ("127.0.0.1", 0)
    ) as server:  # the kernel accepts; nobody ever says a word of TLS
        port = str(server.getsockname()[1])
        findings = found(
            environ(
                tmp_path,
                EXTERNAL_SERVICE_ONFS_FS_HOST="127.0.0.1",
                EXTERNAL_SERVICE_ONFS_FS_PORT=port,
                EXTERNAL_SERVICE_PREDATOR_PORT=port,
                NUMERIX_CLIENT_V1_HOST="localhost",
                NUMERIX_CLIENT_V1_PORT=port,
                NUMERIX_CLIENT_V1_PLAINTEXT="false",
            )
        )
    assert findings[f"feature store 127.0.0.1:{port}"].level == "ok"
    assert findings[f"model server 127.0.0.1:{port}"].level == "ok"
    assert findings[f"numerix localhost:{port}"].level == "bad"


def test_a_config_that_fetches_needs_a_feature_store(tmp_path: Path) -> None:
    home = environ(tmp_path, EXTERNAL_SERVICE_PREDATOR_PORT=str(free_port()))
    assert "feature store" not in found(home)
    (tmp_path / "configs" / "config-map" / "shop.json").write_bytes(config())
    finding = found(home)["feature store"]
    assert finding.level == "bad"
    assert "EXTERNAL_SERVICE_ONFS_FS_HOST is empty" in finding.text


def test_where_inference_logs_go(tmp_path: Path) -> None:
    def about(**settings: str) -> list[tuple[str, str]]:
        findings = examine(environ(tmp_path, **settings))
        return [(one.level, one.text) for one in findings if one.subject.startswith("inference log")]

    assert about() == []
    (finding,) = about(INFERFLOW_LOG_DIR=str(tmp_path / "a" / "b"))
    assert finding[0] == "ok"
    assert not (tmp_path / "a").exists(), "it only looks"
    (tmp_path / "file").touch()
    ((level, text),) = about(INFERFLOW_LOG_DIR=str(tmp_path / "file"))
    assert (level, text) == ("bad", f"{tmp_path / 'file'} cannot be written: nothing can be logged")
    with mock_broker() as broker:
        kafka = {"KAFKA_BOOTSTRAP_SERVERS": broker, "KAFKA_LOGGING_TOPIC": "there"}
        assert about(**kafka) == [("warning", "there is no topic there that this user may see")]
        Topic(broker, "there").close()
        assert about(**kafka) == [("ok", "knows topic there")]
    ((level, text),) = about(**{**kafka, "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"})
    assert level == "bad"
    assert "Connect call failed" in text


def test_no_configs(tmp_path: Path) -> None:
    assert found(environ(tmp_path))["configs"].level == "bad"


def test_exit_codes_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for name, text in environ(tmp_path).items():
        monkeypatch.setenv(name, text)
    assert cli.main(["doctor", "--json"]) == 1
    levels = {one["subject"]: one["level"] for one in json.loads(capfdbinary.readouterr().out)}
    assert levels["configs"] == "bad"
    assert levels["run directory"] == "ok"
