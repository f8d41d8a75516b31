"""All settings, read from the environment in one place.

`Settings.from_env(os.environ)` is called once by each process, at its start, and the result is passed down;
nothing else reads the environment. A variable that is unset or empty has its default, and the defaults work
on a laptop. All bad values are reported together, each with its bound.

The classes below are the list of settings: a field is one variable, with its kind (unit and range), its
default and what it does. `Settings.table()` gives the same list to the documentation.
"""

from __future__ import annotations

import datetime
import difflib
import math
import re
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast, get_type_hints

from shared.process import cores

__all__ = [
    "COMPAT_SWITCHES",
    "EtcdSettings",
    "KafkaSettings",
    "LogSettings",
    "NumerixSettings",
    "OnfsSettings",
    "PredatorSettings",
    "SettingRow",
    "Settings",
    "SettingsError",
    "StatsdSettings",
    "TlsSettings",
    "TraceSettings",
    "misspelt",
]

T = TypeVar("T")

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

LOG_KEYS = ("tracking-id", "user-id", "none")
SASL_MECHANISMS = ("plain", "scram-sha-256", "scram-sha-512")
COMPAT_SWITCHES = ("string-scores", "text-features")
LOG_LEVELS = ("trace", "debug", "info", "warn", "warning", "error", "fatal", "panic", "disabled")


