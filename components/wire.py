"""The few pieces of protobuf's wire format that are put together by hand.

https://protobuf.dev/programming-guides/encoding/: fields may come in any order, and a message written in pieces
is the concatenation of the pieces. That is what lets heads be encoded once and joined with a kernel's output.
"""

from __future__ import annotations

__all__ = ["WireError", "field_head", "varint"]


class WireError(Exception):
    """An upstream answered something that its query does not allow, or with an error; the message says what.

    `kind` is that of the `Failure` it becomes.
    """

    def __init__(self, message: str, kind: str = "BAD_ANSWER") -> None:
        super().__init__(message)
        self.kind = kind


def varint(value: int) -> bytes:
    """`value` (not negative) as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_head(tag: int, size: int) -> bytes:
    """What stands before the `size` bytes of a length-delimited field with this one-byte tag."""
    if size < 0x80:
        return bytes((tag, size))
    if size < 0x4000:
        return bytes((tag, size & 0x7F | 0x80, size >> 7))
    return bytes((tag,)) + varint(size)
