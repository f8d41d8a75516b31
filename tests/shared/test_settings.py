"""Settings: defaults, every kind of value and its bound, all errors at once, secrets kept out of sight."""

import datetime
import re
import zoneinfo
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from shared.settings import MIB, Settings, SettingsError, misspelt


def problems(**environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    return caught.value.problems


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert settings.port == 8085
    assert settings.onfs.deadline_ms == 200
    assert settings.onfs.batch_size == 50
    assert settings.predator.port == 8090
    assert settings.numerix.port == 8083
    assert settings.numerix.deadline_ms == 5000
    assert settings.numerix.batch_size == 100
    assert settings.topology_cache_size == 500
    assert settings.topology_cache_ttl_s == 300
    assert settings.max_request_bytes == 4 * MIB
    assert settings.drain_s == 30
    assert settings.workers >= 1
    assert settings.sampling_tz is datetime.UTC
    assert settings.compat == frozenset()


def test_an_empty_variable_is_an_unset_one() -> None:
    assert Settings.from_env({"APP_PORT": "", "INFERFLOW_RUN_DIR": "  "}) == Settings()


def test_values_are_read() -> None:
    settings = Settings.from_env(
        {
            "APP_PORT": "9000",
            "APP_LOG_LEVEL": "WARN",
            "ETCD_SERVER": "a:2379, b:2379",
            "EXTERNAL_SERVICE_ONFS_FS_HOST": "onfs",
            "EXTERNAL_SERVICE_ONFS_FS_GRPC_PLAIN_TEXT": "false",
            "INFERFLOW_COMPAT": "text-features, string-scores",
            "INFERFLOW_DRAIN_SECONDS": "1.5",
            "INFERFLOW_MAX_REQUEST_BYTES": "8 MiB",
            "INFERFLOW_RUN_DIR": "/somewhere/run",
            "INFERFLOW_SAMPLING_TZ": "Asia/Kolkata",
        }
    )
    assert settings.port == 9000
    assert settings.log_level == "warn"
    assert settings.etcd.servers == ("a:2379", "b:2379")
    assert settings.onfs.host == "onfs"
    assert settings.onfs.plaintext is False
    assert settings.compat == {"string-scores", "text-features"}
    assert settings.drain_s == 1.5
    assert settings.max_request_bytes == 8 * MIB
    assert settings.run_dir == Path("/somewhere/run")
    assert settings.sampling_tz == zoneinfo.ZoneInfo("Asia/Kolkata")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("YES", True), ("no", False)])
def test_booleans(text: str, value: bool) -> None:
    assert Settings.from_env({"INFERFLOW_PIN": text}).pin is value


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("4KiB", 4096), ("4 kib", 4096), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert Settings.from_env({"IN_MEMORY_CACHE_SIZE_IN_BYTES": text}).feature_cache_bytes == size


def test_the_second_name_of_the_topic_is_read_when_the_first_is_unset() -> None:
    assert Settings.from_env({"KAFKA_V2_LOG_TOPIC": "old"}).kafka.topic == "old"
    both = {"KAFKA_V2_LOG_TOPIC": "old", "KAFKA_LOGGING_TOPIC": "new"}
    assert Settings.from_env(both).kafka.topic == "new"


@pytest.mark.parametrize(
    ("name", "text", "bound"),
    [
        ("APP_PORT", "0", "from 1 to 65535"),
        ("APP_PORT", "65536", "from 1 to 65535"),
        ("APP_PORT", "80x", "from 1 to 65535"),
        ("APP_PORT", "８０", "from 1 to 65535"),
        ("APP_LOG_LEVEL", "loud", "debug"),
        ("METRIC_SAMPLING_RATE", "1.1", "from 0 to 1"),
        ("METRIC_SAMPLING_RATE", "nan", "from 0 to 1"),
        ("METRIC_SAMPLING_RATE", "half", "from 0 to 1"),
        ("INFERFLOW_PIN", "maybe", "true or false"),
        ("INFERFLOW_HOST", "a b", "host name"),
        ("INFERFLOW_MAX_REQUEST_BYTES", "4MB", "KiB, MiB or GiB"),
        ("INFERFLOW_MAX_REQUEST_BYTES", "12", "from 1 KiB to 256 MiB"),
        ("INFERFLOW_COMPAT", "string-scores,no-bugs", "text-features"),
        ("INFERFLOW_SAMPLING_TZ", "Mars/Olympus", "time zone name"),
        ("INFERFLOW_SAMPLING_TZ", "../../etc/passwd", "time zone name"),
    ],
)
def test_a_bad_value_names_variable_value_and_bound(name: str, text: str, bound: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}={text!r}: must be ")
    assert bound in problem


