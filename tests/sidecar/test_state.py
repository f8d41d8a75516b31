"""The last good configs on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import snapshot
from shared.snapshot import Head, Snapshot
from sidecar.activation import Version
from sidecar.catalog import Catalog, Content
from sidecar.state import Saved, SavedError, load, save
from tests.sidecar.texts import BROKEN, config, expression


def version(number: int = 7) -> Version:
    texts = {
        "config-map/a": config(compute_id="e"),
        "config-map/b": BROKEN,
        "expression-config/e": expression("x"),
        "service-config": b'{"compression-enabled": true}',
    }
    return Version(number, Catalog().update(texts, 0))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state" / "active.snapshot"
    save(path, version())
    assert load(path) == Saved(version(), judged=True)
    save(path, Version(8, Content()))
    assert load(path) == Saved(Version(8, Content()), judged=True)
    assert [file.name for file in path.parent.iterdir()] == ["active.snapshot"]


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert load(tmp_path / "active.snapshot") is None


@pytest.mark.parametrize("text", ["", "{", "inferflow-snapshot 2 ", "inferflow-snapshot 1 abc"])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "active.snapshot"
    path.write_text(text)
    with pytest.raises(SavedError, match=r"active\.snapshot: "):
        load(path)


def test_every_byte_counts(tmp_path: Path) -> None:
    path = tmp_path / "active.snapshot"
    save(path, version())
    saved = path.read_bytes()
    for at in range(0, len(saved), 7):
        path.write_bytes(saved[:at] + bytes([saved[at] ^ 1]) + saved[at + 1 :])
        with pytest.raises(SavedError):
            load(path)
    path.write_bytes(saved[:-1])
    with pytest.raises(SavedError, match="checksum"):
        load(path)


def test_a_snapshot_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "active.snapshot"
    content = version().content
    (name,) = content.configs
    wrong = {name: ("0" * 64, content.configs[name].text)}
    snapshot.save(path, Snapshot.encode(Head(version=3), wrong))
    with pytest.raises(SavedError, match="config 'a' does not have the digest"):
        load(path)
