"""Tensors: what a model gets for the columns that its config names.

The oracle goes cell by cell over what a matrix was made of. Conversions themselves are tested with
`components.numbers`; here it is about which value goes where, and what is done for those that are not there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import numbers
from components.scratch import KEPT, scratch
from components.tensors import Misfit, Tensor, TensorInput
from components.triton_wire import split_bytes
from dag.layout import Layout, LayoutBuilder
from shared.datatypes import DataType
from shared.shm_matrix import CellBlock, MatrixFull, ShmMatrix, Slot, TextColumn, TypedColumn, VarBlock
from tests.components.running import matrix_pool

NUMERIC = [kind for kind in DataType if kind and not kind.is_vector and kind is not DataType.STRING]
ABSENT_CELL = None


@dataclasses.dataclass
class Fetched:
    """A byte column: its type, elements a cell (0: varies), and its values by line; None: never written."""

    kind: DataType
    count: int
    lines: list[bytes | None]


class Columns:
    """A matrix made of fetched columns (one block each width) and of what the request brought."""

    def __init__(
        self,
        slot: Slot,
        rows: int,
        fetched: Mapping[str, Fetched],
        texts: Mapping[str, Sequence[bytes]],
        typed: Mapping[str, tuple[DataType, Sequence[bytes]]],
        index: Sequence[int] | None = None,
    ) -> None:
        builder = LayoutBuilder([*fetched, *texts, *typed, "nowhere"])
        builder.write("fetch", [(name, column.kind, column.count) for name, column in fetched.items()])
        self.layout: Layout = builder.build()
        self.rows = rows
        self.fetched = fetched
        self.texts = texts
        self.typed = typed
        self.index = list(range(rows)) if index is None else list(index)
        self.matrix = ShmMatrix(slot, rows, len(self.layout.blocks), len(self.layout.external))
        lines = max([len(column.lines) for column in fetched.values()], default=0)
        for number, spec in enumerate(self.layout.blocks):
            block = self._block(slot, lines, [(c.name, c.column) for c in spec.columns], spec.width)
            if index is not None:
                block.index = np.array(index, np.int32)
            self.matrix.blocks[number] = block
        for name, values in texts.items():
            self.matrix.texts[self.layout.external[name]] = self._text(slot, values)
        for name, (kind, values) in typed.items():
            self.matrix.typed[self.layout.external[name]] = TypedColumn(kind, 0, self._text(slot, values))

    def _text(self, slot: Slot, values: Sequence[bytes]) -> TextColumn:
        return TextColumn.same(slot, values[0]) if len(values) == 1 else TextColumn.of(slot, values)

    def _block(
        self, slot: Slot, lines: int, columns: list[tuple[str, int]], width: int
    ) -> CellBlock | VarBlock:
        cells = [
            (line, column, value)
            for name, column in columns
            for line, value in enumerate(self.fetched[name].lines)
            if value is not None
        ]
        if not width:
            var = VarBlock.empty(slot, lines, len(columns))
            var.fill(slot, cells)
            return var
        block = CellBlock.empty(slot, lines, len(columns), width)
        for line, column, value in cells:
            block.put(line, column, value)
        return block

    def input(self, names: Sequence[str], target: DataType, shape: Sequence[int], **more: Any) -> TensorInput:
        return TensorInput("in", target, tuple(shape), tuple(map(self.layout.source, names)), **more)

    def build(
        self,
        names: Sequence[str],
        target: DataType,
        shape: Sequence[int],
        rows: Sequence[int] | None = None,
        **more: Any,
    ) -> tuple[Tensor, list[Misfit]]:
        """Built both ways, which must not differ."""
        asked = self.matrix.all_rows if rows is None else np.array(rows, np.int32)
        tensor, misfits = self.input(names, target, shape, **more).build(self.matrix, asked)
        slow, slow_misfits = self.input(names, target, shape, reference=True, **more).build(
            self.matrix, asked
        )
        assert tensor.shape == slow.shape
        assert tensor.raws((0, len(asked)))[0] == slow.raws((0, len(asked)))[0]
        assert sorted(misfits) == sorted(slow_misfits)
        return tensor, list(misfits)

    def values(self, names: Sequence[str], target: DataType, shape: Sequence[int], **more: Any) -> Any:
        """The elements of each row, as Python numbers."""
        tensor, _ = self.build(names, target, shape, **more)
        return tensor.cells.view(target.dtype).tolist()


def le(kind: DataType, *values: float) -> bytes:
    return np.array(values).astype(kind.dtype).tobytes()


FP32, FP64, INT32, INT64, BOOL, BYTES = (
    DataType.FP32, DataType.FP64, DataType.INT32, DataType.INT64, DataType.BOOL, DataType.STRING,
)  # fmt: skip


def fp32(*lines: float | None) -> Fetched:
    """An FP32 column with these values by line; None is a value that was not there (EMPTY)."""
    return Fetched(FP32, 1, [b"" if value is None else le(FP32, value) for value in lines])


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("target", NUMERIC)
def test_every_type_into_every_type(target: DataType) -> None:
    """Columns of all types side by side, each converted as a whole column would be."""
    given_values = [0.0, 1.0, -1.0, 2.5, 300.0, 1e9, float("nan")]
    with np.errstate(all="ignore"):
        arrays = {kind: np.array(given_values).astype(kind.dtype) for kind in NUMERIC}
    fetched = {
        kind.name: Fetched(kind, 1, [value.tobytes() for value in array]) for kind, array in arrays.items()
    }
    with matrix_pool() as slot:
        columns = Columns(slot, len(given_values), fetched, {}, {})
        tensor, misfits = columns.build(list(fetched), target, [len(fetched)])
        assert misfits == []
        wanted = np.stack([numbers.convert(arrays[kind], kind, target) for kind in NUMERIC], axis=1)
        assert tensor.cells.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", NUMERIC)
def test_numbers_into_texts(kind: DataType) -> None:
    array = np.array([0, 1, 2]).astype(kind.dtype)
    with matrix_pool() as slot:
        columns = Columns(slot, 3, {"a": Fetched(kind, 1, [value.tobytes() for value in array])}, {}, {})
        tensor, _ = columns.build(["a"], BYTES, [1])
        assert split_bytes(tensor.raws((0, 3))[0]) == numbers.text(array, kind)


# ---------------------------------------------------------------- any mixture


CELL_KINDS = st.sampled_from([FP32, FP32, FP64, INT32, DataType.INT8, BOOL])


@st.composite
def mixtures(
    draw: st.DrawFn,
) -> tuple[int, dict[str, Fetched], dict[str, Any], dict[str, Any], list[int] | None]:
    """(rows, fetched, texts, typed, index): fixed-width columns with values of all states, and brought ones."""
    rows = draw(st.integers(1, 5))
    lines = draw(st.integers(1, 4))
    index = draw(st.lists(st.integers(-1, lines - 1), min_size=rows, max_size=rows))
    fetched = {}
    for number in range(draw(st.integers(1, 4))):
        kind = draw(CELL_KINDS)
        cell = st.sampled_from([None, b"", b"odd length"]) | st.binary(min_size=kind.size, max_size=kind.size)
        mostly = st.one_of(st.binary(min_size=kind.size, max_size=kind.size), cell)
        fetched[f"f{number}"] = Fetched(kind, 1, draw(st.lists(mostly, min_size=lines, max_size=lines)))

    def one_or_all(values: st.SearchStrategy[bytes]) -> list[bytes]:
        count = draw(st.sampled_from([1, rows]))
        return draw(st.lists(values, min_size=count, max_size=count))

    brought_text = st.sampled_from([b"", b"1", b"2.5", b"x", b"true"])
    texts = {
        name: one_or_all(brought_text)
        for name in draw(st.lists(st.sampled_from([*fetched, "t0", "t1"]), unique=True, max_size=2))
    }
    typed = {}
    for name in draw(st.lists(st.sampled_from([*fetched, "t2"]), unique=True, max_size=2)):
        kind = draw(CELL_KINDS)
        value = st.just(b"") | st.binary(min_size=kind.size, max_size=kind.size)
        typed[name] = (kind, one_or_all(value))
    return rows, fetched, texts, typed, draw(st.none() | st.just(index)) if lines >= rows else index


def oracle(columns: Columns, name: str, row: int, target: DataType) -> tuple[npt.NDArray[Any], bool]:
    """(element, whether it is a misfit) of one column in one row."""
    zero = np.zeros(1, target.dtype)

    def convert(raw: bytes, kind: DataType) -> npt.NDArray[Any]:
        if not raw:
            return zero
        if kind is DataType.STRING:
            return numbers.parse([raw], target)
        return numbers.convert(np.frombuffer(raw, kind.dtype), kind, target)

    if name in columns.fetched:
        column = columns.fetched[name]
        line = columns.index[row]
        cell = column.lines[line] if line >= 0 else None
        if cell is not None:
            fits = len(cell) in (0, column.kind.size)
            return (convert(cell, column.kind), False) if fits else (zero, True)
    if name in columns.typed:
        kind, values = columns.typed[name]
        return convert(values[row % len(values)], kind), False
    if name in columns.texts:
        values = columns.texts[name]
        return convert(values[row % len(values)], DataType.STRING), False
    return zero, False


@given(mixtures(), st.sampled_from(NUMERIC), st.data())
def test_any_mixture_of_columns(
    made: tuple[int, dict[str, Fetched], dict[str, Any], dict[str, Any], list[int] | None],
    target: DataType,
    data: st.DataObject,
) -> None:
    rows, fetched, texts, typed, index = made
    with matrix_pool() as slot:
        columns = Columns(slot, rows, fetched, texts, typed, index)
        known = [*columns.layout.external]
        names = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=5))
        asked = data.draw(
            st.permutations(range(rows)).flatmap(lambda p: st.sampled_from([p, p[:1], [*p, p[0]]]))
        )
        shape = data.draw(st.sampled_from([[len(names)], [-1]]))
        if len(names) == 1 and shape[0] > 1:
            shape = [1]
        tensor, misfits = columns.build(names, target, shape, asked)
        wanted = [[oracle(columns, name, row, target) for name in names] for row in asked]
        assert tensor.shape == (len(names),)
        assert tensor.raws((0, len(asked)))[0] == b"".join(e.tobytes() for row in wanted for e, _ in row)
        assert {m.position for m in misfits} == {
            i for i, row in enumerate(wanted) if any(bad for _, bad in row)
        }
        for misfit in misfits:
            assert "does not have the length of its type" in misfit.reason


@given(mixtures(), st.data())
def test_any_mixture_of_columns_as_texts(
    made: tuple[int, dict[str, Fetched], dict[str, Any], dict[str, Any], list[int] | None],
    data: st.DataObject,
) -> None:
    rows, fetched, texts, typed, index = made
    with matrix_pool() as slot:
        columns = Columns(slot, rows, fetched, texts, typed, index)
        names = data.draw(st.lists(st.sampled_from([*columns.layout.external]), min_size=1, max_size=4))
        tensor, misfits = columns.build(names, BYTES, [-1])
        wanted, odd = [], set()
        for row in range(rows):
            for name in names:
                text, bad = text_oracle(columns, name, row)
                wanted.append(text or b"0.0")
                odd |= {row} if bad else set()
        assert split_bytes(tensor.raws((0, rows))[0]) == wanted
        assert tensor.shape == (len(names),)
        assert {misfit.position for misfit in misfits} == odd


def text_oracle(columns: Columns, name: str, row: int) -> tuple[bytes, bool]:
    """(text, whether it is a misfit) of one column in one row."""

    def form(raw: bytes, kind: DataType) -> bytes:
        if kind is DataType.STRING or not raw:
            return raw
        return numbers.text(np.frombuffer(raw, kind.dtype), kind)[0]

    if name in columns.fetched:
        column = columns.fetched[name]
        line = columns.index[row]
        cell = column.lines[line] if line >= 0 else None
        if cell is not None:
            fits = len(cell) in (0, column.kind.size)
            return (form(cell, column.kind), False) if fits else (b"", True)
    if name in columns.typed:
        kind, values = columns.typed[name]
        return form(values[row % len(values)], kind), False
    values = columns.texts.get(name, [b""])
    return values[row % len(values)], False


# ---------------------------------------------------------------- vectors


def vectors(kind: DataType, *lines: Sequence[float] | None) -> Fetched:
    """A vector column whose rows bring their own number of elements; None: no value."""
    return Fetched(kind.vector, 0, [b"" if line is None else le(kind, *line) for line in lines])


def test_a_vector_fills_its_shape() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 2, {"v": vectors(FP32, [1, 2, 3, 4], [5, 6, 7, 8])}, {}, {})
        assert columns.values(["v"], FP32, [4]) == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert columns.values(["v"], INT64, [2, 2]) == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert columns.build(["v"], FP32, [2, 2])[0].shape == (2, 2)


def test_a_missing_vector_is_zeros_times_its_own_dims() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 3, {"v": vectors(FP64, None, [1, 2, 3], None)}, {}, {})
        assert columns.values(["v"], FP32, [3]) == [[0, 0, 0], [1, 2, 3], [0, 0, 0]]
        assert columns.values(["v"], FP32, [-1]) == [[0, 0, 0], [1, 2, 3], [0, 0, 0]]


def test_a_vector_that_no_row_has() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 2, {"v": vectors(FP32, None, None), "a": fp32(1, 2)}, {}, {})
        assert columns.values(["v"], FP32, [3]) == [[0, 0, 0]] * 2
        assert columns.values(["v"], FP32, [2, -1]) == [[0, 0]] * 2
        assert columns.values(["v"], FP32, [-1]) == [[0]] * 2
        assert columns.values(["a", "v"], FP32, [3]) == [[1, 0, 0], [2, 0, 0]]


def test_a_vector_of_another_length_is_zeros_and_a_misfit() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 3, {"v": vectors(FP32, [9], [1, 2, 3], [1, 2, 3])}, {}, {})
        for shape in ([3], [-1]):
            tensor, misfits = columns.build(["v"], FP32, shape)
            assert tensor.cells.view(np.float32).tolist() == [[0, 0, 0], [1, 2, 3], [1, 2, 3]]
            assert misfits == [Misfit(0, "'v' has 1 elements, the model takes 3")]


def test_vectors_that_together_do_not_fill_the_shape_are_zeros_and_misfits() -> None:
    fetched = {
        "u": vectors(FP32, [1, 2, 3], [1, 2, 3], None),
        "i": vectors(FP32, [4, 5], [6, 7], None),
        "some": vectors(FP32, [4, 5], [6, 7, 8], None),
    }
    typed = {"t": (FP32.vector, [le(FP32, 1, 2, 3)])}
    with matrix_pool() as slot:
        columns = Columns(slot, 3, fetched, {}, typed)
        tensor, misfits = columns.build(["u", "i"], FP32, [6])
        assert tensor.cells.view(np.float32).tolist() == [[0] * 6] * 3
        reason = "input 'in' has 5 elements a row, the model takes 6"
        assert misfits == [Misfit(0, reason), Misfit(1, reason)]
        # A row that fills the shape says how long the vectors of the others are to be.
        tensor, misfits = columns.build(["u", "some"], FP32, [6])
        assert tensor.cells.view(np.float32).tolist() == [[1, 2, 3, 0, 0, 0], [1, 2, 3, 6, 7, 8], [0] * 6]
        assert misfits == [Misfit(0, "'some' has 2 elements, the model takes 3")]
        assert columns.build(["nowhere", "nowhere"], FP32, [5])[1] == []
        assert columns.values(["t", "t", "nowhere"], FP32, [9]) == [[1, 2, 3, 1, 2, 3, 0, 0, 0]] * 3
        tensor, misfits = columns.build(["t", "t"], FP32, [2])
        assert tensor.cells.view(np.float32).tolist() == [[0, 0]] * 3
        assert [misfit.position for misfit in misfits] == [0, 1, 2]


def test_elements_that_leave_a_free_dim_no_size() -> None:
    fetched = {"v": vectors(FP32, [1, 2, 3], None), "w": vectors(FP32, [1, 2, 3], [1, 2])}
    with matrix_pool() as slot:
        columns = Columns(slot, 2, fetched, {"t": [b"a:b:c", b"a:b:c:d"]}, {"one": (FP32, [le(FP32, 1)])})
        for names in (["v"], ["one"]):
            tensor, misfits = columns.build(names, FP32, [2, -1])
            assert (tensor.shape, tensor.cells.view(np.float32).tolist()) == ((2, 1), [[0, 0]] * 2)
            assert misfits[0].reason.endswith(" elements a row, the model takes a multiple of 2")
        tensor, misfits = columns.build(["w"], FP32, [2, -1])
        assert (tensor.shape, tensor.cells.view(np.float32).tolist()) == ((2, 1), [[0, 0], [1, 2]])
        assert misfits == [Misfit(0, "'w' has 3 elements, the model takes 2")]
        assert columns.build(["nowhere"], FP32, [2, -1])[0].shape == (2, 1)
        tensor, misfits = columns.build(["t"], BYTES, [2, -1])
        assert (tensor.shape, misfits) == ((2, 2), [Misfit(0, "'t' has 3 elements, the model takes 4")])


def test_bytes_that_are_no_whole_elements_are_no_vector() -> None:
    with matrix_pool() as slot:
        columns = Columns(
            slot, 2, {"v": Fetched(DataType.FP32_VECTOR, 0, [b"12345", le(FP32, 1, 2)])}, {}, {}
        )
        assert columns.values(["v"], FP32, [2]) == [[0, 0], [1, 2]]


def test_vectors_of_unlike_lengths_stand_side_by_side() -> None:
    fetched = {
        "v": vectors(FP32, [1, 2, 3], None, [4, 5, 6]),
        "a": fp32(7, None, 8),
        "w": vectors(INT32, [1, 2], [3, 4], [5, 6]),
        "never": vectors(FP32, None, None, None),
    }
    with matrix_pool() as slot:
        columns = Columns(slot, 3, fetched, {}, {})
        rows = [[1, 2, 3, 7, 1, 2], [0, 0, 0, 0, 3, 4], [4, 5, 6, 8, 5, 6]]
        assert columns.values(["v", "a", "w"], FP32, [6]) == rows
        assert columns.values(["v", "a", "w"], FP32, [-1]) == rows
        assert columns.values(["v", "a", "w", "never"], FP32, [8]) == [[*row, 0, 0] for row in rows]


def test_the_free_dim_is_the_number_of_elements() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 1, {"v": vectors(FP32, [1, 2, 3, 4, 5, 6])}, {}, {})
        for shape, wanted in (([-1], (6,)), ([2, -1], (2, 3)), ([-1, 3], (2, 3)), ([6], (6,))):
            assert columns.build(["v"], FP32, shape)[0].shape == wanted


def test_scores_of_known_width_are_vectors_too() -> None:
    score = Fetched(DataType.FP32_VECTOR, 2, [le(FP32, 1, 2), le(FP32, 3, 4)])
    with matrix_pool() as slot:
        columns = Columns(slot, 2, {"s": score, "a": fp32(5, 6)}, {}, {})
        assert columns.values(["s", "a"], FP32, [3]) == [[1, 2, 5], [3, 4, 6]]
        assert columns.values(["s"], INT64, [-1]) == [[1, 2], [3, 4]]


def test_vectors_as_texts() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 2, {"v": vectors(FP32, [1, 2.5], None)}, {}, {})
        tensor, _ = columns.build(["v"], BYTES, [1])
        assert split_bytes(tensor.raws((0, 2))[0]) == [b"1,2.5", b"0.0"]


# ---------------------------------------------------------------- what the request brought


def test_a_text_vector_is_split_at_colons() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 4, {}, {"t": [b"1:2:3", b"", b"1:x:3", b"1:2"]}, {})
        tensor, misfits = columns.build(["t"], FP32, [3])
        assert tensor.cells.view(np.float32).tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert misfits == [Misfit(3, "'t' has 2 elements, the model takes 3")]


VECTOR_TEXTS = st.sampled_from(
    [
        b"",
        b"1:2",
        b"-1.5:2e3",
        b"7:7",
        b"1:2:3",
        b"1",
        b"x:2",
        b"1:",
        b"0x1p3:1",
        b"1.00000000000000001:2",
        b"true:1",
        b"1:200",
        b"1e39:1",
    ]
)


@given(
    st.lists(VECTOR_TEXTS, min_size=1, max_size=5),
    st.sampled_from(NUMERIC), st.booleans(), st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_kernels_and_reference_read_vectors_alike(
    lines: list[bytes], target: DataType, fetched: bool, brought: bool, free: bool, data: st.DataObject
) -> None:
    """Texts of two numbers, fetched or brought by the request, which may bring what was not fetched."""
    index = data.draw(st.lists(st.integers(-1, len(lines) - 1), min_size=1, max_size=6))
    rows = len(index)
    own = {"v": Fetched(DataType.STRING, 0, [line or None for line in lines])} if fetched else {}
    own["n"] = fp32(*range(len(lines)))
    every = st.lists(VECTOR_TEXTS, min_size=rows, max_size=rows)
    texts = data.draw(every | st.lists(VECTOR_TEXTS, min_size=1, max_size=1))
    with matrix_pool() as slot:
        columns = Columns(slot, rows, own, {"v": texts} if brought or not fetched else {}, {}, index)
        asked = data.draw(st.permutations(range(rows)))
        columns.build(["v"], target, [2, -1] if free else [2], asked)
        columns.build(["v"], target, [1], asked)
        columns.build(["n", "v"], target, [2], asked)  # the text of one number, whatever it holds


@pytest.mark.parametrize("shape", [[3], [2, -1]])
def test_what_all_rows_have_is_parsed_once(shape: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row costs nothing of what a long value costs, even where it is not what the model takes."""
    parsed: list[bytes] = []
    original = numbers.parse_vectors

    def parse(texts: Sequence[bytes], target: DataType) -> list[Any]:
        parsed.extend(texts)
        return original(texts, target)

    monkeypatch.setattr(numbers, "parse_vectors", parse)
    with matrix_pool() as slot:
        fetched = {"f": Fetched(DataType.STRING, 0, [b"4:5:6:7:8", None])}
        columns = Columns(slot, 6, fetched, {"t": [b"1:2:3:4:5"]}, {}, index=[0, 1, 0, 0, -1, 0])
        for name, marked in (("t", [0, 1, 2, 3, 4, 5]), ("f", [0, 2, 3, 5])):
            parsed.clear()
            tensor, misfits = columns.build([name], FP32, shape)
            assert not tensor.cells.any()
            assert [misfit.position for misfit in misfits] == marked
            assert len([text for text in parsed if text]) == 2  # the kernels' way and the reference


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    ("name", "target", "shape"),
    [("v", BYTES, [1]), ("t", BYTES, [9_001]), ("w", BYTES, [2, -1]), ("v", FP64, [2, -1])],
)
def test_what_all_rows_have_adds_up_to_no_more_than_a_request_may_take(
    name: str, target: DataType, shape: list[int], reference: bool
) -> None:
    texts = {"t": [b":" * 9_000], "w": [b":" * 9_001]}
    typed = {"v": (DataType.FP8E4M3.vector, [b"\x81" * 9_000])}
    with matrix_pool() as slot:
        columns = Columns(slot, 300, {}, texts, typed)
        tensor = columns.input([name], target, shape, reference=reference)
        assert tensor.build(columns.matrix, columns.matrix.all_rows[:2])[1] in ((), [])
        with pytest.raises(MatrixFull, match="input 'in' takes more bytes than one request may"):
            tensor.build(columns.matrix, columns.matrix.all_rows)
        assert max(len(scratch().out), len(scratch().heap)) <= KEPT