def test_all_problems_are_reported_at_once() -> None:
    found = problems(APP_PORT="x", INFERFLOW_PIN="x", NUMERIX_CLIENT_V1_BATCHSIZE="0")
    assert [problem.split("=")[0] for problem in found] == [
        "APP_PORT",
        "NUMERIX_CLIENT_V1_BATCHSIZE",
        "INFERFLOW_PIN",
    ]


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"INFERFLOW_TLS_CERT": "c.pem"}, "both or neither"),
        ({"INFERFLOW_TLS_CLIENT_CA": "ca.pem"}, "needs INFERFLOW_TLS_CERT"),
        ({"INFERFLOW_ETCD_KEY": "k.pem"}, "INFERFLOW_ETCD_CERT and INFERFLOW_ETCD_KEY: both or neither"),
        ({"INFERFLOW_ETCD_CA": "ca.pem", "ETCD_SERVER": "http://a"}, "ETCD_SERVER='http://a': is plaintext"),
        ({"APP_PORT": "8086"}, "must differ from APP_PORT"),
        ({"INFERFLOW_MATRIX_BYTES": "1MiB"}, "INFERFLOW_MAX_MATRIX_BYTES=64 MiB"),
        ({"INFERFLOW_MAX_HELD_BYTES": "1MiB"}, "INFERFLOW_MAX_REQUEST_BYTES=4 MiB"),
        (
            {"INFERFLOW_LOG_QUEUE_BYTES": "1MiB", "INFERFLOW_LOG_DIR": "logs"},
            "INFERFLOW_LOG_FILE_BYTES=16 MiB",
        ),
        (
            {"INFERFLOW_LOG_QUEUE_BYTES": "1MiB", "INFERFLOW_LOG_MESSAGE_BYTES": "2MiB"},
            "INFERFLOW_LOG_MESSAGE_BYTES=2 MiB",
        ),
    ],
)
def test_values_that_contradict_each_other(environ: dict[str, str], text: str) -> None:
    (problem,) = problems(**environ)
    assert text in problem


def test_the_size_of_log_files_is_of_no_matter_without_files() -> None:
    kafka = {"KAFKA_BOOTSTRAP_SERVERS": "broker:9092", "KAFKA_LOGGING_TOPIC": "logs"}
    settings = Settings.from_env({"INFERFLOW_LOG_QUEUE_BYTES": "1MiB", "INFERFLOW_LOG_DIR": "logs", **kafka})
    assert settings.log.queue_bytes < settings.log.file_bytes


def test_secrets_are_in_no_repr() -> None:
    names = (
        "ETCD_PASSWORD",
        "EXTERNAL_SERVICE_ONFS_FS_CALLER_TOKEN",
        "EXTERNAL_SERVICE_PREDATOR_CALLER_TOKEN",
        "NUMERIX_CLIENT_V1_AUTHTOKEN",
    )
    settings = Settings.from_env(dict.fromkeys(names, "hush"))
    assert settings.onfs.caller_token == settings.etcd.password == "hush"
    assert "hush" not in repr(settings)


def test_the_table_has_every_variable_once_with_a_meaning() -> None:
    def count(cls: type) -> int:
        return sum(count(f.default_factory) if is_dataclass(f.default_factory) else 1 for f in fields(cls))  # type: ignore[arg-type]

    table = Settings.table()
    names = [row.name for row in table]
    assert len(set(names)) == len(names) == count(Settings)
    assert all(row.bound and re.search(r"\w", row.meaning) for row in table)
    rows = {row.name: row for row in table}
    assert rows["INFERFLOW_MAX_REQUEST_BYTES"].default == "4 MiB"
    assert rows["INFERFLOW_WORKERS"].default == "cores − 1, at least 1"
    assert rows["INFERFLOW_PIN"].default == "true"


def test_every_documented_default_reads_back_as_itself() -> None:
    shown = {row.name.split(" or ")[0]: row.default for row in Settings.table()}
    del shown["INFERFLOW_WORKERS"]
    assert Settings.from_env(shown) == Settings()


def test_misspelt_names_are_pointed_out_and_those_of_the_platform_are_not() -> None:
    environ = {
        "INFERFLOW_WORKRES": "2",
        "INFERFLOW_WORKERS": "2",
        "INFERFLOW_SERVICE_HOST": "10.0.0.1",
        "INFERFLOW_PORT_8085_TCP": "tcp://10.0.0.1:8085",
        "PATH": "/bin",
    }
    assert misspelt(environ) == ("INFERFLOW_WORKRES is no setting; did you mean INFERFLOW_WORKERS?",)
