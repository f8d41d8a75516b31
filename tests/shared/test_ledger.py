"""The books of inference logs: what comes in is what went out, also over the death of either side."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ledger import (
    ACKNOWLEDGED,
    DROPPED,
    HANDED,
    LOST,
    NOTHING,
    NOW,
    OFFERED,
    RECEIVED,
    REFUSED,
    Books,
    Ledger,
)

rows = st.integers(0, 1000)


def test_a_page_is_seen_by_both_sides() -> None:
    worker = Ledger.create()
    sidecar = Ledger(os.dup(worker.fd))
    worker.words[OFFERED] += 5
    worker.words[HANDED] += 5
    sidecar.words[NOW + RECEIVED] += 5
    sidecar.words[NOW + ACKNOWLEDGED] += 3
    assert worker.books() == sidecar.books() == Books(5, 5, 0, 5, 3, {})
    assert worker.books().held == worker.outstanding == 2
    assert worker.settled == 3


def test_what_was_not_settled_is_lost_with_the_link() -> None:
    first, second = Ledger.create(), Ledger.create()
    first.words[OFFERED], first.words[HANDED] = 12, 10
    first.words[REFUSED["log sidecar away"]] = 2
    first.words[NOW + RECEIVED] = 9
    first.words[NOW + ACKNOWLEDGED] = 4
    first.words[NOW + DROPPED["queue full"]] = 1
    second.succeed(first)
    first.words[NOW + ACKNOWLEDGED] = 10  # an old log sidecar that is not quite dead
    books = second.books()
    assert books == Books(12, 10, 5, 9, 4, {"queue full": 1, "log sidecar away": 2})
    assert (books.held, second.outstanding) == (0, 0)


@given(st.lists(st.tuples(rows, rows, rows, rows), max_size=5), st.booleans())
def test_books_balance_over_any_number_of_links(links: list[tuple[int, ...]], in_place: bool) -> None:
    page = Ledger.create()
    lost = acknowledged = 0
    for handed, refused, received, settled in links:
        received = min(received, handed)
        settled = min(settled, received)
        page.words[OFFERED] += handed + refused
        page.words[HANDED] += handed
        page.words[REFUSED["log sidecar behind"]] += refused
        page.words[NOW + RECEIVED] += received
        page.words[NOW + ACKNOWLEDGED] += settled
        assert page.outstanding == page.books().held == handed - settled
        lost += handed - settled
        acknowledged += settled
        following = page if in_place else Ledger.create()
        following.succeed(page)
        if following is not page:
            page.close()
        page = following
    books = page.books()
    assert (books.lost, page.words[LOST], books.acknowledged, books.held) == (lost, lost, acknowledged, 0)
    assert books.offered == books.handed + books.dropped.get("log sidecar behind", 0)
    page.close()


def test_books_add_up() -> None:
    one = Books(10, 8, 1, 7, 6, {"queue full": 1, "torn": 1})
    other = Books(5, 5, 0, 5, 4, {"torn": 1})
    assert one + other == Books(15, 13, 1, 12, 10, {"queue full": 1, "torn": 2})
    assert NOTHING + one == one
    assert (one + other).held == one.held + other.held


def test_words_do_not_overlap() -> None:
    worker = [OFFERED, HANDED, LOST, *REFUSED.values()]
    sidecar = [RECEIVED, ACKNOWLEDGED, *DROPPED.values()]
    assert len(set(worker)) == len(worker)
    assert len(set(sidecar)) == len(sidecar)
    assert max(worker) < 16
    assert max(sidecar) < 16


def test_a_descriptor_of_another_size_is_refused() -> None:
    fd = os.memfd_create("small")
    with pytest.raises(OSError, match="has 0 bytes, a ledger has 4096"):
        Ledger(fd)
    os.close(fd)


def test_repr_tells_the_counts() -> None:
    page = Ledger.create()
    page.words[OFFERED] = 7
    assert repr(page) == "<Ledger 7 rows offered, 0 acknowledged, 7 held, 0 lost, dropped {}>"
