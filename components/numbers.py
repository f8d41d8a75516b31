"""Numbers as cells hold them: from one type into another, from text, and into text.

Models are trained on what the service feeds them, so the rules here are not a matter of taste: they are those
of the service that this one replaces, bit by bit where its answers are recorded (tests/data/numbers.jsonl).
Where they look odd, the function says so.

Everything takes whole columns. Types are the scalars of `DataType`; a vector type stands for its elements.
All arrays are little-endian. Nothing here warns or fails on a value: what has no counterpart in the target
type has a defined substitute.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from shared.datatypes import DataType

__all__ = [
    "convert",
    "nearest_float32",
    "parse",
    "parse_vector",
    "parse_vectors",
    "text",
    "vector_text",
    "vector_texts",
]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_FLOATS: Final = frozenset(
    (DataType.FP8E5M2, DataType.FP8E4M3, DataType.FP16, DataType.FP32, DataType.FP64),
)
_SMALL_FLOATS: Final = _FLOATS - {DataType.FP32, DataType.FP64}
"""Computed with as float32, which holds all of their values."""


def _number(kind: DataType) -> DataType:
    """The element type, which must be one of numbers or BOOL. Raises ValueError for strings and UNKNOWN."""
    element = kind.element
    if element in (DataType.STRING, DataType.UNKNOWN):
        raise ValueError(f"{kind.name} is not a type of numbers")
    return element


# --- from one type into another ------------------------------------------------------------------------


def convert(values: Array, source: DataType, target: DataType) -> Array:
    """The values, which are of type `source`, as type `target`: an array of the same shape, dtype `target.dtype`.

    - The same type: the very array that was given, unchanged.
    - Into BOOL: 1 for everything but zero, so also for NaN. From BOOL: 1 for every byte but zero.
    - Into FP32 and FP64: to nearest, ties to even; what is too large becomes infinity.
    - Into FP16, by way of FP32: clamped to ±65000, truncated (not rounded), below 2^-14 a zero of the same
      sign; NaN stays.
    - Into FP8, by way of FP32: to nearest; what is too large becomes infinity in E5M2 and NaN in E4M3, which
      has no infinity.
    - Integers into narrower integers: the low bits.
    - Floats into integers: the fraction is cut off, NaN is 0. Signed: saturated. Unsigned: what a signed
      integer holds (32 bits for UINT8 and UINT16, 64 bits for UINT32 and UINT64) gives its low bits, so
      that −16.5 into UINT8 is 240 and 100000 is 160, as recorded; only what lies beyond is saturated.

    Raises ValueError when either type is a string or UNKNOWN.
    """
    given, wanted = _number(source), _number(target)
    if given is wanted:
        return values
    with np.errstate(all="ignore"):
        if wanted is DataType.BOOL:
            return np.not_equal(values, 0).astype(np.uint8)
        if given is DataType.BOOL:
            values = np.not_equal(values, 0).astype(np.uint8)
        if wanted in _FLOATS:
            return _as_float(values, wanted)
        if given in _FLOATS:
            return _as_integer(_widened(values, given), wanted)
        return values.astype(wanted.dtype)


def _widened(values: Array, kind: DataType) -> Array:
    return values.astype(np.float32) if kind in _SMALL_FLOATS else values


def _as_float(values: Array, wanted: DataType) -> Array:
    if wanted not in _SMALL_FLOATS:
        return values.astype(wanted.dtype)
    single = values.astype(np.float32, copy=False)
    return _truncated_half(single) if wanted is DataType.FP16 else single.astype(wanted.dtype)


_HALF_LIMIT = 65000.0  # not the largest finite float16, which is 65504: the clamp of the existing service
_SMALLEST_NORMAL_HALF = np.uint32(0x38800000)  # 2^-14 as the bits of a float32
_HALF_NAN = np.uint32(0x7E00)
_EXPONENT_SHIFT = np.uint32((127 - 15) << 10)  # between the biases of the exponents, in float16's place


def _truncated_half(single: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """float32 to float16 by dropping low bits of the mantissa, as `convert` describes it."""
    bits = np.clip(single, -_HALF_LIMIT, _HALF_LIMIT).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    half = (magnitude >> np.uint32(13)) - _EXPONENT_SHIFT  # wraps around for small ones, replaced below
    half = np.where(magnitude < _SMALLEST_NORMAL_HALF, np.uint32(0), half)
    half = np.where(np.isnan(single), _HALF_NAN, half)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    return (half | sign).astype(np.uint16).view(np.float16)


_CARRIERS: Final = {
    DataType.UINT8: DataType.INT32,
    DataType.UINT16: DataType.INT32,
    DataType.UINT32: DataType.INT64,
    DataType.UINT64: DataType.INT64,
}
"""The signed type whose low bits an unsigned one takes."""


def _limits(kind: DataType) -> tuple[int, int]:
    """The smallest and the largest number of an integer type."""
    bits = 8 * kind.size
    return (0, 2**bits - 1) if kind in _CARRIERS else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _as_integer(values: Array, wanted: DataType) -> Array:
    """float32 or float64 to integers, as `convert` describes it."""
    whole = np.trunc(values)
    least, most = _limits(wanted)
    carried = _limits(_CARRIERS.get(wanted, wanted))
    # Powers of two, exact in any float: the lowest number that fits, and the first one that does not.
    # The largest one that fits would not do, a float may round it up to one that is out of range.
    floor, ceiling = float(carried[0]), float(max(most, carried[1]) + 1)
    kept = np.where((whole >= floor) & (whole < ceiling), whole, 0)
    result = _as_uint64(kept) if wanted is DataType.UINT64 else kept.astype(np.int64).astype(wanted.dtype)
    result[whole >= ceiling] = most
    result[whole < floor] = least
    return result


def _as_uint64(whole: Array) -> npt.NDArray[np.uint64]:
    """Whole floats from −2^63 to 2^64, the low 64 bits of each: no integer type holds all of that range."""
    negative = whole < 0
    below = np.where(negative, whole, 0).astype(np.int64).view(np.uint64)
    return np.where(negative, below, np.where(negative, 0, whole).astype(np.uint64))


# --- from text -------------------------------------------------------------------------------------------


def parse(texts: Sequence[bytes], target: DataType) -> Array:
    """The numbers that the texts are, as a 1-D array [len(texts)] of `target.dtype`. What is no number is 0.

    The whole text must be a number, ASCII only, no blanks:

    - Floats: decimal (`1`, `.5`, `1.`, `-2e3`), hexadecimal with a binary exponent (`0x1p-2`), `inf`,
      `infinity`, `nan`, in any case and with a sign, but for nan; digits may be separated by single
      underscores (`1_000`). To nearest, ties to even. Too large is no number, too small is a signed zero.
      FP16 and FP8: from the nearest FP32 to nearest; here too large for FP16 is infinity.
    - Integers: decimal digits, for signed types with a sign. Out of range is no number.
    - BOOL: `true` in any case is 1, everything else 0; `1` too.

    Raises ValueError when the target is a string or UNKNOWN.
    """
    return _parsed(texts, target)[0]


def parse_vector(text: bytes, target: DataType) -> Array | None:
    """The numbers of a text like `1:2.5:3`, as a 1-D array of `target.dtype`; None if any of them is none.

    Each is read as by `parse`; a BOOL must be `true` or `false`. An empty text is None: it holds one
    element, which is empty.
    Raises ValueError when the target is a string or UNKNOWN.
    """
    return parse_vectors([text], target)[0]


def parse_vectors(texts: Sequence[bytes], target: DataType) -> list[Array | None]:
    """What `parse_vector` makes of each text, at a fraction of the cost of as many calls.

    The arrays are slices of one, which lives as long as any of them.
    Raises ValueError when the target is a string or UNKNOWN.
    """
    vectors = [text.split(b":") for text in texts]
    values, parsed = _parsed([element for elements in vectors for element in elements], target)
    ends = list(itertools.accumulate(map(len, vectors), initial=0))
    return [values[a:b] if parsed[a:b].all() else None for a, b in itertools.pairwise(ends)]


def _parsed(texts: Sequence[bytes], target: DataType) -> tuple[Array, Mask]:
    """The numbers, and where there were any; 0 elsewhere."""
    wanted = _number(target)
    if wanted is DataType.BOOL:
        return _parsed_bools(texts)
    if wanted not in _FLOATS:
        return _parsed_integers(texts, wanted)
    wide, parsed = _parsed_float64(texts)
    if wanted is DataType.FP64:
        return wide, parsed
    single, parsed = _rounded_to_float32(texts, wide, parsed)
    with np.errstate(all="ignore"):
        return single.astype(wanted.dtype, copy=False), parsed


def _parsed_bools(texts: Sequence[bytes]) -> tuple[Array, Mask]:
    lowered = [text.lower() for text in texts]
    values = np.array([text == b"true" for text in lowered], np.uint8)
    return values, np.array([text in (b"true", b"false") for text in lowered], np.bool_)


def _without_empty(texts: Sequence[bytes]) -> tuple[Sequence[bytes], Mask | np.bool_]:
    """The texts with `0` for the empty ones, and which were not empty.

    Most texts that are no numbers are empty: with them out of the way the others need not be looked at one
    by one.
    """
    if b"" not in texts:
        return texts, np.True_
    return [text or b"0" for text in texts], np.array([bool(text) for text in texts])


def _consists_of(texts: Sequence[bytes], characters: bytes) -> bool:
    """Whether no text holds anything but these characters: one pass in C over all of them."""
    return not b"".join(texts).translate(None, characters)


_INTEGER = re.compile(rb"([+-]?)0*([0-9]{1,20})")


def _parsed_integers(texts: Sequence[bytes], wanted: DataType) -> tuple[Array, Mask]:
    least, most = _limits(wanted)
    signs = b"+-" if least else b""
    if _consists_of(texts, b"0123456789" + signs):
        # Python reads texts of these characters as the rules of `parse` do, and refuses the same ones.
        filled, present = _without_empty(texts)
        try:
            wide = np.array(list(map(int, filled)), np.int64 if signs else np.uint64)
        except (ValueError, OverflowError):
            pass  # at least one is no number: look at each
        else:
            inside = (wide >= least) & (wide <= most) & present
            return np.where(inside, wide, 0).astype(wanted.dtype), inside
    found = [_integer(text, bool(signs)) for text in texts]
    parsed = np.array([n is not None and least <= n <= most for n in found], np.bool_)
    kept = [n if ok else 0 for n, ok in zip(found, parsed, strict=True)]
    return np.array(kept, wanted.dtype), parsed


def _integer(text: bytes, signed: bool) -> int | None:
    match = _INTEGER.fullmatch(text)
    if match is None or (match[1] and not signed):
        return None
    return int(match[1] + match[2])


_DIGITS = rb"[0-9](?:_?[0-9])*"
_HEX_DIGITS = rb"[0-9a-f](?:_?[0-9a-f])*"
_DECIMAL = re.compile(
    rb"[+-]?(?:D(?:\.(?:D)?)?|\.D)(?:e[+-]?D)?".replace(b"D", _DIGITS),
    re.IGNORECASE,
)
_HEXADECIMAL = re.compile(
    rb"([+-]?)0x_?(?:(H)(?:\.(H)?)?|(?<!_)\.(H))p([+-]?D)".replace(b"H", _HEX_DIGITS).replace(b"D", _DIGITS),
    re.IGNORECASE,
)
_NAN: Final = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
"""The NaN that text stands for: its lowest bit is set, and recorded FP64 tensors show it."""

_SPECIAL: Final = {b"nan": _NAN} | {
    sign + name: math.copysign(math.inf, -1 if sign == b"-" else 1)
    for sign in (b"", b"+", b"-")
    for name in (b"inf", b"infinity")
}


def _parsed_float64(texts: Sequence[bytes]) -> tuple[npt.NDArray[np.float64], Mask]:
    if _consists_of(texts, b"0123456789+-.eE"):
        # As for integers; only what is out of range is infinite here, `inf` has other letters.
        filled, present = _without_empty(texts)
        try:
            values = np.array(list(map(float, filled)), np.float64)
        except ValueError:
            pass  # at least one is no number: look at each
        else:
            parsed = np.isfinite(values) & present
            return np.where(parsed, values, 0.0), parsed
    found = [_float(text) for text in texts]
    parsed = np.array([number is not None for number in found], np.bool_)
    return np.array([0.0 if number is None else number for number in found], np.float64), parsed


def _float(text: bytes) -> float | None:
    """The float64 nearest to the number, None when it is none or too large."""
    if _DECIMAL.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else None
    match = _HEXADECIMAL.fullmatch(text)
    if match is None:
        return _SPECIAL.get(text.lower())
    try:
        return float.fromhex(text.replace(b"_", b"").decode("ascii"))
    except OverflowError:
        return None


# A number that is rounded to float64 and from there to float32 is rounded twice. That goes wrong exactly
# when the first rounding lands halfway between two float32 numbers: only then the text is looked at again.


def _rounded_to_float32(
    texts: Sequence[bytes],
    wide: npt.NDArray[np.float64],
    parsed: Mask,
) -> tuple[npt.NDArray[np.float32], Mask]:
    """The numbers as float32, rounded once. What is finite but too large counts as not parsed."""
    with np.errstate(all="ignore"):
        single = wide.astype(np.float32)
    for place in np.flatnonzero(_is_halfway(wide) & parsed).tolist():
        single[place] = _nearer_neighbour(texts[place], float(wide[place]))
    too_large = np.isinf(single) & np.isfinite(wide)
    return np.where(too_large, np.float32(0), single), parsed & ~too_large


def nearest_float32(decimal: str) -> np.float32:
    """The float32 nearest to a decimal number, ties to even, infinity when it is too large.

    Raises ValueError when the text is not a number.
    """
    wide = float(decimal)
    if _is_halfway(np.array([wide])).any():
        return _nearer_neighbour(decimal.encode("ascii"), wide)
    with np.errstate(all="ignore"):
        return np.float32(wide)


def _is_halfway(wide: npt.NDArray[np.float64]) -> Mask:
    """Which float64 numbers lie exactly halfway between two neighbouring float32 numbers."""
    dropped = wide.view(np.uint64) & np.uint64((1 << 29) - 1)  # the bits that float32 has no room for
    magnitude = np.abs(wide)
    subnormal = magnitude < 2.0**-126  # there float32 numbers are 2^-149 apart
    odd_halves: Mask = np.where(subnormal, magnitude, 0) * 2.0**150 % 2 == 1
    return np.where(subnormal, odd_halves, np.equal(dropped, 1 << 28))


def _nearer_neighbour(text: bytes, halfway: float) -> np.float32:
    """Of the two float32 numbers around `halfway` the one nearer to the text; the even one in the middle."""
    with np.errstate(all="ignore"):
        even = np.float32(halfway)
        other = np.nextafter(even, np.float32(math.copysign(math.inf, halfway - float(even))))
    side = _compared(text, halfway)
    if side == 0:
        return even
    return max(even, other) if side > 0 else min(even, other)


_LEADING_ZEROS = re.compile(rb"(?<![0-9])0+(?=[0-9])")  # int() refuses texts of thousands of them


def _compared(text: bytes, number: float) -> int:
    """The sign of the difference between a text and the float64 nearest to it, neither 0 nor infinite.

    Exact, and linear in the length of the text, which a client may make as long as a request may be: that
    rules out Fraction(text).
    """
    match = _HEXADECIMAL.fullmatch(text)
    if match is None:
        exact, rounded = Decimal(text.decode("ascii")), Decimal(number)
        return (exact > rounded) - (exact < rounded)
    sign, whole, *fractions, exponent = (group.replace(b"_", b"") for group in match.groups(b""))
    fraction = b"".join(fractions)
    power = int(_LEADING_ZEROS.sub(b"", exponent)) - 4 * len(fraction)
    numerator, denominator = number.as_integer_ratio()  # mantissa · 2^power against this, both sides integers
    ours = int(sign + whole + fraction, 16) * denominator << max(power, 0)
    theirs = numerator << max(-power, 0)
    return (ours > theirs) - (ours < theirs)


# --- into text -------------------------------------------------------------------------------------------


def text(values: Array, source: DataType) -> list[bytes]:
    """The text form of each element of a 1-D array of type `source`.

    Floats: the fewest digits that read back as the same number (of FP32 for the smaller types), as `0.1`,
    `100000`, `NaN`, `+Inf`, `-0`; below 1e-4 and from 1e6 on as `1e-05`, `1.234567e+06`, with at least two
    digits of exponent. BOOL: `true` for every byte but zero, `false`.

    Raises ValueError when the source is a string or UNKNOWN, or the array is not 1-D.
    """
    kind = _number(source)
    if values.ndim != 1:
        raise ValueError(f"the text form of {kind.name} takes a 1-D array, not one of shape {values.shape}")
    if kind is DataType.BOOL:
        return [b"true" if flag else b"false" for flag in values.tolist()]
    if kind not in _FLOATS:
        return _json_numbers(values)
    with np.errstate(all="ignore"):
        return _float_texts(_widened(values, kind))


def vector_text(values: Array, source: DataType) -> bytes:
    """The text form of a vector: that of its elements (see `text`) joined with commas."""
    return b",".join(text(values, source))


def vector_texts(vectors: Sequence[Array], source: DataType) -> list[bytes]:
    """The text form of each of some 1-D arrays of type `source`, at a fraction of the cost of as many calls.

    Raises ValueError as `text` does.
    """
    if not vectors:
        return []
    forms = text(np.concatenate(vectors), source)
    ends = list(itertools.accumulate(map(len, vectors), initial=0))
    return [b",".join(forms[a:b]) for a, b in itertools.pairwise(ends)]


def _json_numbers(values: Array) -> list[bytes]:
    """As JSON writes them, floats with the fewest digits and without `.0`: orjson does so for whole arrays."""
    if not values.size:
        return []
    joined = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    return (joined[1:-1] + b",").replace(b".0,", b",")[:-1].split(b",")


def _float_texts(values: Array) -> list[bytes]:
    """The text form of float32 or float64: that of JSON from 1e-4 up to 1e6, else with an exponent."""
    texts = _json_numbers(values)
    magnitude = np.abs(values)
    special = (magnitude < 1e-4) & (magnitude != 0) | ~(magnitude < 1e6)
    if special.any():
        for place in np.flatnonzero(special).tolist():
            texts[place] = _special_form(texts[place], float(values[place]))
    return texts


def _special_form(form: bytes, value: float) -> bytes:
    if math.isnan(value):
        return b"NaN"
    if math.isinf(value):
        return b"+Inf" if value > 0 else b"-Inf"
    return _exponent_form(form)


def _exponent_form(form: bytes) -> bytes:
    """`1.5e+06` for `1500000`, `1.5e6` or `15e5`."""
    mantissa, _, power = form.partition(b"e")
    unsigned = mantissa.removeprefix(b"-")
    whole, _, fraction = unsigned.partition(b".")
    significant = (whole + fraction).lstrip(b"0")
    exponent = int(power or b"0") + len(significant) - len(fraction) - 1
    digits = significant.rstrip(b"0")
    sign = mantissa[: len(mantissa) - len(unsigned)]
    point = b"." if len(digits) > 1 else b""
    return b"%b%b%b%be%+03d" % (sign, digits[:1], point, digits[1:], exponent)
