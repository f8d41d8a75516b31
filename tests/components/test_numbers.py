"""Numbers between types, from text and into text: held to recorded conversions and to exact arithmetic."""

from __future__ import annotations

import json
import math
import pathlib
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.numbers import (
    convert,
    nearest_float32,
    parse,
    parse_vector,
    parse_vectors,
    text,
    vector_text,
    vector_texts,
)
from shared.datatypes import DataType

# Conversions that the existing service was seen to make; the first line of the file says what is what.
LINES = (pathlib.Path(__file__).parents[1] / "data" / "numbers.jsonl").read_text().splitlines()
RECORDED = [json.loads(line) for line in LINES[1:]]

UNTIMED = settings(deadline=None)

SIGNED = [DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64]
UNSIGNED = [DataType.UINT8, DataType.UINT16, DataType.UINT32, DataType.UINT64]
INTEGERS = SIGNED + UNSIGNED
FLOATS = [DataType.FP8E5M2, DataType.FP8E4M3, DataType.FP16, DataType.FP32, DataType.FP64]
NUMBERS = [*FLOATS, *INTEGERS, DataType.BOOL]


def named(kind: DataType) -> str:
    return kind.name


def bits(values: np.ndarray) -> list[int]:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}").tolist()


def limits(kind: DataType) -> tuple[int, int]:
    info = np.iinfo(kind.dtype)
    return int(info.min), int(info.max)


# --- recorded ----------------------------------------------------------------------------------------------


def recorded(rule: str) -> list[Any]:
    return [
        pytest.param(DataType[line["source"]], DataType[line["target"]], line["pairs"], id=title(line))
        for line in RECORDED
        if line["rule"] == rule and line["source"] != "BYTES" and line["target"] != "BYTES"
    ]


def title(line: dict[str, Any]) -> str:
    return f"{line['source']}-{line['target']}"


def recorded_with_text(rule: str, side: str) -> list[Any]:
    return [
        pytest.param(DataType[line[side]], line["pairs"], id=line[side])
        for line in RECORDED
        if line["rule"] == rule
    ]


def test_the_record_is_complete() -> None:
    counts: dict[str, int] = {}
    for line in RECORDED:
        counts[line["rule"]] = counts.get(line["rule"], 0) + len(line["pairs"])
    assert counts == {"convert": 1054, "parse": 373, "parse_vector": 10, "text": 324, "vector_text": 67}


@pytest.mark.parametrize(("source", "target", "pairs"), recorded("convert"))
def test_recorded_conversions(source: DataType, target: DataType, pairs: list[list[str]]) -> None:
    given = np.frombuffer(bytes.fromhex("".join(before for before, _ in pairs)), source.dtype)
    result = convert(given, source, target)
    assert result.dtype == target.dtype and result.shape == given.shape
    assert [cell.tobytes().hex() for cell in result] == [after for _, after in pairs]


@pytest.mark.parametrize(("target", "pairs"), recorded_with_text("parse", "target"))
def test_recorded_texts_into_numbers(target: DataType, pairs: list[list[str]]) -> None:
    """Together, where the numbers are read one by one, and each alone, where most take the short cut."""
    texts = [before.encode() for before, _ in pairs]
    expected = [after for _, after in pairs]
    assert [cell.tobytes().hex() for cell in parse(texts, target)] == expected
    assert [parse([one], target).tobytes().hex() for one in texts] == expected


@pytest.mark.parametrize(("target", "pairs"), recorded_with_text("parse_vector", "target"))
def test_recorded_texts_into_vectors(target: DataType, pairs: list[list[str]]) -> None:
    for before, after in pairs:
        values = parse_vector(before.encode(), target)
        assert values is not None and values.tobytes().hex() == after


@pytest.mark.parametrize(("source", "pairs"), recorded_with_text("text", "source"))
def test_recorded_numbers_into_text(source: DataType, pairs: list[list[str]]) -> None:
    given = np.frombuffer(bytes.fromhex("".join(before for before, _ in pairs)), source.dtype)
    assert [form.decode() for form in text(given, source)] == [after for _, after in pairs]


