"""What a case must be answered, reckoned from its config in the plainest way, and what was answered.

Both have the same form, so that they can be compared: columns by name, one value a row. A number is a Python
float that holds the FP32 value exactly, text is a str.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import rules
from bench.cases import CONFIGS, EXPRESSIONS, RETRIEVE, SLATE_WISE, USER, Case
from proto import inferflow_pb2, predict_pb2

__all__ = ["Answer", "WrongAnswerError", "check", "decode", "expected"]

Value = float | str
Columns = Mapping[str, Sequence[Value]]
Doubles = npt.NDArray[np.float64]


class WrongAnswerError(Exception):
    """An answer that is not what it must be. The text says where."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The columns of the targets, and those of the slates (empty without slates)."""

    targets: Columns
    slates: Columns = dataclasses.field(default_factory=dict)


def check(case: Case, targets: int, body: bytes) -> None:
    """Raises WrongAnswerError when `body` is not the answer to the case's request of that size."""
    wanted, got = expected(case, targets), decode(case, body)
    for kind in ("targets", "slates"):
        _compare(f"{case.name} with {targets} targets, {kind}", getattr(wanted, kind), getattr(got, kind))


def _compare(place: str, wanted: Columns, got: Columns) -> None:
    if wanted.keys() != got.keys():
        raise WrongAnswerError(f"{place}: columns {list(got)}, must be {list(wanted)}")
    for name, values in wanted.items():
        if len(values) != len(got[name]):
            raise WrongAnswerError(f"{place}: {len(got[name])} rows of {name}, must be {len(values)}")
        for row, (right, answered) in enumerate(zip(values, got[name], strict=True)):
            if right != answered:
                raise WrongAnswerError(f"{place}: {name}[{row}] is {answered!r}, must be {right!r}")


# ---------------------------------------------------------------- what must be answered


def expected(case: Case, targets: int) -> Answer:
    """The answer to the case's request of that size."""
    return _Reckoning(case, targets).answer()


class _Reckoning:
    """One request, component by component, every cell as the bytes that travel between the services."""

    def __init__(self, case: Case, targets: int) -> None:
        self._config = CONFIGS[case.config]
        self._rows = targets
        self._slates = _slate_rows(case, targets)
        ids = [str(1000 + number).encode() for number in range(targets)]
        self._cells: dict[str, list[bytes]] = {"catalog_id": ids, "user_id": [USER.encode()] * targets}
        self._missing: dict[str, bytes] = {}  # by column: what a model gets where there is no value
        self._texts = {"catalog_id", "user_id"}
        self._slate_scores: dict[str, list[float]] = {}

    def answer(self) -> Answer:
        parts = self._config["component_config"]
        for part in parts["feature_components"]:
            self._fetch(part)
        for part in parts["predator_components"]:
            self._infer(part)
        for part in parts["numerix_components"]:
            self._compute(part)
        shown = self._config["response_config"]["features"]
        targets = {name: self._column(name) for name in shown if name in self._cells}
        return Answer(targets, self._slate_scores)

    def _fetch(self, part: Mapping[str, Any]) -> None:
        keys = list(zip(*(self._key_texts(key["col"]) for key in part["fs_keys"]), strict=True))
        request = part["fs_request"]
        for group in request["featureGroups"]:
            is_text = rules.is_text(group["label"])
            for name in group["features"]:
                column = f"{request['label']}:{group['label']}:{name}"
                self._cells[column] = [
                    rules.feature_value(request["label"], key, group["label"], name) for key in keys
                ]
                self._missing[column] = b"0.0" if is_text else bytes(4 * rules.dimension(group["label"]))
                if is_text:
                    self._texts.add(column)

    def _key_texts(self, column: str) -> list[str]:
        """The texts of a key column; fetched ones that are no texts are integers."""
        cells = self._cells[column]
        if column in self._texts:
            return [cell.decode() for cell in cells]
        return [str(int.from_bytes(cell, "little")) for cell in cells]

    def _infer(self, part: Mapping[str, Any]) -> None:
        inputs = np.array([self._input(part, row) for row in range(self._rows)])
        scores = rules.model_scores(inputs, 1)[:, 0]
        (name,) = part["outputs"][0]["model_scores"]
        if part["slate_component"]:
            self._slate_scores[name] = [float(scores[rows[0]]) for rows in self._slates]
        else:
            self._cells[name] = [score.tobytes() for score in scores]
            self._missing[name] = bytes(4)

    def _input(self, part: Mapping[str, Any], row: int) -> list[float]:
        """Everything that one row brings into the model, as numbers."""
        numbers: list[float] = []
        for tensor in part["inputs"]:
            for column in tensor["features"]:
                value = self._cells[column][row] or self._missing[column]
                if column in self._texts:
                    numbers.append(rules.text_number(value))
                else:
                    numbers += np.frombuffer(value, "<f4").tolist()
        return numbers

    def _compute(self, part: Mapping[str, Any]) -> None:
        columns = {
            variable.split("@")[0]: np.frombuffer(b"".join(self._cells[column]), "<f4")
            for variable, column in part["score_mapping"].items()
        }
        scores = rules.evaluate(EXPRESSIONS[part["compute_id"]], columns, self._rows)
        self._cells[part["score_col"]] = [score.tobytes() for score in scores]

    def _column(self, name: str) -> list[Value]:
        return [_value(cell, is_text=name in self._texts) for cell in self._cells[name]]


