"""The format of messages, timeouts, metadata and status messages, by property and by example."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpc import wire
from rpc.hpack import Decoder
from rpc.status import RpcError, Status
from rpc.wire import (
    MessageReader,
    custom_metadata,
    decode_message,
    decode_timeout,
    decompress,
    encode_message,
    encode_metadata,
    message_parts,
    split_headers,
    timeout_field,
    whole_message,
)

LIMIT = 1000
IDENTITY = b"identity"


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def status_of(call: object, *arguments: object) -> Status:
    with pytest.raises(RpcError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.status


# -- messages ----------------------------------------------------------------------------------------------


@given(st.binary(max_size=LIMIT))
def test_a_message_survives(message: bytes) -> None:
    data = b"".join(message_parts(message))
    assert data == framed(message)
    assert whole_message(data, LIMIT, IDENTITY) == message


@given(st.lists(st.integers(0, 50_000), max_size=5))
def test_parts_are_one_message(sizes: list[int]) -> None:
    parts = tuple(bytes([i]) * size for i, size in enumerate(sizes))
    assert b"".join(message_parts(parts)) == framed(b"".join(parts))


def test_large_parts_are_not_copied() -> None:
    large = bytes(100_000)
    assert any(part is large for part in message_parts(large))
    assert any(part is large for part in message_parts((b"head", large)))


@given(st.lists(st.binary(max_size=200), max_size=8), st.data())
def test_messages_survive_any_split(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(framed(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = MessageReader(LIMIT, IDENTITY)
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
        assert reader.held <= LIMIT + wire.PREFIX
    assert found == messages
    assert reader.partial == ""
    assert reader.held == 0


@given(st.binary(min_size=1, max_size=50), st.data())
def test_a_cut_message_says_so(message: bytes, data: st.DataObject) -> None:
    stream = framed(message)
    cut = data.draw(st.integers(1, len(stream) - 1))
    reader = MessageReader(LIMIT, IDENTITY)
    assert reader.feed(stream[:cut]) == []
    assert "message ends" in reader.partial
    assert status_of(whole_message, stream[:cut], LIMIT, IDENTITY) is Status.INTERNAL


def test_a_large_length_is_refused_before_its_bytes_come() -> None:
    prefix = framed(bytes(LIMIT + 1))[:5]
    with pytest.raises(
        RpcError, match="message of 1001 bytes is larger than the limit of 1000 bytes"
    ) as caught:
        MessageReader(LIMIT, IDENTITY).feed(prefix)
    assert caught.value.status is Status.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("data", "encoding", "status"),
    [
        (b"", IDENTITY, Status.UNIMPLEMENTED),
        (b"\0\0", IDENTITY, Status.INTERNAL),
        (framed(b"a") + b"b", IDENTITY, Status.UNIMPLEMENTED),
        (framed(b"a", flag=2), IDENTITY, Status.INTERNAL),
        (framed(b"a", flag=1), IDENTITY, Status.INTERNAL),
        (framed(b"a", flag=1), b"gzip", Status.INTERNAL),
        (framed(b"a", flag=1), b"br", Status.UNIMPLEMENTED),
        (b"\xff" * 20, IDENTITY, Status.INTERNAL),
    ],
)
def test_wrong_bodies(data: bytes, encoding: bytes, status: Status) -> None:
    assert status_of(whole_message, data, LIMIT, encoding) is status


@given(st.binary(max_size=100), st.binary(max_size=8))
def test_garbage_is_an_error_or_a_message(data: bytes, encoding: bytes) -> None:
    try:
        message = whole_message(data, LIMIT, encoding)
    except RpcError as error:
        assert error.message
    else:
        assert framed(message)[1:] == data[1:]


# -- compression -------------------------------------------------------------------------------------------


@given(st.binary(max_size=LIMIT))
def test_compressed_messages(message: bytes) -> None:
    assert whole_message(framed(gzip.compress(message), flag=1), LIMIT, b"gzip") == message
    assert whole_message(framed(zlib.compress(message), flag=1), LIMIT + 100, b"deflate") == message


def test_a_bomb_is_not_inflated() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(
        RpcError, match="decompressed message is larger than the limit of 100000 bytes"
    ) as caught:
        decompress(bomb, b"gzip", 100_000)
    assert caught.value.status is Status.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("cut", [1, 5, 12, -1])
def test_truncated_compression(cut: int) -> None:
    assert status_of(decompress, gzip.compress(b"x" * 99)[:cut], b"gzip", LIMIT) is Status.INTERNAL


# -- timeouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"45m", 0.045), (b"6u", 6e-6), (b"99999999n", 0.099999999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert decode_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b" 1S", b"\xb2S", b"1SS"]
)
def test_bad_timeouts(text: bytes) -> None:
    assert status_of(decode_timeout, text) is Status.INVALID_ARGUMENT


@given(st.floats(0.0001, 3e11))
def test_a_timeout_is_never_longer_than_asked_and_hardly_shorter(seconds: float) -> None:
    ((name, value),) = Decoder(1 << 16).decode(timeout_field(seconds))
    assert name == b"grpc-timeout"
    sent = decode_timeout(value)
    assert sent <= seconds
    assert sent >= seconds * 0.999 - 0.00011 or seconds > 99_999_999 * 3600


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.00001])
def test_a_timeout_that_has_passed_is_the_shortest_there_is(seconds: float) -> None:
    assert decode_timeout(Decoder(1 << 16).decode(timeout_field(seconds))[0][1]) == pytest.approx(0.0001)


# -- status messages and metadata --------------------------------------------------------------------------


@given(st.text())
def test_messages_of_a_status(text: str) -> None:
    encoded = encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert encoded == encoded.strip()
    assert decode_message(encoded) == text.encode("utf-8", "replace").decode()


def test_plain_text_stays_readable() -> None:
    assert encode_message("no such config: 'a b' (100 %)") == b"no such config: 'a b' (100 %25)"


@pytest.mark.parametrize("value", [b"%", b"%zz", b"%ff", b"100%", b"\xff\xfe"])
def test_bad_escapes_do_no_harm(value: bytes) -> None:
    assert isinstance(decode_message(value), str)


NAMES = st.from_regex(rb"x[0-9a-z_.-]{0,20}", fullmatch=True)


@given(
    st.lists(st.tuples(NAMES, st.from_regex(rb"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True))),
    st.lists(st.binary(max_size=20)),
)
def test_metadata_survives(texts: list[tuple[bytes, bytes]], blobs: list[bytes]) -> None:
    metadata = [(name, value) for name, value in texts if not name.endswith(b"-bin")]
    metadata += [(b"x-bin", blob) for blob in blobs]
    assert list(custom_metadata(split_headers(encode_metadata(metadata))[1])) == metadata


def test_fields_of_the_protocol_are_no_metadata() -> None:
    fields, others = split_headers(
        [
            (b":path", b"/a/b"),
            (b"te", b"trailers"),
            (b"user-agent", b"x"),
            (b"grpc-tags", b"x"),
            (b"a", b"1"),
            (b"te", b"again"),
        ]
    )
    assert custom_metadata(others) == ((b"a", b"1"),)
    assert fields == {b":path": b"/a/b", b"te": b"again", b"user-agent": b"x"}


def test_binary_metadata_on_the_wire() -> None:
    assert custom_metadata([(b"a-bin", b"AAE=, AAE,")]) == (
        (b"a-bin", b"\0\1"),
        (b"a-bin", b"\0\1"),
        (b"a-bin", b""),
    )
    assert status_of(custom_metadata, [(b"a-bin", b"A!")]) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "field",
    [
        (b"Upper", b""),
        (b"", b""),
        (b":path", b""),
        (b"grpc-x", b""),
        (b"te", b""),
        (b"a", b"\n"),
        (b"a b", b""),
    ],
)
def test_what_is_no_metadata_is_not_sent(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r"is not|custom metadata"):
        encode_metadata([field])