@pytest.mark.parametrize(("source", "pairs"), recorded_with_text("vector_text", "source"))
def test_recorded_vectors_into_text(source: DataType, pairs: list[list[str]]) -> None:
    for before, after in pairs:
        values = np.frombuffer(bytes.fromhex(before), source.dtype)
        assert vector_text(values, source).decode() == after


# --- from one type into another ------------------------------------------------------------------------------


def any_values(kind: DataType) -> st.SearchStrategy[np.ndarray]:
    """Arrays of any bytes: so of any NaN, infinity, subnormal, and of bools that are neither 0 nor 1."""
    return st.binary(min_size=0, max_size=40 * kind.size).map(
        lambda raw: np.frombuffer(raw[: len(raw) // kind.size * kind.size], kind.dtype)
    )


@settings(deadline=None, max_examples=400)
@given(source=st.sampled_from(NUMBERS), target=st.sampled_from(NUMBERS), data=st.data())
def test_any_bytes_convert_to_an_array_of_the_target_type(
    source: DataType, target: DataType, data: st.DataObject
) -> None:
    values = data.draw(any_values(source))
    result = convert(values, source, target)
    assert result.dtype == target.dtype and result.shape == values.shape
    assert (result is values) == (source is target)
    stacked = np.stack([values, values])
    assert bits(convert(stacked[:, ::2], source, target)) == [bits(result[::2])] * 2
    assert bits(convert(values, source.vector, target.vector)) == bits(result)


def kept_integer(number: float, kind: DataType) -> int:
    """A float as an integer, in exact arithmetic."""
    least, most = limits(kind)
    if math.isnan(number):
        return 0
    whole = math.trunc(number) if math.isfinite(number) else int(math.copysign(1 << 70, number))
    if kind in SIGNED:
        return min(max(whole, least), most)
    carrier = 63 if kind.size > 2 else 31
    if whole < -(1 << carrier):
        return 0
    if whole >= max(1 << carrier, most + 1):
        return most
    return whole % (most + 1)


def wide_floats(width: int) -> st.SearchStrategy[float]:
    """Floats of all sizes, and those next to powers of two, where integer types end."""

    def near(power: int, sign: int, steps: int) -> float:
        number = sign * math.ldexp(1, power)
        for _ in range(abs(steps)):
            number = float(np.nextafter(number, math.copysign(math.inf, steps)))
        return number

    edges = st.builds(near, st.integers(0, 66), st.sampled_from([1, -1]), st.integers(-3, 3))
    small = st.floats(-70000, 70000)
    rounded = st.one_of(edges, small).map(lambda x: x if width == 64 else float(np.float32(x)))
    return st.one_of(rounded, st.floats(width=width))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=400)
@given(
    source=st.sampled_from([DataType.FP32, DataType.FP64]),
    target=st.sampled_from(INTEGERS),
    data=st.data(),
)
def test_floats_into_integers(source: DataType, target: DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(wide_floats(8 * source.size), max_size=30))
    result = convert(np.array(values, source.dtype), source, target)
    assert result.tolist() == [kept_integer(value, target) for value in values]


@pytest.mark.parametrize(
    ("number", "target", "expected"),
    [
        (math.nan, DataType.INT32, 0),
        (math.nan, DataType.UINT64, 0),
        (math.inf, DataType.INT64, 2**63 - 1),
        (-math.inf, DataType.INT64, -(2**63)),
        (math.inf, DataType.UINT8, 255),
        (-math.inf, DataType.UINT8, 0),
        (1e10, DataType.INT32, 2**31 - 1),
        (-1e10, DataType.INT32, -(2**31)),
        (300.7, DataType.INT8, 127),
        (-0.9, DataType.UINT8, 0),
        (-16.125, DataType.UINT8, 240),
        (100000.0, DataType.UINT8, 160),
        (3e9, DataType.UINT8, 255),
        (-68.75, DataType.UINT32, 2**32 - 68),
        (-1.0, DataType.UINT64, 2**64 - 1),
        (2.0**63, DataType.UINT64, 2**63),
        (2.0**64, DataType.UINT64, 2**64 - 1),
        (1e20, DataType.UINT32, 2**32 - 1),
        (-1e20, DataType.UINT32, 0),
    ],
)
def test_floats_that_an_integer_cannot_hold(number: float, target: DataType, expected: int) -> None:
    assert convert(np.array([number]), DataType.FP64, target).tolist() == [expected]


@settings(deadline=None, max_examples=300)
@given(source=st.sampled_from(INTEGERS), target=st.sampled_from(INTEGERS), data=st.data())
def test_integers_into_integers_keep_the_low_bits(
    source: DataType, target: DataType, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.integers(*limits(source)), max_size=30))
    least, most = limits(target)
    result = convert(np.array(values, source.dtype), source, target)
    assert result.tolist() == [(value - least) % (most - least + 1) + least for value in values]


