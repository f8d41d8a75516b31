"""The server's codec: beside nghttp2 as the client and as another server, and beside clients that break rules."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ngh2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rpc.frames import (
    Codec,
    Control,
    Data,
    Event,
    Finished,
    Leaving,
    Noted,
    PingAnswered,
    SettingsChanged,
    StreamEnd,
    Trailers,
    WindowUpdated,
    goaway_frame,
)
from rpc.hpack import Encoder
from rpc.http2 import (
    MAX_STREAM_ID,
    PREFACE,
    ConnectionProtocolError,
    DenialOfServiceError,
    ErrorCode,
    Header,
)
from rpc.server_codec import Glitch, Request, ResetReceived, ServerCodec, WholeRequest, fault_of_request
from tests.rpc.raw import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Ends,
    frame,
)

LARGE = 1 << 20
STREAMS = 4
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
REQUEST: tuple[Header, ...] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/b"),
    (b":authority", b"x"),
)
BLOCK = b"\x83\x86\x04\x04/a/b\x01\x01x"  # the same, without anything for the table
HEAD: tuple[Header, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK: tuple[Header, ...] = ((b"grpc-status", b"0"),)
CODE = ErrorCode


def codec(window: int = LARGE, streams: int = STREAMS) -> ServerCodec:
    return ServerCodec(
        max_header_bytes=1 << 16,
        max_header_fields=100,
        told_header_bytes=1 << 14,
        max_streams=streams,
        stream_window=window,
        connection_window=2 * window,
        max_acks=100,
    )


def settled(window: int = LARGE, streams: int = STREAMS, settings: bytes = b"") -> ServerCodec:
    """A codec whose client has said hello."""
    server = codec(window, streams)
    server.receive_data(PREFACE + frame(SETTINGS, settings) + frame(SETTINGS, flags=ACK))
    server.events()
    server.data_to_send(LARGE)
    return server


def asked(window: int = LARGE, settings: bytes = b"") -> ServerCodec:
    """The same, with a request begun on stream 1."""
    server = settled(window, settings=settings)
    server.receive_data(ask(1, end=False))
    assert told(server) == [(Request, False, 1)]
    return server


def ask(stream: int, *, end: bool = True, block: bytes = BLOCK) -> bytes:
    return frame(HEADERS, block, flags=END_HEADERS | (END_STREAM if end else 0), stream=stream)


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, code.to_bytes(4, "big"), stream=stream)


def answer(server: ServerCodec, stream: int, *body: bytes) -> None:
    server.send_answer(stream, HEAD, body or (b"answer",), OK, ())


ATTRIBUTES = ("data", "debug_data", "end_stream", "error_code", "payload", "problem", "stream_id")


def told(server: ServerCodec) -> list[Any]:
    """What has happened as plain values: type, then attributes by name."""
    return [
        (type(event), *(getattr(event, name) for name in ATTRIBUTES if hasattr(event, name)))
        for event in parts(server)
    ]


def parts(server: ServerCodec) -> Iterator[Event]:
    """What has happened; a request that is told as one event as its parts."""
    for event in server.events():
        yield from event.parts() if isinstance(event, WholeRequest) else (event,)


# -- beside nghttp2 as the client --------------------------------------------------------------------------


class Pair(Ends):
    """Our server and nghttp2's client. The server echoes what it was asked."""

    def __init__(self, chunks: Callable[[], int], window: int, client_window: int) -> None:
        self.server = codec(window, streams=100)
        self.client = ngh2.Connection(ngh2.Role.CLIENT)
        self.client.initiate_connection({4: client_window})
        self.chunks = chunks
        self.heads: dict[int, tuple[Header, ...]] = {}
        self.asked: dict[int, bytes] = {}
        self.answers: dict[int, list[Any]] = {}
        self.closed: dict[int, int] = {}
        self.parts = 1

    def serve(self) -> None:
        for event in parts(self.server):
            if isinstance(event, Request):
                self.heads[event.stream_id] = event.head.headers
                self.asked[event.stream_id] = b""
                if event.end_stream:
                    self.server.send_head(event.stream_id, HEAD, end_stream=True)
            elif isinstance(event, Data):
                self.asked[event.stream_id] += event.data
                if event.end_stream:
                    self._answer(event.stream_id)
            elif isinstance(event, Trailers):
                self._answer(event.stream_id)
            else:
                assert isinstance(event, Noted | SettingsChanged), event
                assert not isinstance(event, Glitch)

    def _answer(self, stream: int) -> None:
        body = self.asked[stream] + b"."
        size = -(-len(body) // self.parts)
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        self.server.send_answer(stream, HEAD, parts, OK, ((b"id", b"%d" % stream),))

    def hear(self) -> None:
        for event in self.client.events():
            if isinstance(event, ngh2.ResponseReceived):
                self.answers[event.stream_id] = [event.headers, b"", ()]
            elif isinstance(event, ngh2.DataReceived):
                self.answers[event.stream_id][1] += event.data
            elif isinstance(event, ngh2.TrailersReceived):
                self.answers[event.stream_id][2] = event.headers
            elif isinstance(event, ngh2.StreamClosed):
                self.closed[event.stream_id] = event.error_code


@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 70_000),
    st.sampled_from([LARGE, 70_000, 65_535]),
    st.sampled_from([LARGE, 65_535, 1_000]),
    st.integers(1, 3),
    st.data(),
)
def test_requests_and_answers_of_any_size(
    requests: list[tuple[int, bool]],
    piece: int,
    window: int,
    client_window: int,
    parts: int,
    data: st.DataObject,
) -> None:
    pair = Pair(lambda: piece, window, client_window)
    pair.parts = parts
    pair.run()
    bodies, heads = {}, {}
    for number, (size, with_trailers) in enumerate(requests):
        head = (*REQUEST, (b"number", b"%d" % (number % 2)), (b"content-length", b"%d" % size))
        stream = pair.client.send_request(head, end_stream=size == 0 and not with_trailers)
        heads[stream] = head
        bodies[stream] = bytes([65 + number]) * size
        if size:
            pair.client.send_data(stream, bodies[stream], end_stream=not with_trailers)
        if with_trailers:
            pair.client.send_trailers(stream, [(b"checksum", b"1")])
        if data.draw(st.booleans()):
            pair.run()
    pair.run()
    assert pair.heads == heads
    assert pair.asked == bodies
    for stream, (size, with_trailers) in zip(bodies, requests, strict=True):
        body = bodies[stream] + b"."
        expected: list[Any] = [HEAD, body, (*OK, (b"id", b"%d" % stream))]
        assert pair.answers[stream] == (expected if size or with_trailers else [HEAD, b"", ()])
    assert pair.closed == dict.fromkeys(bodies, 0)
    assert pair.server.queued_body_size() == 0
    assert not pair.server.want_write
    assert "0 streams" in repr(pair.server)


