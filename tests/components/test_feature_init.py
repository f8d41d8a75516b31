"""The root: the matrix of a request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.feature_init import Brought, BroughtSlates, Column, initialize
from shared.datatypes import DataType
from shared.shm_matrix import MatrixFull, MatrixPool, TextColumn
from tests.components.running import compiled, config_of, matrix_pool, named

PLAN = compiled(
    config_of(
        predators=[
            {
                "component": "rank",
                "model_name": "ranker",
                "model_end_point": "models",
                "calibration": "pctr",
                "inputs": [{"name": "in", "features": ["x", "y"], "shape": [2], "data_type": "FP32"}],
                "outputs": [
                    {"name": "out", "model_scores": ["s"], "model_scores_dims": [[1]], "data_type": "FP32"}
                ],
            },
            {
                "component": "bundle",
                "model_name": "bundler",
                "model_end_point": "models",
                "slate_component": True,
                "inputs": [{"name": "in", "features": ["x"], "shape": [1], "data_type": "FP32"}],
                "outputs": [
                    {"name": "out", "model_scores": ["b"], "model_scores_dims": [[1]], "data_type": "FP32"}
                ],
            },
        ],
        response=["id", "s", "b"],
    )
)


def external(name: str) -> int:
    return PLAN.layout.external[name]


def test_texts_and_typed_values_are_told_apart() -> None:
    columns = [
        Column("id", DataType.STRING, [b"a", b"bb"]),
        Column("x", DataType.FP32, [b"1234", b""], 0),
        Column("y", DataType.STRING_VECTOR, [b"v"]),
        Column("nobody reads it", DataType.STRING, [b"z"]),
    ]
    with matrix_pool() as slot:
        matrix = initialize(PLAN, Brought(2, columns), slot).matrix
        ids, ys = matrix.texts[external("id")], matrix.texts[external("y")]
        xs = matrix.typed[external("x")]
        assert ids is not None and ys is not None and xs is not None
        assert ids.texts(matrix.all_rows) == [b"a", b"bb"]
        assert ys.texts(matrix.all_rows) == [b"v", b"v"]
        assert (xs.data_type, xs.values(matrix.all_rows)) == (DataType.FP32, [b"1234", b""])
        assert matrix.texts[external("x")] is None
        assert matrix.blocks == [None]


def test_the_columns_of_the_calibration_are_put_in() -> None:
    with matrix_pool() as slot:
        matrix = initialize(PLAN, Brought(3, []), slot).matrix
        for name, text in (("pctr_model", b"ranker"), ("inferflow_config_id", b"cfg")):
            column = matrix.texts[external(name)]
            assert column is not None
            assert column.texts(matrix.all_rows) == [text] * 3


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=5), st.binary(max_size=3))
def test_values_that_stand_in_the_slot(values: list[bytes], before: bytes) -> None:
    sizes = np.array([len(value) for value in values], np.int32)
    with matrix_pool() as slot:
        heap, at = slot.copy(before + b"".join(values))
        starts = (at + len(before) + np.cumsum(sizes) - sizes).astype(np.int64)
        text = TextColumn(heap, starts, sizes, constant=len(values) == 1)
        columns = [Column("id", DataType.STRING, text), Column("x", DataType.INT8, text)]
        matrix = initialize(PLAN, Brought(len(values), columns), slot).matrix
        ids, xs = matrix.texts[external("id")], matrix.typed[external("x")]
        assert ids is not None
        assert xs is not None
        assert ids.texts(matrix.all_rows) == xs.values(matrix.all_rows) == values


def test_slates_have_a_matrix_of_their_own() -> None:
    slates = BroughtSlates(*named([[0, 1], [1]]), [Column("x", DataType.STRING, [b"p", b"q"])])
    with matrix_pool() as slot:
        scoring = initialize(PLAN, Brought(2, [Column("x", DataType.STRING, [b"1", b"2"])], slates), slot)
        assert scoring.slates is not None
        matrix = scoring.slates.matrix
        column = matrix.texts[PLAN.slate_layout.external["x"]]
        assert column is not None
        assert column.texts(matrix.all_rows) == [b"p", b"q"]
        assert (matrix.rows, len(matrix.blocks)) == (2, len(PLAN.slate_layout.blocks))
        assert [targets.tolist() for targets in scoring.slates.targets] == [[0, 1], [1]]
        assert scoring.failures == scoring.slates.failures == []


def test_a_request_that_does_not_fit_says_so() -> None:
    pool = MatrixPool(1 << 20, 1 << 20)
    with pytest.raises(MatrixFull, match="needs 2000000 bytes"):
        initialize(PLAN, Brought(1, [Column("id", DataType.STRING, [b"x" * 2_000_000])]), pool.acquire())
    pool.close()
