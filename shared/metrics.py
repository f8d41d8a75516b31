"""Every metric of the service, declared once: what it counts, who records it, and what it is called where.

A metric has one name of its own, which is that on the Prometheus page, and the names that dashboards on DogStatsD
know it by. What records them is `shared.board`; this module is only the list. docs/metrics.md is made from it.

Labels are bounded by what is configured (models, components, endpoints) or by code (states, reasons, statuses),
never by what a client sends: a request for an unknown config has the model "".
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = [
    "LATENCY_BOUNDS",
    "METRICS",
    "MODES",
    "SIZE_BOUNDS",
    "TAGS",
    "Kind",
    "Metric",
    "Part",
    "Statsd",
]


class Kind(enum.Enum):
    """How the values of a metric behave."""

    COUNTER = "counter"
    """Only grows, while its process lives."""
    GAUGE = "gauge"
    """What is now."""
    HISTOGRAM = "histogram"
    """A distribution of observations."""


class Part(enum.Enum):
    """What of a metric goes to DogStatsD under a name."""

    VALUE = "value"
    """A counter's growth, a gauge's value, a histogram's observations (sampled)."""
    COUNT = "count"
    """How many observations a histogram had: a counter."""
    SUM = "sum"
    """What its observations add up to: a counter."""


class Statsd(NamedTuple):
    """One DogStatsD name. `labels`: those that become tags; `only`: (label, values) that it is restricted to."""

    name: str
    labels: tuple[str, ...]
    part: Part = Part.VALUE
    only: tuple[str, tuple[str, ...]] | None = None

    def covers(self, labels: Mapping[str, str]) -> bool:
        """Whether a series with these labels goes by this name."""
        return self.only is None or labels[self.only[0]] in self.only[1]


TAGS: Final[Mapping[str, str]] = {
    "model": "model-id",
    "mode": "inference-mode",
    "component": "component-name",
    "error": "error-type",
    "service": "ext-service",
}
"""Label → tag, where dashboards on DogStatsD know another word."""

LATENCY_BOUNDS: Final = tuple(0.0625 * 2 ** (step / 2) for step in range(41))
"""Upper bounds of the buckets of times, in ms: 1/16 to 65,536, two to an octave. Every second one is shown to
Prometheus; the finer ones make quantiles on the pod exact to some 10 %."""
SIZE_BOUNDS: Final = tuple(float(1 << step) for step in range(17))
"""Upper bounds of the buckets of row counts: 1 to 65,536."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric. `processes`: the kinds of process that record it; every series also has the label `process`."""

    name: str
    kind: Kind
    help: str
    processes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[float, ...] = ()
    known_as: tuple[Statsd, ...] = ()
    """Names that dashboards had before this service. None: `spellings` makes one."""

    @property
    def spellings(self) -> tuple[Statsd, ...]:
        """Its DogStatsD names: those known, else its own with a dot."""
        if self.known_as:
            return self.known_as
        name = self.name.removesuffix("_total").removesuffix("_milliseconds").replace("_", ".", 1)
        return (Statsd(name, self.labels),)


def _counter(name: str, processes: str, labels: str, help: str, *known_as: Statsd, unit: str = "") -> Metric:
    return Metric(
        name, Kind.COUNTER, help, tuple(processes.split()), tuple(labels.split()), unit, (), known_as
    )


def _gauge(name: str, processes: str, labels: str, help: str, *, unit: str = "") -> Metric:
    return Metric(name, Kind.GAUGE, help, tuple(processes.split()), tuple(labels.split()), unit)


def _times(name: str, processes: str, labels: str, help: str, *known_as: Statsd) -> Metric:
    found = tuple(processes.split()), tuple(labels.split())
    return Metric(name, Kind.HISTOGRAM, help, *found, "ms", LATENCY_BOUNDS, known_as)


def _sizes(name: str, processes: str, labels: str, help: str, *known_as: Statsd) -> Metric:
    found = tuple(processes.split()), tuple(labels.split())
    return Metric(name, Kind.HISTOGRAM, help, *found, "rows", SIZE_BOUNDS, known_as)


ALL: Final = "frontdoor worker config log"

MODES: Final = ("retrieve", "pointwise", "pairwise", "slatewise")
"""Values of the label `mode`, by number of the method."""
_RETRIEVE: Final = ("mode", MODES[:1])
_PREDICT: Final = ("mode", MODES[1:])
_OF_RETRIEVE: Final = ("model",)
_OF_PREDICT: Final = ("model", "mode")
_OF_COMPONENT: Final = ("model", "component")
_OF_UPSTREAM: Final = ("service", "endpoint")

# ---------------------------------------------------------------- requests, at a worker