def truncated_half(number: float) -> float:
    """The float16 that a float32 number becomes, from its exact value."""
    if math.isnan(number):
        return number
    magnitude = Fraction(min(abs(number), 65000.0))
    if magnitude < Fraction(1, 2**14):
        return math.copysign(0.0, number)
    exponent = math.frexp(float(magnitude))[1]
    unit = Fraction(2) ** (exponent - 11)
    return math.copysign(float(magnitude // unit * unit), number)


@UNTIMED
@given(values=st.lists(wide_floats(32), max_size=30))
@example(
    values=[65000.0, 65504.0, 64999.996, -65001.0, 2.0**-14, 6.1e-05, 1.99999, math.inf, -math.inf, -0.0]
)
def test_floats_into_half_precision(values: list[float]) -> None:
    result = convert(np.array(values, np.float32), DataType.FP32, DataType.FP16)
    expected = np.array([truncated_half(value) for value in values], np.float16)
    assert bits(result[~np.isnan(expected)]) == bits(expected[~np.isnan(expected)])
    assert np.isnan(result).tolist() == np.isnan(expected).tolist()


def test_half_precision_of_integers_and_bools() -> None:
    values = np.array([0, -1, 2049, 2051, 65519, -70000, 2**40])
    expected = [0.0, -1.0, 2048.0, 2050.0, 64992.0, -64992.0, 64992.0]
    assert convert(values, DataType.INT64, DataType.FP16).tolist() == expected
    assert convert(np.array([0, 1, 2], np.uint8), DataType.BOOL, DataType.FP16).tolist() == [0.0, 1.0, 1.0]


@UNTIMED
@given(values=st.lists(wide_floats(64), max_size=30))
def test_double_into_single_precision(values: list[float]) -> None:
    def packed(value: float) -> float:
        try:
            return float(struct.unpack("<f", struct.pack("<f", value))[0])
        except OverflowError:
            return math.copysign(math.inf, value)

    result = convert(np.array(values), DataType.FP64, DataType.FP32)
    np.testing.assert_array_equal(result, np.array([packed(value) for value in values]), strict=False)


@UNTIMED
@given(source=st.sampled_from(INTEGERS), data=st.data())
def test_integers_into_floats_to_nearest(source: DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(*limits(source)), max_size=30))
    given = np.array(values, source.dtype)
    assert convert(given, source, DataType.FP64).tolist() == [float(value) for value in values]
    singles = convert(given, source, DataType.FP32)
    assert [is_nearest(single, Fraction(value)) for single, value in zip(singles, values, strict=True)] == [
        True
    ] * len(values)


def eight_bit_value(code: int, mantissa_bits: int) -> float:
    """The number that an 8-bit float stands for, from the definition of the formats."""
    bias = 2 ** (6 - mantissa_bits) - 1
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & (2**mantissa_bits - 1)
    if mantissa_bits == 3 and code & 0x7F == 0x7F:
        return math.nan
    if mantissa_bits == 2 and exponent == 31:
        return math.nan if mantissa else sign * math.inf
    significand = mantissa / 2**mantissa_bits + (1 if exponent else 0)
    return sign * math.ldexp(significand, max(exponent, 1) - bias)


@pytest.mark.parametrize(("kind", "mantissa_bits"), [(DataType.FP8E5M2, 2), (DataType.FP8E4M3, 3)])
def test_all_eight_bit_floats(kind: DataType, mantissa_bits: int) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = np.array([eight_bit_value(code, mantissa_bits) for code in range(256)], np.float32)
    single = convert(codes.view(kind.dtype), kind, DataType.FP32)
    np.testing.assert_array_equal(single, expected, strict=True)
    assert (np.signbit(single) == np.signbit(expected))[~np.isnan(expected)].all()
    assert text(codes.view(kind.dtype), kind) == text(expected, DataType.FP32)
    numeric = ~np.isnan(expected)
    back = convert(expected[numeric], DataType.FP32, kind)
    assert bits(back) == codes[numeric].tolist()
    assert convert(codes.view(kind.dtype), kind, DataType.BOOL).tolist() == (expected != 0).tolist()


def test_what_is_true() -> None:
    values = np.array([0.0, -0.0, 1e-45, -3.0, math.nan, math.inf], np.float32)
    assert convert(values, DataType.FP32, DataType.BOOL).tolist() == [0, 0, 1, 1, 1, 1]
    assert convert(np.array([0, 256, -1]), DataType.INT64, DataType.BOOL).tolist() == [0, 1, 1]
    flags = np.array([0, 1, 2, 255], np.uint8)
    assert convert(flags, DataType.BOOL, DataType.INT8).tolist() == [0, 1, 1, 1]
    assert text(flags, DataType.BOOL) == [b"false", b"true", b"true", b"true"]


# --- from text -----------------------------------------------------------------------------------------------


def is_nearest(single: np.floating[Any], number: Fraction) -> bool:
    """Whether a float32 is the nearest to a number, ties to even."""
    if np.isinf(single):
        return abs(number) >= Fraction(float.fromhex("0x1.ffffffp127")) and (number > 0) == (single > 0)
    distance = abs(Fraction(float(single)) - number)
    for direction in (math.inf, -math.inf):
        with np.errstate(over="ignore"):
            neighbour = float(np.nextafter(np.float32(single), np.float32(direction)))
        other = (
            Fraction(neighbour) if math.isfinite(neighbour) else Fraction(math.copysign(2.0**128, neighbour))
        )
        tie = abs(other - number) == distance
        if abs(other - number) < distance or (tie and bits(np.array([single], np.float32))[0] & 1):
            return False
    return True


decimals = st.builds(
    lambda sign, whole, fraction, power: f"{sign}{whole}.{fraction:0>3}e{power}",
    st.sampled_from(["", "-", "+"]),
    st.integers(0, 10**20),
    st.integers(0, 10**25),
    st.one_of(st.integers(-60, 25), st.integers(-400, 320)),
)


@st.composite
def nearly_halfway(draw: st.DrawFn) -> str:
    """A decimal at, or just beside, the middle of two neighbouring float32 numbers."""
    code = draw(st.integers(0, 0x7F7FFFFE) | st.integers(0, 1 << 24))
    low, high = np.array([code, code + 1], np.uint32).view(np.float32).tolist()
    middle = Fraction(low) / 2 + Fraction(high) / 2
    beside = middle * (1 + draw(st.sampled_from([-1, 0, 1])) * Fraction(1, 10 ** draw(st.integers(17, 60))))
    scale = 170  # more digits behind the point than any such middle has
    return f"{math.floor(beside * 10**scale)}e-{scale}"


@UNTIMED
@given(number=st.one_of(decimals, nearly_halfway()))
@example(number="1.00000005960464477539062500000000001e0")
@example(number="1.00000005960464477539062499999999999e0")
@example(number="340282356779733661637539395458142568447e0")
@example(number="340282356779733661637539395458142568448e0")
@example(number="7.006492321624085354618e-46")
@example(number="7.006492321624085354619e-46")
def test_decimals_are_rounded_once(number: str) -> None:
    exact = Fraction(Decimal(number))
    single = nearest_float32(number)
    assert is_nearest(single, exact)
    for company in ([], [b"no number"]):
        parsed = parse([number.encode(), *company], DataType.FP32)
        if np.isinf(single):
            assert bits(parsed)[0] == 0
        else:
            assert bits(parsed)[0] == bits(np.array([single]))[0]
        wide = parse([number.encode(), *company], DataType.FP64)
        expected = float(number)
        assert bits(wide)[0] == bits(np.array([0.0 if math.isinf(expected) else expected]))[0]


hexadecimals = st.builds(
    lambda sign, whole, fraction, power: (
        f"{sign}0x{whole:x}.{fraction:x}p{power}",
        sign,
        whole,
        fraction,
        power,
    ),
    st.sampled_from(["", "-", "+"]),
    st.integers(0, 2**70),
    st.integers(1, 2**40),
    st.integers(-240, 140),
)


@UNTIMED
@given(drawn=hexadecimals)
def test_hexadecimal_floats(drawn: tuple[str, str, int, int, int]) -> None:
    form, sign, whole, fraction, power = drawn
    exact = (whole + Fraction(fraction, 16 ** len(f"{fraction:x}"))) * Fraction(2) ** power
    exact = -exact if sign == "-" else exact
    single = parse([form.upper().encode()], DataType.FP32)[0]
    if exact and single == 0 and abs(exact) > 1:
        assert abs(exact) >= Fraction(float.fromhex("0x1.ffffffp127"))
    else:
        assert is_nearest(single, exact)
    assert parse([form.encode()], DataType.FP64).tolist() == [float.fromhex(form)]


def test_hexadecimal_floats_are_rounded_once() -> None:
    forms = [
        b"0x1.0000010000000001p0",
        b"0x1.0000010000000000p0",
        b"-0x1.000000ffffffffffp0",
        b"0x1.0000_03p0",
    ]
    above = float(np.nextafter(np.float32(1), np.float32(2)))
    assert parse(forms, DataType.FP32).tolist() == [above, 1.0, -1.0, 1 + 2 * (above - 1)]


ACCEPTED = {
    "1": 1.0, "1.": 1.0, ".5": 0.5, "+1.5": 1.5, "-.5e1": -5.0, "1E+2": 100.0, "007": 7.0, "0_1": 1.0,
    "1_000": 1000.0, "1_0.2_5e1_0": 10.25e10, "0x1p4": 16.0, "0X_1.8P1": 3.0, "-0x.8p1": -1.0,
    "0xA_bp-1_0": 171 / 1024, "inf": math.inf, "+Inf": math.inf, "-iNFINITY": -math.inf, "1e-400": 0.0,
}  # fmt: skip
REFUSED = (
    "", " 1", "1 ", "1\n", "\t1", "+", "-", ".", "e5", "1e", "1e+", "--1", "+-1", "1.2.3", "1,5", "1\x00",
    "0x10", "0x", "0xp1", "0x.p1", "0x1.8", "0x1p", "0b1p0", "1f", "1d", "true", "\u0661", "\uff11",
    "_1", "1_", "1__0", "1_.5", "1._5", "1_e5", "1e_5", "0x_.8p1", "0x1_p1", "0_x1p1",
    "+nan", "-nan", "nan(1)", "infi", "in", "1e39000", "-1e39000", "0x1p5000",
)  # fmt: skip


@pytest.mark.parametrize("form", ACCEPTED)
def test_texts_that_are_floats(form: str) -> None:
    values = parse_vector(form.encode(), DataType.FP64)
    assert values is not None and values.tolist() == [ACCEPTED[form]]
    assert parse([form.encode()], DataType.FP32).tolist() == [float(np.float32(ACCEPTED[form]))]


@pytest.mark.parametrize("form", REFUSED)
def test_texts_that_are_no_floats(form: str) -> None:
    for kind in FLOATS:
        for company in ([], [b"2"], [b"x"]):
            assert bits(parse([form.encode(), *company], kind))[0] == 0
        assert parse_vector(b"1:" + form.encode(), kind) is None


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (b"16777217e" + b"0" * 9000, 2.0**24),
        (b"16777217" + b"0" * 9000 + b"e-9000", 2.0**24),
        (b"16777217" + b"0" * 9000 + b"1e-9001", 2.0**24 + 2),
        (b"16_777_217", 2.0**24),
        (b"0x1000001p" + b"0" * 9000, 2.0**24),
        (b"0x1000001p-" + b"0" * 9000 + b"1", 2.0**23),
        (b"0x1000001" + b"0" * 9000 + b"1p-36004", 2.0**24 + 2),
        (b"0" * 9000 + b"7", 7.0),
        (b"1e" + b"9" * 9000, 0.0),
        (b"1e-" + b"9" * 9000, 0.0),
        (b"0x1p" + b"9" * 9000, 0.0),
        (b"0x1p-" + b"9" * 9000, 0.0),
        (b"0x0p" + b"9" * 9000, 0.0),
        (b"9" * 9000, 0.0),
    ],
    ids=range(14),
)
def test_numbers_of_thousands_of_digits(form: bytes, expected: float) -> None:
    assert (
        parse([form], DataType.FP32).tolist() == parse([form, b"x"], DataType.FP32).tolist()[:1] == [expected]
    )
    assert parse([form], DataType.INT64).tolist() == [7 if form.endswith(b"07") else 0]


