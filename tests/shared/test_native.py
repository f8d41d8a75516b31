"""Compiled modules are those of the sources beside them, or the process says so."""

from __future__ import annotations

import ast
import enum
import hashlib
import importlib
import inspect
import json
import re
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from shared.native import MANIFEST, ROOT, StaleError, check, is_compiled

SOURCE = b"x = 1\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which a/one.py and a/two.py were compiled."""
    digests = {}
    (tmp_path / "shared").mkdir()
    (tmp_path / "a").mkdir()
    for name in ("a/one.py", "a/two.py"):
        (tmp_path / name).write_bytes(SOURCE)
        (tmp_path / name).with_suffix(EXTENSION_SUFFIXES[0]).touch()
        digests[name] = hashlib.sha256(SOURCE).hexdigest()
    (tmp_path / MANIFEST).write_text(json.dumps(digests))
    return tmp_path


def test_sources_as_they_were_compiled(tree: Path) -> None:
    check(tree)
    assert is_compiled(tree)


def test_a_changed_source_is_named(tree: Path) -> None:
    (tree / "a/two.py").write_bytes(b"x = 2\n")
    with pytest.raises(StaleError, match=r"sources: a/two\.py; `make build`"):
        check(tree)


def test_what_is_not_compiled_may_change(tree: Path) -> None:
    for path in tree.glob("a/*.so"):
        path.unlink()
    (tree / "a/two.py").write_bytes(b"x = 2\n")
    check(tree)
    assert not is_compiled(tree)


def test_a_tree_that_was_never_compiled(tmp_path: Path) -> None:
    check(tmp_path)
    assert not is_compiled(tmp_path)


def _compiled_modules() -> list[str]:
    found = re.search(r'MODULES = """(.*?)"""', (ROOT / "setup.py").read_text(), re.DOTALL)
    assert found is not None
    return found.group(1).split()


@pytest.mark.parametrize("name", _compiled_modules())
def test_a_caught_exception_has_one_type_a_name(name: str) -> None:
    """mypyc gives a name one type in a function: `error` caught as A cannot be caught as B further down."""
    for function in ast.walk(ast.parse((ROOT / name).read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        types: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and node.name is not None and node.type is not None:
                caught = ast.unparse(node.type)
                assert types.setdefault(node.name, caught) == caught, f"{name}: {function.name}, {node.name}"


@pytest.mark.parametrize("name", _compiled_modules())
def test_no_class_lays_its_attributes_over_those_of_a_base(name: str) -> None:
    """mypyc puts attributes right behind the head of an object, also when the base is a C type that has its own."""
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    compiled = {one.removesuffix(".py").replace("/", ".") for one in _compiled_modules()}
    for _, cls in inspect.getmembers(module, inspect.isclass):
        if cls.__module__ != module.__name__ or issubclass(cls, BaseException | tuple | enum.Enum):
            continue
        for base in cls.__mro__[1:]:
            if base.__module__ not in compiled:
                assert base.__basicsize__ == object.__basicsize__, f"{cls.__name__} on {base!r}"


@pytest.mark.parametrize("name", _compiled_modules())
def test_there_are_no_nested_functions(name: str) -> None:
    """Compiled, they are held by the object that holds what they share: a cycle for each call of the outer one."""
    for outer in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
            nested = [one for one in ast.walk(outer) if isinstance(one, ast.FunctionDef) and one is not outer]
            assert not nested, f"{name}: {outer.name}, {nested[0].name}"


@pytest.mark.parametrize("name", _compiled_modules())
def test_no_property_is_cached(name: str) -> None:
    """mypyc takes a cached property for a property: it is reckoned anew each time."""
    assert "cached_property" not in (ROOT / name).read_text()