def test_long_headers_are_split_over_frames() -> None:
    pair = Pair(lambda: 1000, LARGE, LARGE)
    pair.run()
    long = tuple((b"x-%d" % i, b"v" * 2000) for i in range(20))
    stream = pair.client.send_request((*REQUEST, *long), end_stream=True)
    pair.run()
    assert pair.heads[stream] == (*REQUEST, *long)
    answered = pair.client.send_request(REQUEST)
    pair.run()
    pair.server.send_answer(answered, HEAD, (b"x",), OK, long)
    pair.run()
    assert pair.answers[answered] == [HEAD, b"x", (*OK, *long)]


# -- beside nghttp2 as another server ----------------------------------------------------------------------


def nghttp2_takes(headers: Sequence[Header], *, end: bool = True) -> bool:
    """Whether nghttp2 tells of a request with these headers."""
    server = ngh2.Connection(ngh2.Role.SERVER)
    server.initiate_connection({9: 1})
    server.receive_data(PREFACE + frame(SETTINGS) + ask(1, end=end, block=Encoder().encode(headers)))
    return any(isinstance(event, ngh2.RequestReceived) for event in server.events())


ODD_NAMES = [b"", b":", b"a b", b"a\0", b"\xe4", b"a:b", b"X-Upper"]
NAMES = st.sampled_from(
    [
        *b":method :scheme :path :authority :status :protocol :x host te connection upgrade a a-bin cookie".split(),
        *b"transfer-encoding keep-alive proxy-connection content-length content-type priority".split(),
        *ODD_NAMES,
    ]
)
ODD_VALUES = [b"", b" ", b" x", b"x ", b"\tx", b"x\t", b"a b", b"a\0b", b"a\nb", b"\x7f", b"\xff", b"/\xff"]
VALUES = st.one_of(
    st.sampled_from(
        [
            *b"GET POST OPTIONS CONNECT http https HTTP foo 1x / /a/b * a:80 [::1]:80 user@x /#%?".split(),
            *b"0 00 1 -1 +1 x 99999999999999999999 trailers Trailers gzip".split(),
            *ODD_VALUES,
        ]
    ),
    st.binary(max_size=3),
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "first", "remove", "replace"]), NAMES, VALUES), max_size=3
)


@given(CHANGES)
@example([("add", b"host", b"x"), ("add", b"host", b"x")])
@example([("add", b"content-length", b"0"), ("add", b"content-length", b"0")])
def test_the_requests_that_are_right_are_those_of_nghttp2(changes: list[tuple[str, bytes, bytes]]) -> None:
    headers = list(REQUEST)
    for how, name, value in changes:
        if how == "add":
            headers.append((name, value))
        elif how == "first":
            headers.insert(0, (name, value))
        else:
            headers = [
                (one, value if how == "replace" else old)
                for one, old in headers
                if one != name or how == "replace"
            ]
    server = settled()
    server.receive_data(ask(1, block=Encoder().encode(headers)))
    is_told = any(isinstance(event, Request) for event in server.events())
    assert is_told == nghttp2_takes(headers), fault_of_request(headers)
    if not is_told:
        assert server.data_to_send(LARGE) == reset(1, CODE.PROTOCOL_ERROR)


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority", b"host", b"a"])
def test_each_byte_of_a_value_is_as_good_as_with_nghttp2(name: bytes) -> None:
    for byte in range(256):
        fields = {**dict(REQUEST), b"host": b"x", b"a": b"x"}
        fields[name] += bytes([byte]) + (b"y" if name == b"a" else b"")
        headers = tuple(fields.items())
        assert (not fault_of_request(headers)) == nghttp2_takes(headers), bytes([byte])


def test_each_byte_of_a_name_is_as_good_as_with_nghttp2() -> None:
    for byte in range(256):
        headers = (*REQUEST, (b"a" + bytes([byte]), b""))
        assert (not fault_of_request(headers)) == nghttp2_takes(headers), bytes([byte])