def test_not_a_number() -> None:
    assert bits(parse([b"NaN", b"nAn"], DataType.FP64)) == [0x7FF8000000000001] * 2
    assert bits(parse([b"NaN"], DataType.FP32)) == [0x7FC00000]
    assert bits(parse([b"NaN"], DataType.FP16)) == [0x7E00]
    assert np.isnan(parse([b"NaN"], DataType.FP8E4M3).astype(np.float32)).all()


def test_text_into_half_precision_is_rounded_and_may_overflow() -> None:
    texts = [b"65519", b"65520", b"-1e30", b"1e39", b"6e-8", b"1e-8", b"2049", b"2051"]
    assert parse(texts, DataType.FP16).tolist() == [
        65504.0, math.inf, -math.inf, 0.0, 2.0**-24, 0.0, 2048.0, 2052.0,
    ]  # fmt: skip


@UNTIMED
@given(kind=st.sampled_from(INTEGERS), data=st.data())
def test_texts_into_integers(kind: DataType, data: st.DataObject) -> None:
    least, most = limits(kind)
    near = st.one_of(st.integers(least - 3, least + 3), st.integers(most - 3, most + 3), st.integers())
    values = data.draw(st.lists(near, max_size=20))
    zeros = data.draw(st.sampled_from(["", "0", "0" * 30]))
    forms = [("-" if value < 0 else "") + zeros + str(abs(value)) for value in values]
    expected = [value if least <= value <= most else 0 for value in values]
    for company in ([], [b""], [b"x"]):
        parsed = parse([*(form.encode() for form in forms), *company], kind)
        assert parsed.dtype == kind.dtype
        assert parsed.tolist() == expected + [0] * len(company)


