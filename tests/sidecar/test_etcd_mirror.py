"""The mirror of etcd: snapshots and events in, texts out. No etcd, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import etcd_pb2 as pb
from sidecar.etcd import Found, Snapshot
from sidecar.etcd_keys import EtcdKeys
from sidecar.etcd_source import Mirror
from sidecar.source import MAX_DOCUMENT_BYTES, Unreadable

KEYS = EtcdKeys("app")
FOLDER, EXPRESSIONS = KEYS.prefixes
CONFIG = f"{FOLDER}model-config/config-map/"
SERVICE = f"{FOLDER}model-config/service-config"


def put(place: str, value: bytes, revision: int) -> pb.Event:
    return pb.Event(kv=pb.KeyValue(key=place.encode(), value=value, mod_revision=revision))


def gone(place: str, revision: int) -> pb.Event:
    return pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=place.encode(), mod_revision=revision))


def mirror(**values: bytes) -> Mirror:
    """Holds these configs, written at revisions 1, 2, …; read at revision 10."""
    one = Mirror(KEYS)
    entries = {f"{CONFIG}{name}": Found(value, at) for at, (name, value) in enumerate(values.items(), 1)}
    one.replace(Snapshot(10, entries))
    return one


def service(**values: bytes) -> Mirror:
    """Holds a service config in these keys; `whole` is the one value."""
    one = Mirror(KEYS)
    places = {name: SERVICE if name == "whole" else f"{SERVICE}/{name}" for name in values}
    entries = {places[name]: Found(value, at) for at, (name, value) in enumerate(values.items(), 1)}
    one.replace(Snapshot(10, entries))
    return one


def test_a_new_mirror_holds_nothing_and_says_so() -> None:
    one = Mirror(KEYS)
    assert (one.current, one.generation, one.texts(), one.find("config-map/a")) == (False, 0, {}, None)
    assert repr(one) == "<Mirror of 0 places, outdated, generation 0>"


def test_an_empty_store_is_something_that_was_read() -> None:
    one = mirror()
    assert one.current
    assert one.generation == 1


def test_an_equal_snapshot_is_no_change() -> None:
    one = mirror(a=b"1")
    one.replace(Snapshot(99, {f"{CONFIG}a": Found(b"1", 1)}))
    assert one.generation == 1
    assert one.following == {FOLDER: 100, EXPRESSIONS: 100}


def test_events_change_what_is_held_and_where_to_go_on() -> None:
    one = mirror(a=b"1", b=b"2")
    one.apply(FOLDER, [put(f"{CONFIG}a", b"3", 12), gone(f"{CONFIG}b", 13), put(f"{CONFIG}c", b"4", 13)])
    assert one.texts() == {"config-map/a": b"3", "config-map/c": b"4"}
    assert one.following == {FOLDER: 14, EXPRESSIONS: 11}


def test_events_of_other_keys_change_nothing_but_where_to_go_on() -> None:
    one = mirror(a=b"1")
    one.apply(FOLDER, [put(f"{FOLDER}else", b"3", 12), gone(f"{CONFIG}b", 13)])
    assert (one.generation, one.following[FOLDER]) == (1, 14)


def test_a_fragment_is_held_back_until_its_response_is_complete() -> None:
    one = mirror()
    one.apply(FOLDER, [put(f"{CONFIG}a", b"1", 12)], fragment=True)
    assert (one.texts(), one.following[FOLDER]) == ({}, 11)
    one.apply(FOLDER, [put(f"{CONFIG}b", b"2", 12)])
    assert one.texts() == {"config-map/a": b"1", "config-map/b": b"2"}
    assert one.following[FOLDER] == 13


def test_a_fragment_of_a_broken_watch_is_forgotten() -> None:
    one = mirror()
    one.apply(FOLDER, [put(f"{CONFIG}a", b"1", 12)], fragment=True)
    one.begin()
    one.apply(FOLDER, [put(f"{CONFIG}a", b"1", 12), put(f"{CONFIG}b", b"2", 12)])
    assert one.texts() == {"config-map/a": b"1", "config-map/b": b"2"}


def test_an_overlong_value_is_not_taken_for_deleted() -> None:
    one = mirror(a=bytes(MAX_DOCUMENT_BYTES + 1))
    assert one.texts() == {"config-map/a": Unreadable(f"is longer than {MAX_DOCUMENT_BYTES} bytes")}


def test_of_two_spellings_the_one_written_last_counts() -> None:
    one = mirror(a=b"1")
    other = f"{FOLDER}modelConfig/configMap/a"
    one.apply(FOLDER, [put(other, b"2", 12)])
    found = one.find("config-map/a")
    assert found is not None
    assert (found.place, found.revision) == (other, 12)
    assert one.texts() == {"config-map/a": b"2"}
    one.apply(FOLDER, [gone(other, 13)])
    assert one.texts() == {"config-map/a": b"1"}


def test_agreement_is_about_own_keys_of_one_prefix() -> None:
    one = mirror(a=b"1", b=b"2")
    assert one.agrees(FOLDER, {f"{CONFIG}a": 1, f"{CONFIG}b": 2, f"{FOLDER}else": 7})
    assert one.agrees(EXPRESSIONS, {})
    assert not one.agrees(FOLDER, {f"{CONFIG}a": 1, f"{CONFIG}b": 3})
    assert not one.agrees(FOLDER, {f"{CONFIG}a": 1})
    assert not one.agrees(EXPRESSIONS, {f"{EXPRESSIONS}a": 1})


# ---------------------------------------------------------------- service config


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"whole": b'{"a": 1}'}, {"a": 1}),
        ({"v2LoggingType": b"proto"}, {"v2-logging-type": "proto"}),
        ({"v2-logging-type": b'"arrow"'}, {"v2-logging-type": "arrow"}),
        ({"compression-enabled": b"true"}, {"compression-enabled": True}),
        ({"predator-hosts": b"a,b", "other-field": b"[1]"}, {"otherfield": [1], "predator-hosts": "a,b"}),
        (
            {"whole": b'{"V2LoggingType": "proto", "a": 1}', "v2-logging-type": b"parquet"},
            {"a": 1, "v2-logging-type": "parquet"},
        ),
    ],
)
def test_a_service_config_is_one_value_or_one_key_per_field(
    values: dict[str, bytes], expected: dict[str, object]
) -> None:
    text = service(**values).texts()["service-config"]
    assert isinstance(text, bytes)
    assert orjson.loads(text) == expected


@pytest.mark.parametrize("broken", [b"{", b"[]", bytes(MAX_DOCUMENT_BYTES + 1)])
def test_a_broken_service_config_is_not_hidden_by_its_fields(broken: bytes) -> None:
    alone = service(whole=broken).texts()
    assert service(whole=broken, compressionenabled=b"true").texts() == alone


def test_an_unreadable_field_makes_the_service_config_unreadable() -> None:
    one = service(whole=b"{}", predatorhosts=bytes(MAX_DOCUMENT_BYTES + 1))
    assert isinstance(one.texts()["service-config"], Unreadable)
    assert one.has_fields


def test_the_revision_of_a_service_config_is_that_of_its_newest_key() -> None:
    one = service(whole=b"{}", predatorhosts=b"a")
    found = one.find("service-config")
    assert found is not None
    assert found.revision == 2


# ---------------------------------------------------------------- any history, cut anywhere


@dataclass
class Store:
    """What etcd does, in a few lines: every write is a revision; a watch begins anywhere in the history."""

    revision: int = 1
    values: dict[str, Found] = field(default_factory=dict)
    history: list[pb.Event] = field(default_factory=list)

    def write(self, changes: dict[str, bytes | None]) -> None:
        """One transaction. None deletes."""
        self.revision += 1
        for place, value in changes.items():
            if value is None and self.values.pop(place, None) is not None:
                self.history.append(gone(place, self.revision))
            elif value is not None:
                self.values[place] = Found(value, self.revision)
                self.history.append(put(place, value, self.revision))

    def events(self, prefix: str, revision: int) -> list[pb.Event]:
        return [
            event
            for event in self.history
            if event.kv.mod_revision >= revision and event.kv.key.decode().startswith(prefix)
        ]

    def texts(self) -> dict[str, bytes]:
        keys = {place: KEYS.key(place) for place in self.values}
        return {key: self.values[place].value for place, key in keys.items() if key is not None}


PLACES = st.sampled_from([*(f"{CONFIG}{name}" for name in "abc"), f"{EXPRESSIONS}e", f"{FOLDER}else"])
WRITES = st.lists(
    st.dictionaries(PLACES, st.none() | st.binary(max_size=2), min_size=1, max_size=3), max_size=12
)


@given(before=WRITES, rounds=st.lists(st.tuples(WRITES, st.data()), max_size=4))
def test_any_history_cut_anywhere_ends_in_the_same_state(
    before: list[dict[str, bytes | None]], rounds: list[tuple[list[dict[str, bytes | None]], st.DataObject]]
) -> None:
    store, one = Store(), Mirror(KEYS)
    for changes in before:
        store.write(changes)
    one.replace(Snapshot(store.revision, dict(store.values)))
    for writes, data in rounds:
        for changes in writes:
            store.write(changes)
        one.begin()
        for prefix in KEYS.prefixes:
            events = store.events(prefix, one.following[prefix])
            # The watch breaks somewhere, maybe in the middle of a revision: then in the middle of a response.
            until = data.draw(st.integers(0, len(events)))
            whole = until == len(events) or (
                until > 0 and events[until - 1].kv.mod_revision != events[until].kv.mod_revision
            )
            middle = data.draw(st.integers(0, until))
            one.apply(prefix, events[:middle], fragment=True)
            one.apply(prefix, events[middle:until], fragment=not whole)
    one.begin()
    for prefix in KEYS.prefixes:
        one.apply(prefix, store.events(prefix, one.following[prefix]))
        now = {place: found.mod_revision for place, found in store.values.items() if place.startswith(prefix)}
        assert one.agrees(prefix, now)
    assert one.texts() == store.texts()
