"""docs/promises.md names tests and commands that there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "promises.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))
COMMANDS = sorted(set(re.findall(r"`python -m ([a-z_.]+)`", PAGE)))


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_is_named_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    assert not test or test in set(_names(ast.parse((ROOT / path).read_text())))


def _names(module: ast.Module) -> Iterator[str]:
    """Functions of a module, and what is assigned (the test case of a state machine)."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_that_is_named_is_there(module: str) -> None:
    assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_the_page_was_read() -> None:
    assert len(TESTS) > 20
    assert len(COMMANDS) > 5