def test_a_text_is_a_vector_only_where_it_stands_alone() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 1, {}, {"t": [b"1:2"], "u": [b"3"]}, {})
        assert columns.values(["t", "u"], FP32, [2]) == [[0, 3]]
        assert columns.values(["t"], FP32, [1]) == [[0]]
        assert columns.values(["t"], FP32, [2]) == [[1, 2]]


def test_a_text_vector_of_texts() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 4, {}, {"t": [b"a:b", b"", b"a:", b"a:b:c"]}, {})
        tensor, misfits = columns.build(["t"], BYTES, [2])
        assert split_bytes(tensor.raws((0, 4))[0]) == [
            b"a",
            b"b",
            b"0.0",
            b"0.0",
            b"a",
            b"0.0",
            b"0.0",
            b"0.0",
        ]
        assert misfits == [Misfit(3, "'t' has 3 elements, the model takes 2")]
        assert tensor.shape == (2,)


def test_a_column_that_is_nowhere_is_zero() -> None:
    with matrix_pool() as slot:
        columns = Columns(slot, 2, {"a": fp32(1, 2)}, {}, {})
        assert columns.values(["a", "nowhere"], FP32, [2]) == [[1, 0], [2, 0]]
        assert split_bytes(columns.build(["nowhere"], BYTES, [1])[0].raws((0, 2))[0]) == [b"0.0", b"0.0"]


