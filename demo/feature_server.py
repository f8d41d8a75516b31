"""A feature server over the demo's tables, on the wire of an online feature store.

    python -m demo.feature_server DIRECTORY [--port PORT] [--token TOKEN]

Answers /retrieve.FeatureService/RetrieveFeatures: rows in the order of the keys (a repeated key gets a
repeated row), columns in the order asked, no bytes for a missing value or an unknown key. An unknown entity,
group or feature fails the whole call with UNKNOWN; of a group asked twice all but the last stay empty.
Numbers are little-endian, strings as they are, vectors concatenated.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import grpc

from demo.serving import Failure, Metadata, Method, run
from demo.tables import Column, Table, load_tables
from proto import onfs_pb2

__all__ = ["CALLER_HEADER", "TOKEN_HEADER", "FeatureStore", "services"]

CALLER_HEADER = "online-feature-store-caller-id"
TOKEN_HEADER = "online-feature-store-auth-token"


class FeatureStore:
    """Answers queries over tables (entity → table); callers need the token."""

    def __init__(self, tables: Mapping[str, Table], token: str) -> None:
        self._tables = tables
        self._token = token

    def __repr__(self) -> str:
        return f"<FeatureStore {', '.join(map(repr, self._tables.values()))}>"

    def retrieve(self, query: onfs_pb2.Query, metadata: Metadata) -> onfs_pb2.Result:
        """The rows of the asked keys. Raises Failure as the module's head says."""
        self._authorize(metadata)
        table = self._tables.get(query.entity_label)
        if table is None:
            raise Failure(grpc.StatusCode.UNKNOWN, f"unknown entity {query.entity_label!r}")
        columns = _columns(table, query)
        result = onfs_pb2.Result(entity_label=query.entity_label, keys_schema=query.keys_schema)
        _describe(query, result)
        order = _key_order(table, query)
        for number, asked in enumerate(query.keys):
            if len(asked.cols) != len(order):
                raise Failure(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"keys[{number}] has {len(asked.cols)} parts, keys_schema has {len(order)}",
                )
            row = table.row(tuple(asked.cols[part] for part in order))
            cells = [b"" if row is None or column is None else column.cell(row) for column in columns]
            result.rows.add(keys=asked.cols, columns=cells)
        return result

    def _authorize(self, metadata: Metadata) -> None:
        for header in (CALLER_HEADER, TOKEN_HEADER):
            if header not in metadata:
                raise Failure(grpc.StatusCode.INVALID_ARGUMENT, f"metadata {header} is missing")
        if metadata[TOKEN_HEADER] != self._token:
            raise Failure(
                grpc.StatusCode.UNAUTHENTICATED, f"wrong token for caller {metadata[CALLER_HEADER]!r}"
            )


def _columns(table: Table, query: onfs_pb2.Query) -> list[Column | None]:
    """The asked columns in order; None for those of a group that is asked again further on."""
    last = {group.label: number for number, group in enumerate(query.feature_groups)}
    columns: list[Column | None] = []
    for number, group in enumerate(query.feature_groups):
        for feature in group.feature_labels:
            column = table.columns.get((group.label, feature))
            if column is None:
                raise Failure(
                    grpc.StatusCode.UNKNOWN, f"unknown feature {table.entity}:{group.label}:{feature}"
                )
            columns.append(column if last[group.label] == number else None)
    return columns


def _describe(query: onfs_pb2.Query, result: onfs_pb2.Result) -> None:
    index = 0  # counts over all groups in the order asked
    for group in query.feature_groups:
        schema = result.feature_schemas.add(feature_group_label=group.label)
        for feature in group.feature_labels:
            schema.features.add(label=feature, column_idx=index)
            index += 1


def _key_order(table: Table, query: onfs_pb2.Query) -> list[int]:
    """Where each part of the table's key stands in the query's keys."""
    asked = list(query.keys_schema)
    if sorted(asked) != sorted(table.key_names):
        raise Failure(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"{table.entity} is keyed by {list(table.key_names)}, keys_schema is {asked}",
        )
    return [asked.index(name) for name in table.key_names]


def services(store: FeatureStore) -> dict[str, dict[str, Method]]:
    return {"retrieve.FeatureService": {"RetrieveFeatures": Method(onfs_pb2.Query, store.retrieve)}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.feature_server")
    parser.add_argument("directory", type=Path, help="directory of the feature tables (*.npz)")
    parser.add_argument("--port", type=int, default=0, help="0: a free one (default)")
    parser.add_argument("--token", default="", help="the token that callers need")
    arguments = parser.parse_args()
    store = FeatureStore(load_tables(arguments.directory), arguments.token)
    run(services(store), arguments.port)


if __name__ == "__main__":
    main()