REQUESTS: Final = _counter(
    "inferflow_requests_total",
    "worker",
    "model mode status",
    'Requests answered by a worker, by gRPC status. The model is "" where it is unknown or the body unreadable.',
    Statsd("inferflow.retrievemodelscore.request.total", _OF_RETRIEVE, only=_RETRIEVE),
    Statsd("predict.infer.request.total", _OF_PREDICT, only=_PREDICT),
)
REQUEST_LATENCY: Final = _times(
    "inferflow_request_latency_milliseconds",
    "worker",
    "model mode",
    "From the worker's taking a request to its answer.",
    Statsd("inferflow.retrievemodelscore.latency", _OF_RETRIEVE, only=_RETRIEVE),
    Statsd("inferflow.retrievemodelscore.request.latency", _OF_RETRIEVE, only=_RETRIEVE),
    Statsd("predict.infer.latency", _OF_PREDICT, only=_PREDICT),
    Statsd("predict.infer.request.latency", _OF_PREDICT, only=_PREDICT),
)
REQUEST_ROWS: Final = _sizes(
    "inferflow_request_rows",
    "worker",
    "model mode",
    "Rows (targets) of a request whose matrix was built.",
    Statsd("inferflow.retrievemodelscore.batch.size", _OF_RETRIEVE, Part.SUM, _RETRIEVE),
    Statsd("inferflow.retrievemodelscore.request.batch.size", _OF_RETRIEVE, Part.SUM, _RETRIEVE),
    Statsd("predict.infer.request.batch.size", _OF_PREDICT, Part.SUM, _PREDICT),
)
HANDOVER_LATENCY: Final = _times(
    "inferflow_handover_latency_milliseconds",
    "worker",
    "",
    "From a front door's sending a request to its worker's taking it: the socket, and the worker's busy loop.",
)
WORKER_IN_FLIGHT: Final = _gauge(
    "inferflow_worker_in_flight", "worker", "", "Requests that the worker works on."
)
SLOTS_BUSY: Final = _gauge("inferflow_slots_busy", "worker", "", "Matrix slots that belong to a request.")
MATRIX_BYTES: Final = _gauge(
    "inferflow_matrix_bytes",
    "worker",
    "state",
    "Shared memory for matrices: in use by requests, reserved so far, and the limit (INFERFLOW_MATRIX_BYTES).",
    unit="bytes",
)

# ---------------------------------------------------------------- components, at a worker

COMPONENT_LATENCY: Final = _times(
    "inferflow_component_latency_milliseconds",
    "worker",
    "model component",
    "From a component's start to its end, its upstream calls included.",
    Statsd("inferflow.component.execution.latency", _OF_COMPONENT),
    Statsd("inferflow.component.execution.total", _OF_COMPONENT, Part.COUNT),
)
COMPONENT_ERRORS: Final = _counter(
    "inferflow_component_errors_total",
    "worker",
    "model component error",
    "Executions of a component that left rows without its part, by cause: a gRPC status of an upstream call, "
    "EMPTY_KEY, BAD_VALUE (of the request), BAD_ANSWER (of an upstream), INTERNAL. Once for each cause.",
    Statsd("inferflow.component.execution.error", (*_OF_COMPONENT, "error")),
)
COMPONENT_ERROR_ROWS: Final = _counter(
    "inferflow_component_error_rows_total",
    "worker",
    "model component error",
    "Rows (or slates) that a component left without its part, by cause.",
    unit="rows",
)
COMPONENT_FEATURES: Final = _counter(
    "inferflow_component_features_total",
    "worker",
    "model component",
    "Features that a feature component asked for: features of its config, once an execution.",
    Statsd("inferflow.component.feature.count", _OF_COMPONENT),
)
DEADLINE_LEFT: Final = _times(
    "inferflow_component_deadline_left_milliseconds",
    "worker",
    "model component",
    "What the client's deadline left when a component started.",
)
CRITICAL_PATH: Final = _counter(
    "inferflow_critical_path_milliseconds_total",
    "worker",
    "model component",
    "Time that a component added to its requests: its share of the longest chain through the DAG.",
    unit="ms",
)

# ---------------------------------------------------------------- reads of features that asked nobody