BLOCKS = [
    BLOCK,
    BLOCK + b"\x0f\x0d\x013",  # content-length: 3
    b"\x83\x86\x84",  # no :authority
    b"\x83\x86\x84\x41\x01y",  # one for the table
    b"\x83\x86\x84\xbe",  # and the same from there
    b"\0\x01a\x01b",  # trailers
    b"\0\x02:a\x01b",
    b"\xff",
]
STEPS = st.one_of(
    st.builds(
        lambda block, end, stream: ask(stream, end=end, block=block),
        st.sampled_from(BLOCKS),
        st.booleans(),
        st.sampled_from([1, 3, 5, 7, 2]),
    ),
    st.builds(
        lambda size, end, stream: frame(DATA, bytes(size), flags=end, stream=stream),
        st.sampled_from([0, 1, 3, 5]),
        st.integers(0, 1),
        st.sampled_from([1, 3, 5, 7]),
    ),
    st.builds(
        frame,
        st.sampled_from([PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, 77]),
        st.sampled_from(
            [b"", bytes(4), b"\0\0\0\1", b"\x7f\xff\xff\xff", bytes(5), bytes(8), b"\0\4\0\0\xff\xff"]
        ),
        flags=st.sampled_from([0, 0, 1, 4]),
        stream=st.sampled_from([0, 0, 1, 3, 5]),
    ),
)


def complete(events: Sequence[Any], kinds: tuple[type, ...]) -> set[int]:
    """The streams whose request is complete."""
    return {
        event.stream_id for event in events if isinstance(event, kinds) and getattr(event, "end_stream", True)
    }


