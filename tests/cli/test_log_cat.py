"""`inferflow logs cat`: what it prints and writes, of files and of a topic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from cli.main import main
from inferlog.encode import encode
from inferlog.reader import read
from shared.snapshot import digest_of
from sidecar.log_files import SCHEMA
from tests.golden.cases import CONFIG_DIR, CONFIGS, EXPRESSIONS
from tests.inferlog.matrices import make
from tests.inferlog.recorded import LOGS, Log, log
from tests.inprocess import InProcess
from tests.upstreams import Upstreams

ALL_TYPES = next(case for case in LOGS if case.id == "log_all_a-arrow")
BATCHES = next(case for case in LOGS if case.id == "log_batches_a-parquet")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFERFLOW_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("INFERFLOW_CONFIG_DIR", str(CONFIG_DIR))
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_LOGGING_TOPIC", "KAFKA_V2_LOG_TOPIC", "INFERFLOW_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def ours() -> list[bytes]:
    """Our messages for a recorded request."""
    with InProcess(CONFIGS, Upstreams.load(CONFIG_DIR), expressions=EXPRESSIONS) as service:
        return [message.value for message in log(service, ALL_TYPES).messages]


def log_file(path: Path, values: list[bytes]) -> Path:
    """A file as the log sidecar writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"value": values, "key": [None] * len(values), "rows": [1] * len(values)}
    pq.write_table(pa.table(columns, SCHEMA), path)
    return path


