"""Overrides when they cannot be noted on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.saved import Documents
from shared.snapshot import digest_of
from sidecar.history import History, Override

A, B = "config-map/a", "config-map/b"
PINNED = Override(digest_of(b"a1"), 1, digest_of(b"a2"), pinned=True)
ROLLED_BACK = Override(digest_of(b"b1"), 1, digest_of(b"b2"))


@pytest.fixture
def history(tmp_path: Path) -> History:
    """`a` is pinned, `b` rolled back."""
    documents = Documents(tmp_path / "documents")
    documents.write({digest_of(text): text for text in (b"a1", b"b1")})
    one = History(tmp_path, documents)
    one.override(A, PINNED)
    one.override(B, ROLLED_BACK)
    return one


@contextlib.contextmanager
def not_writable(directory: Path) -> Iterator[None]:
    """The ledger cannot be replaced meanwhile."""
    path = directory / "history.json"
    aside = path.rename(directory / "aside")
    path.mkdir()
    yield
    path.rmdir()
    aside.rename(path)


def test_a_pin_holds_when_the_end_of_a_rollback_cannot_be_noted(tmp_path: Path, history: History) -> None:
    with not_writable(tmp_path):
        for _ in range(2):
            texts, revisions = history.apply({A: b"a2", B: b"b3"}, {A: 2, B: 3})
            assert texts == {A: b"a1", B: b"b3"}
            assert revisions == {A: 1, B: 3}
    assert history.overrides == {A: PINNED}
    again = History(tmp_path, Documents(tmp_path / "documents"))  # a restart ends the rollback once more
    assert again.apply({A: b"a2", B: b"b3"}, {})[0] == {A: b"a1", B: b"b3"}


def test_an_override_that_cannot_be_noted_does_not_take_effect(tmp_path: Path, history: History) -> None:
    with not_writable(tmp_path):
        with pytest.raises(OSError):
            history.withdraw(A)
        with pytest.raises(OSError):
            history.override(B, PINNED)
        with pytest.raises(OSError):
            history.override("config-map/c", PINNED)
    assert history.overrides == {A: PINNED, B: ROLLED_BACK}
    assert history.withdraw(A)
    assert not history.withdraw(A)
    assert history.overrides == {B: ROLLED_BACK}