@pytest.mark.parametrize(
    "form", ["", "-", "+", "1.0", "1e3", "1_000", "0x10", " 1", "1 ", "--1", "1-", "٣", "true", "inf"]
)
@pytest.mark.parametrize("kind", INTEGERS, ids=named)
def test_texts_that_are_no_integers(kind: DataType, form: str) -> None:
    for company in ([], [b"2"], [b"x"]):
        assert parse([form.encode(), *company], kind)[0] == 0
    assert parse_vector(form.encode(), kind) is None


def test_signs_of_integers() -> None:
    assert parse([b"+5", b"-0", b"-5"], DataType.INT8).tolist() == [5, 0, -5]
    assert parse([b"+5", b"-0", b"5"], DataType.UINT8).tolist() == [0, 0, 5]


def test_texts_into_bools() -> None:
    texts = [b"true", b"TRUE", b"tRuE", b"false", b"1", b"t", b"", b" true", b"yes"]
    assert parse(texts, DataType.BOOL).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_vectors_from_text() -> None:
    def values(form: bytes, kind: DataType) -> list[float] | None:
        found = parse_vector(form, kind)
        assert found is None or (found.dtype == kind.dtype and found.ndim == 1)
        return None if found is None else found.tolist()

    assert values(b"1.5:-2:1e3", DataType.FP32_VECTOR) == [1.5, -2.0, 1000.0]
    assert values(b"7", DataType.INT16) == [7]
    assert values(b"true:False", DataType.BOOL) == [1, 0]
    for form in (b"", b"4:5:x", b"1:", b":1", b"1::2", b"1,2", b"1: 2", b"1:1e39"):
        assert values(form, DataType.FP32) is None
    assert values(b"true:1", DataType.BOOL) is None
    assert values(b"1:300", DataType.UINT8) is None


