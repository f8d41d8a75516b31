"""Header compression: the examples of RFC 7541, and both ends against nghttp2's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ngh2 import Configuration, Connection, RequestReceived, Role

from rpc.hpack import Decoder, Encoder, header_bytes, never_indexed
from rpc.http2 import ConnectionProtocolError, DenialOfServiceError, Header, Setting
from tests.rpc.raw import HEADERS, PREFACE, SETTINGS, frame

LARGE = 1 << 20
ACK = 1
NOT_IN_VALUES = bytes(set(range(32)) - {9}) + b"\x7f"  # nghttp2 refuses them
REQUEST = b"\x83\x86\x84\x01\x01x"  # POST http / of x

# RFC 7541 appendix C: blocks of one connection one after the other, and their fields.
REQUESTS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "828684410f7777772e6578616d706c652e636f6d",
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
    ),
    (
        "828684be58086e6f2d6361636865",
        "828684be5886a8eb10649cbf",
        [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
            ("cache-control", "no-cache"),
        ],
    ),
    (
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ],
    ),
]


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "Huffman"])
def test_the_examples_of_the_rfc(coded: bool) -> None:
    decoder = Decoder(LARGE)
    for plain, huffman, fields in REQUESTS:
        expected = tuple((name.encode(), value.encode()) for name, value in fields)
        assert decoder.decode(bytes.fromhex(huffman if coded else plain)) == expected


def test_a_block_that_changes_nothing_is_read_once() -> None:
    decoder = Decoder(LARGE)
    block = b"\x88" + never_indexed(b"grpc-status", b"0")
    assert decoder.decode(block) == ((b":status", b"200"), (b"grpc-status", b"0"))
    assert decoder.decode(block) is decoder.decode(bytes(bytearray(block)))


def test_a_block_means_something_else_when_the_table_has_changed() -> None:
    decoder = Decoder(LARGE)
    assert decoder.decode(b"\x40\x01a\x01b") == ((b"a", b"b"),)
    assert decoder.decode(b"\xbe") == ((b"a", b"b"),)
    assert decoder.decode(b"\x40\x01c\x01d") == ((b"c", b"d"),)
    assert decoder.decode(b"\xbe") == ((b"c", b"d"),)
    assert decoder.decode(b"\xbf") == ((b"a", b"b"),)


def test_old_entries_leave_a_full_table() -> None:
    decoder = Decoder(LARGE)
    decoder.decode(b"\x3f\x21")  # 64 bytes: one entry and a half
    decoder.decode(b"\x40\x01a\x01b")
    decoder.decode(b"\x40\x01c\x01d")
    assert decoder.decode(b"\xbe") == ((b"c", b"d"),)
    with pytest.raises(ConnectionProtocolError, match="index 63, must be from 1 to 62"):
        decoder.decode(b"\xbf")


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("80", "index 0, must be from 1 to 61"),
        ("be", "index 62, must be from 1 to 61"),
        ("ff", "an integer is cut off"),
        ("ffffffffffff7f", "more than 32 bits"),
        ("ffffffffff7f", "more than 31 bits"),
        ("40", "a string is missing"),
        ("400561", "a string of 5 bytes is cut off"),
        ("40016105", "a string of 5 bytes is cut off"),
        ("8220", "a new table size after a field"),
        ("3fe21f", "a table of 4097 bytes, at most 4096"),
        ("400161811f", "padding"),  # '0000 1': then three bits of 1
        ("40016185ffffffffff", "end of string"),
        ("4001618100", "cut off"),
        ("40016182ffff", "cut off"),
    ],
)
def test_bad_blocks(block: str, reason: str) -> None:
    if reason == "padding":
        assert Decoder(LARGE).decode(bytes.fromhex(block)) == ((b"a", b"a"),)
        return
    with pytest.raises(ConnectionProtocolError, match=reason):
        Decoder(LARGE).decode(bytes.fromhex(block))


def test_large_blocks_are_refused() -> None:
    decoder = Decoder(100)
    assert header_bytes([(b"a", b"x" * 60)]) == 93
    assert decoder.decode(never_indexed(b"a", b"x" * 60)) == ((b"a", b"x" * 60),)
    with pytest.raises(DenialOfServiceError, match="more than the configured size of 100 bytes"):
        decoder.decode(never_indexed(b"a", b"x" * 60) * 2)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(block: bytes) -> None:
    decoder = Decoder(LARGE)
    for _ in range(2):
        try:
            decoder.decode(block)
        except ConnectionProtocolError:
            return


FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"x-a", b"grpc-message", b"date", b"content-language", b"x-bin", b"a" * 130]),
        st.binary(max_size=300).map(lambda raw: raw.translate(None, NOT_IN_VALUES).strip(b" \t")),
    ),
    max_size=8,
)


@given(st.lists(FIELDS, max_size=12))
def test_what_nghttp2_encodes_is_decoded(answers: list[list[Header]]) -> None:
    server = Connection(Role.SERVER)
    server.initiate_connection()
    server.receive_data(PREFACE + frame(SETTINGS))
    decoder = Decoder(LARGE)
    for number, fields in enumerate(answers):
        stream = 2 * number + 1
        server.receive_data(frame(HEADERS, REQUEST, flags=5, stream=stream))
        server.data_to_send()
        head = [(b":status", b"200"), *fields]
        server.send_response(stream, head, end_stream=True)
        data = server.data_to_send()
        assert decoder.decode(data[9 : 9 + int.from_bytes(data[:3], "big")]) == tuple(head)


@given(st.lists(st.one_of(FIELDS, st.sampled_from([0, 50, 200, 4096, 1 << 20])), max_size=16))
def test_what_is_encoded_nghttp2_decodes(steps: list[list[Header] | int]) -> None:
    """Whole connections, on which the peer changes its table's size now and then."""
    server = Connection(Role.SERVER, Configuration(max_inbound_header_list_size=LARGE))
    server.initiate_connection()
    server.data_to_send()
    server.receive_data(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
    encoder = Encoder()
    stream = 1
    kept: dict[int, tuple[int, bytes, tuple[Header, ...]]] = {}
    for step in steps:
        if isinstance(step, int):
            server.update_settings({Setting.HEADER_TABLE_SIZE: step})
            server.data_to_send()
            server.receive_data(frame(SETTINGS, flags=ACK))
            encoder.resize(step)
            continue
        fields = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/a/b"),
            (b":authority", b"x"),
            *step,
        )
        before = encoder.version
        block = encoder.encode(fields)
        blocks = [(block, fields)]
        if encoder.version == before:
            kept[stream] = (before, block, fields)
        blocks += [(old, known) for version, old, known in kept.values() if version == encoder.version]
        for sent, known in blocks:
            server.receive_data(frame(HEADERS, sent, flags=5, stream=stream))
            (got,) = [event for event in server.events() if isinstance(event, RequestReceived)]
            assert got.headers == known
            stream += 2


