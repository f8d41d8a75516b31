"""The wire of the feature store: the reference codecs themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.onfs_wire import decode_rows, encode_keys, query_head
from components.wire import WireError
from proto import onfs_pb2
from tests.components.messages import broken


@given(
    st.text(),
    st.lists(st.tuples(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=3)), max_size=3),
    st.lists(st.lists(st.text(max_size=4), max_size=3), max_size=4),
)
def test_a_query_is_its_head_and_its_keys(
    entity: str, groups: list[tuple[str, list[str]]], keys: list[list[str]]
) -> None:
    head = query_head(entity, groups, ["a", "b"])
    body = head + encode_keys([part.encode() for part in key] for key in keys)
    query = onfs_pb2.Query.FromString(body)
    assert query.entity_label == entity
    assert [(group.label, list(group.feature_labels)) for group in query.feature_groups] == groups
    assert list(query.keys_schema) == ["a", "b"]
    assert [list(key.cols) for key in query.keys] == keys


def test_a_key_that_is_not_utf_8_is_an_error() -> None:
    with pytest.raises(WireError, match=r"a key is not UTF-8: b'\\xff'"):
        encode_keys([(b"good", b"\xff")])


def rows_of(*rows: list[bytes]) -> bytes:
    return onfs_pb2.Result(rows=[onfs_pb2.Row(columns=values) for values in rows]).SerializeToString()


def test_rows_come_back_as_they_are() -> None:
    assert [list(row) for row in decode_rows(rows_of([b"1", b""], [b"", b"22"]), 2, 2)] == [
        [b"1", b""],
        [b"", b"22"],
    ]
    assert decode_rows(b"", 0, 5) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (rows_of([b"1"]), "1 rows answered for 2 keys"),
        (rows_of([b"1"], [b"1", b"2"]), r"rows\[1\] has 2 values for 1 features"),
        (rows_of([], [b"1"]), r"rows\[0\] has 0 values for 1 features"),
        (b"\x22\x05\x12", "the answer is no feature Result"),
    ],
)
def test_answers_that_do_not_fit(body: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode_rows(body, 2, 1)


@given(broken(rows_of([b"1234", b""], [b"", b"x"])))
def test_broken_answers_are_answers_or_errors(body: bytes) -> None:
    try:
        rows = decode_rows(body, 2, 2)
    except WireError:
        return
    assert [len(row) for row in rows] == [2, 2]