@UNTIMED
@given(
    vectors=st.lists(
        st.lists(st.sampled_from([b"1", b"-2.5", b"x", b"", b"300", b"1e39"]), max_size=5), max_size=8
    ),
    kind=st.sampled_from([DataType.FP32, DataType.INT8, DataType.FP16_VECTOR]),
)
def test_many_vectors_from_text(vectors: list[list[bytes]], kind: DataType) -> None:
    texts = [b":".join(elements) for elements in vectors]
    together = [None if found is None else found.tolist() for found in parse_vectors(texts, kind)]
    assert len(together) == len(texts)
    for form, found in zip(texts, together, strict=True):
        elements = form.split(b":")
        good = {b"1", b"-2.5", b"300"} if kind.element is not DataType.INT8 else {b"1"}
        assert found == (parse(elements, kind).tolist() if good.issuperset(elements) else None)


# --- into text -----------------------------------------------------------------------------------------------


def go_form(shortest: str) -> str:
    """The form of `%v` from any other form with the same digits, by way of Decimal."""
    sign, digits, exponent = Decimal(shortest).normalize().as_tuple()
    assert isinstance(exponent, int)
    figures = "".join(map(str, digits))
    power = exponent + len(figures) - 1
    minus = "-" if sign else ""
    if figures == "0":
        return minus + "0"
    if -4 <= power < 6:
        return minus + format(Decimal((0, digits, exponent)), "f")
    return f"{minus}{figures[0]}{'.' * (len(figures) > 1)}{figures[1:]}e{'-' if power < 0 else '+'}{abs(power):02}"