@given(st.lists(STEPS, min_size=1, max_size=8))
def test_nothing_is_served_that_nghttp2_would_not_serve(steps: list[bytes]) -> None:
    ours, theirs = settled(), ngh2.Connection(ngh2.Role.SERVER)
    theirs.initiate_connection({3: STREAMS, 9: 1})
    theirs.receive_data(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
    for step in steps:
        try:
            ours.receive_data(step)
        except ConnectionProtocolError:
            return
        try:
            theirs.receive_data(step)
        except ngh2.NGH2Error:
            return  # what comes after this cannot be compared
        events = theirs.events()
        if any(isinstance(event, ngh2.ConnectionClosed) for event in events):
            return
        served = complete(list(parts(ours)), (Request, Data, Trailers))
        assert served == complete(events, (ngh2.RequestReceived, ngh2.DataReceived, ngh2.TrailersReceived))
        theirs.data_to_send()
        ours.data_to_send(LARGE)


# -- requests ----------------------------------------------------------------------------------------------


def test_a_request_in_two_frames() -> None:
    server = settled()
    server.receive_data(ask(1, end=False) + frame(DATA, b"body", flags=END_STREAM, stream=1))
    request, data = server.events()
    assert isinstance(request, Request)
    assert (request.stream_id, request.end_stream, request.head.headers) == (1, False, REQUEST)
    assert isinstance(data, Data)
    assert (data.stream_id, data.data, data.end_stream) == (1, b"body", True)
    assert server.data_to_send(LARGE) == b""


WHOLE = ask(3, end=False) + frame(DATA, b"body", flags=END_STREAM, stream=3)


def asked_before() -> ServerCodec:
    """A codec that knows the block of WHOLE."""
    server = settled(window=100_000)
    server.receive_data(ask(1))
    server.events()
    return server


def test_a_request_that_comes_whole_is_one_event() -> None:
    server = asked_before()
    server.receive_data(WHOLE + frame(PING, bytes(8), flags=ACK))
    whole, _ = server.events()
    assert isinstance(whole, WholeRequest)
    assert (whole.stream_id, whole.received[whole.start : whole.end]) == (3, b"body")
    assert whole.head.headers == REQUEST
    answer(server, 3)
    assert 3 not in server._streams


def test_a_request_in_two_pieces_is_the_same() -> None:
    server = asked_before()
    server.receive_data(WHOLE)
    expected = told(server)
    assert expected == [(Request, False, 3), (Data, b"body", True, 3)]
    for cut in range(1, len(WHOLE)):
        server = asked_before()
        server.receive_data(WHOLE[:cut])
        first = told(server)
        server.receive_data(WHOLE[cut:])
        assert first + told(server) == expected


@pytest.mark.parametrize(
    "wire",
    [
        WHOLE.replace(b"\0\0\4\0\1", b"\0\0\4\0\0"),  # DATA without END_STREAM
        WHOLE.replace(b"\0\0\4\0\1", b"\0\0\4\0\x09"),  # padding of 98 bytes
        WHOLE.replace(b"\0\1\0\0\0\3", b"\0\1\0\0\0\5"),  # DATA of a stream that is not open
        WHOLE.replace(b"\0\0\0\3", b"\0\0\0\1"),  # a stream that was used
        WHOLE.replace(b"\0\0\0\3", b"\0\0\0\4"),  # a stream that is no client's
        WHOLE.replace(b"/a/b", b"/a/c"),  # another head
        ask(3, end=False) + frame(DATA, bytes(16_385), flags=END_STREAM, stream=3),
        ask(3, end=False) * 2,
    ],
)
def test_a_request_with_a_difference_is_read_frame_by_frame(wire: bytes) -> None:
    def heard(pieces: list[bytes]) -> list[Any]:
        server = asked_before()
        try:
            for piece in pieces:
                server.receive_data(piece)
        except ConnectionProtocolError as error:
            return [str(error)]
        events = server.events()
        assert not any(isinstance(event, WholeRequest) for event in events)
        return [type(event) for event in events]

    assert heard([wire]) == heard([wire[at : at + 1] for at in range(len(wire))])


def test_whole_requests_take_from_the_window() -> None:
    server = settled(window=65_535, streams=100)
    body = bytes(16_000)
    for stream in range(1, 21, 2):
        server.receive_data(ask(stream, end=False) + frame(DATA, body, flags=END_STREAM, stream=stream))
    updates = server.data_to_send(LARGE)
    assert updates == frame(WINDOW_UPDATE, (5 * 16_000).to_bytes(4, "big")) * 2
    kinds = [type(event) for event in server.events()]
    assert kinds.count(WholeRequest) == 7  # not the first, and not those that give the window back


def test_a_head_that_was_seen_before_is_the_same_object() -> None:
    server = settled()
    server.receive_data(ask(1) + ask(3))
    first, second = [event.head for event in server.events() if isinstance(event, Request)]
    assert first is second
    server.receive_data(
        ask(5, block=b"\x83\x86\x84\x41\x01y")
    )  # the table changes: blocks may mean something else
    server.receive_data(ask(7))
    third = [event.head for event in server.events() if isinstance(event, Request)][-1]
    assert third is not first
    assert third.headers == first.headers == REQUEST


def test_the_same_block_means_what_the_table_says() -> None:
    server = settled(streams=10)
    for stream, value in ((1, b"y"), (5, b"z")):
        server.receive_data(ask(stream, block=b"\x83\x86\x84\x41\x01" + value))
        server.receive_data(ask(stream + 2, block=b"\x83\x86\x84\xbe"))
        heads = [event.head.headers for event in server.events() if isinstance(event, Request)]
        assert [dict(head)[b":authority"] for head in heads] == [value, value]


def test_heads_that_are_kept_are_few_and_small() -> None:
    server = settled(streams=1000)
    for number in range(500):
        server.receive_data(ask(2 * number + 1, block=BLOCK + b"\0\x01a\x03%03d" % number))
    assert len(server._heads) <= 32
    before = dict(server._heads)
    server.receive_data(ask(1001, block=BLOCK + b"\0\x01a\x7f\x81\x0f" + bytes(b"v" * 2048)))
    assert isinstance(server.events()[-1], Request)
    assert server._heads == before


def test_padding_and_priorities_are_not_told() -> None:
    server = settled()
    flags = END_HEADERS | PADDED | WITH_PRIORITY
    server.receive_data(frame(HEADERS, b"\x02\0\0\0\3\x07" + BLOCK + bytes(2), flags=flags, stream=1))
    server.receive_data(
        frame(PRIORITY, b"\0\0\0\3\x07", stream=1) + frame(0x10, b"\0\0\0\1u=1") + frame(99, b"?")
    )
    server.receive_data(frame(DATA, b"\x03abc\0\0\0", flags=PADDED | END_STREAM, stream=1))
    assert told(server) == [(Request, False, 1), *[(Control,)] * 3, (Data, b"abc", True, 1)]


def test_pings_and_settings_are_acknowledged() -> None:
    server = settled()
    server.receive_data(frame(PING, b"12345678") + frame(SETTINGS) + frame(PING, b"87654321", flags=ACK))
    assert server.data_to_send(LARGE) == frame(PING, b"12345678", flags=ACK) + frame(SETTINGS, flags=ACK)
    assert told(server) == [(Control,), (SettingsChanged,), (PingAnswered, b"87654321")]


def test_windows_are_given_back_when_half_is_used() -> None:
    server = asked(window=100_000)
    piece = frame(DATA, bytes(15_000), stream=1)
    server.receive_data(piece * 3)
    assert server.data_to_send(LARGE) == b""
    server.receive_data(piece)
    assert server.data_to_send(LARGE) == frame(WINDOW_UPDATE, (60_000).to_bytes(4, "big"), stream=1)
    server.receive_data(piece * 3)
    assert server.data_to_send(LARGE) == frame(WINDOW_UPDATE, (105_000).to_bytes(4, "big"))


# -- answers -----------------------------------------------------------------------------------------------


def test_an_answer_is_one_piece() -> None:
    server = asked()
    server.receive_data(frame(DATA, b"x", flags=END_STREAM, stream=1))
    answer(server, 1, b"body")
    answer(server, 1, b"again")  # it is over
    head, trailers = Encoder(), b""
    block = head.encode(HEAD)
    trailers = head.encode(OK)
    assert server.data_to_send(LARGE) == (
        frame(HEADERS, block, flags=END_HEADERS, stream=1)
        + frame(DATA, b"body", stream=1)
        + frame(HEADERS, trailers, flags=END_HEADERS | END_STREAM, stream=1)
    )
    assert server._streams == {}


def test_trailers_wait_behind_the_body() -> None:
    server = asked(settings=b"\0\4\0\0\0\x0a")  # a window of 10 bytes
    answer(server, 1, bytes(25))
    server.send_trailers(1, OK)
    server.send_data(1, b"more")
    first = server.data_to_send(LARGE)
    assert first.endswith(frame(DATA, bytes(10), stream=1))
    server.receive_data(ask(3) + frame(WINDOW_UPDATE, b"\0\0\0\x64", stream=3))
    answer(server, 3, b"passes")  # its blocks come before the trailers that wait
    assert b"passes" in server.data_to_send(LARGE)
    server.receive_data(frame(WINDOW_UPDATE, b"\0\0\0\x64", stream=1))
    last = server.data_to_send(LARGE)
    assert last.startswith(frame(DATA, bytes(15), stream=1))
    assert last[9 + 15 + 3 : 9 + 15 + 5] == bytes([HEADERS, END_HEADERS | END_STREAM])
    assert server.queued_body_size() == 0


def test_a_stream_of_messages_and_its_end() -> None:
    server = asked()
    server.send_head(1, HEAD)
    server.send_data(1, b"one")
    server.send_data(1, b"two", end_stream=True)
    out = server.data_to_send(LARGE)
    assert out.endswith(frame(DATA, b"onetwo", flags=END_STREAM, stream=1))
    server.send_data(1, b"late")
    server.send_trailers(1, OK)
    server.send_head(1, HEAD)
    assert server.data_to_send(LARGE) == b""
    server.receive_data(frame(DATA, flags=END_STREAM, stream=1))
    assert server._streams == {}


def test_what_is_sent_on_a_stream_that_is_over_is_dropped() -> None:
    server = asked()
    server.receive_data(reset(1, CODE.CANCEL))
    answer(server, 1)
    server.send_head(1, HEAD)
    server.send_data(1, b"x")
    server.send_trailers(1, OK)
    server.reset_stream(1, CODE.NO_ERROR)
    assert server.data_to_send(LARGE) == b""
    assert told(server) == [(StreamEnd, CODE.CANCEL, "", 1), (ResetReceived,)]


def test_a_reset_drops_what_waits() -> None:
    server = asked(settings=b"\0\4\0\0\0\x0a")
    answer(server, 1, bytes(100))
    server.data_to_send(LARGE)
    assert (server.queued_body_size(), server.queued_body_size(1)) == (90, 90)
    server.receive_data(reset(1, CODE.CANCEL))
    assert (server.queued_body_size(), server.queued_body_size(1)) == (0, 0)
    assert not server.want_write


def test_an_answer_goes_before_the_reset_behind_it() -> None:
    server = asked()
    server.send_head(1, HEAD, end_stream=True)
    server.reset_stream(1, CODE.NO_ERROR)
    out = server.data_to_send(LARGE)
    assert out[3] == HEADERS
    assert out.endswith(reset(1, CODE.NO_ERROR))


def test_no_more_bytes_at_once_than_asked_for() -> None:
    server = asked(settings=b"\0\4\x10\0\0\0")
    server.receive_data(frame(WINDOW_UPDATE, b"\x10\0\0\0"))
    answer(server, 1, bytes(300_000))
    server.data_to_send(1)
    while server.queued_body_size():
        assert 0 < len(server.data_to_send(100_000)) <= 100_000 or not server.queued_body_size()


def test_what_was_made_under_old_settings_leaves_before_new_ones_are_acknowledged() -> None:
    server = asked()
    answer(server, 1, bytes(100))
    server.receive_data(frame(SETTINGS, b"\0\1\0\0\0\0\0\4\0\0\0\x0a"))  # no table, windows of 10 bytes
    out = server.data_to_send(LARGE)
    assert out.index(bytes(100)) < out.index(frame(SETTINGS, flags=ACK))
    assert out.endswith(frame(SETTINGS, flags=ACK))


# -- what is on its way for streams that are over ----------------------------------------------------------


def test_what_was_on_its_way_is_ignored() -> None:
    server = asked()
    server.reset_stream(1, CODE.NO_ERROR)
    server.data_to_send(LARGE)
    assert told(server) == [(StreamEnd, CODE.NO_ERROR, "", 1)]
    server.receive_data(frame(DATA, b"x" * 1000, stream=1) + frame(DATA, b"", stream=1))
    server.receive_data(frame(WINDOW_UPDATE, b"\0\0\0\1", stream=1) + ask(1, block=b"\x40\x01a\x01b"))
    assert told(server) == [(Noted,), (Control,), (WindowUpdated,), (Noted,), (Noted,)]
    server.receive_data(ask(3, block=b"\x83\x86\x84\x01\x01x\xbe"))  # the table has what those trailers added
    (request,) = server.events()
    assert isinstance(request, Request)
    assert request.head.headers[-1] == (b"a", b"b")
    assert server.data_to_send(LARGE) == b""


def test_streams_over_the_limit_are_refused() -> None:
    server = settled()
    for stream in range(1, 2 * STREAMS + 3, 2):
        server.receive_data(ask(stream, end=False))
    assert told(server) == [*[(Request, False, stream) for stream in (1, 3, 5, 7)], (Glitch,)]
    assert server.data_to_send(LARGE) == reset(9, CODE.REFUSED_STREAM)
    server.receive_data(reset(1, CODE.CANCEL) + ask(11))
    assert told(server)[-1] == (Request, True, 11)


def test_few_resets_are_remembered() -> None:
    server = settled()
    for stream in range(1, 2001, 2):
        server.receive_data(ask(stream, block=b"\x83"))
    assert len(server._reset_ids) == 2 * STREAMS
    assert [kind for kind, *_ in told(server)] == [Glitch] * 1000


# -- leaving -----------------------------------------------------------------------------------------------


def test_leaving_in_two_steps() -> None:
    server = asked()
    server.announce_leaving()
    assert server.data_to_send(LARGE) == goaway_frame(MAX_STREAM_ID, 0, b"")
    server.receive_data(ask(3))  # it has crossed the notice
    assert told(server) == [(Request, True, 3)]
    server.leave()
    assert server.data_to_send(LARGE) == goaway_frame(3, 0, b"")
    late = ask(5, end=False, block=b"\x83\x86\x84\x01\x01x\x40\x01a\x01b")
    server.receive_data(late + frame(DATA, b"late", flags=END_STREAM, stream=5) + reset(5, 8))
    assert told(server) == [(Glitch,), (Noted,), (Noted,), (ResetReceived,)]
    server.receive_data(frame(DATA, b"x", flags=END_STREAM, stream=1))
    assert told(server) == [(Data, b"x", True, 1)]
    answer(server, 1)
    server.send_goaway(CODE.NO_ERROR, debug_data=b"drained")
    assert goaway_frame(3, 0, b"drained") in server.data_to_send(LARGE)
    server.receive_data(b"anything")
    assert not server.want_read


@pytest.mark.parametrize("last_id", [0, 1, MAX_STREAM_ID])  # clients in Go name a stream of their own
def test_a_client_that_leaves_gets_its_answers(last_id: int) -> None:
    server = asked()
    server.receive_data(goaway_frame(last_id, CODE.NO_ERROR, b"bye"))
    assert told(server) == [(Leaving, b"bye", 0)]
    server.receive_data(frame(DATA, b"x", flags=END_STREAM, stream=1))
    answer(server, 1)
    assert told(server) == [(Data, b"x", True, 1), (Finished, b"bye", 0)]
    assert b"answer" in server.data_to_send(LARGE)
    assert not server.want_read


# -- clients that do what they must not --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "code", "problem"),
    [
        (frame(WINDOW_UPDATE, bytes(4), stream=1), CODE.PROTOCOL_ERROR, "WINDOW_UPDATE by 0"),
        (frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff", stream=1), CODE.FLOW_CONTROL_ERROR, "by 2147483647"),
        (frame(DATA, bytes(10_001), stream=1), CODE.FLOW_CONTROL_ERROR, "its window of 10000"),
        (frame(DATA, bytes(10_001), flags=1, stream=1), CODE.FLOW_CONTROL_ERROR, "its window of 10000"),
        (ask(1, end=False, block=b""), CODE.PROTOCOL_ERROR, "a second header block"),
        (ask(1, block=b"\x84"), CODE.PROTOCOL_ERROR, "trailers: b':path'"),
        (ask(1, block=b"\0\2te\1x"), CODE.PROTOCOL_ERROR, "te is b'x'"),
        (ask(1, block=b"\0\1A\1x"), CODE.PROTOCOL_ERROR, "is no name of a field"),
        (
            frame(DATA, b"", flags=1, stream=1) + frame(DATA, b"x", stream=1),
            CODE.STREAM_CLOSED,
            "after the end",
        ),
        (frame(DATA, b"", flags=1, stream=1) + ask(1, block=b""), CODE.STREAM_CLOSED, "after the end"),
    ],
)
def test_mistakes_that_cost_a_stream(wire: bytes, code: ErrorCode, problem: str) -> None:
    server = asked(window=10_000)
    server.receive_data(wire[:-1])
    server.receive_data(wire[-1:])
    events = server.events()
    (end,) = [event for event in events if isinstance(event, StreamEnd)]
    assert (end.stream_id, end.error_code) == (1, code)
    assert problem in end.problem
    assert any(isinstance(event, Glitch) for event in events)
    assert server.data_to_send(LARGE).endswith(reset(1, code))
    server.receive_data(ask(3))
    assert told(server) == [(Request, True, 3)]  # nobody else is concerned


@pytest.mark.parametrize(
    ("length", "bodies"),
    [
        (3, [b"ab"]),
        (3, [b"abcd"]),
        (3, [b"ab", b"cd"]),
        (3, [b"ab", b""]),
        (0, [b"a"]),
        (3, []),
    ],
)
def test_bodies_that_are_not_as_long_as_declared(length: int, bodies: list[bytes]) -> None:
    server = settled()
    block = BLOCK + b"\x0f\x0d\x01%d" % length
    server.receive_data(ask(1, end=not bodies, block=block))
    for number, body in enumerate(bodies):
        flags = END_STREAM if number + 1 == len(bodies) else 0
        server.receive_data(frame(DATA, body, flags=flags, stream=1))
    assert reset(1, CODE.PROTOCOL_ERROR) in server.data_to_send(LARGE)
    assert not complete(server.events(), (Request, Data))


def test_trailers_before_the_declared_length() -> None:
    server = settled()
    server.receive_data(ask(1, end=False, block=BLOCK + b"\x0f\x0d\x013") + frame(DATA, b"ab", stream=1))
    server.receive_data(ask(1, block=b""))
    (end,) = [event for event in server.events() if isinstance(event, StreamEnd)]
    assert end.problem == "it ends 1 bytes before its content-length"


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "its preface is wrong"),
        (PREFACE[:-1] + b"x", "its preface is wrong"),
        (PREFACE + frame(PING, bytes(8)), "its first frame is not SETTINGS"),
        (PREFACE + frame(SETTINGS, flags=ACK), "its first frame is not SETTINGS"),
        (PREFACE + frame(SETTINGS, b"\0\4\x80\0\0\0"), "INITIAL_WINDOW_SIZE is 2147483648"),
        (PREFACE + frame(SETTINGS, b"\0\5\0\0\0\1"), "MAX_FRAME_SIZE is 1"),
        (PREFACE + frame(SETTINGS, b"\0\5\1\0\0\0"), "MAX_FRAME_SIZE is 16777216"),
        (PREFACE + frame(SETTINGS, b"\0\2\0\0\0\2"), "ENABLE_PUSH is 2"),
        (PREFACE + frame(SETTINGS, b"\0\x08\0\0\0\2"), "ENABLE_CONNECT_PROTOCOL is 2"),
        (PREFACE + frame(SETTINGS, b"\0\x09\0\0\0\2"), "NO_RFC7540_PRIORITIES is 2"),
        (PREFACE + frame(SETTINGS, b"\0"), "SETTINGS of 1 bytes"),
    ],
)
@pytest.mark.parametrize("piece", [1, 1000])
def test_bad_beginnings(wire: bytes, reason: str, piece: int) -> None:
    server = codec()
    with pytest.raises(ConnectionProtocolError, match=reason):
        for at in range(0, len(wire), piece):
            server.receive_data(wire[at : at + piece])


