"""The embedded numerix evaluator, held to recorded answers of the real service and to exact arithmetic."""

from __future__ import annotations

import base64
import json
import pathlib
import re
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.expression import ExpressionError, parse

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden" / "numerix_vectors.jsonl"
CASES = [json.loads(line) for line in GOLDEN.read_text().splitlines()]

# exp, log and fractional powers come from other mathematical libraries: they differ by 1 unit in the last
# place, 6 in one nested expression. Everything else is compared bit by bit.
INEXACT = {"exp", "log", "^"}
WHOLE_POWERS = {"b a ^"}
UNITS_IN_THE_LAST_PLACE = 8

DECIMAL = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


class BadRequest(Exception):
    """The whole request is refused before its expression is evaluated."""


class Numerix:
    """A numerix request around `evaluate`: schemas, string and byte rows, data types."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.rows = case["rows"] or []
        self.schema = case["schema"] or []
        self.dtype = np.float32 if str(case["data_type"]).lower() in ("fp32", "f32") else np.float64

    def answer(self) -> tuple[list[str], np.ndarray]:
        """The ids and the scores."""
        if not self.case["expression"]:
            raise BadRequest("no expression")
        if not self.rows or not self.schema or not self.rows[0]:
            raise BadRequest("no rows, or no schema")
        if len(set(self.schema)) < len(self.schema):
            raise BadRequest("a name twice in the schema")
        table = np.array([self.numbers(row) for row in self.rows], self.dtype)
        columns = {name: table[:, i] for i, name in enumerate(self.schema)}
        scores = parse(self.case["expression"]).evaluate(columns, len(self.rows), self.dtype)
        return [self.id(row) for row in self.rows], scores

    def fits(self, row: list[Any]) -> bool:
        """Whether the row is of the kind of the first one."""
        return bool(row) and type(row[0]) is type(self.rows[0][0])

    def id(self, row: list[Any]) -> str:
        if not self.fits(row):
            return ""
        return row[0] if isinstance(row[0], str) else base64.b64decode(row[0]["b64"]).decode()

    def numbers(self, row: list[Any]) -> list[float]:
        width = len(self.schema)
        cells = row[1:width] if self.fits(row) else []
        return [0.0, *(self.number(cell) for cell in cells), *[0.0] * (width - 1 - len(cells))]

    def number(self, cell: Any) -> float:
        if isinstance(cell, str):
            if not re.fullmatch(
                r"[+-]?(\d+\.?\d*|\.\d+|\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", cell, re.A | re.I
            ):
                raise BadRequest(f"no number: {cell!r}")
            return float(cell)
        raw = base64.b64decode(cell["b64"])
        if len(raw) != np.dtype(self.dtype).itemsize:
            raise BadRequest(f"{len(raw)} bytes")
        return float(np.frombuffer(raw, self.dtype)[0])


def expected_scores(case: dict[str, Any], dtype: type) -> np.ndarray:
    """The scores that numerix answered: bytes where the rows were bytes, else text."""
    response = case["response"]
    if case["format"] == "string" or response["values"][0] is None:
        return np.array([float(score) for _, score in response["readable"]], dtype)
    first = base64.b64decode(response["values"][0][1])
    assert len(first) == np.dtype(dtype).itemsize
    return np.array([np.frombuffer(base64.b64decode(value[1]), dtype)[0] for value in response["values"]])


def bits(values: np.ndarray) -> np.ndarray:
    """The bit patterns, all NaNs being the same one."""
    return np.where(np.isnan(values), np.nan, values).astype(values.dtype).view(f"u{values.itemsize}")


def title(number: int) -> str:
    return f"{number}: {CASES[number]['name']}, {CASES[number]['expression']}"


@pytest.mark.parametrize("number", range(len(CASES)), ids=title)
def test_recorded_answer(number: int) -> None:
    case = CASES[number]
    numerix = Numerix(case)
    if case["response"]["kind"] != "ok":
        with pytest.raises((ExpressionError, BadRequest)):
            numerix.answer()
        return
    ids, scores = numerix.answer()
    expected = expected_scores(case, numerix.dtype)
    assert ids == [row[0] for row in case["response"]["readable"]]
    assert scores.dtype == numerix.dtype and scores.shape == (len(ids),)
    if INEXACT & set(case["expression"].split()) and case["expression"] not in WHOLE_POWERS:
        tolerance = UNITS_IN_THE_LAST_PLACE * np.finfo(numerix.dtype).eps
        np.testing.assert_allclose(scores, expected, rtol=tolerance, equal_nan=True)
    else:
        assert bits(scores).tolist() == bits(expected).tolist()


def test_all_recorded_answers_are_read() -> None:
    assert len(CASES) == 359
    assert {case["response"]["kind"] for case in CASES} == {"ok", "error", "status"}


@pytest.mark.parametrize(
    ("text", "token", "position", "reason"),
    [
        ("", "", 0, "empty"),
        (" \t\n", "", 0, "empty"),
        ("a +", "+", 2, "too few operands: needs 2, finds 1"),
        ("log", "log", 1, "too few operands: needs 1, finds 0"),
        ("a b + *", "*", 4, "too few operands: needs 2, finds 1"),
        ("a - 2", "-", 2, "too few operands: needs 2, finds 1"),
        ("a b", "b", 2, "too many operands: 2 values are left at the end, expected 1"),
        ("a b 2 exp", "exp", 4, "too many operands: 3 values are left at the end, expected 1"),
    ],
)
def test_what_does_not_compile(text: str, token: str, position: int, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    error = caught.value
    assert (error.token, error.position, error.reason) == (token, position, reason)
    assert repr(text) in str(error) and reason in str(error)


@pytest.mark.parametrize("token", ["1e3", "1E-3", ".5", "-.5", "5.", "+2", "-1.e5", "+.5e+1"])
def test_numbers_in_other_notations_are_refused(token: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(f"token 2 ('{token}')")):
        parse(f"a {token} *")


@pytest.mark.parametrize(
    "name", ["7day_ctr", "2-1", "e5", "-a", "1.5.2", "inf", "NaN", "--", "1_000", "٣", "0x10", "."]
)
def test_any_other_token_is_a_column(name: str) -> None:
    compiled = parse(f"{name} 1 +")
    assert compiled.names == (name,)
    assert compiled.evaluate({name: np.array([1.0])}, 1, np.float64).tolist() == [2.0]


def test_what_a_compiled_expression_tells() -> None:
    text = "b a norm_min_max * b 2 + max"
    compiled = parse(text)
    assert compiled.text == text
    assert compiled.names == ("b", "a")
    assert compiled.aggregates
    assert repr(compiled) == f"<Expression {text!r}>"
    assert compiled == parse(text) and hash(compiled) == hash(parse(text))
    with pytest.raises(AttributeError):
        compiled.text = "a"  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["norm_min_max", "percentile_rank", "norm_percentile_0_99", "norm_percentile_5_95"]
)
def test_which_operators_aggregate(name: str) -> None:
    assert parse(f"a {name}").aggregates
    assert not parse(f"{name}s abs").aggregates
    assert not parse("a b min exp").aggregates


@BOTH
@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("a nosuch +", 2, "there is no column 'nosuch'"),
        ("a z /", 3, "division by zero in row 1"),
        ("z z /", 3, "division by zero in row 1"),
        ("1 0 /", 3, "division by zero"),
        ("1 -0.0 /", 3, "division by zero"),
        ("z log", 2, "logarithm of a number that is not positive in row 1"),
        ("-1 log", 2, "logarithm of a number that is not positive"),
        ("a z &", 3, "an operand is neither 0 nor 1 in row 2"),
        ("1 0.5 |", 3, "an operand is neither 0 nor 1"),
        ("nan 1 &", 3, "an operand is neither 0 nor 1 in row 0"),
        ("a nan norm_percentile_0_99 +", 3, "NaN in a column to be normed by percentiles in row 0"),
    ],
)
def test_what_does_not_evaluate(text: str, position: int, reason: str, dtype: type) -> None:
    columns = {
        "a": np.array([1, 0, 2], dtype),
        "z": np.array([1, 0, 0], dtype),
        "nan": np.array([np.nan, 0, 1], dtype),
    }
    with pytest.raises(ExpressionError) as caught:
        parse(text).evaluate(columns, 3, dtype)
    error = caught.value
    assert (error.token, error.position, error.reason) == (text.split()[position - 1], position, reason)
    assert str(error) == f"token {position} ({error.token!r}) of expression {text!r}: {reason}"


def test_arguments_that_the_caller_got_wrong() -> None:
    with pytest.raises(ValueError, match=r"column 'a' has shape \(2,\), expected \(3,\)"):
        parse("a").evaluate({"a": np.zeros(2)}, 3, np.float64)
    with pytest.raises(ValueError, match="float32 or float64, not int32"):
        parse("a").evaluate({"a": np.zeros(3)}, 3, np.int32)


@BOTH
@pytest.mark.parametrize("text", ["7", "1 2 +", "a", "a 1 >", "3 norm_min_max", "a percentile_rank"])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_the_answer_is_a_new_array_of_the_type_and_length(text: str, rows: int, dtype: type) -> None:
    column = np.arange(rows, dtype=dtype)
    column.flags.writeable = False
    scores = parse(text).evaluate({"a": column}, rows, dtype)
    assert scores.shape == (rows,) and scores.dtype == dtype
    assert scores.flags.writeable and not np.shares_memory(scores, column)


def test_arithmetic_is_done_in_the_type_asked_for() -> None:
    wide = np.array([0.1, 1e300, 16777217.0])
    narrow = np.array([0.1, 16777216.0], np.float32)
    single = parse("a 0.2 +").evaluate({"a": wide}, 3, np.float32)
    assert single.tolist() == [float(np.float32(0.1) + np.float32(0.2)), np.inf, 16777216.0]
    double = parse("a 0.2 +").evaluate({"a": narrow}, 2, np.float64)
    assert double.tolist() == [float(np.float32(0.1)) + 0.2, 16777216.2]


def test_number_tokens_are_rounded_once() -> None:
    """Halfway between two float32 numbers but for the last digits, which float64 cannot hold."""
    above, below = "1.00000005960464477540", "1.00000005960464477538"
    assert float(above) == float(below)
    assert parse(above).evaluate({}, 1, np.float32)[0] == np.nextafter(np.float32(1), np.float32(2))
    assert parse(below).evaluate({}, 1, np.float32)[0] == 1


@BOTH
@settings(deadline=None)
@given(data=st.data())
def test_against_scalar_arithmetic(dtype: type, data: st.DataObject) -> None:
    """min, max, comparisons and + − × ÷, on arrays long enough for every SIMD width, against plain scalars."""
    width = 32 if dtype is np.float32 else 64
    numbers = st.lists(
        st.one_of(st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan]), st.floats(width=width)),
        min_size=1,
        max_size=70,
    )
    left = np.array(data.draw(numbers), dtype)
    right = np.array(
        data.draw(
            st.lists(
                st.sampled_from([*left, dtype(0), dtype(-0.0), dtype(3)]),
                min_size=len(left),
                max_size=len(left),
            )
        ),
        dtype,
    )

    def minimum(a: Any, b: Any) -> Any:
        return a if b != b or a <= b else b

    def maximum(a: Any, b: Any) -> Any:
        return a if b != b or a >= b else b

    scalar = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
        ">": lambda a, b: dtype(a > b),
        "<": lambda a, b: dtype(a < b),
        ">=": lambda a, b: dtype(a >= b),
        "<=": lambda a, b: dtype(a <= b),
        "==": lambda a, b: dtype(a == b),
        "min": minimum,
        "max": maximum,
    }
    symbol = data.draw(st.sampled_from(sorted(scalar)))
    compiled = parse(f"l r {symbol}")
    columns = {"l": left, "r": right}
    if symbol == "/" and (right == 0).any():
        with pytest.raises(ExpressionError, match="division by zero"):
            compiled.evaluate(columns, len(left), dtype)
        return
    with np.errstate(all="ignore"):
        expected = np.array([scalar[symbol](a, b) for a, b in zip(left, right, strict=True)], dtype)
    assert bits(compiled.evaluate(columns, len(left), dtype)).tolist() == bits(expected).tolist()


@BOTH
@settings(deadline=None)
@given(values=st.lists(st.integers(-1000, 1000).map(lambda n: n / 8), min_size=2, max_size=40))
def test_aggregates_against_their_formulas(dtype: type, values: list[float]) -> None:
    column = {"a": np.array(values, dtype)}

    def scores(text: str) -> list[float]:
        return [float(score) for score in parse(text).evaluate(column, len(values), dtype)]

    ordered = sorted(values)

    def percentile(percent: int) -> float:
        place = percent / 100 * (len(values) - 1)
        low = int(place)
        return ordered[low] + (ordered[min(low + 1, len(values) - 1)] - ordered[low]) * (place - low)

    tolerance = 1e-4 if dtype is np.float32 else 1e-10
    if len(set(values)) == 1:
        assert scores("a norm_min_max") == scores("a percentile_rank") == [1.0] * len(values)
        assert scores("a norm_percentile_5_95") == [value - 1 for value in values]
        return
    low, high = ordered[0], ordered[-1]
    assert scores("a norm_min_max") == pytest.approx(
        [(v - low) / (high - low) for v in values], rel=tolerance
    )
    assert scores("a percentile_rank") == pytest.approx([i / (len(values) - 1) for i in range(len(values))])
    low, high = percentile(5), percentile(95)
    if high - low > 0.1:
        expected = [(v - low) / (high - low) for v in values]
        assert scores("a norm_percentile_5_95") == pytest.approx(expected, rel=1e-2, abs=tolerance)


@pytest.mark.parametrize("rows", [3, 8, 37])
def test_the_sign_of_a_zero_is_that_of_its_row(rows: int) -> None:
    """Which of two zeros is the least one depends on where a vector loop ends."""
    zeros = [-0.0 if row % 3 else 0.0 for row in range(rows - 1)]
    for column in ([*zeros, 1.0], [1.0, *reversed(zeros)]):
        for text in ("a norm_min_max", "a norm_percentile_0_99"):
            found = parse(text).evaluate({"a": np.array(column)}, rows, np.float64)
            assert np.array_equal(np.signbit(found), np.signbit(column))


@BOTH
def test_percentiles_that_are_infinite(dtype: type) -> None:
    """The 99th percentile of 101 rows is one of them: it must not be interpolated with another infinity."""
    column = np.arange(101, dtype=dtype)
    column[99:] = np.inf
    scores = parse("a norm_percentile_0_99").evaluate({"a": column}, 101, dtype)
    assert scores[:99].tolist() == [0.0] * 99
    assert np.isnan(scores[99:]).all()


def test_one_expression_serves_many_threads() -> None:
    compiled = parse("a 2 * a norm_min_max +")
    column = np.arange(100.0)
    expected = (column * 2 + column / 99).tolist()
    results: list[list[float]] = []

    def work() -> None:
        for _ in range(50):
            results.append(compiled.evaluate({"a": column}, 100, np.float64).tolist())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 200