@UNTIMED
@given(values=st.lists(wide_floats(32).filter(math.isfinite), max_size=30))
@example(values=[1e6, 999999.94, 1e-4, 9.999999e-05, 1e-45, -0.0, 16777217.0, 1e20, 1e21, 1e22, 123456.7])
def test_single_precision_text(values: list[float]) -> None:
    single = np.array(values, np.float32)
    assert [form.decode() for form in text(single, DataType.FP32)] == [
        go_form(np.format_float_scientific(value, unique=True)) for value in single
    ]


def test_single_precision_text_of_powers_of_two() -> None:
    """Their neighbours are not equally far away: the hard case of shortest digits."""
    codes = np.arange(1, 255, dtype=np.uint32) << 23
    powers = np.concatenate([codes, codes - 1, codes + 1]).view(np.float32)
    assert [form.decode() for form in text(powers, DataType.FP32)] == [
        go_form(np.format_float_scientific(value, unique=True)) for value in powers
    ]


@UNTIMED
@given(values=st.lists(wide_floats(64).filter(math.isfinite), max_size=30))
@example(values=[1e6, 999999.9999999999, 1e-4, 9.999999999999999e-05, 5e-324, 1e21, 1.7976931348623157e308])
@example(values=[math.ldexp(1, power) for power in range(-1074, 1024)])
def test_double_precision_text(values: list[float]) -> None:
    assert [form.decode() for form in text(np.array(values), DataType.FP64)] == [
        go_form(repr(value)) for value in values
    ]


