"""Socket frames: what is written is what is read, however the bytes are cut; malformed frames are refused."""

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.frames import (
    MAX_TEXT_BYTES,
    NO_METADATA,
    Activate,
    Answer,
    Cache,
    Cancel,
    Connected,
    Frame,
    FrameError,
    FrameReader,
    HandOver,
    Hello,
    Kind,
    Lend,
    LogConfig,
    LogQuery,
    LogSegment,
    LogStatus,
    Notice,
    OneField,
    Prepared,
    Readiness,
    Release,
    Request,
    Retiring,
    Snapshot,
    State,
    Subscribe,
    answer_head,
    encode_metadata,
    request_head,
)

LIMIT = 1 << 20
ALL = (
    *(
        Hello,
        State,
        Request,
        Cancel,
        Answer,
        Subscribe,
        Snapshot,
        Prepared,
        Activate,
        Connected,
        Notice,
        Retiring,
        Cache,
    ),
    *(Lend, LogSegment, LogConfig, HandOver, Release, LogQuery, LogStatus),
)

u8 = st.integers(0, 2**8 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text(st.characters(max_codepoint=127), max_size=12).map(str.encode)
metadata = st.lists(st.tuples(names, st.binary(max_size=30)), max_size=4).map(tuple)
bodies = st.binary(max_size=200)
reasons = st.dictionaries(texts, texts, max_size=4)
frames = st.one_of(
    st.builds(Hello, u32, u32, u32),
    st.builds(State, st.sampled_from(Readiness), u64, texts),
    st.builds(Request, u64, u64, u8, metadata, bodies, u64),
    st.builds(Cancel, u64),
    st.builds(Answer, u64, u8, texts, metadata, bodies),
    st.builds(Subscribe, u32, u32),
    st.builds(Snapshot, u64, u64),
    st.builds(Prepared, u64, reasons, reasons),
    st.builds(Activate, u64),
    st.builds(Retiring, u32),
    st.builds(Connected, st.lists(texts, max_size=4).map(tuple)),
    st.builds(Notice, texts),
    st.builds(Cache, u64),
    st.builds(Lend, u32, u32),
    st.builds(LogSegment, u64, u64),
    st.builds(LogConfig, u32, u32, bodies),
    st.builds(HandOver, u32, u32, u64, u64, u64, u32, u32, u32),
    st.builds(Release, st.lists(st.tuples(u32, u64), max_size=4).map(tuple)),
    st.just(LogQuery()),
    st.builds(LogStatus, bodies),
)


def reader(limit: int = LIMIT) -> FrameReader[Frame]:
    return FrameReader[Frame](ALL, limit)


def raw(kind: int, payload: bytes) -> bytes:
    return struct.pack("<IB", 1 + len(payload), kind) + payload


@given(st.lists(frames, max_size=6), st.data())
def test_any_fragmentation_gives_the_frames_that_were_written(sent: list[Frame], data: st.DataObject) -> None:
    wire = b"".join(frame.encode() for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    got: list[Frame] = []
    incoming = reader()
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        got += incoming.feed(wire[start:end])
    assert got == sent
    assert [type(frame) for frame in got] == [type(frame) for frame in sent]
    assert incoming.pending == 0


@given(st.lists(frames, min_size=1, max_size=3))
def test_byte_by_byte(sent: list[Frame]) -> None:
    incoming = reader()
    wire = b"".join(frame.encode() for frame in sent)
    got = [frame for index in range(len(wire)) for frame in incoming.feed(wire[index : index + 1])]
    assert got == sent


@given(frames, st.data())
def test_a_frame_is_not_read_before_its_last_byte(frame: Frame, data: st.DataObject) -> None:
    wire = frame.encode()
    cut = data.draw(st.integers(0, len(wire) - 1))
    incoming = reader()
    assert incoming.feed(wire[:cut]) == []
    assert incoming.pending == cut
    assert incoming.feed(wire[cut:]) == [frame]


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    incoming = reader(64)
    try:
        for frame in incoming.feed(data):
            assert isinstance(frame, ALL)
    except FrameError:
        return
    assert incoming.pending <= 4 + 64


@given(st.sampled_from(Kind), st.binary(max_size=60))
def test_any_payload_is_read_or_refused(kind: Kind, payload: bytes) -> None:
    incoming = reader()
    try:
        (frame,) = incoming.feed(raw(kind, payload))
    except FrameError as error:
        assert kind.name in str(error)
        return
    if not isinstance(frame, Prepared | Connected):  # their JSON may have blanks
        assert frame.encode() == raw(kind, payload)


@given(frames, st.data())
def test_a_payload_cut_short_never_reads_past_its_end(frame: Frame, data: st.DataObject) -> None:
    payload = frame.encode()[5:]
    kind = frame.encode()[4]
    cut = data.draw(st.integers(0, len(payload)))
    guard = Cancel(7).encode()
    try:
        read = reader().feed(raw(kind, payload[:cut]) + guard)
    except FrameError:
        return
    assert read[1:] == [Cancel(7)]


def test_a_long_frame_in_many_chunks_is_kept_once() -> None:
    incoming = reader(64 << 20)
    body = bytes(16 << 20)
    wire = Request(1, 0, 0, (), body).encode()
    for start in range(0, len(wire) - 4096, 4096):
        assert incoming.feed(wire[start : start + 4096]) == []
    last = (len(wire) - 1) // 4096 * 4096
    (frame,) = incoming.feed(wire[last:])
    assert frame == Request(1, 0, 0, (), body)


def test_the_wire_is_the_documented_one() -> None:
    assert Hello(1, 2, 3).encode() == bytes.fromhex("0d000000 01 01000000 02000000 03000000")
    assert State(Readiness.DRAINING, 7, "é").encode() == bytes.fromhex(
        "0e000000 02 02 0700000000000000 0200 c3a9"
    )
    assert Request(1, 2, 3, ((b"k", b"vv"),), b"body", 4).encode() == bytes.fromhex(
        "27000000 03 0100000000000000 0200000000000000 0400000000000000 03 0100 0100 6b 0200 7676 626f6479"
    )
    assert Cancel(5).encode() == bytes.fromhex("09000000 04 0500000000000000")
    assert Answer(9, 3, "no", (), b"x").encode() == bytes.fromhex(
        "11000000 05 0900000000000000 03 0200 6e6f 0000 78"
    )
    assert Subscribe(1, 2).encode() == bytes.fromhex("09000000 10 01000000 02000000")
    assert Snapshot(1, 2).encode() == bytes.fromhex("11000000 11 0100000000000000 0200000000000000")
    assert Prepared(1, {"a": "b"}).encode() == (
        bytes.fromhex("2b000000 12 0100000000000000") + b'{"refused":{"a":"b"},"waiting":{}}'
    )
    assert Activate(1).encode() == bytes.fromhex("09000000 13 0100000000000000")
    assert Connected(("a",)).encode() == bytes.fromhex("06000000 14") + b'["a"]'
    assert Retiring(3).encode() == bytes.fromhex("05000000 16 03000000")
    assert Cache(0x4000).encode() == bytes.fromhex("09000000 17 0040000000000000")
    assert Notice("é").encode() == bytes.fromhex("03000000 15 c3a9")
    assert Lend(1, 2).encode() == bytes.fromhex("09000000 20 01000000 02000000")
    assert LogSegment(1, 2).encode() == bytes.fromhex("11000000 21 0100000000000000 0200000000000000")
    assert LogConfig(1, 2, b"{}").encode() == bytes.fromhex("0b000000 22 01000000 02000000 7b7d")
    assert HandOver(1, 2, 3, 4, 5, 6, 7, 8).encode() == bytes.fromhex(
        "2d000000 23 01000000 02000000 0300000000000000 0400000000000000 0500000000000000"
        "06000000 07000000 08000000"
    )
    assert Release(((1, 2),)).encode() == bytes.fromhex("0d000000 24 01000000 0200000000000000")
    assert LogQuery().encode() == bytes.fromhex("01000000 25")
    assert LogStatus(b"{}").encode() == bytes.fromhex("03000000 26 7b7d")


@given(st.binary(max_size=40))
def test_one_field_is_metadata(value: bytes) -> None:
    assert OneField(b"name").encode(value) == encode_metadata(((b"name", value),))


def test_one_field_has_the_bounds_of_metadata() -> None:
    with pytest.raises(FrameError, match="b'name': the value has 65536 bytes, must be at most 65535"):
        OneField(b"name").encode(bytes(65536))
    with pytest.raises(FrameError, match="must be ASCII"):
        OneField("é".encode())


def test_heads_leave_the_body_to_the_caller() -> None:
    head = request_head(4, 5, 7, 1, NO_METADATA, 6)
    assert reader().feed(head + b"abcdef") == [Request(4, 5, 1, (), b"abcdef", 7)]
    head = answer_head(4, 0, "", encode_metadata(((b"a-bin", b"\xff"),)), 3)
    incoming = reader()
    assert incoming.feed(head) == []
    assert incoming.feed(b"ab") == []
    assert incoming.feed(b"c") == [Answer(4, 0, "", ((b"a-bin", b"\xff"),), b"abc")]


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (struct.pack("<I", 0), "frame of 0 bytes: must be 1 to 1048576"),
        (struct.pack("<I", LIMIT + 1), "frame of 1048577 bytes: must be 1 to 1048576"),
        (raw(9, b""), "frame of kind 9 (unknown): must be HELLO or STATE"),
        (raw(1, bytes(11)), "HELLO: payload of 11 bytes, must be 12"),
        (raw(2, bytes(3)), "STATE: payload of 3 bytes, must be at least 11"),
        (raw(2, struct.pack("<BQH", 3, 0, 0)), "STATE: readiness 3, must be 0 to 2"),
        (raw(2, struct.pack("<BQH", 1, 0, 4) + b"abc"), "STATE: reason of 4 bytes in 3 bytes"),
        (raw(2, struct.pack("<BQH", 1, 0, 2) + b"a\xff"), "STATE: reason is not UTF-8 at its byte 1"),
        (
            raw(3, struct.pack("<QQQBH", 1, 0, 0, 0, 1) + b"\x01"),
            "REQUEST: length of metadata[0] name needs 2 bytes, 1 are left in the frame",
        ),
        (
            raw(3, struct.pack("<QQQBHH", 1, 0, 0, 0, 1, 1) + b"n" + struct.pack("<H", 9) + b"abc"),
            "REQUEST: metadata[0] value of 9 bytes, only 3 are left in the frame",
        ),
        (
            raw(3, struct.pack("<QQQBHH", 1, 0, 0, 0, 1, 1) + b"\xff\0\0"),
            r"REQUEST: metadata[0] name b'\xff' is not ASCII",
        ),
        (raw(5, struct.pack("<QBH", 1, 0, 0)), "ANSWER: count of metadata needs 2 bytes, 0 are left"),
        (raw(5, struct.pack("<QBH", 1, 0, 9) + b"ab"), "ANSWER: message of 9 bytes, only 2 are left"),
        (raw(18, struct.pack("<Q", 3) + b"{"), "PREPARED 3: not JSON"),
        (
            raw(18, struct.pack("<Q", 3) + b'{"refused": {}}'),
            "PREPARED 3: must be a JSON object of refused and",
        ),
        (
            raw(18, struct.pack("<Q", 3) + b'{"refused": {}, "waiting": {"a": 1}}'),
            "PREPARED 3: waiting must be a JSON object of texts",
        ),
        (raw(20, b"["), "CONNECTED: not JSON"),
        (raw(20, b"[1]"), "CONNECTED: must be a JSON list of texts"),
        (raw(21, b"\xff"), "NOTICE: text is not UTF-8 at its byte 0"),
        (raw(22, bytes(3)), "RETIRING: payload of 3 bytes, must be 4"),
        (raw(36, bytes(13)), "RELEASE: payload of 13 bytes, must be a multiple of 12"),
        (raw(37, b"x"), "LOG_QUERY: payload of 1 bytes, must be empty"),
    ],
)
def test_a_malformed_frame_names_kind_place_and_bound(wire: bytes, text: str) -> None:
    with pytest.raises(FrameError, match=re.escape(text)):
        reader().feed(wire)