@pytest.mark.parametrize(
    ("wire", "code", "reason"),
    [
        (frame(DATA, bytes(16_385), stream=1), CODE.FRAME_SIZE_ERROR, "frame of 16385 bytes, at most 16384"),
        (frame(DATA, b"x"), CODE.PROTOCOL_ERROR, "stream 0"),
        (frame(DATA, b"x", stream=2), CODE.PROTOCOL_ERROR, "stream 2, which has never been opened"),
        (frame(DATA, b"x", stream=3), CODE.PROTOCOL_ERROR, "stream 3, which has never been opened"),
        (frame(DATA, b"\x05x", flags=PADDED, stream=1), CODE.PROTOCOL_ERROR, "padding is longer"),
        (ask(0), CODE.PROTOCOL_ERROR, "HEADERS on stream 0"),
        (ask(2), CODE.PROTOCOL_ERROR, "HEADERS on stream 2, which is no client's"),
        (ask(5) + ask(3), CODE.STREAM_CLOSED, "HEADERS on stream 3, which is closed"),
        (frame(HEADERS, b"\x88", flags=0), CODE.PROTOCOL_ERROR, "HEADERS on stream 0"),
        (frame(HEADERS, b"\x05\x88", flags=4 | PADDED, stream=1), CODE.PROTOCOL_ERROR, "padding is longer"),
        (
            frame(HEADERS, b"\x88", flags=4 | 32, stream=3),
            CODE.FRAME_SIZE_ERROR,
            "too short for its priority",
        ),
        (frame(HEADERS, b"\0\0\0\3\1", flags=4 | 32, stream=3), CODE.PROTOCOL_ERROR, "depends on itself"),
        (frame(PRIORITY, b"\x80\0\0\3\1", stream=3), CODE.PROTOCOL_ERROR, "depends on itself"),
        (frame(PRIORITY, bytes(5)), CODE.PROTOCOL_ERROR, "PRIORITY on stream 0"),
        (frame(PRIORITY, bytes(4), stream=3), CODE.FRAME_SIZE_ERROR, "PRIORITY of 4 bytes"),
        (ask(3, block=b"\xbe"), CODE.COMPRESSION_ERROR, "index 62"),
        (ask(3, block=b"\x80"), CODE.COMPRESSION_ERROR, "index 0"),
        (ask(1, block=b"\x83\x3f"), CODE.COMPRESSION_ERROR, "after a field"),
        (frame(HEADERS, stream=3) + frame(PING, bytes(8)), CODE.PROTOCOL_ERROR, "frame of type 6 within"),
        (frame(HEADERS, stream=3) + frame(99), CODE.PROTOCOL_ERROR, "frame of type 99 within"),
        (frame(HEADERS, stream=3) + frame(CONTINUATION, stream=5), CODE.PROTOCOL_ERROR, "type 9 within"),
        (frame(CONTINUATION, b"\x88", flags=4, stream=1), CODE.PROTOCOL_ERROR, "without HEADERS"),
        (frame(RST_STREAM, b"x", stream=1), CODE.FRAME_SIZE_ERROR, "RST_STREAM of 1 bytes"),
        (frame(RST_STREAM, bytes(4)), CODE.PROTOCOL_ERROR, "stream 0"),
        (frame(RST_STREAM, bytes(4), stream=3), CODE.PROTOCOL_ERROR, "stream 3, which has never"),
        (frame(SETTINGS, b"x" * 6, flags=ACK), CODE.FRAME_SIZE_ERROR, "SETTINGS of 6 bytes"),
        (frame(SETTINGS, stream=1), CODE.PROTOCOL_ERROR, "SETTINGS of 0 bytes on stream 1"),
        (frame(SETTINGS, flags=ACK), CODE.PROTOCOL_ERROR, "there were none to acknowledge"),
        (frame(5, bytes(8), stream=1), CODE.PROTOCOL_ERROR, "PUSH_PROMISE"),
        (frame(PING, b"x"), CODE.FRAME_SIZE_ERROR, "PING of 1 bytes"),
        (frame(PING, bytes(8), stream=1), CODE.PROTOCOL_ERROR, "on stream 1"),
        (frame(GOAWAY, b"x"), CODE.FRAME_SIZE_ERROR, "GOAWAY of 1 bytes"),
        (frame(GOAWAY, bytes(8), stream=1), CODE.PROTOCOL_ERROR, "on stream 1"),
        (frame(WINDOW_UPDATE, b"x"), CODE.FRAME_SIZE_ERROR, "WINDOW_UPDATE of 1 bytes"),
        (frame(WINDOW_UPDATE, bytes(4)), CODE.PROTOCOL_ERROR, "WINDOW_UPDATE by 0"),
        (frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff"), CODE.FLOW_CONTROL_ERROR, "WINDOW_UPDATE by 2147483647"),
        (frame(WINDOW_UPDATE, b"\0\0\0\1", stream=3), CODE.PROTOCOL_ERROR, "stream 3, which has never"),
    ],
)
def test_mistakes_that_cost_the_connection(wire: bytes, code: ErrorCode, reason: str) -> None:
    with pytest.raises(ConnectionProtocolError, match=reason) as caught:
        asked().receive_data(wire)
    assert (caught.value.code, caught.value.limit) == (code, "protocol")


def test_a_window_that_settings_make_too_large() -> None:
    server = asked()
    server.receive_data(frame(WINDOW_UPDATE, b"\x70\0\0\0", stream=1))
    with pytest.raises(ConnectionProtocolError, match="the window of stream 1 is over") as caught:
        server.receive_data(frame(SETTINGS, b"\0\4\x70\0\0\0"))
    assert caught.value.code == CODE.FLOW_CONTROL_ERROR


def test_more_data_than_the_window_of_the_connection() -> None:
    server = settled(window=8_000)
    with pytest.raises(ConnectionProtocolError, match="connection's window of 16000 bytes") as caught:
        server.receive_data(ask(1, end=False) + frame(DATA, bytes(16_001), stream=1))
    assert caught.value.code == CODE.FLOW_CONTROL_ERROR


@pytest.mark.parametrize(
    ("wire", "limit", "reason"),
    [
        (frame(PING, bytes(8)) * 101, "control_frames", "more than 100 frames to acknowledge"),
        (frame(SETTINGS, b"\0\x63\0\0\0\1" * 33), "control_frames", "SETTINGS of 198 bytes, at most 192"),
        (
            frame(HEADERS, b"\x83", stream=3) + frame(CONTINUATION, stream=3) * 64,
            "header_bytes",
            "too many CONTINUATION frames",
        ),
        (
            frame(HEADERS, bytes(16_000), stream=3) + frame(CONTINUATION, bytes(16_000), stream=3) * 9,
            "header_bytes",
            "too many CONTINUATION frames",
        ),
        (ask(3, block=b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 90), "header_bytes", "65536 bytes"),
        (ask(3, block=b"\x90" * 101), "header_fields", "more than the configured count of 100 fields"),
    ],
)
def test_floods_are_bounded(wire: bytes, limit: str, reason: str) -> None:
    with pytest.raises(DenialOfServiceError, match=reason) as caught:
        asked().receive_data(wire)
    assert (caught.value.code, caught.value.limit) == (CODE.ENHANCE_YOUR_CALM, limit)


# -- fuzzing -----------------------------------------------------------------------------------------------


def feed(server: ServerCodec, wire: bytes) -> list[Event]:
    """What is told of some bytes; whatever they are, there is no other error, and what is held is bounded."""
    events: list[Event] = []
    for at in range(0, len(wire), 100):
        try:
            server.receive_data(wire[at : at + 100])
        except ConnectionProtocolError:
            break
        for event in parts(server):
            if isinstance(event, Request) and event.stream_id % 4 == 1:
                answer(server, event.stream_id, bytes(100))
            events.append(event)
        server.data_to_send(LARGE)
        assert _held(server)
    return events


def _held(server: Codec) -> bool:
    assert isinstance(server, ServerCodec)
    assert len(server._streams) <= STREAMS
    assert len(server._waiting) <= STREAMS
    assert len(server._reset_ids) <= 2 * STREAMS
    assert len(server._in) <= 9 + 16_384
    return server.queued_body_size() <= STREAMS * 100


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.one_of(st.binary(max_size=40), st.sampled_from(BLOCKS)),
    flags=st.sampled_from([0, 1, 4, 5, 8, 0x2D]),
    stream=st.sampled_from([0, 1, 3, 5, 9, 2, MAX_STREAM_ID]),
)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error_or_not(data: bytes) -> None:
    feed(codec(), data)
    feed(settled(), data)


@given(st.lists(FRAMES, max_size=20))
def test_any_frames_are_an_error_or_not(frames: list[bytes]) -> None:
    feed(asked(), b"".join(frames))


@given(st.data())
def test_damaged_conversations_are_an_error_or_not(data: st.DataObject) -> None:
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection({4: data.draw(st.sampled_from([10, 65_535, LARGE]))})
    for size in (0, 10, 3000):
        stream = client.send_request([*REQUEST, (b"grpc-timeout", b"%dm" % size)])
        client.send_data(stream, bytes(size), end_stream=True)
    wire = bytearray(client.data_to_send())
    assert len([event for event in feed(codec(), bytes(wire)) if isinstance(event, Request)]) == 3
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
        if not wire:
            break
    feed(codec(), bytes(wire))


def test_settings_are_what_the_server_wants() -> None:
    wire = codec(window=100_000).data_to_send(LARGE)
    payload = struct.pack(">HIHIHIHI", 3, STREAMS, 4, 100_000, 6, 1 << 14, 9, 1)
    update = frame(WINDOW_UPDATE, (200_000 - 65_535).to_bytes(4, "big"))
    assert wire == frame(SETTINGS, payload) + update
