"""Records of lent slots: what is read in another mapping is what was written; what is torn is refused."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.addresses import address
from shared.datatypes import DataType
from shared.log_record import (
    CHECK,
    Notes,
    Record,
    RecordError,
    SegmentMap,
    check_word,
    read_record,
    write_record,
)
from shared.shm_matrix import (
    ABSENT,
    CellBlock,
    MatrixPool,
    ShmMatrix,
    Slot,
    TextColumn,
    TypedColumn,
    VarBlock,
)

MIB = 1 << 20
NOTES = Notes(1, b"id", "t", "u", "p", 5, {"rank": "host"}, [("fetch", "down", b"\0\0\0\0")])


def made(slot: Slot, rows: int, seed: int) -> ShmMatrix:
    """A matrix with columns of all kinds."""
    chance = random.Random(seed)
    matrix = ShmMatrix(slot, rows, 5, 5)
    lines = chance.randint(0, rows)
    index = np.array([chance.randint(-1, lines - 1) for _ in range(rows)], np.int32)
    shared = CellBlock.empty(slot, lines, 3, 4)
    shared.index = index
    for line in range(lines):
        shared.put(line, 0, chance.randbytes(4))
        shared.put(line, 1, chance.choice([b"", b"odd"]))
    texts = VarBlock.empty(slot, lines, 2)
    texts.index = index
    texts.fill(slot, [(line, 1, chance.randbytes(chance.randint(0, 9))) for line in range(lines)])
    own = CellBlock.empty(slot, rows, 1, 8)
    for row in range(rows):
        own.put(row, 0, chance.randbytes(8))
    matrix.blocks[0], matrix.blocks[2], matrix.blocks[4] = shared, texts, own
    matrix.texts[0] = TextColumn.of(slot, [b"id-%d" % row for row in range(rows)])
    matrix.texts[3] = TextColumn.same(slot, b"all alike")
    matrix.typed[1] = TypedColumn(DataType.INT32, 0, TextColumn.of(slot, [b"\1\0\0\0"] * rows))
    return matrix


def shown(matrix: ShmMatrix) -> list[object]:
    """Everything of a matrix that a reader can see."""
    rows = matrix.all_rows
    blocks = [
        None
        if block is None
        else [
            [block.values(column, rows) for column in range(block.states.shape[1])],
            block.states.tolist(),
            None if block.index is None else block.index.tolist(),
        ]
        for block in matrix.blocks
    ]
    texts = [None if text is None else (text.constant, text.texts(rows)) for text in matrix.texts]
    typed = [
        None if one is None else (one.data_type, one.vector_dim, one.values(rows)) for one in matrix.typed
    ]
    return [matrix.rows, blocks, texts, typed]


def mapped(pool: MatrixPool) -> SegmentMap:
    """The pool's segments, mapped once more."""
    segments = SegmentMap()
    for segment in pool.segments:
        segments.add(segment.fd, address(segment.bytes), segment.size)
    return segments


class Lent:
    """A record in its slot, and a reader of it."""

    def __init__(
        self, matrix: ShmMatrix, slates: ShmMatrix | None = None, pool: MatrixPool | None = None
    ) -> None:
        self.check = check_word(matrix.slot.number, matrix.slot.generation)
        record = write_record(matrix, slates, NOTES, self.check)
        self.heap, self.at = matrix.slot.copy(record.data)
        self.start, self.length, self.head = address(self.heap) + self.at, len(record.data), record.head
        assert pool is not None
        self.segments = mapped(pool)

    def read(self, rows: int | None = None) -> Record:
        return read_record(self.segments, self.start, self.length, self.head, rows=rows)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 3), st.integers(0, 2**32))
def test_what_is_read_is_what_was_written(rows: int, slates: int, seed: int) -> None:
    pool = MatrixPool(4 * MIB, MIB)
    slot = pool.acquire()
    matrix = made(slot, rows, seed)
    own = made(slot, slates, seed + 1) if slates else None
    record = Lent(matrix, own, pool).read(rows + slates)
    assert shown(record.matrix) == shown(matrix)
    assert record.notes == NOTES
    if own is None:
        assert record.slates is None
    else:
        assert record.slates is not None
        assert shown(record.slates) == shown(own)
    pool.close()


