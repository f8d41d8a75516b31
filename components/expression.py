"""The embedded numerix: postfix score expressions over the columns of a matrix.

An expression is text such as `clicks views / 0.7 * boost +`. Tokens are separated by blanks; each is a
number (`-?digits[.digits]`), an operator, or else the name of a column, looked up in that order. `parse`
compiles it once; the resulting `Expression` is immutable and may be evaluated by any number of threads.

The semantics are those of the numerix service, which computes in the type that it is asked for, float32 or
float64, and fails the whole evaluation on one bad row: a score is never silently made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from components.numbers import nearest_float32

__all__ = ["Expression", "ExpressionError", "parse"]

Floats = npt.NDArray[np.floating[Any]]
"""A float32 or float64 array: [rows], or [] for a constant."""


class ExpressionError(ValueError):
    """An expression that does not compile, or does not evaluate on the given columns.

    `token` is the token at fault and `position` its place, counted from 1 (an empty text: "" and 0);
    `reason` says what is wrong with it.
    """

    def __init__(self, text: str, token: str, position: int, reason: str) -> None:
        where = f"token {position} ({token!r}) of " if position else ""
        super().__init__(f"{where}expression {text!r}: {reason}")
        self.token = token
        self.position = position
        self.reason = reason


class _BadValue(Exception):
    """An operator refused its operands; the message says why."""


def _refuse_where(bad: npt.NDArray[np.bool_], reason: str) -> None:
    """Raises _BadValue naming the first row that `bad` marks, if any."""
    if bad.any():
        raise _BadValue(f"{reason} in row {int(bad.argmax())}" if bad.ndim else reason)


def _divide(left: Floats, right: Floats) -> Floats:
    _refuse_where(right == 0, "division by zero")
    return left / right


def _log(value: Floats) -> Floats:
    _refuse_where(value <= 0, "logarithm of a number that is not positive")
    return np.log(value)


# np.fmin and np.fmax are not used: of two zeros of unlike sign they give the first or the second depending
# on where the SIMD loop ends. These give the first, always, and the number where one operand is NaN.
def _lesser(left: Floats, right: Floats) -> Floats:
    return np.where((left <= right) | np.isnan(right), left, right)


def _greater(left: Floats, right: Floats) -> Floats:
    return np.where((left >= right) | np.isnan(right), left, right)


def _refuse_numbers(*operands: Floats) -> None:
    for value in operands:
        _refuse_where((value != 0) & (value != 1), "an operand is neither 0 nor 1")


def _both(left: Floats, right: Floats) -> Floats:
    _refuse_numbers(left, right)
    return left * right + 0  # adding 0 turns -0 into 0


def _either(left: Floats, right: Floats) -> Floats:
    _refuse_numbers(left, right)
    return np.greater(left + right, 0).astype(left.dtype)


def _comparison(compare: Callable[[Floats, Floats], npt.NDArray[np.bool_]]) -> Callable[..., Floats]:
    def compared(left: Floats, right: Floats) -> Floats:
        return compare(left, right).astype(left.dtype)

    return compared


def _norm_min_max(column: Floats) -> Floats:
    """(x − min) / (max − min), NaN left out of both; 1 everywhere when they are equal."""
    low, high = np.fmin.reduce(column) + 0, np.fmax.reduce(column)  # the sign of a zero would be by chance
    return np.ones_like(column) if low == high else (column - low) / (high - low)


def _percentile_rank(column: Floats) -> Floats:
    """i / (rows − 1) for row i: its place in the request, not the rank of its value. 1 when all are equal."""
    if (column == column[0]).all():
        return np.ones_like(column)
    return np.arange(len(column), dtype=column.dtype) / column.dtype.type(len(column) - 1)


def _percentile(ordered: Floats, percent: int) -> Any:
    """The scalar at percent / 100 · (n − 1), interpolated linearly, each step rounded to the column's type.

    np.percentile computes the place in float64, which gives other last bits for float32 columns.
    """
    number = ordered.dtype.type
    place = number(percent) / number(100) * number(len(ordered) - 1)
    low, high = int(np.floor(place)), int(np.ceil(place))
    if low == high:  # also keeps infinities out of a product with 0
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (place - number(low))


def _norm_percentile(low: int, high: int) -> Callable[[Floats], Floats]:
    def normed(column: Floats) -> Floats:
        """(x − p_low) / (p_high − p_low), not clamped; 1 for a single row, x − 1 when the two are equal."""
        _refuse_where(np.isnan(column), "NaN in a column to be normed by percentiles")
        if len(column) == 1:
            return np.ones_like(column)
        ordered = np.sort(column) + 0  # zeros of either sign are sorted by chance
        bottom, top = _percentile(ordered, low), _percentile(ordered, high)
        return column - 1 if bottom == top else (column - bottom) / (top - bottom)

    return normed


@dataclass(frozen=True, slots=True)
class _Operator:
    """`apply` takes `arity` arrays; one that `aggregates` needs all rows of them at once, as [rows]."""

    arity: int
    apply: Callable[..., Floats]
    aggregates: bool = False


_OPERATORS: Final[Mapping[str, _Operator]] = MappingProxyType(
    {
        "+": _Operator(2, np.add),
        "-": _Operator(2, np.subtract),
        "*": _Operator(2, np.multiply),
        "/": _Operator(2, _divide),
        "^": _Operator(2, np.power),
        ">": _Operator(2, _comparison(np.greater)),
        "<": _Operator(2, _comparison(np.less)),
        ">=": _Operator(2, _comparison(np.greater_equal)),
        "<=": _Operator(2, _comparison(np.less_equal)),
        "==": _Operator(2, _comparison(np.equal)),
        "min": _Operator(2, _lesser),
        "max": _Operator(2, _greater),
        "&": _Operator(2, _both),
        "|": _Operator(2, _either),
        "exp": _Operator(1, np.exp),
        "log": _Operator(1, _log),
        "abs": _Operator(1, np.abs),
        "norm_min_max": _Operator(1, _norm_min_max, aggregates=True),
        "percentile_rank": _Operator(1, _percentile_rank, aggregates=True),
        "norm_percentile_0_99": _Operator(1, _norm_percentile(0, 99), aggregates=True),
        "norm_percentile_5_95": _Operator(1, _norm_percentile(5, 95), aggregates=True),
    }
)


@dataclass(frozen=True, slots=True)
class _Constant:
    """A number in both types: each is the nearest to the digits, float32 not being rounded twice."""

    single: np.float32
    double: np.float64


@dataclass(frozen=True, slots=True)
class _Step:
    """One token of an expression and what it stands for; a str is the name of a column."""

    token: str
    position: int
    meaning: _Operator | _Constant | str


@dataclass(frozen=True, slots=True, repr=False)
class Expression:
    """A compiled expression: immutable, so that one may serve all threads. Made by `parse`.

    `text` is what was parsed; `names` are the columns it reads, each once, in order of appearance;
    `aggregates` says that a row's score depends on other rows, so that the rows must not be split.
    """

    text: str
    names: tuple[str, ...]
    aggregates: bool
    _steps: tuple[_Step, ...]

    def __repr__(self) -> str:
        return f"<Expression {self.text!r}>"

    def evaluate(self, columns: Mapping[str, npt.NDArray[Any]], rows: int, dtype: npt.DTypeLike) -> Floats:
        """The score of every row: a new array [rows] of `dtype`, which is float32 or float64.

        All arithmetic is done in `dtype`; columns (1-D, [rows]) of another type are converted first.
        Overflow gives an infinity and a negative number to a fractional power gives NaN, as in IEEE 754.

        Raises ExpressionError for a name that `columns` lacks, a division by zero (of either sign, and
        0 / 0), a logarithm of zero or less, `&` or `|` on anything but 0 and 1, and NaN in a
        `norm_percentile_…` column; ValueError for another `dtype` or a column that is not [rows].
        """
        kind = np.dtype(dtype)
        if kind not in (np.float32, np.float64):
            raise ValueError(f"expressions are computed in float32 or float64, not {kind}")
        stack: list[Floats] = []
        with np.errstate(all="ignore"):
            for step in self._steps:
                stack.append(self._value(step, stack, columns, rows, kind))
        (score,) = stack
        return np.array(np.broadcast_to(score, rows))

    def _value(
        self,
        step: _Step,
        stack: list[Floats],
        columns: Mapping[str, npt.NDArray[Any]],
        rows: int,
        kind: np.dtype[Any],
    ) -> Floats:
        """What one step puts on the stack, after taking its operands off it."""
        match step.meaning:
            case str(name):
                if name not in columns:
                    raise self._error(step, f"there is no column {name!r}")
                return _column(name, columns[name], rows, kind)
            case _Constant() as constant:
                return np.asarray(constant.single if kind == np.float32 else constant.double)
            case operator:
                operands = stack[-operator.arity :]
                del stack[-operator.arity :]
                try:
                    return _applied(operator, operands, rows)
                except _BadValue as refusal:
                    raise self._error(step, str(refusal)) from None

    def _error(self, step: _Step, reason: str) -> ExpressionError:
        return ExpressionError(self.text, step.token, step.position, reason)


def _column(name: str, values: npt.NDArray[Any], rows: int, kind: np.dtype[Any]) -> Floats:
    if values.shape != (rows,):
        raise ValueError(f"column {name!r} has shape {values.shape}, expected ({rows},)")
    return values.astype(kind, copy=False)


def _applied(operator: _Operator, operands: list[Floats], rows: int) -> Floats:
    if not operator.aggregates:
        return np.asarray(operator.apply(*operands))
    if not rows:
        return operands[0]
    return operator.apply(*(np.broadcast_to(operand, rows) for operand in operands))


_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_LIKE_A_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _meaning(text: str, token: str, position: int) -> _Operator | _Constant | str:
    operator = _OPERATORS.get(token)
    if operator is not None:
        return operator
    if _NUMBER.fullmatch(token):
        return _Constant(np.float32(nearest_float32(token)), np.float64(token))
    if _LIKE_A_NUMBER.fullmatch(token):
        reason = "not a number here: write digits, or digits.digits, with no sign but '-' and no exponent"
        raise ExpressionError(text, token, position, reason)
    return token


def _check_operands(text: str, steps: tuple[_Step, ...]) -> None:
    """Raises ExpressionError unless every operator finds its operands and one value is left at the end."""
    depth = 0
    for step in steps:
        needed = step.meaning.arity if isinstance(step.meaning, _Operator) else 0
        if depth < needed:
            reason = f"too few operands: needs {needed}, finds {depth}"
            raise ExpressionError(text, step.token, step.position, reason)
        depth += 1 - needed
    if depth != 1:
        reason = f"too many operands: {depth} values are left at the end, expected 1"
        raise ExpressionError(text, steps[-1].token, steps[-1].position, reason)


def parse(text: str) -> Expression:
    """Compiles an expression. Column names are free: only `evaluate` knows which columns there are.

    Raises ExpressionError for an empty text, for too few or too many operands, and for a token that reads
    as a number but is none here (`1e3`, `.5`, `5.`, `+2`).
    """
    tokens = text.split()
    if not tokens:
        raise ExpressionError(text, "", 0, "empty")
    steps = tuple(
        _Step(token, position, _meaning(text, token, position)) for position, token in enumerate(tokens, 1)
    )
    _check_operands(text, steps)
    operators = [step.meaning for step in steps if isinstance(step.meaning, _Operator)]
    return Expression(
        text=text,
        names=tuple(dict.fromkeys(step.meaning for step in steps if isinstance(step.meaning, str))),
        aggregates=any(operator.aggregates for operator in operators),
        _steps=steps,
    )