@UNTIMED
@given(kind=st.sampled_from(FLOATS), data=st.data())
def test_text_reads_back_as_the_same_number(kind: DataType, data: st.DataObject) -> None:
    values = data.draw(any_values(kind))
    back = parse(text(values, kind), kind)
    ordinary = ~np.isnan(convert(values, kind, DataType.FP64))  # quietly, also of signalling NaNs
    assert bits(back[ordinary]) == bits(values[ordinary])


@pytest.mark.parametrize("kind", FLOATS, ids=named)
def test_text_of_what_is_no_number(kind: DataType) -> None:
    values = np.array([math.nan, -0.0, 0.0], np.float32).astype(kind.dtype)
    assert text(values, kind) == [b"NaN", b"-0", b"0"]
    if kind is not DataType.FP8E4M3:  # which has no infinities
        infinite = np.array([math.inf, -math.inf], np.float32).astype(kind.dtype)
        assert text(infinite, kind) == [b"+Inf", b"-Inf"]


@UNTIMED
@given(kind=st.sampled_from(INTEGERS), data=st.data())
def test_text_of_integers(kind: DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(*limits(kind)), max_size=30))
    forms = text(np.array(values, kind.dtype), kind)
    assert forms == [str(value).encode() for value in values]
    assert vector_text(np.array(values, kind.dtype), kind.vector) == b",".join(forms)
    assert parse(forms, kind).tolist() == values


@UNTIMED
@given(vectors=st.lists(any_values(DataType.FP32), max_size=6))
def test_text_of_many_vectors(vectors: list[np.ndarray]) -> None:
    assert vector_texts(vectors, DataType.FP32_VECTOR) == [vector_text(v, DataType.FP32) for v in vectors]


def test_arrays_may_be_strided_read_only_and_empty() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3) / 2
    table.flags.writeable = False
    column = table[:, 1]
    assert text(column, DataType.FP32) == [b"0.5", b"2", b"3.5", b"5"]
    assert convert(column, DataType.FP32, DataType.UINT8).tolist() == [0, 2, 3, 5]
    assert convert(table, DataType.FP32, DataType.FP16).shape == (4, 3)
    for kind in NUMBERS:
        nothing = np.array([], kind.dtype)
        assert text(nothing, kind) == [] and vector_text(nothing, kind) == b""
        assert parse([], kind).shape == (0,) and parse([], kind).dtype == kind.dtype


@pytest.mark.parametrize("kind", [DataType.STRING, DataType.STRING_VECTOR, DataType.UNKNOWN], ids=named)
def test_types_that_are_no_numbers_are_refused(kind: DataType) -> None:
    values = np.zeros(1, np.float32)
    refused = pytest.raises(ValueError, match=f"{kind.name} is not a type of numbers")
    with refused:
        convert(values, kind, DataType.FP32)
    with refused:
        convert(values, DataType.FP32, kind)
    with refused:
        parse([b"1"], kind)
    with refused:
        parse_vector(b"1", kind)
    with refused:
        text(values, kind)


def test_text_takes_one_dimension() -> None:
    with pytest.raises(ValueError, match=r"1-D array, not one of shape \(1, 2\)"):
        text(np.zeros((1, 2), np.float32), DataType.FP32)


def test_nearest_float32_of_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        nearest_float32("one")
    assert nearest_float32("1e39") == math.inf and nearest_float32("-1e-60") == 0
