"""Holding plain JSON values against typed structs: every misfit with its path, not only the first.

`fit` returns what the structs will take: known keys only, keys with a null value dropped. It never descends
into keys that no struct names, so their depth does not matter.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import inspect

from dag.problems import Problem, did_you_mean, join

__all__ = ["Fitted", "Pairs", "fit"]


class Pairs(dict[str, Any]):
    """A JSON object that remembers the keys it was given more than once (the last value stays)."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs] if len(self) < len(pairs) else []
        self.twice = tuple(key for key in self if keys.count(key) > 1)


class Fitted:
    """The outcome: `value` for msgspec.convert, good only when there are no `errors`."""

    def __init__(self) -> None:
        self.value: Any = None
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def __repr__(self) -> str:
        return f"Fitted({len(self.errors)} errors, {len(self.warnings)} warnings)"


def fit(value: Any, struct: type[msgspec.Struct]) -> Fitted:
    """`value` (dicts, lists, text, numbers, booleans, None) held against `struct`.

    Errors: wrong JSON types, needed keys that are missing, keys given twice (when objects are `Pairs`).
    Warnings: keys that no struct names but that look like one that is.
    """
    fitted = Fitted()
    fitted.value = _fit(value, _kind(struct), "", fitted)
    return fitted


@functools.cache
def _kind(struct: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(struct)


def _fit(value: Any, kind: inspect.Type, path: str, into: Fitted) -> Any:
    match kind:
        case inspect.StructType() if isinstance(value, dict):
            return _fit_struct(value, kind, path, into)
        case inspect.ListType() if isinstance(value, list):
            if isinstance(kind.item_type, inspect.StrType) and all(type(item) is str for item in value):
                return value  # long lists are of names: no path of theirs is needed
            return [_fit(item, kind.item_type, join(path, at), into) for at, item in enumerate(value)]
        case inspect.DictType() if isinstance(value, dict):
            _refuse_twice(value, path, into)
            return {
                key: _fit(item, kind.value_type, join(path, key), into)
                for key, item in value.items()
                if item is not None
            }
        case inspect.StrType() if isinstance(value, str):
            return value
        case inspect.BoolType() if isinstance(value, bool):
            return value
        case inspect.IntType() if isinstance(value, int) and not isinstance(value, bool):
            return value
    into.errors.append(Problem(path, f"expected {_EXPECTED[type(kind)]}, found {_found(value)}"))
    return None


def _fit_struct(value: dict[str, Any], kind: inspect.StructType, path: str, into: Fitted) -> dict[str, Any]:
    _refuse_twice(value, path, into)
    taken = {}
    for own in kind.fields:
        item = value.get(own.encode_name)
        if item is not None:
            taken[own.encode_name] = _fit(item, own.type, join(path, own.encode_name), into)
        elif own.required:
            need = f"is missing: expected {_EXPECTED[type(own.type)]}"
            into.errors.append(Problem(join(path, own.encode_name), need))
    absent = {own.encode_name for own in kind.fields}.difference(value)
    for key in value:
        if key not in taken and (hint := did_you_mean(key, absent, cutoff=0.8)):
            into.warnings.append(Problem(join(path, key), f"unknown key, ignored{hint}"))
    return taken


def _refuse_twice(value: dict[str, Any], path: str, into: Fitted) -> None:
    for key in value.twice if isinstance(value, Pairs) else ():
        into.errors.append(Problem(join(path, key), "the key stands here more than once; one would be lost"))


_EXPECTED: dict[type[inspect.Type], str] = {
    inspect.StructType: "an object",
    inspect.DictType: "an object",
    inspect.ListType: "a list",
    inspect.StrType: "text",
    inspect.BoolType: "true or false",
    inspect.IntType: "a whole number",
}


def _found(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value!r}" if abs(value) < 1e21 else "a huge number"
        case str():
            return f"the text {value!r}" if len(value) <= 40 else f"a text of {len(value)} characters"
        case list():
            return "a list"
        case _:
            return "an object"
