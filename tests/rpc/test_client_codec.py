"""The client's codec: beside nghttp2 as the server, and beside servers that do what they must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ngh2 import Connection, DataReceived, GoAwayReceived, RequestReceived, Role, StreamReset

from rpc.client_codec import Answer, ClientCodec, Head
from rpc.frames import (
    Data,
    Event,
    Finished,
    Leaving,
    Noted,
    SettingsChanged,
    StreamEnd,
    Trailers,
    goaway_frame,
)
from rpc.http2 import (
    MAX_STREAM_ID,
    ConnectionClosingError,
    ConnectionProtocolError,
    DenialOfServiceError,
    ErrorCode,
    Header,
    NoAvailableStreamIDError,
    Setting,
)
from tests.rpc.raw import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Ends,
    frame,
)

WINDOW = 1 << 20
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
FIELDS: tuple[Header, ...] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/b"),
    (b":authority", b"x"),
)
HEAD: tuple[Header, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK: tuple[Header, ...] = ((b"grpc-status", b"0"),)
ANSWER = frame(HEADERS, b"\x88", flags=END_HEADERS, stream=1)
END = frame(HEADERS, b"\x00\x0bgrpc-status\x010", flags=END_HEADERS | END_STREAM, stream=1)


def codec(window: int = WINDOW) -> ClientCodec:
    return ClientCodec(64 << 10, window, 2 * window)


def settled(window: int = WINDOW, settings: bytes = b"") -> ClientCodec:
    """A codec whose peer has said hello."""
    client = codec(window)
    client.data_to_send(WINDOW)
    client.receive_data(frame(SETTINGS, settings))
    client.events()
    client.data_to_send(WINDOW)
    return client


def asking(window: int = WINDOW, settings: bytes = b"") -> ClientCodec:
    """The same, with a request sent on stream 1."""
    client = settled(window, settings)
    assert client.send_request(client.encode(FIELDS), [b"body"]) == 1
    client.data_to_send(WINDOW)
    return client


ATTRIBUTES = ("data", "debug_data", "end_stream", "error_code", "headers", "problem", "stream_id")


def told(client: ClientCodec) -> list[Any]:
    """What has happened, but for what changes nothing, as plain values: type, then attributes by name."""
    return [
        (type(event), *(getattr(event, name) for name in ATTRIBUTES if hasattr(event, name)))
        for event in parts(client)
        if not isinstance(event, Noted)
    ]


def parts(client: ClientCodec) -> Iterator[Event]:
    """What has happened; an answer that is told as one event as its parts."""
    for event in client.events():
        yield from event.parts() if isinstance(event, Answer) else (event,)


class Pair(Ends):
    """A client, and nghttp2 as its server, which answers each request with its body."""

    def __init__(self, chunks: Callable[[], int], *, window: int = WINDOW, frame_bytes: int = 16384) -> None:
        self.client = codec(window)
        self.server = Connection(Role.SERVER)
        self.server.initiate_connection(
            {Setting.INITIAL_WINDOW_SIZE: window, Setting.MAX_FRAME_SIZE: frame_bytes}
        )
        self.chunks = chunks
        self.asked: dict[int, tuple[tuple[Header, ...], bytes]] = {}
        self.answers: dict[int, bytes] = {}
        self.over: dict[int, int] = {}

    def serve(self) -> None:
        for event in self.server.events():
            if isinstance(event, RequestReceived):
                self.asked[event.stream_id] = event.headers, b""
            elif isinstance(event, DataReceived):
                headers, body = self.asked[event.stream_id]
                self.asked[event.stream_id] = headers, body + event.data
                if event.end_stream:
                    self.server.send_response(event.stream_id, HEAD)
                    self.server.send_data(event.stream_id, body + event.data)
                    self.server.send_trailers(event.stream_id, OK)

    def hear(self) -> None:
        for event in parts(self.client):
            if isinstance(event, Head):
                assert event.headers == HEAD
                self.answers[event.stream_id] = b""
            elif isinstance(event, Data):
                self.answers[event.stream_id] += event.data
            elif isinstance(event, Trailers):
                assert event.headers == OK
            elif isinstance(event, StreamEnd):
                self.over[event.stream_id] = event.error_code


@given(
    st.lists(st.lists(st.integers(0, 40_000), min_size=1, max_size=3), min_size=1, max_size=6),
    st.integers(1, 70_000),
    st.sampled_from([1 << 20, 70_000, 65_535, 20_000]),
    st.data(),
)
def test_requests_and_answers_of_any_size(
    sizes: list[list[int]], piece: int, window: int, data: st.DataObject
) -> None:
    pair = Pair(lambda: piece, window=window)
    pair.run()
    bodies = {}
    for number, parts in enumerate(sizes):
        body = [bytes([65 + number]) * (size + 1) for size in parts]
        stream = pair.client.send_request(pair.client.encode(FIELDS), body)
        bodies[stream] = b"".join(body)
        if data.draw(st.booleans()):
            pair.run()
    pair.run()
    assert {stream: body for stream, (_, body) in pair.asked.items()} == bodies
    assert all(headers == FIELDS for headers, _ in pair.asked.values())
    assert pair.answers == bodies
    assert pair.over == dict.fromkeys(bodies, 0)
    assert pair.client.queued_body_size() == 0
    assert not pair.client.want_write


def test_long_headers_are_split_over_frames() -> None:
    pair = Pair(lambda: 1000)
    pair.run()
    fields = (*FIELDS, *((b"x-%d" % i, b"v" * 2000) for i in range(20)))
    stream = pair.client.send_request(pair.client.encode(fields), [b"x"])
    pair.run()
    assert pair.asked[stream] == (fields, b"x")


def test_small_requests_pass_large_ones() -> None:
    client = settled()
    large = client.send_request(client.encode(FIELDS), [bytes(60_000)])
    small = client.send_request(client.encode(FIELDS), [b"small"])
    first = client.data_to_send(1)
    assert b"small" in first
    assert (client.queued_body_size(large), client.queued_body_size(small)) == (60_000 - 16_384, 0)


def test_a_request_that_is_reset_is_not_sent_any_further() -> None:
    pair = Pair(lambda: 1000)
    pair.run()
    stream = pair.client.send_request(pair.client.encode(FIELDS), [bytes(900_000)])
    assert len(pair.client.data_to_send(1)) < 20_000
    pair.client.reset_stream(stream, ErrorCode.CANCEL)
    assert (pair.client.queued_body_size(), pair.client.queued_body_size(stream)) == (0, 0)
    pair.run()
    assert pair.over == {stream: ErrorCode.CANCEL}


def test_a_request_that_is_reset_before_it_is_sent() -> None:
    """RST_STREAM must not come before HEADERS: the peer would take it for a breach of the protocol."""
    pair = Pair(lambda: 1000)
    pair.run()
    stream = pair.client.send_request(pair.client.encode(FIELDS), [b"x"])
    pair.client.reset_stream(stream, ErrorCode.CANCEL)
    pair.server.receive_data(pair.client.data_to_send(WINDOW))
    kinds = [type(event) for event in pair.server.events()]
    assert (RequestReceived in kinds, StreamReset in kinds, GoAwayReceived in kinds) == (True, True, False)


def test_pings_and_settings_are_acknowledged() -> None:
    client = settled()
    client.receive_data(frame(PING, b"12345678") + frame(SETTINGS) + frame(PING, bytes(8), flags=ACK))
    assert client.data_to_send(WINDOW) == frame(PING, b"12345678", flags=ACK) + frame(SETTINGS, flags=ACK)


def test_settings_count_at_once() -> None:
    client = asking(settings=b"\0\3\0\0\0\x07\0\x99\0\0\0\1")  # streams, and one that nobody knows
    assert client.max_streams == 7
    client.receive_data(frame(SETTINGS, b"\0\4\0\0\0\x0a"))  # windows of 10 bytes
    assert told(client) == [(SettingsChanged,)]
    stream = client.send_request(client.encode(FIELDS), [bytes(30)])
    client.data_to_send(WINDOW)
    assert client.queued_body_size(stream) == 20
    client.receive_data(frame(SETTINGS, b"\0\4\0\0\0\x0f"))
    client.data_to_send(WINDOW)
    assert client.queued_body_size(stream) == 15
    client.receive_data(frame(WINDOW_UPDATE, b"\0\0\0\x0f", stream=stream))
    client.data_to_send(WINDOW)
    assert client.queued_body_size() == 0


def test_what_was_made_under_old_settings_leaves_before_new_ones_are_acknowledged() -> None:
    client = settled()
    stream = client.send_request(client.encode(FIELDS), [bytes(100)])
    client.receive_data(frame(SETTINGS, b"\0\4\0\0\0\x0a"))  # windows of 10 bytes
    assert client.sent_id == stream
    out = client.data_to_send(WINDOW)
    assert out.index(bytes(100)) < out.index(frame(SETTINGS, flags=ACK))


def test_windows_are_given_back_when_half_is_used() -> None:
    client = asking(window=100_000)
    client.receive_data(ANSWER)
    piece = frame(DATA, bytes(15_000), stream=1)
    for _ in range(3):
        client.receive_data(piece)
    assert client.data_to_send(WINDOW) == b""
    client.receive_data(piece)
    assert client.data_to_send(WINDOW) == frame(WINDOW_UPDATE, (60_000).to_bytes(4, "big"), stream=1)
    for _ in range(3):
        client.receive_data(piece)
    assert client.data_to_send(WINDOW) == frame(WINDOW_UPDATE, (105_000).to_bytes(4, "big"))


def test_informational_heads_and_padding_are_not_told() -> None:
    client = asking()
    client.receive_data(frame(HEADERS, b"\x08\x03103", flags=END_HEADERS, stream=1))
    client.receive_data(
        frame(HEADERS, b"\x02\0\0\0\0\x07\x88\0\0", flags=END_HEADERS | PADDED | PRIORITY, stream=1)
    )
    client.receive_data(frame(DATA, b"\x03abc\0\0\0", flags=PADDED, stream=1))
    client.receive_data(frame(2, bytes(5), stream=1) + frame(99, b"?") + END)
    assert told(client) == [
        (Head, False, ((b":status", b"200"),), 1),
        (Data, b"abc", False, 1),
        (Trailers, OK, 1),
        (StreamEnd, 0, "", 1),
    ]


def answered_before() -> tuple[ClientCodec, bytes]:
    """A codec that has seen an answer, with a request on stream 3, and the like answer to that."""
    client = asking()
    client.receive_data(ANSWER + END)
    client.events()
    assert client.send_request(client.encode(FIELDS), [b"body"]) == 3
    client.data_to_send(WINDOW)
    whole = ANSWER + frame(DATA, b"abc", stream=1) + END
    return client, whole.replace(b"\0\0\0\1", b"\0\0\0\3")


def test_an_answer_that_comes_whole_is_one_event() -> None:
    client, whole = answered_before()
    client.receive_data(whole + frame(PING, bytes(8), flags=ACK))
    answer = client.events()[0]
    assert isinstance(answer, Answer)
    assert (answer.stream_id, answer.received[answer.start : answer.end]) == (3, b"abc")
    assert (answer.head, answer.trailers) == (HEAD[:1], OK)


def test_an_answer_in_two_pieces_is_the_same() -> None:
    client, whole = answered_before()
    client.receive_data(whole)
    expected = told(client)
    assert expected[-1] == (StreamEnd, 0, "", 3)
    for cut in range(1, len(whole)):
        client, whole = answered_before()
        client.receive_data(whole[:cut])
        first = told(client)
        client.receive_data(whole[cut:])
        assert first + told(client) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\0\0\3\0\0", b"\0\0\3\0\1"),  # DATA with END_STREAM
        (b"\0\0\3\0\0", b"\0\0\3\0\10"),  # padding of 97 bytes
        (b"\0\0\3\0\0\0\0\0\3", b"\0\0\3\0\0\0\0\0\5"),  # DATA of a stream that is not open
        (b"\1\5\0\0\0\3", b"\1\4\0\0\0\3"),  # a second head that does not end
        (b"\x88", b"\x8e"),  # another head: status 500
    ],
)
def test_an_answer_with_a_difference_is_read_frame_by_frame(old: bytes, new: bytes) -> None:
    (client, whole), (slow, _) = answered_before(), answered_before()
    assert whole.count(old) == 1
    whole = whole.replace(old, new)

    def heard(client: ClientCodec, pieces: list[bytes]) -> list[Any]:
        try:
            for piece in pieces:
                client.receive_data(piece)
        except ConnectionProtocolError as error:
            return [str(error)]
        events = [type(event) for event in client.events()]
        assert Answer not in events
        return [kind for kind in events if not issubclass(kind, Noted)]

    assert heard(client, [whole]) == heard(slow, [whole[at : at + 1] for at in range(len(whole))])


def test_large_pieces_are_not_copied() -> None:
    client = asking()
    client.receive_data(ANSWER + frame(DATA, bytes(10_000), stream=1) + frame(DATA, b"x", stream=1))
    kinds = [type(event.data) for event in client.events() if isinstance(event, Data)]
    assert kinds == [memoryview, bytes]


def test_what_comes_for_a_stream_that_is_over_is_ignored() -> None:
    client = asking()
    client.reset_stream(1, ErrorCode.CANCEL)
    assert told(client) == [(StreamEnd, ErrorCode.CANCEL, "", 1)]
    client.receive_data(frame(HEADERS, b"\x88\x40\x01a\x01b", flags=END_HEADERS, stream=1))
    client.receive_data(frame(DATA, b"x", stream=1) + END + frame(RST_STREAM, bytes(4), stream=1))
    client.receive_data(frame(WINDOW_UPDATE, b"\0\0\0\1", stream=1))
    assert told(client) == []
    stream = client.send_request(client.encode(FIELDS), [b"x"])
    client.receive_data(frame(HEADERS, b"\x88\xbe", flags=END_HEADERS, stream=stream))
    assert told(client) == [(Head, False, ((b":status", b"200"), (b"a", b"b")), stream)]


def test_an_answer_before_the_request_is_sent_waits_for_its_user() -> None:
    client = settled()
    stream = client.send_request(client.encode(FIELDS), [bytes(900_000)])
    client.data_to_send(1)
    client.receive_data(ANSWER + END)
    assert [kind for kind, *_ in told(client)] == [Head, Trailers]
    assert client.queued_body_size(stream) > 0
    client.receive_data(frame(DATA, b"more", stream=1))
    assert told(client) == [(StreamEnd, ErrorCode.PROTOCOL_ERROR, "DATA after the end", 1)]
    assert client.queued_body_size() == 0


def test_goaway_takes_back_what_has_not_been_sent() -> None:
    client = asking()
    unsent = client.send_request(client.encode(FIELDS), [b"unsent"])
    client.receive_data(goaway_frame(MAX_STREAM_ID, 0, b"bye"))
    assert told(client) == [
        (Leaving, b"bye", 0),
        (StreamEnd, ErrorCode.REFUSED_STREAM, "", unsent),
    ]
    assert client.data_to_send(WINDOW) == b""
    with pytest.raises(ConnectionClosingError, match="no new streams"):
        client.send_request(client.encode(FIELDS), [b"late"])
    assert client.want_read
    client.receive_data(ANSWER + END)
    assert told(client)[-2:] == [(StreamEnd, 0, "", 1), (Finished, b"bye", 0)]
    assert not client.want_read


def test_what_is_taken_back_has_used_no_window() -> None:
    client = settled(settings=b"\0\4\0\x10\0\0")  # windows of 1 MiB
    client.send_request(client.encode(FIELDS), [bytes(100_000)])
    assert len(client.data_to_send(WINDOW)) > 65_535
    client.receive_data(frame(WINDOW_UPDATE, (65_535).to_bytes(4, "big")))
    for _ in range(4):
        client.send_request(client.encode(FIELDS), [bytes(16_000)])
    client.receive_data(goaway_frame(1, 0, b""))
    client.data_to_send(WINDOW)
    assert client.queued_body_size() == 0


def test_goaway_refuses_the_streams_above_the_last_one() -> None:
    client = asking()
    second = client.send_request(client.encode(FIELDS), [b"x"])
    client.data_to_send(WINDOW)
    client.receive_data(goaway_frame(1, ErrorCode.ENHANCE_YOUR_CALM, b""))
    assert told(client) == [
        (Leaving, b"", ErrorCode.ENHANCE_YOUR_CALM),
        (StreamEnd, ErrorCode.REFUSED_STREAM, "", second),
    ]


def test_streams_run_out() -> None:
    client = settled()
    client._next_id = MAX_STREAM_ID
    assert client.send_request(client.encode(FIELDS), [b"x"]) == MAX_STREAM_ID
    with pytest.raises(NoAvailableStreamIDError):
        client.send_request(client.encode(FIELDS), [b"x"])


@pytest.mark.parametrize(
    ("wire", "code", "problem"),
    [
        (frame(DATA, b"x", stream=1), ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS"),
        (frame(HEADERS, b"", flags=4, stream=1), ErrorCode.PROTOCOL_ERROR, "the status b''"),
        (frame(HEADERS, b"\x08\x04abcd", flags=4, stream=1), ErrorCode.PROTOCOL_ERROR, "the status b'abcd'"),
        (frame(HEADERS, b"\x08\x03100", flags=5, stream=1), ErrorCode.PROTOCOL_ERROR, "the status b'100'"),
        (ANSWER + ANSWER, ErrorCode.PROTOCOL_ERROR, "a second header block that does not end it"),
        (frame(WINDOW_UPDATE, bytes(4), stream=1), ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0"),
        (frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff", stream=1), ErrorCode.FLOW_CONTROL_ERROR, "by 2147483647"),
        (
            ANSWER + frame(DATA, bytes(10_001), stream=1),
            ErrorCode.FLOW_CONTROL_ERROR,
            "its window of 10000 bytes",
        ),
    ],
)
def test_mistakes_that_cost_a_stream(wire: bytes, code: ErrorCode, problem: str) -> None:
    client = asking(window=10_000)
    client.receive_data(wire[:-1])
    client.receive_data(wire[-1:])
    (end,) = [event for event in client.events() if isinstance(event, StreamEnd)]
    assert (end.stream_id, end.error_code) == (1, code)
    assert problem in end.problem
    assert frame(RST_STREAM, code.to_bytes(4, "big"), stream=1) in client.data_to_send(WINDOW)
    client.send_request(client.encode(FIELDS), [b"x"])  # nobody else is concerned


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak HTTP/2"),
        (frame(SETTINGS, flags=ACK), "its first frame is not SETTINGS"),
        (frame(SETTINGS, b"\0\4\x80\0\0\0"), "INITIAL_WINDOW_SIZE is 2147483648"),
        (frame(SETTINGS, b"\0\5\0\0\0\1"), "MAX_FRAME_SIZE is 1"),
        (frame(SETTINGS, b"\0\2\0\0\0\1"), "ENABLE_PUSH is 1"),
        (frame(SETTINGS, b"\0"), "SETTINGS of 1 bytes"),
    ],
)
def test_bad_beginnings(wire: bytes, reason: str) -> None:
    with pytest.raises(ConnectionProtocolError, match=reason):
        codec().receive_data(wire)


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (frame(DATA, bytes(16_385), stream=1), "frame of 16385 bytes, at most 16384"),
        (frame(DATA, b"x"), "stream 0"),
        (frame(DATA, b"x", stream=2), "stream 2, which has never been opened"),
        (frame(DATA, b"x", stream=3), "stream 3, which has never been opened"),
        (frame(HEADERS, b"\x88", flags=4), "stream 0"),
        (frame(HEADERS, b"\x88", flags=0), "HEADERS on stream 0"),
        (frame(HEADERS, b"\x05\x88", flags=4 | PADDED, stream=1), "padding is longer"),
        (frame(HEADERS, b"\x88", flags=4 | PRIORITY, stream=1), "too short for its priority"),
        (frame(HEADERS, b"\xbe", flags=4, stream=1), "index 62"),
        (frame(HEADERS, b"\x88", stream=1) + frame(PING, bytes(8)), "frame of type 6 within"),
        (frame(HEADERS, b"\x88", stream=1) + frame(CONTINUATION, stream=3), "frame of type 9 within"),
        (frame(CONTINUATION, b"\x88", flags=4, stream=1), "without HEADERS"),
        (frame(RST_STREAM, b"x", stream=1), "RST_STREAM of 1 bytes"),
        (frame(RST_STREAM, bytes(4)), "stream 0"),
        (frame(SETTINGS, b"x" * 6, flags=ACK), "SETTINGS of 6 bytes"),
        (frame(5, bytes(8), stream=1), "PUSH_PROMISE"),
        (frame(PING, b"x"), "PING of 1 bytes"),
        (frame(GOAWAY, b"x"), "GOAWAY of 1 bytes"),
        (frame(WINDOW_UPDATE, b"x"), "WINDOW_UPDATE of 1 bytes"),
        (frame(WINDOW_UPDATE, bytes(4)), "WINDOW_UPDATE by 0"),
        (frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff"), "WINDOW_UPDATE by 2147483647"),
    ],
)
def test_mistakes_that_cost_the_connection(wire: bytes, reason: str) -> None:
    with pytest.raises(ConnectionProtocolError, match=reason):
        asking().receive_data(wire)


def test_floods_are_bounded() -> None:
    with pytest.raises(DenialOfServiceError, match="more than 1000 frames to acknowledge"):
        asking().receive_data(frame(PING, bytes(8)) * 1001)
    with pytest.raises(DenialOfServiceError, match="too many CONTINUATION frames"):
        asking().receive_data(frame(HEADERS, b"\x88", stream=1) + frame(CONTINUATION, stream=1) * 64)
    with pytest.raises(DenialOfServiceError, match="more than the configured size of 65536 bytes"):
        asking().receive_data(frame(HEADERS, b"\x88" * 2000, flags=4, stream=1))


def test_more_data_than_the_window() -> None:
    client = asking(window=8_000)
    with pytest.raises(
        ConnectionProtocolError, match="more DATA than the connection's window of 16000 bytes"
    ):
        client.receive_data(ANSWER + frame(DATA, bytes(16_001), stream=1))


@given(st.lists(st.binary(max_size=200), max_size=5), st.data())
def test_any_bytes_are_an_error_or_not(pieces: list[bytes], data: st.DataObject) -> None:
    client = asking() if data.draw(st.booleans()) else codec()
    kinds = st.tuples(st.integers(0, 10), st.integers(0, 255), st.sampled_from([0, 1, 1, 2, 3]))
    for piece in pieces:
        kind, flags, stream = data.draw(kinds)
        try:
            client.receive_data(frame(kind, piece, flags=flags, stream=stream))
        except ConnectionProtocolError:
            return
        client.events()
        client.data_to_send(WINDOW)
    assert client.queued_body_size() == 0