def _slate_rows(case: Case, targets: int) -> list[list[int]]:
    if case.method != SLATE_WISE:
        return []
    request = predict_pb2.SlateWiseRequest.FromString(case.message(targets))
    return [list(slate.target_indices) for slate in request.slates]


# ---------------------------------------------------------------- what was answered


def decode(case: Case, body: bytes) -> Answer:
    """The answer in an answer's message. Raises WrongAnswerError when it carries an error."""
    if case.method == RETRIEVE:
        return _retrieved(case, inferflow_pb2.InferflowResponseProto.FromString(body))
    response: predict_pb2.PointWiseResponse | predict_pb2.SlateWiseResponse
    if case.method == SLATE_WISE:
        response = predict_pb2.SlateWiseResponse.FromString(body)
        slates = _scores(case, response.slate_output_schema, response.slate_scores)
    else:
        response, slates = predict_pb2.PointWiseResponse.FromString(body), {}
    if response.request_error:
        raise WrongAnswerError(f"{case.name}: {response.request_error}")
    return Answer(_scores(case, response.target_output_schema, response.target_scores), slates)


def _scores(
    case: Case,
    schema: Sequence[predict_pb2.FeatureSchema],
    rows: Sequence[predict_pb2.TargetScore | predict_pb2.SlateScore],
) -> Columns:
    for number, row in enumerate(rows):
        if row.error:
            raise WrongAnswerError(f"{case.name}: row {number}: {row.error}")
    return {
        part.name: [
            _value(row.output_values[place], is_text=part.data_type == predict_pb2.DataTypeString)
            for row in rows
        ]
        for place, part in enumerate(schema)
    }


def _retrieved(case: Case, response: inferflow_pb2.InferflowResponseProto) -> Answer:
    if response.error.message:
        raise WrongAnswerError(f"{case.name}: {response.error.message}")
    if not response.component_data:
        raise WrongAnswerError(f"{case.name}: the answer is empty")
    names, *rows = (list(row.data) for row in response.component_data)
    return Answer(
        {
            name: [row[place] if name == "catalog_id" else float(np.float32(row[place])) for row in rows]
            for place, name in enumerate(names)
        }
    )


def _value(cell: bytes, *, is_text: bool) -> Value:
    return cell.decode() if is_text else float(np.frombuffer(cell, "<f4")[0])
