"""HPACK, the header compression of HTTP/2 (RFC 7541): a decoder and an encoder, each for one connection.

A server's answers and a channel's requests hardly differ in their headers, so nearly all blocks are ones that were
seen before: those are looked up whole. Section numbers are those of RFC 7541.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rpc.http2 import ConnectionProtocolError, DenialOfServiceError, ErrorCode, Header

__all__ = ["TABLE_BYTES", "Decoder", "Encoder", "header_bytes", "huffman_decode", "never_indexed"]

TABLE_BYTES: Final = 4096
"""The size of a dynamic table unless SETTINGS say otherwise (RFC 9113 section 6.5.2)."""
_ENTRY_BYTES: Final = 32  # what an entry counts besides its name and value (section 4.1)
_KNOWN_BLOCKS: Final = 64
_KNOWN_BLOCK_BYTES: Final = 1024
_MAX_INTEGER: Final = 2**31 - 1

# Appendix A; the values are those of `:method`, `:path`, `:scheme`, `:status` and `accept-encoding`.
_STATIC: Final[tuple[Header, ...]] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow authorization "
            b"cache-control content-disposition content-encoding content-language content-length "
            b"content-location content-range "
            b"content-type cookie date etag expect expires from host if-match if-modified-since if-none-match "
            b"if-range if-unmodified-since last-modified link location max-forwards proxy-authenticate "
            b"proxy-authorization range referer refresh retry-after server set-cookie strict-transport-security "
            b"transfer-encoding user-agent vary via www-authenticate"
        ).split()
    ),
)
_STATIC_SIZE: Final = 61
_STATIC_FIELDS: Final[dict[Header, int]] = {field: index + 1 for index, field in enumerate(_STATIC)}
_STATIC_NAMES: Final[dict[bytes, int]] = {
    field[0]: index for field, index in reversed(list(_STATIC_FIELDS.items()))
}

# Appendix B: the bits that each byte takes, and the end of string. The code is canonical: with these lengths it is
# given, as codes of equal length are in the order of their symbols, and shorter ones before longer ones.
_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606"
    "0505050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817"
    "181816171817171717151617161717181615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a17"
    "1a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
_END_OF_STRING: Final = 256
_LONGEST: Final = 30


def _canonical() -> tuple[list[int], list[int], list[int], list[int]]:
    """By length: the end of its codes and the first of them, filled up to 30 bits, and the place of its symbols."""
    symbols = sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol))
    ends, firsts, places = [0], [0], [0]
    end = place = 0
    for length in range(1, _LONGEST + 1):
        count = _LENGTHS.count(length)
        firsts.append(end)
        places.append(place)
        end += count << (_LONGEST - length)
        place += count
        ends.append(end)
    return ends, firsts, places, symbols


def _wrong(what: str) -> ConnectionProtocolError:
    """What ends a connection: the dynamic table may be another than the peer's from now on (section 2.3.2.1)."""
    return ConnectionProtocolError(f"header block: {what}", ErrorCode.COMPRESSION_ERROR)


_ENDS, _FIRSTS, _PLACES, _SYMBOLS = _canonical()
_SHORTEST: Final = min(_LENGTHS)


def huffman_decode(data: bytes) -> bytes:
    """The text of a Huffman-coded string literal (section 5.2). Raises ConnectionProtocolError for a wrong one."""
    out = bytearray()
    held = bits = 0  # bits that have been read and belong to no symbol yet
    for byte in data:
        held = (held << 8) | byte
        bits += 8
        while bits >= _SHORTEST:
            # Bits that are still to come count as 0: a code is told by its own bits.
            window = held << (_LONGEST - bits) if bits <= _LONGEST else held >> (bits - _LONGEST)
            length = _SHORTEST
            while window >= _ENDS[length]:
                length += 1
            if length > bits:
                break
            symbol = _SYMBOLS[_PLACES[length] + ((window - _FIRSTS[length]) >> (_LONGEST - length))]
            if symbol == _END_OF_STRING:
                raise _wrong("a Huffman code has an end of string")
            out.append(symbol)
            bits -= length
            held &= (1 << bits) - 1
    if bits > 7 or held != (1 << bits) - 1:
        raise _wrong("a Huffman code is cut off")
    return bytes(out)


