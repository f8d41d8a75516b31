"""`inferflow doctor`: looks at everything that a pod needs here, and says what to do about what is not well."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import msgspec
import orjson
from rich.text import Text

from cli import terminal
from dag.config import decode
from rpc.resolver import parse_target
from rpc.tls import client_context
from shared.process import cores
from shared.rundir import RunDirError, private_directory
from shared.settings import KafkaSettings, Settings, SettingsError, misspelt
from sidecar.catalog import judge, read_expression
from sidecar.config import opened
from sidecar.source import CONFIGS, EXPRESSIONS, NotReadYetError, SourceError
from sidecar.source import Text as SourceText

__all__ = ["Finding", "add_arguments", "examine", "run"]

DETAILS = """\
Reads the same environment as the pod and connects to every upstream that the settings and the configs name.
Exit code: 0 nothing found, 1 something will not work (--strict: or there are warnings), 2 wrong arguments."""

CONNECT_SECONDS: Final = 2.0
SOURCE_SECONDS: Final = 5.0
KAFKA_SECONDS: Final = 5.0
_FDS: Final = 4096
"""Below: a front door with some thousand connections runs out."""
_MIB: Final = 1 << 20
_PROCESS_BYTES: Final = 160 * _MIB
"""What a worker takes besides its matrices."""
_TIME_ERROR: Final = 5
_STYLES: Final = {"ok": "green", "warning": "yellow", "bad": "red"}
_CGROUP_MEMORY: Final = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `level`: ok, warning, bad; `advice`: what to do, empty when it is well."""

    level: str
    subject: str
    text: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DETAILS
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--strict", action="store_true", help="fail for warnings, too")


def run(arguments: argparse.Namespace) -> int:
    """Prints what was found; returns the exit code."""
    findings = list(examine(os.environ))
    if arguments.json:
        sys.stdout.buffer.write(orjson.dumps([asdict(one) for one in findings], option=orjson.OPT_INDENT_2))
        sys.stdout.buffer.write(b"\n")
    else:
        console = terminal.console()
        for one in findings:
            console.print(_line(one))
    failing = {"bad", "warning"} if arguments.strict else {"bad"}
    return int(any(one.level in failing for one in findings))


def _line(finding: Finding) -> Text:
    line = Text(f"{finding.level:8}", style=_STYLES[finding.level])
    line.append(f"{finding.subject}: {finding.text}", style="default")
    if finding.advice:
        line.append(f"\n        → {finding.advice}", style="default")
    return line


def examine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that is found in this environment. Takes seconds when upstreams do not answer."""
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("bad", "environment", problem, "set it right; docs/settings.md lists all of them")
        return
    warnings = misspelt(environ)
    for warning in warnings:
        yield Finding("warning", "environment", warning, "rename it, or unset it")
    if not warnings:
        yield Finding("ok", "environment", "all settings can be read")
    yield from _directories(settings)
    yield _files()
    yield _memory(settings)
    yield _processors(settings)
    yield _clock()
    yield from _agent(settings)
    yield from _log_directory(settings)
    yield from asyncio.run(_configs_and_upstreams(settings))


# ---------------------------------------------------------------- the machine


def _directories(settings: Settings) -> Iterator[Finding]:
    try:
        private_directory(settings.run_dir)
    except RunDirError as error:
        yield Finding("bad", "run directory", str(error), "set INFERFLOW_RUN_DIR to a directory of this user")
    else:
        yield Finding("ok", "run directory", f"{settings.run_dir} is private")
    found = settings.state_dir if settings.state_dir.exists() else settings.state_dir.absolute().parent
    if os.access(found, os.W_OK | os.X_OK):
        yield Finding("ok", "state directory", f"{settings.state_dir} can be written")
    else:
        yield Finding(
            "warning",
            "state directory",
            f"{settings.state_dir} cannot be written: a restart without the config source serves nothing",
            "set INFERFLOW_STATE_DIR to a volume that this user may write",
        )


def _log_directory(settings: Settings) -> Iterator[Finding]:
    directory = settings.log.directory
    if settings.logs_to != "files" or directory is None:
        return
    found = directory.absolute()
    while not found.exists():  # the log sidecar makes it, and those above it
        found = found.parent
    if found.is_dir() and os.access(found, os.W_OK | os.X_OK):
        free = shutil.disk_usage(found).free // _MIB
        yield Finding("ok", "inference log", f"{directory} can be written, {free} MiB are free")
    else:
        yield Finding(
            "bad",
            "inference log",
            f"{directory} cannot be written: nothing can be logged",
            "set INFERFLOW_LOG_DIR to a directory that this user may write, or empty it",
        )


def _files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FDS:
        return Finding(
            "warning",
            "file descriptors",
            f"at most {hard}: every client connection takes one",
            f"raise the hard limit to {_FDS} or more (ulimit -Hn, or the container runtime's nofile)",
        )
    return Finding("ok", "file descriptors", f"at most {hard}")


def _memory(settings: Settings) -> Finding:
    needed = settings.workers * (settings.matrix_bytes + _PROCESS_BYTES) + settings.feature_cache_bytes
    limit = _memory_limit()
    text = (
        f"{settings.workers} workers may take {needed // _MIB} MiB with their matrices and the feature cache, "
        f"{limit // _MIB} MiB are there"
    )
    if needed > limit:
        return Finding(
            "warning",
            "memory",
            text,
            "raise the memory limit, or lower INFERFLOW_WORKERS, INFERFLOW_MATRIX_BYTES or "
            "IN_MEMORY_CACHE_SIZE_IN_BYTES",
        )
    return Finding("ok", "memory", text)


def _memory_limit() -> int:
    """Bytes of the machine, or of the container's limit. Shared memory (memfd) counts against it, not /dev/shm."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no control groups, or "max": then it is the machine's
        return min(machine, int(_CGROUP_MEMORY.read_text()))
    return machine