def test_what_was_not_fetched_is_taken_from_the_request() -> None:
    fetched = {"a": Fetched(FP32, 1, [le(FP32, 1), b"", None])}
    with matrix_pool() as slot:
        columns = Columns(slot, 4, fetched, {"a": [b"7"]}, {}, index=[0, 1, 2, -1])
        assert columns.values(["a"], FP32, [1]) == [[1], [0], [7], [7]]
        columns = Columns(
            slot, 4, fetched, {"a": [b"7"]}, {"a": (INT32, [le(INT32, 9)])}, index=[0, 1, 2, -1]
        )
        assert columns.values(["a"], FP32, [1]) == [[1], [0], [9], [9]]


def test_a_brought_vector_stands_in_for_a_fetched_one() -> None:
    fetched = {"v": Fetched(DataType.FP32_VECTOR, 0, [le(FP32, 1, 2), None])}
    typed = {"v": (DataType.INT64_VECTOR, [le(INT64, 8, 9)])}
    with matrix_pool() as slot:
        columns = Columns(slot, 2, fetched, {}, typed)
        assert columns.values(["v"], FP32, [2]) == [[1, 2], [8, 9]]
        columns = Columns(slot, 2, fetched, {"v": [b"3:4"]}, {})
        assert columns.values(["v"], FP32, [2]) == [[1, 2], [3, 4]]