def test_what_is_the_same_in_every_call_takes_a_byte_a_field() -> None:
    encoder = Encoder()
    fields = ((b":method", b"POST"), (b":path", b"/a/b"), (b"te", b"trailers"), (b"token", b"x" * 100))
    first, second = encoder.encode(fields), encoder.encode(fields)
    version = encoder.version
    assert (len(first) > 100, len(second)) == (True, 4)
    assert encoder.encode(((b":path", b"/a/other"), (b"token", b"y"))) != b""
    assert encoder.version == version  # names have their entries
    assert encoder.encode(fields) == second


def test_huffman_codes_of_every_byte() -> None:
    """Against nghttp2, which codes what gets shorter by it: so each byte comes with many cheap ones."""
    server = Connection(Role.SERVER)
    server.initiate_connection()
    server.receive_data(PREFACE + frame(SETTINGS))
    decoder = Decoder(LARGE)
    for byte in set(range(256)) - set(NOT_IN_VALUES):
        stream = 2 * byte + 1
        value = b"a" * 20 + bytes([byte]) + b"e" * 20
        server.receive_data(frame(HEADERS, REQUEST, flags=5, stream=stream))
        server.data_to_send()
        server.send_response(stream, [(b":status", b"200"), (b"x", value)], end_stream=True)
        data = server.data_to_send()
        block = data[9 : 9 + int.from_bytes(data[:3], "big")]
        assert value not in block
        assert decoder.decode(block) == ((b":status", b"200"), (b"x", value))