CACHE_REQUESTS: Final = _counter(
    "inferflow_cache_requests_total",
    "worker",
    "model component",
    "Keys looked up in the feature cache.",
    Statsd("inferflow.component.inmemorycache.request.total", _OF_COMPONENT),
)
CACHE_MISSES: Final = _counter(
    "inferflow_cache_misses_total",
    "worker",
    "model component",
    "Keys that were not there.",
    Statsd("inferflow.component.inmemorycache.miss", _OF_COMPONENT),
    Statsd("inferflow.component.inmemorycache.request.miss.total", _OF_COMPONENT),
)
CACHE_COALESCED: Final = _counter(
    "inferflow_cache_coalesced_total",
    "worker",
    "service endpoint",
    "Keys that another request was asking for at that moment: one call served both.",
)
CACHE_BYTES: Final = _gauge(
    "inferflow_cache_bytes",
    "worker",
    "state",
    "Memory of the feature cache, which is one for all workers: used, and its limit.",
    unit="bytes",
)
CACHE_INSERTS: Final = _counter(
    "inferflow_cache_inserts_total", "worker", "", "Entries that were put into the feature cache."
)
CACHE_EVICTIONS: Final = _counter(
    "inferflow_cache_evictions_total",
    "worker",
    "",
    "Entries of the feature cache that had to go before their time; counted by whoever finds out.",
)

CACHE_UNUSED: Final = _counter(
    "inferflow_cache_unused_total",
    "worker",
    "reason",
    "Entries that were of no use: expired when they were looked for, torn (overwritten while they were read), "
    "or too_large to be kept.",
)

# ---------------------------------------------------------------- upstream calls

UPSTREAM_LATENCY: Final = _times(
    "inferflow_upstream_latency_milliseconds",
    "worker",
    "service endpoint",
    "From the start of an upstream call to its outcome. service: onfs, predator or numerix; endpoint: host:port.",
    Statsd("inferflow.external.api.latency", _OF_UPSTREAM),
    Statsd("inferflow.external.api.request.latency", _OF_UPSTREAM),
    Statsd("inferflow.external.api.request.total", _OF_UPSTREAM, Part.COUNT),
)
UPSTREAM_CALLS: Final = _counter(
    "inferflow_upstream_calls_total",
    "worker",
    "service endpoint status",
    "Upstream calls that ended, by gRPC status.",
)
UPSTREAM_ROWS: Final = _counter(
    "inferflow_upstream_rows_total",
    "worker",
    "service endpoint",
    "Keys or rows asked for in upstream calls.",
    Statsd("inferflow.external.api.request.batch", _OF_UPSTREAM),
    unit="rows",
)
UPSTREAM_CONNECTIONS: Final = _gauge(
    "inferflow_upstream_connections",
    "worker",
    "endpoint state",
    "Connections to an upstream: ready, draining, connecting; and addresses that cannot be reached (failed).",
)
UPSTREAM_WAITING: Final = _gauge(
    "inferflow_upstream_waiting", "worker", "endpoint", "Calls that wait for a connection or a free stream."
)

# ---------------------------------------------------------------- front doors

ROUTER_LATENCY: Final = _times(
    "inferflow_router_latency_milliseconds",
    "frontdoor",
    "api status",
    "From a complete request at the front door to its answer. api: the method; status: gRPC.",
    Statsd("inferflow.router.api.request.latency", ("api", "status")),
    Statsd("inferflow.router.api.request.total", ("api", "status"), Part.COUNT),
)
DOOR_EVENTS: Final = _counter(
    "inferflow_frontdoor_events_total",
    "frontdoor",
    "event",
    "What happened to requests: arrived, delivered, cancelled, expired, waited (no worker was ready), resent "
    "(their worker died), blamed (two workers died), overloaded, too_much_held, no_worker, stray_answers, deaths "
    "(workers gone with requests in flight).",
)
DOOR_IN_FLIGHT: Final = _gauge(
    "inferflow_frontdoor_in_flight", "frontdoor", "", "Requests without an answer, waiting ones included."
)
DOOR_WAITING: Final = _gauge(
    "inferflow_frontdoor_waiting", "frontdoor", "", "Requests that wait for a worker."
)
DOOR_HELD_BYTES: Final = _gauge(
    "inferflow_frontdoor_held_bytes",
    "frontdoor",
    "",
    "Bodies of requests that are kept until they are answered.",
    unit="bytes",
)
DOOR_WORKERS: Final = _gauge(
    "inferflow_frontdoor_workers",
    "frontdoor",
    "state",
    "Workers as the front door sees them, by what they say.",
)
DOOR_WORKER_IN_FLIGHT: Final = _gauge(
    "inferflow_frontdoor_worker_in_flight", "frontdoor", "worker", "Requests that are at a worker."
)
CLIENT_CONNECTIONS: Final = _gauge(
    "inferflow_client_connections", "frontdoor", "", "Open connections of clients."
)
CLIENT_CONNECTIONS_TOTAL: Final = _counter(
    "inferflow_client_connections_accepted_total",
    "frontdoor",
    "",
    "Connections of clients that were accepted.",
)
CLIENT_CALLS: Final = _counter(
    "inferflow_client_calls_total",
    "frontdoor",
    "status",
    "gRPC calls answered by the listener, health and reflection included, by status.",
)
HTTP2_LIMITS: Final = _counter(
    "inferflow_http2_limits_total",
    "frontdoor",
    "limit",
    "Limits of the listener that clients hit, by kind (see docs/rpc.md).",
)