def test_a_frame_that_the_peer_may_not_send_is_refused() -> None:
    incoming = FrameReader[Request | Cancel]((Request, Cancel), LIMIT)
    with pytest.raises(FrameError, match=r"frame of kind 1 \(HELLO\): must be REQUEST or CANCEL"):
        incoming.feed(Hello(0, 1, 1).encode())


def test_long_reasons_are_cut_at_the_end_of_a_character() -> None:
    (state,) = reader().feed(State(Readiness.NOT_READY, 0, "é" * 5000 + "x").encode())
    assert state == State(Readiness.NOT_READY, 0, "é" * (MAX_TEXT_BYTES // 2))
    (answer,) = reader().feed(Answer(1, 13, "x" + "é" * 5000, (), b"").encode())
    assert isinstance(answer, Answer)
    assert answer.message == "x" + "é" * (MAX_TEXT_BYTES // 2 - 1)


def test_a_reason_with_half_a_surrogate_gets_through() -> None:
    (state,) = reader().feed(State(Readiness.NOT_READY, 0, "bad \ud800").encode())
    assert state == State(Readiness.NOT_READY, 0, "bad \\ud800")


@pytest.mark.parametrize(
    "pairs",
    [[(b"n", bytes(65536))], [(b"n" * 65536, b"")], [(b"\xc3\xa9", b"")], [(b"n", b"")] * 65536],
)
def test_metadata_that_does_not_fit_is_refused(pairs: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(FrameError, match="metadata"):
        encode_metadata(pairs)


def test_a_body_that_does_not_fit_a_length_is_refused() -> None:
    with pytest.raises(FrameError, match="REQUEST 1: body of 4294967295 bytes"):
        request_head(1, 0, 0, 0, NO_METADATA, 2**32 - 1)
    with pytest.raises(FrameError, match="ANSWER 1: body of 4294967295 bytes"):
        answer_head(1, 0, "", NO_METADATA, 2**32 - 1)


def test_repr_tells_what_is_pending() -> None:
    incoming = FrameReader[Cancel]((Cancel,), LIMIT)
    incoming.feed(Cancel(1).encode()[:6])
    assert repr(incoming) == "<FrameReader of Cancel: 6 of 13 bytes pending>"
