"""The reference reader of inference logs, in a process of its own."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inferlog.schema import LogColumn
from proto import inference_log_pb2

__all__ = ["ReferenceReader"]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".tools/log-reader/bin/python"
BRIDGE = Path(__file__).with_name("log_reader_bridge.py")


class ReferenceReader:
    """Decodes message after message; needs tests/get_log_reader.sh to have run."""

    def __init__(self) -> None:
        assert PYTHON.exists(), f"there is no {PYTHON}: run tests/get_log_reader.sh"
        self._process = subprocess.Popen(
            [PYTHON, "-W", "error", BRIDGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def __repr__(self) -> str:
        return f"<ReferenceReader pid={self._process.pid}>"

    def read(self, value: bytes, columns: Sequence[LogColumn]) -> dict[str, Any]:
        """What it makes of a KafkaRequest: metadata, entities, rows."""
        log = inference_log_pb2.KafkaRequest.FromString(value).value.properties.value
        schema = [(column.name, column.written_type) for column in columns]
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(
            json.dumps({"log": base64.b64encode(log).decode(), "schema": schema}) + "\n"
        )
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the reference reader ended: its error stands above"
        found: dict[str, Any] = json.loads(line)
        return found