def cat(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main(["logs", "cat", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    code, out, errors = cat(capsys, "--format", "json", *arguments)
    assert code == 0, errors
    return [json.loads(line) for line in out.splitlines()]


def entities(case: Log) -> list[str]:
    return [entity for message in case.decoded for entity in message["entities"]]


def test_messages_of_the_existing_service_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log_file(tmp_path / "logs" / "a.parquet", ALL_TYPES.messages)
    log_file(tmp_path / "logs" / "b.parquet", BATCHES.messages)
    found = rows(capsys, tmp_path / "logs")
    assert sorted(row["_entity"] for row in found) == sorted(entities(ALL_TYPES) + entities(BATCHES))
    (first,) = (row for row in found if row["_entity"] == "1000" and row["_tracking_id"] == "t-1")
    assert first["catalog:int64v2_l:a_a"] == [55, 56]
    assert first["catalog:string_l:a_a"] == "s967"
    assert first["_request_id"] is None


def test_parquet_with_typed_columns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ours: list[bytes]
) -> None:
    path, out = log_file(tmp_path / "a.parquet", ours), tmp_path / "typed.parquet"
    assert cat(capsys, path, "--format", "parquet", "--output", out)[0] == 0
    found = pq.read_table(out)
    assert found.schema.field("catalog:uint64_l:a_a").type == pa.uint64()
    assert found.schema.field("catalog:fp32v3_l:a_a").type == pa.list_(pa.float32())
    assert found.schema.field("catalog:bool_l:a_a").type == pa.bool_()
    assert found.column("_entity").to_pylist() == entities(ALL_TYPES)
    assert found.column("_position").to_pylist() == [0, 1, 2, 3, 4]
    assert [one.name for one in tmp_path.iterdir() if "part" in one.name] == []


def test_a_table_and_a_limit(capsys: pytest.CaptureFixture[str], tmp_path: Path, ours: list[bytes]) -> None:
    (tmp_path / "message").write_bytes(ours[0])  # a file that is one message
    code, out, _ = cat(capsys, tmp_path / "message", "--limit", 2)
    assert code == 0
    assert "log_all_a" in out
    assert "… and 12 more columns" in out
    assert len(rows(capsys, tmp_path / "message", "--limit", 2)) == 2


def test_filters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = log_file(tmp_path / "a.parquet", [*ALL_TYPES.messages, *BATCHES.messages])
    assert len(rows(capsys, path, "--model-config-id", "log_batches_a")) == len(entities(BATCHES))
    assert len(rows(capsys, path, "--tracking-id", "t-1")) == len(entities(ALL_TYPES))
    code, _, errors = cat(capsys, path, "--format", "parquet", "--output", tmp_path / "out.parquet")
    assert code == 2
    assert "--model-config-id" in errors
    assert not (tmp_path / "out.parquet").exists()


def test_columns_are_chosen_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = log_file(tmp_path / "a.parquet", ALL_TYPES.messages)
    found = rows(capsys, path, "--columns", "_entity, catalog:fp*_l:a_a")
    assert set(found[0]) == {
        "_entity",
        *(f"catalog:fp{bits}_l:a_a" for bits in ("32", "64", "16", "32v3", "16v2")),
    }
    code, out, _ = cat(capsys, path, "--columns", "score")
    assert (code, "score" in out, "_entity" in out) == (0, True, False)
    code, _, errors = cat(capsys, path, "--columns", "nothing*")
    assert (code, "no column matches 'nothing*'" in errors) == (2, True)


def test_columns_are_those_of_the_version_that_a_message_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ours: list[bytes]
) -> None:
    """The config has changed since: the state directory still has the old one."""
    path, changed = log_file(tmp_path / "a.parquet", ours), tmp_path / "configs"
    changed.mkdir()
    (changed / "log_all_a.json").write_bytes(CONFIGS["log_batches_a"])
    code, _, errors = cat(capsys, path, "--configs", changed)
    assert code == 1
    assert "1 messages not read" in errors
    compact = json.dumps(json.loads(CONFIGS["log_all_a"]), separators=(",", ":")).encode()
    documents = tmp_path / "state" / "documents"
    documents.mkdir(parents=True)
    (documents / f"{digest_of(compact)}.json").write_bytes(compact)
    assert len(rows(capsys, path, "--configs", changed)) == len(entities(ALL_TYPES))


def test_what_cannot_be_read_is_counted_and_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = make(5, ["FP32"], rows=2)
    unknown = encode(made.schema("arrow"), made.matrix, None, made.event, max_message_bytes=1 << 20)
    made.release()
    values = [b"no message", unknown.messages[0].value, *BATCHES.messages]
    path = log_file(tmp_path / "a.parquet", values)
    code, out, errors = cat(capsys, path, "--format", "json")
    assert code == 1
    assert len(out.splitlines()) == len(entities(BATCHES))
    assert "'anything' with the digest abababababab" in errors
    assert "are no KafkaRequest" in errors


def test_wrong_arguments_and_places(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cat(capsys)[0] == 2
    assert cat(capsys, tmp_path / "a", "--topic", "t")[0] == 2
    assert cat(capsys, "--kafka", "127.0.0.1:1")[0] == 2
    code, _, errors = cat(capsys, tmp_path / "missing.parquet")
    assert (code, "missing.parquet" in errors) == (3, True)
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")
    code, _, errors = cat(capsys, tmp_path / "other.parquet")
    assert (code, "'value'" in errors) == (3, True)


@pytest.fixture
def broker() -> Iterator[tuple[str, Producer]]:
    """The address of librdkafka's mock broker, and a producer for it."""
    producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1})
    brokers = producer.list_topics(timeout=10).brokers.values()
    yield next(f"{one.host}:{one.port}" for one in brokers), producer
    producer.flush(5)


def test_a_topic_is_read_to_its_end(
    capsys: pytest.CaptureFixture[str], broker: tuple[str, Producer], ours: list[bytes]
) -> None:
    address, producer = broker
    for number in range(40):
        producer.produce("logs", ours[0] if number % 2 else BATCHES.messages[0], key=str(number))
    assert producer.flush(10) == 0
    found = rows(capsys, "--kafka", address, "--topic", "logs")
    assert len(found) == 20 * (read(ours[0]).rows + read(BATCHES.messages[0]).rows)
    assert {row["_time"] for row in found} > {"2023-11-14 22:13:20.123456789Z"}
    assert len(rows(capsys, "--kafka", address, "--topic", "logs", "--limit", 7)) == 7


def test_brokers_that_do_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = cat(capsys, "--kafka", "127.0.0.1:1", "--topic", "logs")
    assert code == 3
    assert "topic 'logs' at 127.0.0.1:1" in errors
