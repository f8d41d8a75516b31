"""The feature component, by what it asks the feature store and what it makes of the answers.

The store of these tests answers a query as the real one does: rows in key order, values in the order asked, an
empty value for what it does not know.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import keys
from components.feature import cause
from dag.plan import Plan
from proto import onfs_pb2
from shared.cache_memory import SMALLEST, cache_segment
from shared.datatypes import DataType, data_type
from shared.feature_cache import FeatureCache
from shared.shm_matrix import ShmMatrix, Slot, TextColumn
from tests.components.running import (
    Answer,
    Asked,
    brought,
    compiled,
    config_of,
    failed_rows,
    failures,
    matrix_pool,
    raw_column,
    run,
    scoring_of,
    text_column,
)
from tests.effort import tries

Value = Callable[[str, Sequence[str], str, str], bytes]


class Store:
    """A feature store: `value(entity, key, group, feature)` gives each value; it remembers what it was asked."""

    def __init__(
        self, value: Value, *, bad: Callable[[Sequence[str]], Answer | None] = lambda _: None
    ) -> None:
        self.value = value
        self.bad = bad
        self.queries: list[onfs_pb2.Query] = []

    def __call__(self, body: bytes) -> Answer:
        query = onfs_pb2.Query.FromString(body)
        self.queries.append(query)
        result = onfs_pb2.Result(entity_label=query.entity_label, keys_schema=query.keys_schema)
        for key in query.keys:
            failed = self.bad(key.cols)
            if failed is not None:
                return failed
            result.rows.add(
                keys=key.cols,
                columns=[
                    self.value(query.entity_label, key.cols, group.label, feature)
                    for group in query.feature_groups
                    for feature in group.feature_labels
                ],
            )
        return Answer(body=result.SerializeToString())

    @property
    def asked(self) -> list[list[tuple[str, ...]]]:
        """The keys of each query."""
        return [[tuple(key.cols) for key in query.keys] for query in self.queries]


def number(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
    """An FP32 that only this key and feature have."""
    return np.float32(zlib.crc32("|".join([entity, *key, group, feature]).encode()) % 100_000).tobytes()


def fetch(**changes: Any) -> dict[str, Any]:
    """A component that fetches `catalog:real:price` by `catalog_id`."""
    return {
        "component": "catalog",
        "component_id": "catalog_id",
        "fs_keys": [{"schema": "id", "col": "catalog_id"}],
        "fs_request": {
            "label": "catalog",
            "featureGroups": [{"label": "real", "data_type": "DataTypeFP32", "features": ["price"]}],
        },
        **changes,
    }


def groups(*members: tuple[str, str, Sequence[str]], label: str = "catalog") -> dict[str, Any]:
    """An fs_request of these (label, type, features)."""
    return {
        "label": label,
        "featureGroups": [
            {"label": g, "data_type": kind, "features": list(names)} for g, kind, names in members
        ],
    }


@pytest.fixture(params=[False, True], ids=["kernels", "reference"])
def reference(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


PRICE = "catalog:real:price"


class Fetched:
    """The outcome of a run of the first component of a plan."""

    def __init__(
        self, plan: Plan, slot: Slot, rows: int, columns: Mapping[str, Any], answer: Callable[[bytes], Answer]
    ) -> None:
        self.plan = plan
        self.rows = rows
        self.scoring = scoring_of(plan, brought(rows, columns), slot)
        self.rounds: list[int] = []
        self.calls: list[Asked] = run(plan.components[0], self.scoring, answer, rounds=self.rounds)

    def raw(self, name: str) -> list[bytes]:
        return raw_column(self.scoring.matrix, self.plan.layout, name)

    def text(self, name: str) -> list[bytes]:
        column = self.scoring.matrix.texts[self.plan.layout.external[name]]
        assert column is not None
        return column.texts(self.scoring.matrix.all_rows)

    @property
    def failures(self) -> list[tuple[str, str, list[int]]]:
        return failures(self.scoring.failures, self.rows)


# ---------------------------------------------------------------- what is asked


def test_each_distinct_key_is_asked_for_once_in_batches(reference: bool) -> None:
    store = Store(number)
    plan = compiled(config_of(features=[fetch()]), onfs_batch=2, reference_codecs=reference)
    ids = [b"a", b"b", b"a", b"c", b"b", b"d", b"e", b"a"]
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 8, {"catalog_id": ids}, store)
        assert store.asked == [[("a",), ("b",)], [("c",), ("d",)], [("e",)]]
        assert got.rounds == [3]  # all batches at once
        assert {(call.endpoint, call.timeout) for call in got.calls} == {("onfs", 0.2)}
        assert got.raw(PRICE) == [number("catalog", [key.decode()], "real", "price") for key in ids]
        assert got.failures == []


def test_a_query_names_entity_groups_features_and_keys(reference: bool) -> None:
    store = Store(lambda *_: b"")
    request = groups(("real", "FP32", ["price", "mrp"]), ("text", "String", ["title"]))
    plan = compiled(config_of(features=[fetch(fs_request=request)]), reference_codecs=reference)
    with matrix_pool() as slot:
        Fetched(plan, slot, 1, {"catalog_id": [b"7"]}, store)
    wanted = onfs_pb2.Query(
        entity_label="catalog",
        feature_groups=[
            onfs_pb2.FeatureGroup(label="real", feature_labels=["price", "mrp"]),
            onfs_pb2.FeatureGroup(label="text", feature_labels=["title"]),
        ],
        keys_schema=["id"],
        keys=[onfs_pb2.Keys(cols=["7"])],
    )
    assert store.queries == [wanted]


def test_a_group_that_stands_twice_is_asked_once(reference: bool) -> None:
    def by_group(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
        return f"{group}.{feature}".encode()

    store = Store(by_group)
    request = groups(("a", "String", ["x"]), ("b", "String", ["y"]), ("a", "String", ["z"]))
    plan = compiled(config_of(features=[fetch(fs_request=request)]), reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 1, {"catalog_id": [b"7"]}, store)
        assert [(g.label, list(g.feature_labels)) for g in store.queries[0].feature_groups] == [
            ("a", ["x", "z"]),
            ("b", ["y"]),
        ]
        assert [got.raw(f"catalog:{name}") for name in ("a:x", "b:y", "a:z")] == [
            [b"a.x"],
            [b"b.y"],
            [b"a.z"],
        ]


def test_a_type_of_its_own_is_not_part_of_a_features_name(reference: bool) -> None:
    store = Store(lambda *_: b"12345678")
    request = groups(("real", "FP32", ["price@DataTypeFP64", "mrp"]))
    plan = compiled(config_of(features=[fetch(fs_request=request)]), reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 1, {"catalog_id": [b"7"]}, store)
        assert list(store.queries[0].feature_groups[0].feature_labels) == ["price", "mrp"]
        assert plan.layout.byte[PRICE].data_type is DataType.FP64
        assert got.raw(PRICE) == [b"12345678"]
        assert set(plan.layout.byte) == {PRICE, "catalog:real:mrp"}


def test_columns_have_the_prefix(reference: bool) -> None:
    plan = compiled(config_of(features=[fetch(col_name_prefix="parent_")]), reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 1, {"catalog_id": [b"7"]}, Store(number))
        assert got.raw(f"parent_{PRICE}") == [number("catalog", ["7"], "real", "price")]


def test_nothing_is_fetched_without_feature_groups() -> None:
    plan = compiled(config_of(features=[fetch(fs_request={})]))
    with matrix_pool() as slot:
        assert Fetched(plan, slot, 2, {"catalog_id": [b"7", b""]}, Store(number)).calls == []


def test_a_component_that_raised_marks_all_rows() -> None:
    plan = compiled(config_of(features=[fetch()]))
    with matrix_pool() as slot:
        scoring = scoring_of(plan, brought(3, {"catalog_id": [b"7"]}), slot)
        plan.components[0].fail(scoring, "internal error")
        assert failures(scoring.failures, 3) == [("catalog", "internal error", [0, 1, 2])]


# ---------------------------------------------------------------- keys

PAIR = {
    "component": "pair",
    "component_id": "user_catalog",
    "composite_id": True,
    "fs_keys": [{"schema": "user", "col": "user_id"}, {"schema": "catalog", "col": "catalog_id"}],
    "fs_request": groups(("real", "FP32", ["affinity"]), label="uc"),
}


def test_composite_keys_are_joined_and_written(reference: bool) -> None:
    store = Store(number)
    plan = compiled(config_of(features=[PAIR]), reference_codecs=reference)
    with matrix_pool() as slot:
        columns = {"user_id": [b"u"], "catalog_id": [b"1", b"2", b"1"]}
        got = Fetched(plan, slot, 3, columns, store)
        assert store.asked == [[("u", "1"), ("u", "2")]]
        assert got.text("user_catalog") == [b"u|1", b"u|2", b"u|1"]
        assert got.raw("uc:real:affinity") == [
            number("uc", ["u", k], "real", "affinity") for k in ("1", "2", "1")
        ]


def test_one_key_for_all_rows(reference: bool) -> None:
    store = Store(number)
    plan = compiled(config_of(features=[PAIR]), reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 4, {"user_id": [b"u"], "catalog_id": [b"1"]}, store)
        assert store.asked == [[("u", "1")]]
        assert got.text("user_catalog") == [b"u|1"] * 4
        assert got.raw("uc:real:affinity") == [number("uc", ["u", "1"], "real", "affinity")] * 4


def test_rows_with_an_empty_key_part_are_not_asked_for_and_say_so(reference: bool) -> None:
    store = Store(number)
    plan = compiled(config_of(features=[PAIR]), reference_codecs=reference)
    with matrix_pool() as slot:
        columns = {"user_id": [b"u", b"", b"u", b""], "catalog_id": [b"1", b"2", b"", b""]}
        got = Fetched(plan, slot, 4, columns, store)
        assert store.asked == [[("u", "1")]]
        assert got.failures == [
            ("pair", "key column 'user_id' is empty", [1, 3]),
            ("pair", "key column 'catalog_id' is empty", [2, 3]),
        ]
        assert got.raw("uc:real:affinity") == [number("uc", ["u", "1"], "real", "affinity"), b"", b"", b""]
        assert got.text("user_catalog") == [b"u|1", b"", b"", b""]


@pytest.mark.parametrize("columns", [{}, {"catalog_id": [b""]}, {"catalog_id": [b"", b""]}], ids=str)
def test_no_key_at_all(columns: Mapping[str, Sequence[bytes]], reference: bool) -> None:
    plan = compiled(config_of(features=[fetch()]), reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 2, columns, Store(number))
        assert got.calls == []
        assert got.failures == [("catalog", "key column 'catalog_id' is empty", [0, 1])]
        assert got.raw(PRICE) == [b"", b""]


def test_keys_that_are_not_text_spoil_their_rows_only(reference: bool) -> None:
    store = Store(number)
    plan = compiled(config_of(features=[fetch()]), reference_codecs=reference)
    with matrix_pool() as slot:
        ids = [b"a", b"\xff\xfe", "é".encode(), b"b", b"\xff\xfe", b"c"]
        got = Fetched(plan, slot, 6, {"catalog_id": ids}, store)
        assert sorted(key for keys in store.asked for (key,) in keys) == ["a", "b", "c", "é"]
        assert got.failures == [("catalog", r"a key is not UTF-8: b'\xff\xfe'", [1, 4])]
        assert [bool(value) for value in got.raw(PRICE)] == [True, False, True, True, False, True]


def test_one_key_that_is_not_text(reference: bool) -> None:
    plan = compiled(config_of(features=[fetch()]), reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 2, {"catalog_id": [b"\xff"]}, Store(number))
        assert got.calls == []
        assert got.failures == [("catalog", r"a key is not UTF-8: b'\xff'", [0, 1])]


def test_typed_request_features_are_keys_by_their_text(reference: bool) -> None:
    store = Store(number)
    plan = compiled(config_of(features=[PAIR]), reference_codecs=reference)
    numbers = [np.int64(n).tobytes() for n in (7, 8, 7)]
    with matrix_pool() as slot:
        columns = {
            "user_id": (DataType.INT32, [np.int32(42).tobytes()]),
            "catalog_id": (DataType.INT64, numbers),
        }
        got = Fetched(plan, slot, 3, columns, store)
        assert store.asked == [[("42", "7"), ("42", "8")]]
        assert got.text("user_catalog") == [b"42|7", b"42|8", b"42|7"]


# ---------------------------------------------------------------- shared keys


def other(name: str, **changes: Any) -> dict[str, Any]:
    """A component that fetches `<name>:real:stock` by `catalog_id`, as `fetch` does."""
    request = groups(("real", "FP32", ["stock"]), label=name)
    return fetch(component=name, fs_request=request, **changes)


def test_components_with_the_same_keys_ask_alike(reference: bool) -> None:
    plan = compiled(config_of(features=[fetch(), other("stock")]), onfs_batch=2, reference_codecs=reference)
    store = Store(number)
    keys = [b"a", b"b", b"", b"c", b"b"]
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 5, {"catalog_id": keys}, store)
        run(plan.components[1], got.scoring, store)
        assert len(got.scoring.shared) == 1
        assert store.asked == 2 * [[("a",), ("b",)], [("c",)]]
        assert [query.entity_label for query in store.queries] == ["catalog", "catalog", "stock", "stock"]
        for name, column in (("catalog", PRICE), ("stock", "stock:real:stock")):
            group_feature = column.split(":")[1:]
            assert got.raw(column) == [key and number(name, [key.decode()], *group_feature) for key in keys]
        assert [name for name, _, rows in got.failures if rows == [2]] == ["catalog", "stock"]


def test_a_cached_component_and_another_one_with_its_keys(reference: bool) -> None:
    features = [fetch(), other("stock", comp_cache_enabled=True), other("more", comp_cache_enabled=True)]
    cache = FeatureCache(cache_segment(SMALLEST))
    plan = compiled(config_of(features=features, cache_enabled=True), cache=cache, reference_codecs=reference)
    store = Store(number)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 2, {"catalog_id": [b"a", b"b"]}, store)
        for component in plan.components[1:]:
            run(component, got.scoring, store)
        assert store.asked == 3 * [[("a",), ("b",)]]
        assert got.raw("more:real:stock") == [number("more", [key], "real", "stock") for key in "ab"]


def test_keys_are_encoded_for_one_component_while_they_are_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with matrix_pool() as slot:
        matrix = ShmMatrix(slot, 8, 0, 1)
        matrix.texts[0] = TextColumn.of(slot, [b"k" * length for length in range(1, 9)])
        shared = keys.distinct_keys(matrix, [0], None, reference=False)
        wanted = (np.arange(8, dtype=np.int32), np.arange(7, -1, -1, dtype=np.int32))
        right = [[entries for _, entries in keys.encoded_batches(shared, which, 2)] for which in wanted]
        got: list[list[bytes]] = []

        def encode(which: npt.NDArray[np.int32]) -> None:
            got.append([entries for _, entries in shared.batches(which, 2)])

        def interrupted(*arguments: Any) -> Any:
            """The kernel; before its caller goes on, another thread has its keys encoded."""
            monkeypatch.setattr(keys, "encode_batches", kernel)
            written = kernel(*arguments)
            thread = threading.Thread(target=encode, args=wanted[1:])
            thread.start()
            thread.join()
            return written

        kernel = keys.encode_batches
        monkeypatch.setattr(keys, "encode_batches", interrupted)
        encode(wanted[0])
        assert got == right[::-1]


def test_a_column_that_a_component_writes_is_not_the_same_for_all() -> None:
    by_title = {"fs_keys": [{"schema": "title", "col": "catalog:text:title"}]}
    titles = fetch(fs_request=groups(("text", "String", ["title"])))
    plan = compiled(config_of(features=[other("before", **by_title), titles, other("after", **by_title)]))
    store = Store(lambda entity, key, *_: f"title of {key[0]}".encode() if entity == "catalog" else b"1234")
    with matrix_pool() as slot:
        columns = {"catalog_id": [b"a", b"b"], "catalog:text:title": [b"mine", b""]}
        got = Fetched(plan, slot, 2, columns, store)
        for component in plan.components[1:]:
            run(component, got.scoring, store)
        assert store.asked == [[("mine",)], [("a",), ("b",)], [("mine",), ("title of b",)]]


# ---------------------------------------------------------------- derived keys

DERIVE = fetch(fs_request=groups(("text", "String", ["brand"]), ("real", "INT64", ["shop"])))
BY_BRAND = fetch(
    component="brand",
    component_id="brand",
    fs_keys=[
        {"schema": "brand", "col": "catalog:text:brand"},
        {"schema": "shop", "col": "catalog:real:shop"},
    ],
    fs_request=groups(("real", "FP32", ["rank"]), label="brand"),
)


def brands(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
    if feature == "brand":
        return b"" if key == ["none"] else f"brand-{key[0]}".encode()
    return np.int64(len(key[0])).tobytes() if feature == "shop" else number(entity, key, group, feature)


def test_a_fetched_value_is_the_key_of_another_component(reference: bool) -> None:
    plan = compiled(config_of(features=[DERIVE, BY_BRAND]), onfs_batch=10, reference_codecs=reference)
    store = Store(brands)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 4, {"catalog_id": [b"a", b"bb", b"a", b"none"]}, store)
        assert got.text("catalog:text:brand") == [b"brand-a", b"brand-bb", b"brand-a", b""]
        assert got.text("catalog:real:shop") == [b"1", b"2", b"1", b"4"]
        run(plan.components[1], got.scoring, store)
        assert store.asked[1:] == [[("brand-a", "1"), ("brand-bb", "2")]]
        assert got.failures == [("brand", "key column 'catalog:text:brand' is empty", [3])]
        assert [bool(value) for value in got.raw("brand:real:rank")] == [True, True, True, False]


def test_what_the_request_brought_goes_before_what_was_fetched_as_a_key(reference: bool) -> None:
    plan = compiled(config_of(features=[DERIVE, BY_BRAND]), reference_codecs=reference)
    with matrix_pool() as slot:
        columns = {"catalog_id": [b"a", b"bb"], "catalog:text:brand": [b"", b"mine"]}
        got = Fetched(plan, slot, 2, columns, Store(brands))
        assert got.text("catalog:text:brand") == [b"brand-a", b"mine"]
        assert got.raw("catalog:text:brand") == [b"brand-a", b"brand-bb"]


def test_derived_keys_of_rows_without_a_key(reference: bool) -> None:
    plan = compiled(config_of(features=[DERIVE, BY_BRAND]), reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 2, {"catalog_id": [b"", b""]}, Store(brands))
        assert got.text("catalog:text:brand") == [b"", b""]
        assert got.text("catalog:real:shop") == [b"", b""]


# ---------------------------------------------------------------- failures


def test_a_failed_batch_marks_exactly_its_rows(reference: bool) -> None:
    store = Store(number, bad=lambda key: Answer(14, "store is down") if "d" in key else None)
    plan = compiled(config_of(features=[fetch()]), onfs_batch=2, reference_codecs=reference)
    ids = [b"a", b"b", b"c", b"d", b"e", b"c"]
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 6, {"catalog_id": ids}, store)
        assert got.failures == [("catalog", "UNAVAILABLE: store is down", [2, 3, 5])]
        wanted = [
            b"" if i in (2, 3, 5) else number("catalog", [k.decode()], "real", "price")
            for i, k in enumerate(ids)
        ]
        assert got.raw(PRICE) == wanted


def result(*rows: Sequence[bytes]) -> bytes:
    return onfs_pb2.Result(rows=[onfs_pb2.Row(columns=values) for values in rows]).SerializeToString()


GOOD_ROW = [b"9999", b"zz"]
WRONG = {
    "garbage": (b"\xff", "the answer is no feature Result"),
    "no rows": (b"", "0 rows answered for 2 keys"),
    "too many rows": (result(GOOD_ROW, GOOD_ROW, GOOD_ROW), "3 rows answered for 2 keys"),
    "too few values": (result(GOOD_ROW, [b"9999"]), "rows[1] has 1 values for 2 features"),
    "too many values": (result(GOOD_ROW, [b"9", b"9", b"9"]), "rows[1] has 3 values for 2 features"),
}


@pytest.mark.parametrize(("body", "reason"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("first", [True, False])
def test_an_answer_that_does_not_fit_marks_its_rows_and_leaves_nothing(
    body: bytes, reason: str, first: bool, reference: bool
) -> None:
    def value(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
        return f"{feature}-{key[0]}".encode() if group == "text" else number(entity, key, group, feature)

    def answer(query: bytes) -> Answer:
        keys = [key.cols[0] for key in onfs_pb2.Query.FromString(query).keys]
        return Answer(body=body) if ("a" in keys) is first else Store(value)(query)

    request = groups(("real", "FP32", ["price"]), ("text", "String", ["title"]))
    plan = compiled(config_of(features=[fetch(fs_request=request)]), onfs_batch=2, reference_codecs=reference)
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 4, {"catalog_id": [b"a", b"b", b"c", b"d"]}, answer)
        bad = [0, 1] if first else [2, 3]
        assert got.failures == [("catalog", reason, bad)]
        for row, key in enumerate("abcd"):
            wanted = (
                (b"", b"")
                if row in bad
                else (value("catalog", key, "real", "price"), f"title-{key}".encode())
            )
            assert (got.raw(PRICE)[row], got.raw("catalog:text:title")[row]) == wanted


def test_a_value_of_the_wrong_length_is_kept_as_it_came(reference: bool) -> None:
    values = {"a": b"12345", "b": b"1234", "c": b"", "d": b"1"}
    plan = compiled(config_of(features=[fetch()], response=["catalog_id", PRICE]), reference_codecs=reference)
    with matrix_pool() as slot:
        store = Store(lambda _, key, __, ___: values[key[0]])
        got = Fetched(plan, slot, 4, {"catalog_id": [key.encode() for key in values]}, store)
        assert got.raw(PRICE) == list(values.values())
        shown = text_column(got.scoring.matrix, plan.layout, PRICE)
        assert [bool(text) for text in shown] == [False, True, False, False]


@pytest.mark.parametrize(
    ("reply", "text"), [(Answer(14, "down"), "UNAVAILABLE: down"), (Answer(4), "DEADLINE_EXCEEDED")]
)
def test_causes_in_words(reply: Answer, text: str) -> None:
    assert cause(reply) == text


# ---------------------------------------------------------------- the cache


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0  # seconds

    def __call__(self) -> int:
        return int(self.now * 1e9)


def cached(reference: bool, clock: Clock, **component_config: Any) -> Plan:
    request = groups(("real", "FP32", ["price"]), ("text", "String", ["title"]), ("vec", "FP32Vector", ["v"]))
    parts: dict[str, Any] = {"cache_enabled": True} | component_config
    part = fetch(fs_request=request, comp_cache_enabled=True, comp_cache_ttl=parts.pop("comp_cache_ttl", 30))
    cache = FeatureCache(cache_segment(1 << 20), clock=clock)
    return compiled(
        config_of(features=[part], **parts), cache=cache, onfs_batch=10, reference_codecs=reference
    )


def titled(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
    if group == "real":
        return number(entity, key, group, feature)
    return key[0].encode() * 3 if group == "text" else number(entity, key, group, feature) * len(key[0])


COLUMNS = (PRICE, "catalog:text:title", "catalog:vec:v")


def test_only_new_keys_are_fetched_until_they_are_too_old(reference: bool) -> None:
    clock = Clock()
    plan = cached(reference, clock)

    def ask(*ids: bytes) -> tuple[list[list[tuple[str, ...]]], list[list[bytes]]]:
        store = Store(titled)
        with matrix_pool() as slot:
            got = Fetched(plan, slot, len(ids), {"catalog_id": list(ids)}, store)
            assert got.failures == []
            return store.asked, [got.raw(name) for name in COLUMNS]

    def wanted(*ids: bytes) -> list[list[bytes]]:
        parts = [name.split(":") for name in COLUMNS]
        return [[titled(e, [key.decode()], g, f) for key in ids] for e, g, f in parts]

    assert ask(b"a", b"bb") == ([[("a",), ("bb",)]], wanted(b"a", b"bb"))
    clock.now += 20
    assert ask(b"ccc", b"bb", b"a", b"bb") == ([[("ccc",)]], wanted(b"ccc", b"bb", b"a", b"bb"))
    assert ask(b"bb") == ([], wanted(b"bb"))
    clock.now += 11  # 31 s after the first two, 11 after the third
    assert ask(b"a", b"ccc", b"d") == ([[("a",), ("d",)]], wanted(b"a", b"ccc", b"d"))


@pytest.mark.parametrize(
    ("comp_cache_ttl", "cache_ttl", "seconds"), [(30, 60, 30), (0, 60, 60), (0, 0, 100)], ids=str
)
def test_how_long_values_live(comp_cache_ttl: int, cache_ttl: int, seconds: int) -> None:
    clock = Clock()
    plan = cached(False, clock, comp_cache_ttl=comp_cache_ttl, cache_ttl=cache_ttl)
    for later, asked in ((0.0, 1), (seconds - 0.5, 0), (1.0, 1)):
        clock.now += later
        store = Store(titled)
        with matrix_pool() as slot:
            Fetched(plan, slot, 1, {"catalog_id": [b"a"]}, store)
        assert len(store.queries) == asked


def test_a_key_without_a_first_value_is_not_remembered(reference: bool) -> None:
    def value(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
        if (key[0], group) in {("first", "real"), ("second", "text")}:
            return b""
        return b"12345" if key[0] == "odd" and group == "real" else titled(entity, key, group, feature)

    plan = cached(reference, Clock())
    ids = [b"first", b"second", b"odd", b"whole"]
    for again in (False, True):
        store = Store(value)
        with matrix_pool() as slot:
            got = Fetched(plan, slot, 4, {"catalog_id": ids}, store)
            for name in COLUMNS:
                entity, group, feature = name.split(":")
                assert got.raw(name) == [value(entity, [key.decode()], group, feature) for key in ids]
        assert store.asked == [
            [("first",), ("odd",)] if again else [("first",), ("second",), ("odd",), ("whole",)]
        ]


def test_failed_answers_are_not_remembered(reference: bool) -> None:
    plan = cached(reference, Clock())
    with matrix_pool() as slot:
        Fetched(plan, slot, 1, {"catalog_id": [b"a"]}, lambda _: Answer(14))
        Fetched(plan, slot, 1, {"catalog_id": [b"a"]}, lambda _: Answer(body=b"\xff"))
    store = Store(titled)
    with matrix_pool() as slot:
        Fetched(plan, slot, 1, {"catalog_id": [b"a"]}, store)
    assert store.asked == [[("a",)]]


@pytest.mark.parametrize("switches", [(True, False), (False, True), (False, False)], ids=str)
def test_both_switches_are_needed(switches: tuple[bool, bool]) -> None:
    whole, part = switches
    cache = FeatureCache(cache_segment(1 << 20))
    config = config_of(features=[fetch(comp_cache_enabled=part)], cache_enabled=whole)
    plan = compiled(config, cache=cache)
    for _ in range(2):
        store = Store(number)
        with matrix_pool() as slot:
            Fetched(plan, slot, 1, {"catalog_id": [b"a"]}, store)
        assert len(store.queries) == 1
    assert (cache.hits, cache.misses) == (0, 0)


def test_configs_versions_and_components_do_not_share_entries() -> None:
    cache = FeatureCache(cache_segment(1 << 20))
    asked = 0
    for name, version in (("catalog", 1), ("other", 1), ("catalog", 2), ("catalog", 0), ("catalog", 1)):
        config = config_of(
            features=[fetch(component=name, comp_cache_enabled=True)],
            cache_enabled=True,
            cache_version=version,
        )
        store = Store(number)
        with matrix_pool() as slot:
            Fetched(compiled(config, cache=cache), slot, 1, {"catalog_id": [b"a"]}, store)
        asked += len(store.queries)
    assert asked == 3  # version 0 is version 1, and the last is the first once more


FIRST = groups(("a", "FP32", ["x"]), ("b", "FP32", ["y"]), ("a", "FP32", ["z"]))


@pytest.mark.parametrize(
    "second",
    [
        groups(("a", "FP32", ["x", "z"]), ("b", "FP32", ["y"])),  # the same query, other places
        groups(("a", "FP32", ["x", "z", "w"]), ("b", "FP32", ["y"])),
        groups(("a", "FP64", ["x"]), ("b", "FP32", ["y"]), ("a", "FP32", ["z"])),
        groups(("c", "FP32", ["x"]), ("b", "FP32", ["y"]), ("a", "FP32", ["z"])),
    ],
)
def test_a_config_that_asks_otherwise_does_not_read_old_entries(
    second: dict[str, Any], reference: bool
) -> None:
    cache = FeatureCache(cache_segment(1 << 20))
    for request in (FIRST, second):
        part = fetch(fs_request=request, comp_cache_enabled=True)
        plan = compiled(
            config_of(features=[part], cache_enabled=True), cache=cache, reference_codecs=reference
        )
        store = Store(lambda *asked: f"{asked[2]}.{asked[3]}x".encode())
        with matrix_pool() as slot:
            got = Fetched(plan, slot, 1, {"catalog_id": [b"a"]}, store)
            assert store.asked == [[("a",)]]
            assert got.raw("catalog:b:y") == [b"b.yx"]


def test_keys_that_read_alike_when_joined_are_not_taken_for_each_other(reference: bool) -> None:
    cache = FeatureCache(cache_segment(1 << 20))
    config = config_of(features=[PAIR | {"comp_cache_enabled": True}], cache_enabled=True)
    plan = compiled(config, cache=cache, reference_codecs=reference)
    for user, catalog in (("a|b", "c"), ("a", "b|c")):
        with matrix_pool() as slot:
            got = Fetched(
                plan, slot, 1, {"user_id": [user.encode()], "catalog_id": [catalog.encode()]}, Store(number)
            )
            assert got.raw("uc:real:affinity") == [number("uc", [user, catalog], "real", "affinity")]


# ---------------------------------------------------------------- kernels and reference alike

TYPES = st.sampled_from(
    ["FP32", "FP32", "FP64", "INT8", "INT16", "BOOL", "FP8E4M3", "String", "FP32Vector", "StringVector"]
)
KEY_TEXTS = st.sampled_from([b"", b"a", b"b", b"cc", "é".encode(), b"\xff", b"7"])


@st.composite
def fetches(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A config with one feature component, and a batch size."""
    parts = draw(st.integers(1, 2))
    asked = [
        (group, draw(TYPES), [f"f{group}{n}" for n in range(draw(st.integers(1, 3)))])
        for group in draw(st.lists(st.sampled_from("ghi"), min_size=1, max_size=3, unique=True))
    ]
    part = fetch(
        fs_keys=[{"schema": f"k{n}", "col": f"key{n}"} for n in range(parts)],
        fs_request=groups(*asked),
        composite_id=draw(st.booleans()),
        comp_cache_enabled=draw(st.booleans()),
    )
    return config_of(features=[part], cache_enabled=True), draw(st.integers(1, 4))


