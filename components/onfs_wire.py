"""The wire of the online feature store: `/retrieve.FeatureService/RetrieveFeatures`.

A query is a head that a config version fixes (entity label, feature groups, key names) and the keys of the
request. A result has one row a key, in key order, with one value a feature, in the order they were asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from components.wire import WireError
from proto import onfs_pb2

__all__ = ["decode_rows", "encode_keys", "query_head"]


def query_head(entity: str, groups: Iterable[tuple[str, Sequence[str]]], keys_schema: Sequence[str]) -> bytes:
    """The part of a Query that does not depend on the request; the keys may follow it in the same message."""
    head: bytes = onfs_pb2.Query(
        entity_label=entity,
        feature_groups=[onfs_pb2.FeatureGroup(label=label, feature_labels=names) for label, names in groups],
        keys_schema=keys_schema,
    ).SerializeToString()
    return head


def encode_keys(keys: Iterable[Sequence[bytes]]) -> bytes:
    """The `keys` entries of a Query. Raises WireError for a key part that is not UTF-8."""
    query = onfs_pb2.Query()
    try:
        for parts in keys:
            query.keys.add(cols=[part.decode() for part in parts])
    except UnicodeDecodeError as error:
        raise WireError(f"a key is not UTF-8: {error.object!r}") from error
    body: bytes = query.SerializeToString()
    return body


def decode_rows(body: bytes, keys: int, columns: int) -> list[Sequence[bytes]]:
    """The values of each of the `keys` rows of a Result, `columns` values a row.

    Raises WireError when the body is no Result, or has other numbers of rows or values.
    """
    try:
        rows = onfs_pb2.Result.FromString(body).rows
    except DecodeError as error:
        raise WireError("the answer is no feature Result") from error
    if len(rows) != keys:
        raise WireError(f"{len(rows)} rows answered for {keys} keys")
    out: list[Sequence[bytes]] = []
    for number, row in enumerate(rows):
        if len(row.columns) != columns:
            raise WireError(f"rows[{number}] has {len(row.columns)} values for {columns} features")
        out.append(row.columns)
    return out