@pytest.fixture
def pool() -> MatrixPool:
    return MatrixPool(4 * MIB, MIB)


def test_cells_are_looked_at_where_they_are_and_cannot_be_written(pool: MatrixPool) -> None:
    matrix = made(pool.acquire(), 5, 1)
    record = Lent(matrix, pool=pool).read()
    theirs, ours = record.matrix.blocks[4], matrix.blocks[4]
    assert isinstance(theirs, CellBlock) and isinstance(ours, CellBlock)
    ours.flat[:8] = 77
    assert theirs.flat[:8].tolist() == [77] * 8
    lines = Path("/proc/self/maps").read_text().splitlines()
    start = address(theirs.flat)
    (line,) = [
        line
        for line in lines
        if int(line.split("-")[0], 16) <= start < int(line.split("-")[1].split()[0], 16)
    ]
    assert line.split()[1] == "r--s"


def test_the_check_word_stands_first(pool: MatrixPool) -> None:
    slot = pool.acquire()
    lent = Lent(made(slot, 3, 1), pool=pool)
    word = lent.segments.find(lent.start, CHECK.size)
    assert CHECK.unpack(word.tobytes()) == (lent.check,)


def test_check_words_differ_by_slot_and_generation() -> None:
    words = {check_word(slot, generation) for slot in range(100) for generation in range(100)}
    assert len(words) == 10_000
    assert 0 not in words


def test_a_place_outside_of_the_segments_is_refused(pool: MatrixPool) -> None:
    lent = Lent(made(pool.acquire(), 3, 1), pool=pool)
    with pytest.raises(RecordError, match="are in none of 1 segments"):
        read_record(lent.segments, lent.start, 64 * MIB, lent.head)
    with pytest.raises(RecordError, match="are in none of 0 segments"):
        read_record(SegmentMap(), lent.start, lent.length, lent.head)
    with pytest.raises(RecordError, match="its head begins at"):
        read_record(lent.segments, lent.start, lent.length, lent.length + 1)


def test_other_rows_than_announced_are_refused(pool: MatrixPool) -> None:
    with pytest.raises(RecordError, match="record of 3 rows, announced were 4"):
        Lent(made(pool.acquire(), 3, 1), pool=pool).read(4)


def test_an_index_that_names_no_line_is_refused(pool: MatrixPool) -> None:
    matrix = made(pool.acquire(), 3, 1)
    block = matrix.blocks[0]
    assert block is not None
    block.index = np.array([0, 1, 99], np.int32)
    with pytest.raises(RecordError, match="an index goes from 0 to 99"):
        Lent(matrix, pool=pool).read()


def test_values_outside_of_their_heap_are_refused(pool: MatrixPool) -> None:
    matrix = made(pool.acquire(), 3, 1)
    text = matrix.texts[0]
    assert text is not None
    text.sizes = np.array([1, 1, 10 * MIB], np.int32)
    with pytest.raises(RecordError, match="values end at"):
        Lent(matrix, pool=pool).read()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_torn_record_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever stands there, nothing but RecordError comes out, and what is read stays inside its memory."""
    pool = MatrixPool(4 * MIB, MIB)
    lent = Lent(made(pool.acquire(), 6, 3), pool=pool)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, lent.length - 1))
        lent.heap[lent.at + place] = data.draw(st.integers(0, 255))
    try:
        record = lent.read(6)
        shown(record.matrix)
    except (RecordError, KeyError):  # KeyError: an ODD cell without its value
        pass
    finally:
        pool.close()


def test_an_array_that_is_no_block_has_no_address() -> None:
    with pytest.raises(TypeError):
        address(np.zeros(3, np.float32))


def test_absent_cells_stay_absent(pool: MatrixPool) -> None:
    slot = pool.acquire()
    matrix = ShmMatrix(slot, 2, 1, 0)
    matrix.blocks[0] = CellBlock.empty(slot, 2, 1, 4)
    block = Lent(matrix, pool=pool).read().matrix.blocks[0]
    assert block is not None
    assert (block.states == ABSENT).all()