class SettingsError(ValueError):
    """Settings that cannot be used. `problems` has one line for each, naming variable, value and bound."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("bad settings:" + "".join(f"\n  {problem}" for problem in problems))
        self.problems = problems


# ---------------------------------------------------------------- kinds of values


@dataclass(frozen=True)
class Kind(Generic[T]):
    """How the text of a variable becomes a value: `read` raises ValueError for what is not `bound`."""

    bound: str
    read: Callable[[str], T]
    show: Callable[[T], str] = str


def _integer(low: int, high: int, unit: str = "") -> Kind[int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Kind(f"an integer from {low} to {high}" + (f" ({unit})" if unit else ""), read)


_SIZE_UNITS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB}


def _show_size(size: int) -> str:
    for name, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return str(size)


def _size(low: int, high: int) -> Kind[int]:
    def read(text: str) -> int:
        match = re.fullmatch(r"([0-9]+) ?([a-zA-Z]*)", text)
        if match is None or match[2].lower() not in _SIZE_UNITS:
            raise ValueError
        size = int(match[1]) * _SIZE_UNITS[match[2].lower()]
        if not low <= size <= high:
            raise ValueError
        return size

    bound = f"bytes, or a number with KiB, MiB or GiB, from {_show_size(low)} to {_show_size(high)}"
    return Kind(bound, read, _show_size)


def _decimal(low: float, high: float, unit: str = "") -> Kind[float]:
    def read(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value

    bound = f"a number from {low:g} to {high:g}" + (f" ({unit})" if unit else "")
    return Kind(bound, read, lambda value: f"{value:g}")


_TRUE = ("true", "1", "yes")
_FALSE = ("false", "0", "no")


def _read_boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError


def _choice(options: tuple[str, ...]) -> Kind[str]:
    def read(text: str) -> str:
        if text.lower() not in options:
            raise ValueError
        return text.lower()

    return Kind("one of " + ", ".join(options), read)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _choices(options: tuple[str, ...]) -> Kind[frozenset[str]]:
    def read(text: str) -> frozenset[str]:
        chosen = frozenset(_listed(text))
        if not chosen <= set(options):
            raise ValueError
        return chosen

    return Kind("a comma list of " + ", ".join(options), read, lambda chosen: ",".join(sorted(chosen)))


def _read_zone(text: str) -> datetime.tzinfo:
    if text.upper() == "UTC":  # must not depend on a time zone database: slim images have none
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise ValueError from error


def _read_mechanism(text: str) -> str:
    if text.lower() not in SASL_MECHANISMS:
        raise ValueError
    return text.upper()


def _read_host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", text):
        raise ValueError
    return text


_ENDPOINT = re.compile(r"(https?://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?", re.IGNORECASE)


def _read_endpoints(text: str) -> tuple[str, ...]:
    endpoints = _listed(text)
    if not all(_ENDPOINT.fullmatch(endpoint) for endpoint in endpoints):
        raise ValueError
    return endpoints


TEXT: Kind[str] = Kind("text", str)
HOST: Kind[str] = Kind("a host name or an address", _read_host)
MECHANISM: Kind[str] = Kind("one of " + ", ".join(SASL_MECHANISMS), _read_mechanism)
PORT = _integer(1, 65535, "port")
BOOLEAN: Kind[bool] = Kind(
    "true or false (also 1, 0, yes, no)", _read_boolean, lambda value: "true" if value else "false"
)
LIST: Kind[tuple[str, ...]] = Kind("a comma-separated list", _listed, ",".join)
ENDPOINTS: Kind[tuple[str, ...]] = Kind(
    "a comma-separated list of host:port, http://host:port or https://host:port", _read_endpoints, ",".join
)
PATH: Kind[Path] = Kind("a path", Path)
OPTIONAL_PATH: Kind[Path | None] = Kind("a path", Path, lambda path: "" if path is None else str(path))
ZONE: Kind[datetime.tzinfo] = Kind("a time zone name such as UTC or Asia/Kolkata", _read_zone)


# ---------------------------------------------------------------- fields


@dataclass(frozen=True)
class _Variable:
    """Which variable a field is read from (the first that is set of several), and how."""

    names: tuple[str, ...]
    kind: Kind[Any]
    doc: str
    shown_default: str


def env(
    name: str | tuple[str, ...], kind: Kind[Any], doc: str, *, shown_default: str = ""
) -> dict[str, _Variable]:
    """The metadata of a field that is read from `name`, or from the first that is set of several.

    A field with `repr=False` is a secret: its value is in no repr and in no message. `shown_default` is
    what the documentation says where the default depends on the machine.
    """
    names = (name,) if isinstance(name, str) else name
    return {"variable": _Variable(names, kind, doc, shown_default)}


class SettingRow(NamedTuple):
    """One variable, for the documentation."""

    name: str
    default: str
    bound: str
    meaning: str


# ---------------------------------------------------------------- the settings


@dataclass(frozen=True, kw_only=True)
class EtcdSettings:
    """Where configs come from when they come from etcd."""

    servers: tuple[str, ...] = field(
        default=(),
        metadata=env(
            "ETCD_SERVER",
            ENDPOINTS,
            "etcd addresses, tried in their order; the port is 2379 where none is given. "
            "Empty: configs come from INFERFLOW_CONFIG_DIR.",
        ),
    )
    watch: bool = field(
        default=True,
        metadata=env(
            "ETCD_WATCHER_ENABLED", BOOLEAN, "Follow changes; otherwise configs are read once, at start."
        ),
    )
    username: str = field(default="", metadata=env("ETCD_USERNAME", TEXT, "Empty: no authentication."))
    password: str = field(
        default="", repr=False, metadata=env("ETCD_PASSWORD", TEXT, "Password of ETCD_USERNAME.")
    )
    ca: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_ETCD_CA",
            OPTIONAL_PATH,
            "PEM file: authorities that etcd's certificate is verified with. Unset: those that gRPC ships. Set: "
            "addresses without a scheme use TLS.",
        ),
    )
    cert: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_ETCD_CERT",
            OPTIONAL_PATH,
            "PEM file: the certificate shown to etcd (mTLS). Needs INFERFLOW_ETCD_KEY. Set: addresses without a "
            "scheme use TLS.",
        ),
    )
    key: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_ETCD_KEY", OPTIONAL_PATH, "PEM file: its private key. Needs INFERFLOW_ETCD_CERT."
        ),
    )
    status_key: str = field(
        default="",
        metadata=env(
            "INFERFLOW_ETCD_STATUS_KEY",
            TEXT,
            "etcd key below which each pod writes the state of each of its configs, as JSON, for other tools: "
            "<this>/<host name>/config-map/<model_config_id>. Not below /config/. Empty: nothing is written.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class OnfsSettings:
    """The online feature store."""

    host: str = field(
        default="",
        metadata=env(
            "EXTERNAL_SERVICE_ONFS_FS_HOST",
            TEXT,
            "Host name; calls go round all its addresses. Empty is an error only for configs that fetch.",
        ),
    )
    port: int = field(
        default=8080, metadata=env("EXTERNAL_SERVICE_ONFS_FS_PORT", PORT, "Port of the feature store.")
    )
    plaintext: bool = field(
        default=True,
        metadata=env(
            "EXTERNAL_SERVICE_ONFS_FS_GRPC_PLAIN_TEXT",
            BOOLEAN,
            "false: TLS, and the certificate is verified.",
        ),
    )
    caller_id: str = field(
        default="",
        metadata=env("EXTERNAL_SERVICE_ONFS_FS_CALLER_ID", TEXT, "Sent as online-feature-store-caller-id."),
    )
    caller_token: str = field(
        default="",
        repr=False,
        metadata=env(
            "EXTERNAL_SERVICE_ONFS_FS_CALLER_TOKEN", TEXT, "Sent as online-feature-store-auth-token."
        ),
    )
    deadline_ms: int = field(
        default=200,
        metadata=env(
            "EXTERNAL_SERVICE_ONFS_FS_DEAD_LINE",
            _integer(1, 600_000, "ms"),
            "Longest wait for one call. Later answers count as failed; the rows carry the error.",
        ),
    )
    batch_size: int = field(
        default=50,
        metadata=env(
            "EXTERNAL_SERVICE_ONFS_FS_BATCH_SIZE",
            _integer(1, 100_000, "keys"),
            "Keys in one call; more keys make parallel calls.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class PredatorSettings:
    """The model servers. Their hosts are in the model configs."""

    port: int = field(
        default=8090,
        metadata=env(
            "EXTERNAL_SERVICE_PREDATOR_PORT", PORT, "Port of endpoints that carry none of their own."
        ),
    )
    plaintext: bool = field(
        default=True,
        metadata=env(
            "EXTERNAL_SERVICE_PREDATOR_GRPC_PLAIN_TEXT",
            BOOLEAN,
            "false: TLS, and the certificate is verified.",
        ),
    )
    caller_id: str = field(
        default="", metadata=env("EXTERNAL_SERVICE_PREDATOR_CALLER_ID", TEXT, "Sent as predator-caller-id.")
    )
    caller_token: str = field(
        default="",
        repr=False,
        metadata=env("EXTERNAL_SERVICE_PREDATOR_CALLER_TOKEN", TEXT, "Sent as predator-auth-token."),
    )
    deadline_ms: int = field(
        default=200,
        metadata=env(
            "EXTERNAL_SERVICE_PREDATOR_DEADLINE",
            _integer(1, 600_000, "ms"),
            "Longest wait for one call of a component whose config has no deadline.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class NumerixSettings:
    """The score-expression service."""

    host: str = field(
        default="",
        metadata=env(
            "NUMERIX_CLIENT_V1_HOST",
            TEXT,
            "Host name. Empty: expressions are computed in the worker, from the configs.",
        ),
    )
    port: int = field(default=8083, metadata=env("NUMERIX_CLIENT_V1_PORT", PORT, "Port of the service."))
    deadline_ms: int = field(
        default=5000,
        metadata=env(
            "NUMERIX_CLIENT_V1_DEADLINE_MS", _integer(1, 600_000, "ms"), "Longest wait for one call."
        ),
    )
    plaintext: bool = field(
        default=True,
        metadata=env("NUMERIX_CLIENT_V1_PLAINTEXT", BOOLEAN, "false: TLS, and the certificate is verified."),
    )
    auth_token: str = field(
        default="", repr=False, metadata=env("NUMERIX_CLIENT_V1_AUTHTOKEN", TEXT, "Token for the service.")
    )
    batch_size: int = field(
        default=100,
        metadata=env(
            "NUMERIX_CLIENT_V1_BATCHSIZE",
            _integer(1, 100_000, "rows"),
            "Rows in one call; more rows make parallel calls, except where the expression reads all rows.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class KafkaSettings:
    """The brokers that inference logs go to."""

    bootstrap_servers: tuple[str, ...] = field(
        default=(),
        metadata=env(
            "KAFKA_BOOTSTRAP_SERVERS", LIST, "Brokers of the inference log. Empty: see INFERFLOW_LOG_DIR."
        ),
    )
    topic: str = field(
        default="",
        metadata=env(
            ("KAFKA_LOGGING_TOPIC", "KAFKA_V2_LOG_TOPIC"),
            TEXT,
            "Topic of the inference log. Empty: nothing is sent to Kafka.",
        ),
    )
    tls: bool = field(
        default=False,
        metadata=env("INFERFLOW_KAFKA_TLS", BOOLEAN, "TLS to the brokers, whose certificates are verified."),
    )
    ca: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_KAFKA_CA",
            OPTIONAL_PATH,
            "PEM file: authorities that the brokers' certificates are verified with. Unset: the system's.",
        ),
    )
    cert: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_KAFKA_CERT",
            OPTIONAL_PATH,
            "PEM file: the certificate shown to the brokers (mTLS). Needs INFERFLOW_KAFKA_KEY.",
        ),
    )
    key: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_KAFKA_KEY", OPTIONAL_PATH, "PEM file: its private key. Needs INFERFLOW_KAFKA_CERT."
        ),
    )
    sasl_mechanism: str = field(
        default="",
        metadata=env("INFERFLOW_KAFKA_SASL_MECHANISM", MECHANISM, "Unset: no authentication."),
    )
    username: str = field(
        default="", metadata=env("INFERFLOW_KAFKA_USERNAME", TEXT, "User for SASL authentication.")
    )
    password: str = field(
        default="",
        repr=False,
        metadata=env("INFERFLOW_KAFKA_PASSWORD", TEXT, "Password of INFERFLOW_KAFKA_USERNAME."),
    )


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Inference logs on their way from the workers to the brokers, or to files."""

    directory: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_LOG_DIR",
            OPTIONAL_PATH,
            "Used when KAFKA_BOOTSTRAP_SERVERS is empty: inference logs are written here as Parquet files. Unset: "
            "nothing is logged.",
        ),
    )
    file_bytes: int = field(
        default=16 * MIB,
        metadata=env(
            "INFERFLOW_LOG_FILE_BYTES",
            _size(64 * KIB, 1 * GIB),
            "Messages in one such file. They are kept in memory until then: at most INFERFLOW_LOG_QUEUE_BYTES.",
        ),
    )
    file_s: float = field(
        default=60.0,
        metadata=env(
            "INFERFLOW_LOG_FILE_SECONDS", _decimal(0.1, 86_400, "s"), "Longest time until a file is written."
        ),
    )
    keep_bytes: int = field(
        default=0,
        metadata=env(
            "INFERFLOW_LOG_KEEP_BYTES",
            _size(0, 1024 * 1024 * GIB),
            "Of such files; when there are more, the oldest are deleted, and counted. 0: none is for its size.",
        ),
    )
    keep_days: float = field(
        default=0.0,
        metadata=env(
            "INFERFLOW_LOG_KEEP_DAYS",
            _decimal(0, 36_500, "days"),
            "Such files that are older are deleted, and counted. 0: none is for its age.",
        ),
    )
    lent_bytes: int = field(
        default=64 * MIB,
        metadata=env(
            "INFERFLOW_LOG_LENT_BYTES",
            _size(64 * KIB, 64 * GIB),
            "Shared memory of one worker for matrices that the log sidecar has not read yet, besides "
            "INFERFLOW_MATRIX_BYTES. When it is full, rows are dropped and counted.",
        ),
    )
    queue_bytes: int = field(
        default=64 * MIB,
        metadata=env(
            "INFERFLOW_LOG_QUEUE_BYTES",
            _size(1 * MIB, 64 * GIB),
            "Encoded messages that are not acknowledged yet. When it is full, rows are dropped and counted.",
        ),
    )
    queue_messages: int = field(
        default=50_000,
        metadata=env(
            "INFERFLOW_LOG_QUEUE_MESSAGES", _integer(1, 10_000_000, "messages"), "The same, as a number."
        ),
    )
    message_bytes: int = field(
        default=1_000_000,
        metadata=env(
            "INFERFLOW_LOG_MESSAGE_BYTES",
            _size(1 * KIB, 64 * MIB),
            "Longest message; what is longer is split by rows. At most what brokers and topic take.",
        ),
    )
    key: str = field(
        default="tracking-id",
        metadata=env("INFERFLOW_LOG_KEY", _choice(LOG_KEYS), "What decides on a message's partition."),
    )
    delivery_s: float = field(
        default=60.0,
        metadata=env(
            "INFERFLOW_LOG_DELIVERY_SECONDS",
            _decimal(1, 3600, "s"),
            "How long the delivery of a message is tried. After it, its rows are dropped and counted.",
        ),
    )
    flush_s: float = field(
        default=5.0,
        metadata=env(
            "INFERFLOW_LOG_FLUSH_SECONDS",
            _decimal(0, 600, "s"),
            "At SIGTERM: how long the log sidecar tries to deliver what it has.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class StatsdSettings:
    """Metrics over DogStatsD."""

    host: str = field(default="", metadata=env("TELEGRAF_HOST", TEXT, "Empty: no metrics are sent."))
    port: int = field(default=8125, metadata=env("TELEGRAF_PORT", PORT, "UDP port."))
    socket: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_STATSD_SOCKET",
            OPTIONAL_PATH,
            "Unix socket of the agent, instead of TELEGRAF_HOST and TELEGRAF_PORT.",
        ),
    )
    sample_rate: float = field(
        default=1.0,
        metadata=env(
            "METRIC_SAMPLING_RATE",
            _decimal(0, 1),
            "Share of timings that are sent; 0 sends none. Counters are exact.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """Traces of requests, sent by OTLP over gRPC."""

    endpoint: str = field(
        default="",
        metadata=env(
            "INFERFLOW_OTLP_ENDPOINT",
            TEXT,
            "Collector of traces, as http://otel:4317; https:// for TLS. Empty: nothing is traced.",
        ),
    )
    ratio: float = field(
        default=0.01,
        metadata=env(
            "INFERFLOW_TRACE_RATIO",
            _decimal(0, 1),
            "Share of the requests without a traceparent that are traced; with one, its caller decides.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """TLS on the serving port. All empty: plaintext."""

    cert: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_TLS_CERT", OPTIONAL_PATH, "PEM file: certificate chain. Needs INFERFLOW_TLS_KEY."
        ),
    )
    key: Path | None = field(
        default=None,
        metadata=env("INFERFLOW_TLS_KEY", OPTIONAL_PATH, "PEM file: private key. Needs INFERFLOW_TLS_CERT."),
    )
    client_ca: Path | None = field(
        default=None,
        metadata=env(
            "INFERFLOW_TLS_CLIENT_CA",
            OPTIONAL_PATH,
            "PEM file. Set: clients must show a certificate of this authority (mTLS).",
        ),
    )


def _default_workers() -> int:
    return max(1, cores() - 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of every process. Immutable; made by `from_env`, or directly in tests."""

    environment: str = field(
        default="local", metadata=env("APP_ENV", TEXT, "Environment name; tag `env` of metrics.")
    )
    name: str = field(
        default="inferflow",
        metadata=env(
            "APP_NAME",
            TEXT,
            "Service name: tag `service` of metrics, part of the etcd keys, caller id towards Numerix.",
        ),
    )
    port: int = field(default=8085, metadata=env("APP_PORT", PORT, "Serving port: gRPC and HTTP/1.1."))
    log_level: str = field(
        default="info",
        metadata=env("APP_LOG_LEVEL", _choice(LOG_LEVELS), "Least severe level that is logged."),
    )

    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    onfs: OnfsSettings = field(default_factory=OnfsSettings)
    predator: PredatorSettings = field(default_factory=PredatorSettings)
    numerix: NumerixSettings = field(default_factory=NumerixSettings)
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    log: LogSettings = field(default_factory=LogSettings)
    statsd: StatsdSettings = field(default_factory=StatsdSettings)
    tracing: TraceSettings = field(default_factory=TraceSettings)

    feature_cache_bytes: int = field(
        default=64 * MIB,
        metadata=env(
            "IN_MEMORY_CACHE_SIZE_IN_BYTES",
            _size(0, 64 * GIB),
            "Feature cache of the pod, in shared memory, for all workers together. 0: no cache, whatever the "
            "configs ask.",
        ),
    )
    coalesce: bool = field(
        default=True,
        metadata=env(
            "INFERFLOW_COALESCE",
            BOOLEAN,
            "Feature store calls of one worker for the same keys and features at the same time are one call.",
        ),
    )
    topology_cache_size: int = field(
        default=500,
        metadata=env(
            "DAG_TOPOLOGY_CACHE_SIZE", _integer(0, 1_000_000, "DAGs"), "Compiled DAGs kept. 0: none."
        ),
    )
    topology_cache_ttl_s: int = field(
        default=300,
        metadata=env(
            "DAG_TOPOLOGY_CACHE_TTL_SEC", _integer(1, 31_536_000, "s"), "How long a compiled DAG is kept."
        ),
    )

    config_dir: Path = field(
        default=Path("configs"),
        metadata=env(
            "INFERFLOW_CONFIG_DIR",
            PATH,
            "Used when ETCD_SERVER is empty: config-map/<model_config_id>.json, service-config.json, "
            "expression-config/<compute_id>.json. Watched.",
        ),
    )
    workers: int = field(
        default_factory=_default_workers,
        metadata=env(
            "INFERFLOW_WORKERS",
            _integer(1, 1024, "processes"),
            "Worker processes.",
            shown_default="cores − 1, at least 1",
        ),
    )
    frontdoors: int = field(
        default=1,
        metadata=env(
            "INFERFLOW_FRONTDOORS",
            _integer(1, 64, "processes"),
            "Front doors. More than one share the port, and then a port that another process of "
            "this user has taken in the same way is no error.",
        ),
    )
    index: int = field(
        default=0,
        metadata=env(
            "INFERFLOW_INDEX",
            _integer(0, 1023),
            "Which of the workers or front doors this process is. Set by supervisord.",
        ),
    )
    supervisor_pid: int = field(
        default=0,
        metadata=env(
            "INFERFLOW_SUPERVISOR_PID",
            _integer(0, 1 << 22),
            "Process id that the parent must have, so that no process starts after its supervisor has gone. "
            "0: any. Set by `python -m cli.up`.",
        ),
    )
    executor_threads: int = field(
        default=0,
        metadata=env(
            "INFERFLOW_EXECUTOR_THREADS",
            _integer(0, 64, "threads"),
            "Threads of each worker that run DAGs. 0: they run on its I/O thread.",
        ),
    )
    codecs: str = field(
        default="kernels",
        metadata=env(
            "INFERFLOW_CODECS",
            _choice(("kernels", "reference")),
            "How messages are read and written. reference: with protobuf objects, slowly; answers are the same.",
        ),
    )
    pin: bool = field(default=True, metadata=env("INFERFLOW_PIN", BOOLEAN, "Keep worker i on one core."))
    run_dir: Path = field(
        default=Path("run"),
        metadata=env(
            "INFERFLOW_RUN_DIR",
            PATH,
            "Unix sockets between the processes. Created with mode 0700; one pod each.",
        ),
    )
    state_dir: Path = field(
        default=Path("state"), metadata=env("INFERFLOW_STATE_DIR", PATH, "Last-known-good configs.")
    )
    host: str = field(
        default="0.0.0.0",
        metadata=env(
            "INFERFLOW_HOST", HOST, "Address that APP_PORT is bound to. 127.0.0.1: this machine only."
        ),
    )
    admin_host: str = field(
        default="127.0.0.1",
        metadata=env(
            "INFERFLOW_ADMIN_HOST",
            HOST,
            "Address that INFERFLOW_ADMIN_PORT is bound to. It has no authentication: keep it private. Changes are "
            "taken from this machine only, whatever the address.",
        ),
    )
    admin_port: int = field(
        default=8086,
        metadata=env("INFERFLOW_ADMIN_PORT", PORT, "HTTP for operators: metrics, status, config."),
    )
    max_request_bytes: int = field(
        default=4 * MIB,
        metadata=env(
            "INFERFLOW_MAX_REQUEST_BYTES",
            _size(1 * KIB, 256 * MIB),
            "Longest request message, uncompressed. Above: RESOURCE_EXHAUSTED.",
        ),
    )
    max_in_flight: int = field(
        default=256,
        metadata=env(
            "INFERFLOW_MAX_IN_FLIGHT",
            _integer(1, 65_536, "requests"),
            "Requests one worker works on at a time. When all workers are full: RESOURCE_EXHAUSTED at once.",
        ),
    )
    max_held_bytes: int = field(
        default=256 * MIB,
        metadata=env(
            "INFERFLOW_MAX_HELD_BYTES",
            _size(1 * MIB, 64 * GIB),
            "Request bodies that one front door keeps until they are answered. Above: RESOURCE_EXHAUSTED.",
        ),
    )
    wait_ms: int = field(
        default=5000,
        metadata=env(
            "INFERFLOW_WAIT_MS",
            _integer(0, 60_000, "ms"),
            "How long a request waits while no worker is ready: the default covers the restart of an only "
            "worker. After it: UNAVAILABLE. 0: at once.",
        ),
    )
    max_waiting: int = field(
        default=1024,
        metadata=env(
            "INFERFLOW_MAX_WAITING",
            _integer(0, 65_536, "requests"),
            "Requests that may wait like this at one front door. Above: UNAVAILABLE at once.",
        ),
    )
    default_timeout_ms: int = field(
        default=60_000,
        metadata=env(
            "INFERFLOW_DEFAULT_TIMEOUT_MS",
            _integer(1, 3_600_000, "ms"),
            "Deadline of a request whose client names none. After it: DEADLINE_EXCEEDED.",
        ),
    )
    drain_s: float = field(
        default=30.0,
        metadata=env(
            "INFERFLOW_DRAIN_SECONDS",
            _decimal(0, 3600, "s"),
            "At SIGTERM: how long requests in flight may take to finish. After it they are cancelled.",
        ),
    )
    matrix_bytes: int = field(
        default=256 * MIB,
        metadata=env(
            "INFERFLOW_MATRIX_BYTES",
            _size(1 * MIB, 256 * GIB),
            "Shared memory of one worker for matrices. A request that finds none free: RESOURCE_EXHAUSTED.",
        ),
    )
    max_matrix_bytes: int = field(
        default=64 * MIB,
        metadata=env(
            "INFERFLOW_MAX_MATRIX_BYTES",
            _size(64 * KIB, 64 * GIB),
            "Largest matrix of one request, its body included, and largest input of texts, or of a free dimension, "
            "that a model gets. Above: RESOURCE_EXHAUSTED. "
            "At most INFERFLOW_MATRIX_BYTES.",
        ),
    )
    tls: TlsSettings = field(default_factory=TlsSettings)
    compat: frozenset[str] = field(
        default=frozenset(),
        metadata=env(
            "INFERFLOW_COMPAT",
            _choices(COMPAT_SWITCHES),
            "string-scores: scalar predator scores are named String in output schemas. "
            "text-features: all Predict feature values are read as text.",
        ),
    )
    sampling_tz: datetime.tzinfo = field(
        default=datetime.UTC,
        metadata=env("INFERFLOW_SAMPLING_TZ", ZONE, "Time zone of the date in sampling by user and day."),
    )

    @property
    def logs_to(self) -> str:
        """Where inference logs go: "kafka", "files", or "" for nowhere."""
        if self.kafka.bootstrap_servers:
            return "kafka" if self.kafka.topic else ""
        return "files" if self.log.directory is not None else ""

    @property
    def reference_codecs(self) -> bool:
        return self.codecs == "reference"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """The settings of this environment.

        Raises SettingsError with every problem at once.
        """
        problems: list[str] = []
        settings = _read(cls, environ, problems)
        if not problems:
            problems.extend(settings._contradictions())
        if problems:
            raise SettingsError(tuple(problems))
        return settings

    @classmethod
    def table(cls) -> tuple[SettingRow, ...]:
        """Every variable with default, bound and meaning, in the order of the classes."""
        return tuple(_row(own, variable) for own, variable in _fields(cls))

    def _contradictions(self) -> Iterator[str]:
        """What is wrong with values that are each fine."""
        if (self.tls.cert is None) != (self.tls.key is None):
            yield "INFERFLOW_TLS_CERT and INFERFLOW_TLS_KEY: both or neither must be set"
        if self.tls.client_ca is not None and self.tls.cert is None:
            yield f"INFERFLOW_TLS_CLIENT_CA={str(self.tls.client_ca)!r}: needs INFERFLOW_TLS_CERT"
        yield from self._etcd_contradictions()
        yield from self._log_contradictions()
        if self.port == self.admin_port:
            yield f"INFERFLOW_ADMIN_PORT={self.admin_port}: must differ from APP_PORT"
        if self.max_matrix_bytes > self.matrix_bytes:
            yield (
                f"INFERFLOW_MAX_MATRIX_BYTES={_show_size(self.max_matrix_bytes)}: must be at most "
                f"INFERFLOW_MATRIX_BYTES ({_show_size(self.matrix_bytes)})"
            )
        if self.max_request_bytes > self.max_held_bytes:
            yield (
                f"INFERFLOW_MAX_REQUEST_BYTES={_show_size(self.max_request_bytes)}: must be at most "
                f"INFERFLOW_MAX_HELD_BYTES ({_show_size(self.max_held_bytes)})"
            )

    def _log_contradictions(self) -> Iterator[str]:
        if (self.kafka.cert is None) != (self.kafka.key is None):
            yield "INFERFLOW_KAFKA_CERT and INFERFLOW_KAFKA_KEY: both or neither must be set"
        if bool(self.kafka.sasl_mechanism) != bool(self.kafka.username):
            yield "INFERFLOW_KAFKA_SASL_MECHANISM and INFERFLOW_KAFKA_USERNAME: both or neither must be set"
        sizes = [("INFERFLOW_LOG_MESSAGE_BYTES", self.log.message_bytes)]
        if self.logs_to == "files":
            sizes.append(("INFERFLOW_LOG_FILE_BYTES", self.log.file_bytes))
        for name, size in sizes:
            if size > self.log.queue_bytes:
                yield (
                    f"{name}={_show_size(size)}: must be at most "
                    f"INFERFLOW_LOG_QUEUE_BYTES ({_show_size(self.log.queue_bytes)})"
                )

    def _etcd_contradictions(self) -> Iterator[str]:
        if self.etcd.status_key:
            if f"{self.etcd.status_key}/".startswith("/config/"):
                yield f"INFERFLOW_ETCD_STATUS_KEY={self.etcd.status_key!r}: /config/ is where configs are read from"
            if not self.etcd.servers:
                yield "INFERFLOW_ETCD_STATUS_KEY: is set, but ETCD_SERVER is empty"
        if (self.etcd.cert is None) != (self.etcd.key is None):
            yield "INFERFLOW_ETCD_CERT and INFERFLOW_ETCD_KEY: both or neither must be set"
        if self.etcd.ca is not None or self.etcd.cert is not None:
            for server in self.etcd.servers:
                if server.lower().startswith("http://"):
                    yield f"ETCD_SERVER={server!r}: is plaintext, but INFERFLOW_ETCD_CA or _CERT is set"


def misspelt(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A warning for each INFERFLOW_ variable that is no setting but looks much like one.

    Others are left alone: container platforms set variables of their own, named after services.
    """
    known = [name for _, variable in _fields(Settings) for name in variable.names]
    warnings: list[str] = []
    for name in sorted(environ):
        if name.startswith("INFERFLOW_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            warnings.extend(f"{name} is no setting; did you mean {match}?" for match in close)
    return tuple(warnings)


# ---------------------------------------------------------------- reading


def _fields(cls: type) -> Iterator[tuple[Field[Any], _Variable]]:
    """Every field of a settings class, and of the classes it holds, with its variable."""
    hints = get_type_hints(cls)
    for own in fields(cls):
        if "variable" in own.metadata:
            yield own, own.metadata["variable"]
        else:
            yield from _fields(hints[own.name])


def _row(own: Field[Any], variable: _Variable) -> SettingRow:
    shown = variable.shown_default or variable.kind.show(own.default)
    return SettingRow(" or ".join(variable.names), shown, variable.kind.bound, variable.doc)


def _read(cls: type[T], environ: Mapping[str, str], problems: list[str]) -> T:
    """An instance of a settings class; what cannot be read is added to `problems` and left at its default."""
    hints = get_type_hints(cls)
    values: dict[str, object] = {}
    for own in fields(cast(Any, cls)):
        if "variable" not in own.metadata:
            values[own.name] = _read(hints[own.name], environ, problems)
            continue
        variable: _Variable = own.metadata["variable"]
        name, text = _first_set(variable.names, environ)
        if text:
            try:
                values[own.name] = variable.kind.read(text)
            except ValueError:
                shown = repr(text) if own.repr else "(hidden)"
                problems.append(f"{name}={shown}: must be {variable.kind.bound}")
    return cls(**values)


def _first_set(names: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, str]:
    """The first of the variables that is set, with its text; an empty text when none is."""
    texts = ((name, environ.get(name, "").strip()) for name in names)
    return next(((name, text) for name, text in texts if text), (names[0], ""))