def _processors(settings: Settings) -> Finding:
    processes = settings.workers + settings.frontdoors
    text = f"{settings.workers} workers and {settings.frontdoors} front doors on {cores()} cores"
    if settings.workers > cores() or (processes > cores() + 1 and settings.pin):
        return Finding(
            "warning",
            "cores",
            f"{text}: they take turns, which shows in the slowest answers",
            "lower INFERFLOW_WORKERS, or give the pod more cores",
        )
    return Finding("ok", "cores", text)


def _clock() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(512))  # a struct timex that only asks
    if state == _TIME_ERROR:
        return Finding(
            "warning",
            "clock",
            "the kernel says that no time service keeps the clock right",
            "run chrony or another NTP client on the node: logs, traces and daily sampling go by the clock",
        )
    return Finding("ok", "clock", f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, synchronised")


def _agent(settings: Settings) -> Iterator[Finding]:
    statsd = settings.statsd
    if statsd.socket is not None:
        if not statsd.socket.is_socket():
            yield Finding(
                "warning",
                "metrics agent",
                f"{statsd.socket} is no socket: metrics are lost",
                "mount the agent's socket, or set INFERFLOW_STATSD_SOCKET right",
            )
    elif statsd.host:
        try:
            socket.getaddrinfo(statsd.host, statsd.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            yield Finding(
                "warning",
                "metrics agent",
                f"{statsd.host} cannot be resolved: {error}",
                "set TELEGRAF_HOST right, or empty it",
            )


# ---------------------------------------------------------------- configs and upstreams


async def _configs_and_upstreams(settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    try:
        async with opened(settings) as source:
            texts = await _texts(source.read)
            place = source.place(f"{CONFIGS}<model_config_id>")
    except (SourceError, TimeoutError, OSError) as error:
        place = ",".join(settings.etcd.servers) or str(settings.config_dir)
        reason = str(error) or f"nothing was read from {place} within {SOURCE_SECONDS:g} s"
        advice = "see that ETCD_SERVER answers" if settings.etcd.servers else "set INFERFLOW_CONFIG_DIR"
        return [Finding("bad", "configs", reason, advice), *await _upstreams(settings, {})]
    findings += _verdicts(settings, texts, place)
    if not settings.onfs.host and any(map(_fetches, texts.values())):
        findings.append(
            Finding(
                "bad",
                "feature store",
                "configs fetch features, but EXTERNAL_SERVICE_ONFS_FS_HOST is empty: they answer INVALID_ARGUMENT",
                "set it to the host of the feature store",
            )
        )
    return findings + await _upstreams(settings, texts)


async def _texts(read: Callable[[], Mapping[str, SourceText]]) -> Mapping[str, SourceText]:
    """What the source holds, once it has been read."""
    async with asyncio.timeout(SOURCE_SECONDS):
        while True:
            try:
                return read()
            except NotReadYetError:
                await asyncio.sleep(0.05)


def _verdicts(settings: Settings, texts: Mapping[str, SourceText], place: str) -> Iterator[Finding]:
    expressions: dict[str, str] | None = None
    if not settings.numerix.host:
        expressions = {}
        for key, text in texts.items():
            if key.startswith(EXPRESSIONS):
                with contextlib.suppress(ValueError):  # a config that uses it is refused below
                    expressions[key.removeprefix(EXPRESSIONS)] = read_expression(text)
    names = sorted(key.removeprefix(CONFIGS) for key in texts if key.startswith(CONFIGS))
    if not names:
        yield Finding("bad", "configs", f"there is no model config: {place}", "put one there")
    for name in names:
        verdict = judge(name, texts[CONFIGS + name], expressions)
        if verdict.errors:
            more = f" (and {len(verdict.errors) - 1} more)" if len(verdict.errors) > 1 else ""
            yield Finding(
                "bad",
                f"config {name}",
                f"{verdict.errors[0]}{more}",
                "correct it; `inferflow validate` names every problem",
            )
        else:
            yield Finding("ok", f"config {name}", "can be served")


@dataclass(frozen=True)
class _Target:
    """One place that calls go to."""

    service: str
    target: str
    plaintext: bool
    setting: str


async def _upstreams(settings: Settings, texts: Mapping[str, SourceText]) -> list[Finding]:
    targets = list(dict.fromkeys(_targets(settings, texts)))
    tries = [_try(one) for one in targets]
    if settings.logs_to == "kafka":
        tries.append(_kafka(settings.kafka))
    return list(await asyncio.gather(*tries))


def _targets(settings: Settings, texts: Mapping[str, SourceText]) -> Iterator[_Target]:
    from workers.upstreams import with_port  # not at the top: with it come the kernels, which take a second

    onfs, numerix, predator = settings.onfs, settings.numerix, settings.predator
    if onfs.host:
        target = f"{onfs.host}:{onfs.port}"
        yield _Target("feature store", target, onfs.plaintext, "EXTERNAL_SERVICE_ONFS_FS_HOST")
    if numerix.host:
        target = f"{numerix.host}:{numerix.port}"
        yield _Target("numerix", target, numerix.plaintext, "NUMERIX_CLIENT_V1_HOST")
    if settings.tracing.endpoint:
        scheme, _, target = settings.tracing.endpoint.rpartition("://")
        yield _Target("trace collector", target, scheme != "https", "INFERFLOW_OTLP_ENDPOINT")
    for endpoint in _model_endpoints(texts.values()):
        target = with_port(endpoint, predator.port)
        yield _Target("model server", target, predator.plaintext, "the model config's endpoint")


async def _kafka(kafka: KafkaSettings) -> Finding:
    """Asks the brokers for their topics: as the log sidecar, with its certificates and passwords."""
    from sidecar.log_kafka import topics  # not at the top: nobody else needs the client

    subject = f"inference log {','.join(kafka.bootstrap_servers)}"
    try:
        async with asyncio.timeout(KAFKA_SECONDS):
            known = await topics(kafka)
    except (OSError, TimeoutError) as error:
        return Finding(
            "bad",
            subject,
            str(error) or f"no answer within {KAFKA_SECONDS:g} s",
            "see that the brokers run and can be reached from here, or correct KAFKA_BOOTSTRAP_SERVERS and "
            "INFERFLOW_KAFKA_…; docs/operating.md (Kafka settings) tells what the messages mean",
        )
    if kafka.topic not in known:
        return Finding(
            "warning",
            subject,
            f"there is no topic {kafka.topic} that this user may see",
            "make it, or correct KAFKA_LOGGING_TOPIC; some brokers make a topic when it is first written to",
        )
    return Finding("ok", subject, f"knows topic {kafka.topic}")


def _fetches(text: SourceText) -> bool:
    """Whether it is a model config with a component that fetches."""
    if not isinstance(text, bytes):
        return False
    try:
        components = decode(text).component_config.feature_components
    except msgspec.DecodeError:  # no model config, or refused above
        return False
    return any(group.features for one in components for group in one.fs_request.feature_groups)


def _model_endpoints(texts: Iterable[SourceText]) -> Iterator[str]:
    for text in texts:
        if not isinstance(text, bytes):
            continue
        with contextlib.suppress(msgspec.DecodeError):  # no model config, or refused above
            for model in decode(text).component_config.predator_components:
                yield from (route.endpoint for route in model.routes() if route.endpoint)


async def _try(one: _Target) -> Finding:
    """Resolves, connects, and shakes hands where it is TLS."""
    subject = f"{one.service} {one.target}"
    advice = f"see that it runs and can be reached from here, or correct {one.setting}"
    try:
        parsed = parse_target(one.target)
        async with asyncio.timeout(CONNECT_SECONDS):
            context = None if one.plaintext else client_context()
            name = None if one.plaintext else parsed.host
            _, writer = await asyncio.open_connection(
                parsed.host, parsed.port, ssl=context, server_hostname=name
            )
    except ssl.SSLError as error:
        advice = "see that it serves TLS with a certificate for this name, of a known authority"
        return Finding("bad", subject, f"TLS: {error}", advice)
    except TimeoutError:
        return Finding("bad", subject, f"no connection within {CONNECT_SECONDS:g} s", advice)
    except (OSError, ValueError) as error:
        return Finding("bad", subject, str(error), advice)
    writer.close()
    return Finding("ok", subject, "can be reached" + ("" if one.plaintext else ", its certificate is good"))