@given(fetches(), st.integers(1, 9), st.data())
@tries(0.6)
def test_kernels_and_reference_fetch_alike(
    made: tuple[dict[str, Any], int], rows: int, data: st.DataObject
) -> None:
    config, batch = made
    part = config["component_config"]["feature_components"][0]
    names = [key["col"] for key in part["fs_keys"]]
    columns = {
        name: data.draw(
            st.lists(KEY_TEXTS, min_size=rows, max_size=rows) | st.lists(KEY_TEXTS, min_size=1, max_size=1)
        )
        for name in names
        if data.draw(st.integers(0, 9))
    }
    wanted_types = {
        f"{feature}": data_type(group["data_type"]).size
        for group in part["fs_request"]["featureGroups"]
        for feature in group["features"]
    }
    seed = data.draw(st.integers(0, 1000))

    def value(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
        dice = zlib.crc32(f"{seed}{key}{group}{feature}".encode())
        size = wanted_types[feature] if dice % 13 else dice % 17
        return bytes([dice % 251]) * (size or dice % 7) if dice % 11 else b""

    def broken(key: Sequence[str]) -> Answer | None:
        match zlib.crc32(f"{seed}{key}".encode()) % 23:
            case 0:
                return Answer(13, "boom")
            case 1:
                return Answer(body=b"\x22\x01")
            case 2:
                return Answer(
                    body=onfs_pb2.Result(rows=[onfs_pb2.Row(columns=[b"1234"])]).SerializeToString()
                )
        return None

    outcomes = []
    for reference, size in itertools.product((False, True), (1 << 20, SMALLEST)):
        cache = FeatureCache(cache_segment(size), clock=Clock())
        plan = compiled(config, cache=cache, onfs_batch=batch, reference_codecs=reference)
        for _ in range(2):  # the second time out of the cache, or what is left there of a small one
            store = Store(value, bad=broken)
            with matrix_pool() as slot:
                got = Fetched(plan, slot, rows, columns, store)
                shown = {name: got.raw(name) for name in plan.layout.byte}
                states = [
                    (block.index.tolist(), block.states.tolist(), getattr(block, "odd", None))
                    for block in got.scoring.matrix.blocks
                    if block is not None and block.index is not None
                ]
                outcomes.append((store.queries, shown, states, got.failures, failed_rows(got.scoring)))
    half = len(outcomes) // 2
    assert outcomes[:half] == outcomes[half:]
    if not outcomes[0][3]:  # calls that fail take other keys along, depending on what is cached
        assert all(outcome[1:] == outcomes[0][1:] for outcome in outcomes)


KEY_TYPES = st.sampled_from(
    ["String", "String", "INT64", "FP32", "BOOL", "UINT8", "FP32Vector", "StringVector"]
)


@st.composite
def brought_keys(draw: st.DrawFn, rows: int) -> Sequence[bytes] | tuple[DataType, Sequence[bytes]]:
    """A column that a request brings for a key: texts, or values of some type."""
    size = draw(st.sampled_from([1, rows]))
    texts = draw(st.lists(KEY_TEXTS, min_size=size, max_size=size))
    kind = draw(st.sampled_from([None, DataType.INT16, DataType.FP32, DataType.STRING, DataType.INT8_VECTOR]))
    if kind in (None, DataType.STRING):
        return texts if kind is None else (kind, texts)
    return kind, [draw(st.sampled_from([b"", b"1", b"12", b"1234"])) for _ in texts]


@given(st.data(), st.integers(1, 7), KEY_TYPES, KEY_TYPES)
@tries(0.6)
def test_kernels_and_reference_derive_alike(data: st.DataObject, rows: int, first: str, second: str) -> None:
    product = fetch(fs_request=groups(("one", first, ["a"]), ("two", second, ["b"]), ("more", "FP32", ["c"])))
    keys = ["user_id", "catalog:one:a", "catalog:two:b"][data.draw(st.integers(0, 1)) :]
    pair = fetch(
        component="pair",
        component_id="pair_id",
        composite_id=True,
        fs_keys=[{"schema": key, "col": key} for key in keys],
        fs_request=groups(("real", "FP32", ["d"]), label="pair"),
    )
    config = config_of(features=[product, pair])
    names = ["catalog_id", "user_id", *(name for name in keys[-2:] if data.draw(st.integers(0, 3)) == 0)]
    columns = {name: data.draw(brought_keys(rows)) for name in names if data.draw(st.integers(0, 9))}
    sizes = {"a": data_type(f"DataType{first}").size, "b": data_type(f"DataType{second}").size}
    apart = data.draw(st.booleans())  # what is fetched stands in another chunk than what was brought
    seed = data.draw(st.integers(0, 1000))

    def value(entity: str, key: Sequence[str], group: str, feature: str) -> bytes:
        dice = zlib.crc32(f"{seed}{key}{group}".encode())
        size = sizes.get(feature, 4) or dice % 4
        if dice % 31 == 0:
            size += 1
        return bytes([65 + dice % 3]) * size if dice % 7 else b""

    outcomes = []
    for reference in (False, True):
        plan = compiled(config, reference_codecs=reference)
        store = Store(value)
        with matrix_pool() as slot:
            scoring = scoring_of(plan, brought(rows, columns), slot)
            for component in plan.components[:2]:
                run(component, scoring, store)
                if apart:
                    slot.allocate(1 << 17)
            found = scoring.matrix
            texts = [column and column.texts(found.all_rows) for column in found.texts]
            outcomes.append(
                (texts, raw_column(found, plan.layout, "pair:real:d"), store.asked, failed_rows(scoring))
            )
    assert outcomes[0] == outcomes[1]


def test_answers_may_begin_in_any_way(reference: bool) -> None:
    store = Store(number)
    heads = [b"", onfs_pb2.Result(entity_label="other").SerializeToString(), b"", b"\x0a\x7f"]

    def answer(body: bytes) -> Answer:
        return Answer(body=heads[len(store.queries) % 4] + store(body).body)

    plan = compiled(config_of(features=[fetch()]), onfs_batch=1, reference_codecs=reference)
    ids = [b"a", b"b", b"c", b"d", b"e", b"f"]
    with matrix_pool() as slot:
        got = Fetched(plan, slot, 6, {"catalog_id": ids}, answer)
        wanted = [number("catalog", [key.decode()], "real", "price") for key in ids]
        wanted[3] = b""  # cut short: its row has no value
        assert got.raw(PRICE) == wanted
        assert [rows for _, _, rows in got.failures] == [[3]]