# ---------------------------------------------------------------- configs

CONFIG_VERSION: Final = _gauge(
    "inferflow_config_version", "worker config", "", "Version of the configs that is active in this process."
)
CONFIG_AGE: Final = _gauge(
    "inferflow_config_age_seconds", "worker config", "", "Since that version became active here.", unit="s"
)
CONFIG_KEYS: Final = _gauge(
    "inferflow_config_keys",
    "config",
    "state",
    "Keys of the config source by the state of their newest version: active, preparing, waiting, late, kept, "
    "refused.",
)
CONFIG_SOURCE_AWAY: Final = _gauge(
    "inferflow_config_source_away_seconds",
    "config",
    "",
    "For how long the config source could not be read; 0: it can.",
    unit="s",
)
CONFIG_WORKERS: Final = _gauge(
    "inferflow_config_workers", "config", "", "Workers that are subscribed to the config sidecar."
)

# ---------------------------------------------------------------- inference logs

LOG_SENT: Final = _counter(
    "inferflow_log_sent_total",
    "log",
    "",
    "Inference-log messages that the broker has acknowledged.",
    Statsd("inferflow.logging.kafka_sent", ()),
)
LOG_ERRORS: Final = _counter(
    "inferflow_log_errors_total",
    "log",
    "error",
    "Inference-log messages that were made and not delivered, by reason.",
    Statsd("inferflow.logging.error", ("error",)),
)
LOG_ROWS: Final = _counter(
    "inferflow_log_rows_total",
    "log",
    "state",
    "Rows for the inference log: offered (served and sampled), and acknowledged by where they go.",
    unit="rows",
)
LOG_DROPPED: Final = _counter(
    "inferflow_log_dropped_total",
    "log",
    "reason",
    "Rows of the inference log that were given up so that no request waits, by reason.",
    unit="rows",
)
LOG_FILES_DELETED: Final = _counter(
    "inferflow_log_files_deleted_total",
    "log",
    "reason",
    "Files of the inference log that were deleted as the settings say: for their age, or for the size of all.",
)
LOG_QUEUED: Final = _gauge("inferflow_log_queued", "log", "", "Messages that wait for the broker.")
LOG_QUEUED_BYTES: Final = _gauge("inferflow_log_queued_bytes", "log", "", "Their size.", unit="bytes")

# ---------------------------------------------------------------- every process

LOOP_LAG: Final = _times(
    "inferflow_loop_lag_milliseconds",
    ALL,
    "",
    "How late a timer of the event loop fired: what one callback, or another thread with the GIL, held it up.",
)
PROCESS_START: Final = _gauge(
    "inferflow_process_start_time_seconds", ALL, "", "When the process started, as Unix time.", unit="s"
)
PROCESS_RESTARTS: Final = _counter(
    "inferflow_process_restarts_total",
    "config",
    "program",
    "How often a process of the pod has ended though nobody had asked it to, by its name in supervisord.conf.",
)
CRASH_LOOPS: Final = _gauge(
    "inferflow_crash_loops",
    "config",
    "",
    "Processes of the pod that end again and again (see docs/operating.md).",
)
PROCESS_CPU: Final = _counter(
    "inferflow_process_cpu_seconds_total", ALL, "", "CPU time of the process.", unit="s"
)
PROCESS_MEMORY: Final = _gauge(
    "inferflow_process_resident_bytes",
    ALL,
    "",
    "Resident memory, shared memory that it touched included.",
    unit="bytes",
)
PROCESS_FDS: Final = _gauge("inferflow_process_fds", ALL, "state", "File descriptors: open, and the limit.")
LOG_LINES: Final = _counter(
    "inferflow_log_lines_total",
    ALL,
    "level",
    "Lines of the service's own log, by level; those left out as repeats have the level suppressed.",
)
SERIES_REFUSED: Final = _counter(
    "inferflow_series_refused_total",
    ALL,
    "",
    "Series that were not begun because the process has too many: their values are in none.",
)
STATSD_FAILURES: Final = _counter(
    "inferflow_statsd_failures_total",
    ALL,
    "",
    "DogStatsD packets that could not be handed to the system, and look-ups of the agent that failed.",
)
SPANS: Final = _counter(
    "inferflow_spans_total",
    "worker",
    "outcome",
    "Trace spans that ended, were exported, or failed to be; what ended and is neither was dropped, or is queued.",
)

METRICS: Final[Mapping[str, Metric]] = {
    found.name: found for found in list(globals().values()) if isinstance(found, Metric)
}
"""Every metric, by name, in the order of this page."""
