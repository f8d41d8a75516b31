"""The matrix and its memory: the pool as a state machine, columns and blocks against plain lists."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from shared import shm_matrix
from shared.datatypes import DataType
from shared.shm_matrix import (
    ABSENT,
    ALIGN,
    EMPTY,
    ODD,
    SEGMENT,
    SMALLEST_CHUNK,
    TEXTS_KEPT,
    VALUE,
    CellBlock,
    MatrixFull,
    MatrixPool,
    ShmMatrix,
    Slot,
    TextColumn,
    TypedColumn,
    VarBlock,
)
from tests.effort import tries

Bytes = npt.NDArray[np.uint8]
MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[MatrixPool]:
    pool = MatrixPool(16 * MIB, 4 * MIB)
    yield pool
    pool.close()


@pytest.fixture
def slot(pool: MatrixPool) -> Slot:
    return pool.acquire()


def rows(*numbers: int) -> npt.NDArray[np.int32]:
    return np.array(numbers, np.int32)


# ---------------------------------------------------------------- the pool


def span(memory: Bytes) -> tuple[int, int]:
    """The addresses that an array covers: first, and first after it."""
    start: int = memory.__array_interface__["data"][0]
    return start, start + memory.nbytes


def overlap(spans: Sequence[tuple[int, int]]) -> bool:
    ordered = sorted(spans)
    return any(a[1] > b[0] for a, b in itertools.pairwise(ordered))


class PoolMachine(RuleBasedStateMachine):
    """Requests come, ask for memory, write their number into it, and go; nobody ever sees another's number."""

    CAPACITY, LIMIT = 3 * MIB + 12_345, MIB

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.pool = MatrixPool(self.CAPACITY, self.LIMIT)
        self.held: dict[Slot, list[Bytes]] = {}
        self.used: dict[Slot, int] = {}
        self.generations: dict[int, int] = {}

    @rule(target=slots)
    def acquire(self) -> Slot:
        slot = self.pool.acquire()
        assert slot not in self.held
        assert slot.generation > self.generations.get(slot.number, 0)
        self.generations[slot.number] = slot.generation
        self.held[slot] = []
        self.used[slot] = 0
        return slot

    @rule(slot=slots, size=st.integers(0, 3000) | st.integers(0, MIB + 5))
    def allocate(self, slot: Slot, size: int) -> None:
        in_use, mine, lent = self.pool.in_use, self.used[slot], slot.size
        try:
            memory = slot.allocate(size)
        except MatrixFull as error:
            assert (self.pool.in_use, slot.size) == (in_use, lent)
            if mine + size > self.LIMIT:
                assert f"needs {mine + size} bytes, the limit is {self.LIMIT}" in str(error)
            else:
                assert f"{in_use} of the {self.CAPACITY} bytes" in str(error)
                assert not self.has_room(size)
            return
        assert mine + size <= self.LIMIT
        assert memory.shape == (size,)
        self.used[slot] += size
        if size:
            assert span(memory)[0] % ALIGN == 0
        memory[:] = slot.number % 251 + 1
        self.held[slot].append(memory)

    @rule(slot=consumes(slots))
    def release(self, slot: Slot) -> None:
        for memory in self.held.pop(slot):
            assert (memory == slot.number % 251 + 1).all()
        self.pool.release(slot)
        with pytest.raises(ValueError, match="released twice"):
            self.pool.release(slot)

    def has_room(self, size: int) -> bool:
        """Whether a chunk of this size could be had: from new memory, or between the chunks that are lent."""
        least = 1 << (max(size, SMALLEST_CHUNK) - 1).bit_length()
        if self.pool.reserved + least <= self.CAPACITY:
            return True
        lent = [(c.segment, c.offset, c.offset + len(c.bytes)) for slot in self.held for c in slot.chunks]
        return any(
            not any(n == number and start < at + least and at < stop for n, start, stop in lent)
            for number, segment in enumerate(self.pool.segments)
            for at in range(0, segment.size - least + 1, least)
        )

    @invariant()
    def nothing_overlaps(self) -> None:
        assert not overlap([span(m) for memories in self.held.values() for m in memories if m.size])

    @invariant()
    def counts_add_up(self) -> None:
        assert self.pool.busy == len(self.held)
        assert self.pool.in_use == sum(slot.size for slot in self.held)
        assert self.pool.in_use <= self.pool.reserved <= self.CAPACITY
        assert self.pool.reserved == sum(segment.size for segment in self.pool.segments)
        assert f"{self.pool.busy} of" in repr(self.pool)

    def teardown(self) -> None:
        for slot in self.held:
            self.pool.release(slot)
        # Whatever it was cut into, half of a segment can be had at once: all but what the slot itself has kept.
        self.pool.limit = self.CAPACITY
        self.pool.acquire().allocate(max((segment.size for segment in self.pool.segments), default=0) // 2)
        self.pool.close()


TestPool = PoolMachine.TestCase
TestPool.settings = tries(0.5)


def test_memory_comes_in_segments_as_it_is_needed(pool: MatrixPool) -> None:
    assert pool.segments == []
    first = pool.acquire()
    first.allocate(10)
    assert pool.reserved == SEGMENT
    slots = [pool.acquire() for _ in range(3)]
    for one in slots:
        one.allocate(4 * MIB)
    assert pool.reserved == 2 * SEGMENT
    for one in [first, *slots]:
        pool.release(one)
    assert pool.in_use == 0
    assert pool.reserved == 2 * SEGMENT


def test_a_slot_is_used_again_with_another_generation(pool: MatrixPool) -> None:
    first = pool.acquire()
    pool.release(first)
    again = pool.acquire()
    assert again is first
    assert again.generation == 2
    assert pool.acquire() is not first


def test_growing_needs_few_chunks(pool: MatrixPool, slot: Slot) -> None:
    for _ in range(2000):
        slot.allocate(1000)
    assert len(slot.chunks) <= 8


def test_a_request_over_its_limit_is_told_so(pool: MatrixPool, slot: Slot) -> None:
    with pytest.raises(
        MatrixFull, match=r"needs 4194305 bytes, the limit is 4194304 \(INFERFLOW_MAX_MATRIX_BYTES\)"
    ):
        slot.allocate(4 * MIB + 1)
    slot.allocate(4 * MIB)
    with pytest.raises(MatrixFull, match="needs 4194305 bytes"):
        slot.allocate(1)


def test_a_limit_that_is_no_power_of_two_can_be_used_up() -> None:
    pool = MatrixPool(4 * MIB, 700_000)
    slot = pool.acquire()
    slot.allocate(60_000)
    slot.allocate(600_000)
    pool.close()


def test_a_full_pool_says_how_full_it_is() -> None:
    pool = MatrixPool(MIB, MIB)
    pool.acquire().allocate(MIB)
    with pytest.raises(
        MatrixFull, match=r"needs 5 bytes more, and 1048576 of the 1048576 .* \(INFERFLOW_MATRIX_BYTES\)"
    ):
        pool.acquire().allocate(5)
    pool.close()


def test_many_small_requests_leave_room_for_a_large_one() -> None:
    pool = MatrixPool(MIB, MIB)
    small = [pool.acquire() for _ in range(16)]
    for slot in small:
        slot.allocate(100)
    with pytest.raises(MatrixFull):
        pool.acquire().allocate(1)
    for slot in small:
        pool.release(slot)
    pool.acquire().allocate(MIB // 2)
    pool.close()


def test_a_large_request_leaves_room_for_many_small_ones() -> None:
    pool = MatrixPool(MIB, MIB)
    large = pool.acquire()
    large.allocate(MIB)
    pool.release(large)
    for _ in range(16):
        pool.acquire().allocate(100)
    pool.close()


def test_no_memory_is_the_requests_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shm_matrix, "Segment", refuse)
    slot = MatrixPool(MIB, MIB).acquire()
    with pytest.raises(MatrixFull, match=r"no shared memory for 1048576 bytes of matrix: .*No space left"):
        slot.allocate(1)


def test_closing_gives_the_descriptors_back() -> None:
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    pool = MatrixPool(32 * MIB, 16 * MIB)
    slots = [pool.acquire() for _ in range(3)]
    for slot in slots:
        slot.allocate(8 * MIB)
    assert len(pool.segments) == 3
    assert len(os.listdir("/proc/self/fd")) >= before + 3
    for slot in slots:
        pool.release(slot)
    pool.close()
    del slot, slots, pool  # and with them the arrays that look into the segments
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_never_get_the_same_memory() -> None:
    """Components of one request, and requests of one pool, allocate side by side."""
    pool = MatrixPool(16 * MIB, 4 * MIB, threads=6)
    slots = [pool.acquire(), pool.acquire()]
    start = threading.Barrier(6)
    got: list[list[Bytes]] = [[] for _ in range(6)]

    def work(number: int) -> None:
        start.wait()
        for turn in range(300):
            memory = slots[number % 2].allocate(turn % 97 * 10 + 1)
            memory[:] = number
            got[number].append(memory)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overlap([span(memory) for memories in got for memory in memories])
    for number, memories in enumerate(got):
        assert len(memories) == 300
        assert all((memory == number).all() for memory in memories)
    assert pool.in_use == slots[0].size + slots[1].size


# ---------------------------------------------------------------- arrays and copies


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 5), (4, 0, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float64])
def test_arrays_have_their_shape_and_type(
    slot: Slot, shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    array = slot.zeros(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert not array.any()
    assert slot.array(shape, dtype).shape == shape


@given(st.lists(st.binary(max_size=300)))
def test_copies_stay_where_they_are(texts: list[bytes]) -> None:
    pool = MatrixPool(MIB, MIB)
    slot = pool.acquire()
    places = [slot.copy(text) for text in texts]
    for text, (heap, start) in zip(texts, places, strict=True):
        assert heap[start : start + len(text)].tobytes() == text
    pool.close()


# ---------------------------------------------------------------- columns

TEXTS = st.lists(st.binary(max_size=6), min_size=1, max_size=8)


@given(TEXTS, st.data())
def test_a_text_column_shows_its_texts(texts: list[bytes], data: st.DataObject) -> None:
    pool = MatrixPool(MIB, MIB)
    asked = data.draw(st.lists(st.integers(0, len(texts) - 1)))
    column = TextColumn.of(pool.acquire(), texts)
    assert column.texts(rows(*asked)) == [texts[row] for row in asked]
    assert column.first() == texts[0]
    assert not column.constant
    pool.close()


def test_a_constant_column_has_one_text_for_all_rows(slot: Slot) -> None:
    column = TextColumn.same(slot, b"user")
    assert column.constant
    assert column.texts(rows(0, 7, 1000)) == [b"user"] * 3
    assert column.first() == b"user"


@pytest.mark.parametrize("room", [8, TEXTS_KEPT + 1])
def test_texts_by_their_places_in_a_table(slot: Slot, room: int) -> None:
    texts, body = [b"ab", b"", b"cde"], b".ab.cde."
    for before in (b"", b"x" * 100):  # the second time, the body stands elsewhere
        slot.copy(before)
        heap, at = slot.copy(body)
        table = slot.texts(room)
        table.starts[2:5], table.sizes[2:5] = [at + 1, 0, at + 4], [2, 0, 3]
        column = table.column(heap, 2, 3)
        assert not column.constant
        assert column.texts(rows(2, 1, 0)) == texts[::-1]
        assert (column.first(), column.first_size()) == (b"ab", 2)
        for place, text in enumerate(texts, 2):
            alone = table.constant(heap, place, body, at)
            assert alone.constant
            assert (alone.first(), alone.first_size()) == (text, len(text))
            assert alone.texts(rows(0, 9)) == [text] * 2
            assert (alone.starts, alone.sizes) == (table.starts[place], table.sizes[place])


def test_a_slot_keeps_its_table_of_texts_unless_it_is_large(slot: Slot, pool: MatrixPool) -> None:
    table = slot.texts(1)
    pool.release(slot)
    assert pool.acquire().texts(TEXTS_KEPT) is table
    assert slot.texts(TEXTS_KEPT + 1) is not table
    assert slot.texts(1) is table


def test_a_column_of_no_rows(slot: Slot) -> None:
    assert TextColumn.of(slot, []).texts(rows()) == []


def test_a_typed_column_keeps_its_bytes(slot: Slot) -> None:
    column = TypedColumn(DataType.FP32_VECTOR, 2, TextColumn.of(slot, [b"12345678", b""]))
    assert column.values(rows(1, 0)) == [b"", b"12345678"]
    assert (column.data_type, column.vector_dim) == (DataType.FP32_VECTOR, 2)


# ---------------------------------------------------------------- blocks


@given(
    st.lists(st.lists(st.binary(max_size=5), min_size=3, max_size=3), min_size=1, max_size=5),
    st.data(),
)
def test_a_cell_block_shows_what_was_put(lines: list[list[bytes]], data: st.DataObject) -> None:
    pool = MatrixPool(MIB, MIB)
    block = CellBlock.empty(pool.acquire(), len(lines) + 1, 3, 4)
    assert not block.states.any()
    for line, values in enumerate(lines):
        for column, value in enumerate(values):
            block.put(line, column, value)
            state = VALUE if len(value) == 4 else EMPTY if not value else ODD
            assert block.states[line, column] == state
    column = data.draw(st.integers(0, 2))
    shown = data.draw(st.lists(st.integers(-1, len(lines)), min_size=1))
    wanted = [lines[line][column] if 0 <= line < len(lines) else b"" for line in shown]
    assert block.line_values(column, rows(*shown)) == wanted
    block.index = rows(*shown)
    everybody = np.arange(len(shown), dtype=np.int32)
    assert block.values(column, everybody) == wanted
    assert block.values(column, everybody[:0]) == []
    pool.close()


@given(
    st.lists(st.lists(st.binary(max_size=5), min_size=2, max_size=2), min_size=1, max_size=5),
    st.data(),
)
def test_a_var_block_shows_what_was_filled(lines: list[list[bytes]], data: st.DataObject) -> None:
    pool = MatrixPool(MIB, MIB)
    slot = pool.acquire()
    block = VarBlock.empty(slot, len(lines) + 1, 2)
    block.fill(
        slot,
        [(line, column, value) for line, values in enumerate(lines) for column, value in enumerate(values)],
    )
    column = data.draw(st.integers(0, 1))
    shown = data.draw(st.lists(st.integers(-1, len(lines)), min_size=1))
    wanted = [lines[line][column] if 0 <= line < len(lines) else b"" for line in shown]
    assert block.line_values(column, rows(*shown)) == wanted
    assert block.states[: len(lines), column].tolist() == [VALUE if line[column] else EMPTY for line in lines]
    assert block.states[len(lines)].tolist() == [ABSENT, ABSENT]
    block.index = rows(*shown)
    assert block.values(column, np.arange(len(shown), dtype=np.int32)) == wanted
    pool.close()


def test_blocks_without_lines_show_nothing(slot: Slot) -> None:
    for block in (CellBlock.empty(slot, 0, 2, 4), VarBlock.empty(slot, 0, 2)):
        block.index = rows(-1, -1)
        assert block.values(1, rows(0, 1)) == [b"", b""]


def test_a_matrix_starts_unwritten(slot: Slot) -> None:
    matrix = ShmMatrix(slot, 3, 2, 4)
    assert matrix.all_rows.tolist() == [0, 1, 2]
    assert matrix.blocks == [None, None]
    assert matrix.texts == [None] * 4
    assert matrix.typed == [None] * 4
    assert "3 rows, 0 of 2 blocks written" in repr(matrix)
