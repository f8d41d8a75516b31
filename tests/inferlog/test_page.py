"""docs/inference-logs.md: no field and no column is left out, and the commands are commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.main import main
from inferlog.reader import BESIDE
from proto import inference_log_pb2

PAGE = (Path(__file__).parents[2] / "docs" / "inference-logs.md").read_text()


def test_every_field_of_a_message_is_explained() -> None:
    numbers: dict[str, int] = {}
    for line in re.findall(r"^\| (\d+)(?:–\d+)? \| (.*?) \|", PAGE, re.MULTILINE):
        first, names = line
        numbers |= {name: int(first) + at for at, name in enumerate(re.findall(r"`(\w+)`", names))}
    fields = inference_log_pb2.InferflowLog.DESCRIPTOR.fields
    assert {name: numbers.get(name) for name in (field.name for field in fields)} == {
        field.name: field.number for field in fields
    }


def test_every_column_beside_the_values_is_explained() -> None:
    section = PAGE[PAGE.index("## Reading") :]
    assert set(re.findall(r"`(_\w+)`", section[: section.index("## Joins")])) == set(BESIDE.names)


def test_commands_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["logs", "cat", "--help"])
    assert ended.value.code == 0
    usage = capsys.readouterr().out
    commands = PAGE[PAGE.index("```") :].split("```")[1]
    options = set(re.findall(r"--[a-z-]+", commands))
    assert options
    assert {option for option in options if option not in usage} == set()
