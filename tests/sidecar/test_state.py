"""The last good configs on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidecar.activation import Version
from sidecar.catalog import Catalog, Content
from sidecar.state import StateError, load, save
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
    path = tmp_path / "state" / "configs.json"
    save(path, version())
    assert load(path) == version()
    save(path, Version(8, Content()))
    assert load(path) == Version(8, Content())
    assert [file.name for file in path.parent.iterdir()] == ["configs.json"]


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert load(tmp_path / "configs.json") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": "7"}'])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "configs.json"
    path.write_text(text)
    with pytest.raises(StateError, match=r"configs\.json: "):
        load(path)


def test_a_document_that_was_changed_on_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "configs.json"
    save(path, version())
    stored = json.loads(path.read_bytes())
    stored["configs"]["a"]["document"]["response_config"] = {}
    path.write_text(json.dumps(stored))
    with pytest.raises(StateError, match="config 'a' does not have the digest"):
        load(path)
