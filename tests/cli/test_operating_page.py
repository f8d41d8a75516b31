"""docs/operating.md: its commands and requests are there."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from cli.config import add_arguments
from cli.main import _parser
from sidecar.admin import ROUTES
from sidecar.steering import STATES

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
COMMANDS = sorted(set(re.findall(r"inferflow config ([a-z]+(?: (?:[A-Z]+|--[a-z-]+|my_ranker))*)", PAGE)))


OTHERS = sorted(set(re.findall(r"inferflow ((?:restart|scale|validate|probe)\b[^`#)\n]*)", PAGE)))


@pytest.mark.parametrize("command", OTHERS)
def test_other_command_is_one(command: str) -> None:
    assert _parser().parse_args(command.split()).run


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one(command: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(command.split()).act


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 7
    assert len(OTHERS) >= 4


def test_requests_of_the_admin_port_are_all_described() -> None:
    described = set(re.findall(r"(GET|POST) (/[a-z/]+)", PAGE))
    assert described - {("GET", "/health/ready"), ("GET", "/metrics")} == ROUTES.keys()


def test_states_are_all_described() -> None:
    shown = {"kept": "newest refused", "late": "not prepared"}
    rows = set(re.findall(r"^\| ([a-z ]+) \|", PAGE, re.MULTILINE))
    assert {shown.get(state, state) for state in STATES} <= rows
