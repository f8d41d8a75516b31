"""The last good configs on disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.saved import ACTIVE, Documents
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


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    return Documents(tmp_path / "documents")


def test_what_is_saved_is_loaded(tmp_path: Path, documents: Documents) -> None:
    save(tmp_path, documents, version())
    assert load(tmp_path, documents) == Saved(version(), judged=True)
    assert load(tmp_path, Documents(tmp_path / "documents")) == Saved(version(), judged=True)
    save(tmp_path, documents, Version(8, Content()))
    assert load(tmp_path, documents) == Saved(Version(8, Content()), judged=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == [ACTIVE, "documents"]


def test_nothing_saved_is_nothing_loaded(tmp_path: Path, documents: Documents) -> None:
    assert load(tmp_path, documents) is None


@pytest.mark.parametrize("text", ["", "{", "inferflow-snapshot 1 ", "inferflow-snapshot 2 abc"])
def test_what_is_no_state_is_refused(tmp_path: Path, documents: Documents, text: str) -> None:
    (tmp_path / ACTIVE).write_text(text)
    with pytest.raises(SavedError, match=r"active\.snapshot: "):
        load(tmp_path, documents)


def test_every_byte_counts(tmp_path: Path, documents: Documents) -> None:
    save(tmp_path, documents, version())
    (document,) = (tmp_path / "documents").iterdir()
    for path in (tmp_path / ACTIVE, document):
        saved = path.read_bytes()
        for at in range(0, len(saved), 7):
            path.write_bytes(saved[:at] + bytes([saved[at] ^ 1]) + saved[at + 1 :])
            with pytest.raises(SavedError, match=re.escape(str(path))):
                load(tmp_path, documents)
        path.write_bytes(saved[:-1])
        with pytest.raises(SavedError, match="checksum"):
            load(tmp_path, documents)
        path.write_bytes(saved)
    document.unlink()
    with pytest.raises(FileNotFoundError):
        load(tmp_path, documents)


def test_a_text_is_written_once_and_goes_when_nobody_wants_it(tmp_path: Path, documents: Documents) -> None:
    save(tmp_path, documents, version())
    (document,) = (tmp_path / "documents").iterdir()
    written = document.stat().st_mtime_ns, document.stat().st_ino
    save(tmp_path, documents, version(8))
    assert (document.stat().st_mtime_ns, document.stat().st_ino) == written
    documents.keep_only({document.stem})
    assert document.stem in documents
    assert document.exists()
    documents.keep_only(())
    assert document.stem not in documents
    assert not document.exists()
    save(tmp_path, documents, version(9))  # it is not taken for written
    assert load(tmp_path, documents) == Saved(version(9), judged=True)


def test_what_a_killed_writer_left_behind_is_removed(tmp_path: Path, documents: Documents) -> None:
    save(tmp_path, documents, version())
    (tmp_path / "documents" / f".{'0' * 64}.json.12").write_text("hal")
    documents.tidy()
    assert [path.suffix for path in (tmp_path / "documents").iterdir()] == [".json"]
    assert load(tmp_path, documents) == Saved(version(), judged=True)