def test_texts_are_read_as_the_type_that_a_variable_names() -> None:
    texts = {"flag": [b"true", b"1"], "small": [b"300", b"7"], "free": [b"2.5", b""]}
    with matrix_pool() as slot:
        columns = Columns(slot, 2, {"a": fp32(4, 5)}, texts, {})
        names = ["flag", "small", "free", "a"]
        kinds = (BOOL, DataType.INT8, BYTES, DataType.BOOL)
        assert columns.values(names, FP32, [4], text_types=kinds) == [[1, 0, 2.5, 4], [0, 7, 0, 5]]
        assert columns.values(names, FP32, [4]) == [[0, 300, 2.5, 4], [1, 7, 0, 5]]


# ---------------------------------------------------------------- rows of a tensor


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=6), st.data())
def test_raw_contents_of_some_rows(texts: list[bytes], data: st.DataObject) -> None:
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(texts))] * 2)))
    tensor = Tensor.of_texts((1,), [[text] for text in texts])
    assert split_bytes(tensor.raws((start, stop))[0]) == texts[start:stop]
    array = np.arange(len(texts) * 3, dtype=np.int16).reshape(-1, 3)
    assert Tensor.of_numbers((3,), array).raws((start, stop))[0] == array[start:stop].tobytes()
    assert math.prod(Tensor.of_numbers((3,), array).shape) == 3
