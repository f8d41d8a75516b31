"""Protobuf messages as no library writes them: fields in any order, unknown ones among them, bytes broken.

What a field is follows https://protobuf.dev/programming-guides/encoding/. Nothing here knows whether a message
is a good one: that is for the library to say.
"""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

__all__ = ["broken", "cut_anywhere", "field", "unknown_fields", "varint", "written"]

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
LARGEST_FIELD = (1 << 29) - 1


def varint(value: int, pad: int = 0) -> bytes:
    """`value` as a varint, `pad` bytes longer than it need be."""
    out = bytearray()
    while value >= 0x80 or pad:
        pad -= value < 0x80
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, wire: int, payload: bytes, tag_pad: int = 0, length_pad: int = 0) -> bytes:
    """One field: its tag, then the payload, with its length before it when the wire type has one."""
    length = varint(len(payload), length_pad) if wire == LENGTH else b""
    return varint(number << 3 | wire, tag_pad) + length + payload


PADS = st.sampled_from([0] * 8 + [1, 3, 4, 5, 9])
"""Mostly none. A tag of one byte may have four more, and a length."""


WORDS = st.sampled_from(["", "a", "user", "1234567", "x" * 130]) | st.text(
    st.characters(codec="ascii"), max_size=9
)
TEXTS = WORDS.map(str.encode) | st.text(max_size=5).map(str.encode) | st.binary(max_size=4)
"""Contents of string fields: mostly ASCII, also other UTF-8, and what is no UTF-8 at all."""


def string_fields(number: int, texts: st.SearchStrategy[bytes] = TEXTS) -> st.SearchStrategy[bytes]:
    return st.builds(lambda text, tag, length: field(number, LENGTH, text, tag, length), texts, PADS, PADS)


def unknown_fields(*known: int, most: int = 3) -> st.SearchStrategy[list[bytes]]:
    """Some fields that a message with these fields (and no others) does not know, of all wire types."""
    numbers = st.one_of(
        st.integers(1, 12), st.sampled_from([15, 16, 2047, 2048, LARGEST_FIELD]), st.just(0)
    ).filter(lambda number: number not in known)
    return st.lists(_fields(numbers), max_size=most)


def strange_fields(known: Iterable[int]) -> st.SearchStrategy[list[bytes]]:
    """The same, and known fields of wire types that are not theirs (theirs is LENGTH)."""
    wires = st.sampled_from([VARINT, FIXED64, GROUP, END_GROUP, FIXED32, 6, 7])
    mistyped = st.builds(lambda number, f: f(number), st.sampled_from(list(known)), wires.flatmap(_payload))
    return st.lists(mistyped, max_size=2)


def _fields(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    wires = st.sampled_from([VARINT, FIXED64, LENGTH, FIXED32] * 3 + [GROUP, END_GROUP, 6, 7])
    return st.builds(lambda number, f: f(number), numbers, wires.flatmap(_payload))


def _payload(wire: int) -> st.SearchStrategy[_Writer]:
    payload: st.SearchStrategy[bytes]
    if wire == VARINT:
        payload = st.builds(varint, st.integers(0, (1 << 64) - 1), st.sampled_from([0, 0, 0, 1, 9]))
    elif wire == FIXED64:
        payload = st.binary(min_size=8, max_size=8)
    elif wire == FIXED32:
        payload = st.binary(min_size=4, max_size=4)
    elif wire == LENGTH:
        payload = st.binary(max_size=12)
    else:
        payload = st.just(b"")
    return st.builds(_Writer, st.just(wire), payload, PADS, PADS)


class _Writer:
    """A field without its number."""

    def __init__(self, wire: int, payload: bytes, tag_pad: int, length_pad: int) -> None:
        self.wire = wire
        self.payload = payload
        self.tag_pad = tag_pad
        self.length_pad = length_pad

    def __call__(self, number: int) -> bytes:
        if self.wire == GROUP:  # one that ends where it should
            return field(number, GROUP, b"", self.tag_pad) + field(number, END_GROUP, b"")
        return field(number, self.wire, self.payload, self.tag_pad, self.length_pad)


@st.composite
def written(draw: st.DrawFn, parts: Iterable[bytes], extra: Iterable[bytes] = ()) -> bytes:
    """A message of these encoded fields, which stay in order, with the extra ones anywhere between them."""
    out = list(parts)
    for one in extra:
        out.insert(draw(st.integers(0, len(out))), one)
    return b"".join(out)


@st.composite
def broken(draw: st.DrawFn, body: bytes) -> bytes:
    """The message after an accident: cut off, bytes changed, put in or taken out."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["cut", "change", "insert", "drop"])):
            case "cut":
                body = body[:at]
            case "change":
                body = body[:at] + draw(st.binary(min_size=1, max_size=1)) + body[at + 1 :]
            case "insert":
                body = body[:at] + draw(st.binary(min_size=1, max_size=3)) + body[at:]
            case _:
                body = body[:at] + body[at + draw(st.integers(1, 3)) :]
    return body


def cut_anywhere(body: bytes) -> Iterable[bytes]:
    """Every beginning of a message but the whole of it."""
    return (body[:end] for end in range(len(body)))
