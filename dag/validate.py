"""Is a model config fit to be served? Everything that is wrong with it, at once.

`validate` takes any bytes and never raises: what it finds is in the Verdict. Errors refuse a config, warnings
do not. The stages build on each other, so a later one is reached only when the earlier has no errors: JSON,
JSON types and missing keys, and then all the rules (single fields, the DAG, columns, expressions) together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from dag.column_rules import Columns, column_problems, column_warnings
from dag.config import ModelConfig
from dag.field_rules import PARTS, components, field_problems, field_warnings, variable
from dag.fit import Pairs, fit
from dag.problems import Problem, did_you_mean, join
from dag.topology import Topology, TopologyError, topology

__all__ = ["MAX_REASON", "ExpressionNames", "Problem", "Verdict", "bounded_reason", "validate"]

ExpressionNames = Callable[[str], Collection[str]]
"""The column names an expression uses. Raises ValueError saying what is wrong with it."""

MAX_DEPTH = 200
"""Levels of lists and objects. Far more than any config has, and far fewer than recursion can take."""

MAX_REASON = 500
"""Characters: a reason travels in gRPC status messages, and names in a config can be of any length."""


@dataclass(frozen=True)
class Verdict:
    """What was found in one config. `config` is there exactly when there are no errors."""

    name: str
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    config: ModelConfig | None

    @property
    def ok(self) -> bool:
        """Whether the config can be served."""
        return self.config is not None

    @property
    def reason(self) -> str:
        """The first error, bounded, and how many more there are; "" without errors."""
        return bounded_reason([str(problem) for problem in self.errors])

    def __repr__(self) -> str:
        state = "ok" if self.ok else "refused"
        return f"Verdict({self.name!r}, {state}, {len(self.errors)} errors, {len(self.warnings)} warnings)"


def bounded_reason(errors: Sequence[str]) -> str:
    """The first of these errors, at most MAX_REASON characters of it, and how many more there are."""
    if not errors:
        return ""
    first = errors[0] if len(errors[0]) <= MAX_REASON else errors[0][: MAX_REASON - 1] + "…"
    return f"{first} (and {len(errors) - 1} more)" if len(errors) > 1 else first


def validate(
    document: bytes | str,
    *,
    name: str,
    expressions: Mapping[str, str] | None = None,
    expression_names: ExpressionNames | None = None,
    given: Collection[str] = (),
) -> Verdict:
    """The verdict on the config `name` (its model_config_id). Never raises, whatever the document.

    `expressions` (compute_id → postfix text) says which numerix expressions there are; None: they are
    computed elsewhere and not checked. `expression_names` looks into one; None: only their ids are checked.
    `given` are columns that requests are known to bring, which then need no warning.
    """
    value, problem = _parse(document)
    if problem is not None:
        return Verdict(name, (problem,), (), None)
    fitted = fit(value, ModelConfig)
    if fitted.errors:
        return Verdict(name, tuple(fitted.errors), tuple(fitted.warnings), None)
    config = msgspec.convert(fitted.value, ModelConfig)
    columns = Columns.of(config)
    made, dag_problems = _topology(config)
    errors = (
        *field_problems(config),
        *dag_problems,
        *column_problems(config, columns, made),
        *_expressions(config, expressions, expression_names),
    )
    warnings = (*fitted.warnings, *field_warnings(config), *column_warnings(config, columns, given))
    return Verdict(name, errors, warnings, None if errors else config)


# ---------------------------------------------------------------- JSON


def _parse(document: bytes | str) -> tuple[Any, Problem | None]:
    """The document's value, or what keeps it from being JSON."""
    try:
        text = document if isinstance(document, str) else document.decode()
        value = orjson.loads(text)  # the strict one: no NaN, no trailing text, a bound on depth
    except UnicodeDecodeError as error:
        line = document[: error.start].count(b"\n") + 1 if isinstance(document, bytes) else 1
        return None, Problem("", f"is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}")
    except orjson.JSONDecodeError as error:
        return None, Problem("", f"is no JSON: {error.msg} (line {error.lineno}, column {error.colno})")
    if _deeper_than(MAX_DEPTH, value):
        return None, Problem("", f"is nested more than {MAX_DEPTH} levels deep")
    return json.loads(text, object_pairs_hook=Pairs, parse_int=_whole), None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= 40 else float(digits)  # Python bounds the digits of an int


def _deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects are nested deeper than this. No recursion, as that is what it guards."""
    layer = [value]
    for _ in range(levels + 1):
        inner = [item for item in layer if isinstance(item, (list, dict))]
        if not inner:
            return False
        layer = [item for outer in inner for item in (outer.values() if isinstance(outer, dict) else outer)]
    return True


# ---------------------------------------------------------------- DAG and expressions


def _topology(config: ModelConfig) -> tuple[Topology | None, tuple[Problem, ...]]:
    names = [name for name, _ in components(config)]
    try:
        return topology(config.dag_execution_config.component_dependency, names), ()
    except TopologyError as error:
        return None, error.problems


def _expressions(
    config: ModelConfig, expressions: Mapping[str, str] | None, names_of: ExpressionNames | None
) -> Iterator[Problem]:
    if expressions is None:
        return
    for at, compute in enumerate(config.component_config.numerix_components):
        path = join(PARTS, "numerix_components", at)
        text = expressions.get(compute.compute_id)
        if text is None:
            hint = did_you_mean(compute.compute_id, expressions)
            yield Problem(join(path, "compute_id"), f"there is no expression {compute.compute_id!r}{hint}")
        elif names_of is not None:
            mapped = [variable(key)[0] for key in compute.score_mapping]
            yield from _expression(path, compute.compute_id, text, mapped, names_of)


def _expression(
    path: str, compute_id: str, text: str, mapped: Collection[str], names_of: ExpressionNames
) -> Iterator[Problem]:
    try:
        used = names_of(text)
    except ValueError as error:
        yield Problem(join(path, "compute_id"), f"expression {compute_id!r}: {error}")
        return
    for name in sorted(set(used).difference(mapped)):
        yield Problem(
            join(path, "score_mapping"),
            f"expression {compute_id!r} uses {name!r}, which no variable here maps"
            f"{did_you_mean(name, mapped)}",
        )
