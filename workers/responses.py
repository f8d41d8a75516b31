"""Response builders: from a scored matrix to the messages of the wire."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TypeVar

import mmh3

from components.columns import byte_values, fallback, texts
from dag.component import Failure, Scoring, Slates
from dag.plan import OutputColumn, Plan
from proto import inferflow_pb2, predict_pb2
from shared.shm_matrix import ShmMatrix

__all__ = ["pair_wise", "point_wise", "retrieve", "sampled", "slate_wise"]


def retrieve(plan: Plan, scoring: Scoring, *, model_schema: bool) -> bytes:
    """InferflowResponseProto: the column names, then one row of texts per matrix row.

    `model_schema`: show the models' inputs before the other features.
    """
    matrix = scoring.matrix
    columns = plan.answer.model_schema if model_schema else plan.answer.features
    response = inferflow_pb2.InferflowResponseProto()
    response.component_data.add(data=[column.name for column in columns])
    values = [texts(matrix, column.source, matrix.all_rows) for column in columns]
    for row in zip(*values, strict=True) if values else [()] * matrix.rows:
        response.component_data.add(data=[text.decode("utf-8", "replace") for text in row])
    if scoring.failures:
        response.error.message = _summary(scoring.failures)
    body: bytes = response.SerializeToString()
    return body


def point_wise(plan: Plan, scoring: Scoring) -> bytes:
    """PointWiseResponse."""
    columns = plan.answer.features
    response = predict_pb2.PointWiseResponse(
        target_output_schema=_schema(columns, scoring.matrix),
        target_scores=_scores(predict_pb2.TargetScore, columns, scoring.matrix, scoring.failures),
        request_error=_request_error(scoring),
    )
    body: bytes = response.SerializeToString()
    return body


def pair_wise(plan: Plan, scoring: Scoring) -> bytes:
    """PairWiseResponse."""
    slates = scoring.slates
    assert slates is not None
    targets, pairs = plan.answer.targets, plan.answer.slates
    response = predict_pb2.PairWiseResponse(
        pair_scores=_slate_scores(predict_pb2.PairScore, pairs, slates),
        target_scores=_scores(predict_pb2.TargetScore, targets, scoring.matrix, scoring.failures),
        target_output_schema=_schema(targets, scoring.matrix),
        pair_output_schema=_schema(pairs, slates.matrix),
        request_error=_request_error(scoring),
    )
    body: bytes = response.SerializeToString()
    return body


def slate_wise(plan: Plan, scoring: Scoring) -> bytes:
    """SlateWiseResponse."""
    slates = scoring.slates
    assert slates is not None
    targets, own = plan.answer.targets, plan.answer.slates
    response = predict_pb2.SlateWiseResponse(
        slate_scores=_slate_scores(predict_pb2.SlateScore, own, slates),
        target_scores=_scores(predict_pb2.TargetScore, targets, scoring.matrix, scoring.failures),
        target_output_schema=_schema(targets, scoring.matrix),
        slate_output_schema=_schema(own, slates.matrix),
        request_error=_request_error(scoring),
    )
    body: bytes = response.SerializeToString()
    return body


def sampled(user_id: bytes, percentage: int, now: datetime.datetime) -> bool:
    """Whether this user is among the `percentage` % of today: murmur3 of user and date (DDMMYYYY), mod 100."""
    if not 0 < percentage < 100:
        return percentage >= 100
    return abs(mmh3.hash(user_id + now.strftime("%d%m%Y").encode())) % 100 < percentage


def _schema(columns: Sequence[OutputColumn], matrix: ShmMatrix) -> list[predict_pb2.FeatureSchema]:
    out = []
    for column in columns:
        kind, dim = column.data_type, column.vector_dim
        if column.source.byte is None and (typed := matrix.typed[column.source.external]) is not None:
            kind, dim = typed.data_type, typed.vector_dim
        out.append(predict_pb2.FeatureSchema(name=column.name, data_type=int(kind), vector_dim=dim))  # type: ignore[arg-type]
    return out


Score = TypeVar("Score", predict_pb2.TargetScore, predict_pb2.PairScore, predict_pb2.SlateScore)


def _scores(
    kind: type[Score], columns: Sequence[OutputColumn], matrix: ShmMatrix, failures: Sequence[Failure]
) -> list[Score]:
    values = [_values(matrix, column) for column in columns]
    rows = zip(*values, strict=True) if values else [()] * matrix.rows
    scores = [kind(output_values=row) for row in rows]
    for score, error in zip(scores, _row_errors(failures, matrix.rows), strict=True) if failures else ():
        score.error = error
    return scores


def _slate_scores(kind: type[Score], columns: Sequence[OutputColumn], slates: Slates) -> list[Score]:
    """The scores of pairs or slates; none when the config answers no slate score."""
    return _scores(kind, columns, slates.matrix, slates.failures) if columns else []


def _values(matrix: ShmMatrix, column: OutputColumn) -> list[bytes]:
    """Raw bytes of an answered column: of its byte column if it has one, else of what the request brought."""
    if column.source.byte is not None:
        return byte_values(matrix, column.source.byte, matrix.all_rows)
    brought = fallback(matrix, column.source, matrix.all_rows)
    return [b""] * matrix.rows if brought is None else brought[1]


def _row_errors(failures: Sequence[Failure], rows: int) -> list[str]:
    """The error text of each row: its failures, each once, in the order in which they happened."""
    texts: list[dict[str, None]] = [{} for _ in range(rows)]
    for failure in failures:
        text = _text(failure)
        for row in range(rows) if failure.rows is None else failure.rows.tolist():
            texts[row][text] = None
    return ["; ".join(row) for row in texts]


def _request_error(scoring: Scoring) -> str:
    """Why all rows failed; "" when some row is whole."""
    failures = list(scoring.failures)
    if not failures:
        return ""
    whole = not all(_row_errors(failures, scoring.matrix.rows))
    if scoring.slates is not None:
        failures += scoring.slates.failures
        whole = whole or not all(_row_errors(scoring.slates.failures, scoring.slates.matrix.rows))
    return "" if whole else _summary(failures)


def _summary(failures: Sequence[Failure]) -> str:
    return "; ".join(dict.fromkeys(map(_text, failures)))


def _text(failure: Failure) -> str:
    return f"{failure.component}: {failure.cause}"
