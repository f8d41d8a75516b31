"""Writes fitted models to ONNX, with the input and output names that the configs use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from dag.config import ModelInput
from demo.train import Models

__all__ = ["export"]

OPSET = 18
IR_VERSION = 8  # what ONNX Runtime has read for years; the onnx package would write its newest


def export(models: Models, late_inputs: list[ModelInput], delay_inputs: list[ModelInput], to: Path) -> None:
    """Write late.onnx, delay.onnx, later.onnx and bank.onnx into the directory `to`."""
    graphs = {
        "late": _trees(models.late, late_inputs, None),
        "delay": _trees(models.delay, delay_inputs, "minutes"),
        "later": _later(models.later),
        "bank": _bank(models.bank),
    }
    for name, graph in graphs.items():
        checker.check_model(graph)
        (to / f"{name}.onnx").write_bytes(graph.SerializeToString())


def _trees(model: Pipeline, inputs: list[ModelInput], output: str | None) -> ModelProto:
    kinds = {"FP32": FloatTensorType, "BYTES": StringTensorType}
    final = [(output, FloatTensorType([None, 1]))] if output else None
    converted: ModelProto = convert_sklearn(
        model,
        initial_types=[(spec.name, kinds[spec.data_type]([None, *spec.shape])) for spec in inputs],
        final_types=final,
        options={"zipmap": False} if final is None else None,
        target_opset=OPSET,
        custom_conversion_functions={
            HistGradientBoostingClassifier: _with_plain_integers("SklearnHistGradientBoostingClassifier"),
            HistGradientBoostingRegressor: _with_plain_integers("SklearnHistGradientBoostingRegressor"),
        },
    )
    return converted


class _PlainIntegers:
    """A graph under construction that takes NumPy integers and bools for node attributes."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, *arguments: Any, **attributes: Any) -> None:
        self._container.add_node(*arguments, **{name: _plain(value) for name, value in attributes.items()})


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [int(item) if isinstance(item, bool | np.integer) else item for item in value]


def _with_plain_integers(alias: str) -> Callable[[Any, Any, Any], None]:
    # skl2onnx 1.20 hands tree nodes to protobuf as it finds them, and protobuf 7 refuses NumPy integers.
    convert = get_converter(alias)
    return lambda scope, operator, container: convert(scope, operator, _PlainIntegers(container))


def _graph(name: str, nodes: list[Any], constants: dict[str, Any], output: str) -> ModelProto:
    """A model of scores [departures, 2] to one value [1, 1]."""
    departures = helper.make_tensor_value_info("departures", TensorProto.FLOAT, [None, 2])
    answer = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 1])
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, name, [departures], [answer], values)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def _later(model: LogisticRegression) -> ModelProto:
    """sigmoid((first − second) · weights)."""
    nodes = [
        helper.make_node("Gather", ["departures", "first"], ["one"], axis=0),
        helper.make_node("Gather", ["departures", "second"], ["other"], axis=0),
        helper.make_node("Sub", ["one", "other"], ["difference"]),
        helper.make_node("MatMul", ["difference", "weights"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["first_is_later"]),
    ]
    constants = {
        "first": np.array([0], dtype=np.int64),
        "second": np.array([1], dtype=np.int64),
        "weights": model.coef_.T.astype(np.float32),
    }
    return _graph("later", nodes, constants, "first_is_later")


def _bank(model: Pipeline) -> ModelProto:
    """sigmoid of a linear function of the columns' means and maxima (`demo.train.bank_features`)."""
    scaler, logistic = model[0], model[1]
    weights = logistic.coef_[0] / scaler.scale_
    bias = logistic.intercept_ - weights @ scaler.mean_
    # Features are (mean, max) of chance, then of minutes; the graph has both means before both maxima.
    by_kind = weights.reshape(2, 2).T.reshape(4, 1)
    nodes = [
        helper.make_node("ReduceMean", ["departures", "axis"], ["mean"], keepdims=1),
        helper.make_node("ReduceMax", ["departures", "axis"], ["max"], keepdims=1),
        helper.make_node("Concat", ["mean", "max"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["disrupted"]),
    ]
    constants = {
        "axis": np.array([0], dtype=np.int64),
        "weights": by_kind.astype(np.float32),
        "bias": bias.astype(np.float32).reshape(1),
    }
    return _graph("bank", nodes, constants, "disrupted")