class Decoder:
    """Turns header blocks into fields, in the order in which they came."""

    def __init__(self, max_bytes: int, max_fields: int = 0) -> None:
        """`max_bytes`: of the names and values of a block and 32 for each field; more is refused.

        `max_fields` bounds their number, if it is not 0.
        """
        self.version = 0
        """Grows when blocks that were read before mean something else, or nothing."""
        self._max = max_bytes
        self._max_fields = max_fields or max_bytes
        self._entries: list[Header] = []  # of the dynamic table, the newest last
        self._size = 0
        self._limit = TABLE_BYTES
        self._known: dict[bytes, tuple[Header, ...]] = {}  # blocks, as long as the table stays as it is

    def decode(self, block: bytes) -> tuple[Header, ...]:
        """The fields of a block.

        Raises ConnectionProtocolError for one that is malformed and DenialOfServiceError for one that is too large;
        the connection is then of no more use, as the dynamic table may be wrong (section 2.3.2.1).
        """
        known = self._known.get(block)
        if known is not None:
            return known
        before = self.version
        fields = self.read(block)
        if self.version != before:
            self._known.clear()
        elif len(block) <= _KNOWN_BLOCK_BYTES:
            if len(self._known) >= _KNOWN_BLOCKS:
                self._known.clear()
            self._known[block] = fields
        return fields

    def known(self, block: bytes) -> tuple[Header, ...] | None:
        """The fields of a block that has come before and still means the same. Nothing changes by it."""
        return self._known.get(block)

    def read(self, block: bytes) -> tuple[Header, ...]:
        """As `decode`, for who keeps what comes of a block: it means the same as long as `version` is the same."""
        fields: list[Header] = []
        size = at = 0
        while at < len(block):
            kind = block[at]
            if kind >= 0x80:  # an indexed field (section 6.1)
                index, at = _integer(block, at, 0x7F)
                field = self._field(index)
            elif kind >= 0x40:  # a literal that is indexed (section 6.2.1)
                field, at = self._literal(block, at, 0x3F)
                self._insert(field)
            elif kind >= 0x20:  # a new size of the table (section 6.3)
                if fields:
                    raise _wrong("a new table size after a field")
                limit, at = _integer(block, at, 0x1F)
                self._resize(limit)
                continue
            else:  # a literal that is not indexed (sections 6.2.2 and 6.2.3)
                field, at = self._literal(block, at, 0x0F)
            size += len(field[0]) + len(field[1]) + _ENTRY_BYTES
            if size > self._max:
                raise DenialOfServiceError(
                    f"header block of more than the configured size of {self._max} bytes", "header_bytes"
                )
            if len(fields) >= self._max_fields:
                raise DenialOfServiceError(
                    f"header block of more than the configured count of {self._max_fields} fields",
                    "header_fields",
                )
            fields.append(field)
        return tuple(fields)

    def _field(self, index: int) -> Header:
        if 0 < index <= _STATIC_SIZE:
            return _STATIC[index - 1]
        place = len(self._entries) - (index - _STATIC_SIZE)
        if index == 0 or place < 0:
            raise _wrong(f"index {index}, must be from 1 to {_STATIC_SIZE + len(self._entries)}")
        return self._entries[place]

    def _literal(self, block: bytes, at: int, mask: int) -> tuple[Header, int]:
        index, at = _integer(block, at, mask)
        if index:
            name = self._field(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _insert(self, field: Header) -> None:
        self.version += 1
        self._entries.append(field)
        self._size += len(field[0]) + len(field[1]) + _ENTRY_BYTES
        self._evict()

    def _resize(self, limit: int) -> None:
        if limit > TABLE_BYTES:
            raise _wrong(f"a table of {limit} bytes, at most {TABLE_BYTES}")
        self.version += 1
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._entries.pop(0)
            self._size -= len(name) + len(value) + _ENTRY_BYTES

    def __repr__(self) -> str:
        return f"<Decoder {len(self._entries)} entries, {self._size} of {self._limit} bytes>"


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """The integer whose first bits are those under `mask` of the byte at `at`, and where it ends (section 5.1)."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        if at >= len(block) or shift > 28:
            raise _wrong("an integer is cut off or has more than 32 bits")
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if value > _MAX_INTEGER:
        raise _wrong("an integer has more than 31 bits")
    return value, at


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """The string literal at `at`, and where it ends (section 5.2)."""
    if at >= len(block):
        raise _wrong("a string is missing")
    coded = block[at] >= 0x80
    size, at = _integer(block, at, 0x7F)
    end = at + size
    if end > len(block):
        raise _wrong(f"a string of {size} bytes is cut off")
    text = block[at:end]
    return huffman_decode(text) if coded else text, end


class Encoder:
    """Turns fields into header blocks. What is indexed stays so: it takes one byte or two from then on.

    A name gets one entry of the dynamic table, with its first value, and when the table is full it stays as it is:
    fields with a value of their own in each call must not push those out that are always the same.
    """

    def __init__(self) -> None:
        self.version = 0
        """Grows when blocks that were made before mean something else, or nothing."""
        self._fields: dict[Header, int] = {}  # numbered in the order in which they came
        self._names: dict[bytes, int] = {}
        self._room = TABLE_BYTES
        self._limit = TABLE_BYTES
        self._resized = False

    def resize(self, limit: int) -> None:
        """The peer's table has `limit` bytes (SETTINGS_HEADER_TABLE_SIZE)."""
        limit = min(limit, TABLE_BYTES)
        if limit != self._limit:
            self._fields.clear()
            self._names.clear()
            self._room = self._limit = limit
            self._resized = True
            self.version += 1

    def encode(self, fields: Sequence[Header]) -> bytes:
        """A block of these fields, to be sent next, and once: `version` tells whether another is the same."""
        parts: list[bytes] = []
        if self._resized:
            self._resized = False
            self.version += 1
            parts.append(b"\x20")  # nothing stays (section 4.3)
            parts.append(_encode_integer(self._limit, 0x1F, 0x20))
        for field in fields:
            index = self._index(field)
            if index:
                parts.append(_encode_integer(index, 0x7F, 0x80))
            else:
                parts.append(self._insertion(field))
        return b"".join(parts)

    def _index(self, field: Header) -> int:
        """Where this field is in the tables; 0 if it is not."""
        index = _STATIC_FIELDS.get(field, 0)
        number = self._fields.get(field)
        return index if number is None else self._place(number)

    def _place(self, number: int) -> int:
        return _STATIC_SIZE + len(self._fields) - number

    def _insertion(self, field: Header) -> bytes:
        """A literal; it is indexed if the name is new and there is room."""
        name, value = field
        number = self._names.get(name)
        index = _STATIC_NAMES.get(name, 0) if number is None else self._place(number)
        size = len(name) + len(value) + _ENTRY_BYTES
        if number is not None or size > self._room:
            head = _encode_integer(index, 0x0F, 0)
        else:
            head = _encode_integer(index, 0x3F, 0x40)
            self._names[name] = self._fields[field] = len(self._fields)
            self._room -= size
            self.version += 1
        return head + (b"" if index else _encode_string(name)) + _encode_string(value)

    def __repr__(self) -> str:
        return f"<Encoder {len(self._fields)} entries, {self._limit - self._room} of {self._limit} bytes>"


def header_bytes(fields: Sequence[Header]) -> int:
    """What fields count: their names and values, and 32 each (section 4.1)."""
    return sum([len(name) + len(value) + _ENTRY_BYTES for name, value in fields])


def never_indexed(name: bytes, value: bytes) -> bytes:
    """A field that nobody indexes, as a part of any block (section 6.2.3)."""
    return b"\x10" + _encode_string(name) + _encode_string(value)


def _encode_string(text: bytes) -> bytes:
    """A string literal as it is: Huffman coding would save the wire a few bytes, and cost both ends time."""
    return _encode_integer(len(text), 0x7F, 0) + text


def _encode_integer(value: int, mask: int, pattern: int) -> bytes:
    if value < mask:
        return (pattern | value).to_bytes(1, "big")
    out = bytearray([pattern | mask])
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
