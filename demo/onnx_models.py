"""Models in ONNX files, run by ONNX Runtime: the `Model`s that `demo.model_server` serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from demo.model_server import TensorSpec

__all__ = ["OnnxModel", "load_models"]

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}


class OnnxModel:
    """One model; safe to run from several threads. Raises ValueError when the file is no model."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # calls run in parallel, so a call needs no threads of its own
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise ValueError(f"{path}: {error}") from error
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))
        self._name = path.name

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in self.inputs)
        return f"<OnnxModel {self._name}: {inputs}>"

    def run(
        self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> Sequence[npt.NDArray[Any]]:
        """As `Model.run`. Raises ValueError with the runtime's words."""
        feeds = {name: _text(array) if array.dtype == object else array for name, array in inputs.items()}
        try:
            arrays = self._session.run(list(outputs), feeds)
        except Exception as error:  # its exceptions share no base class
            raise ValueError(str(error)) from error
        return [_bytes(array) if array.dtype == object else array for array in arrays]


def _spec(argument: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
    return TensorSpec(argument.name, _DATATYPES[argument.type], shape)


def _text(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Raises UnicodeDecodeError (a ValueError) for bytes that are no text."""
    decoded = np.empty(array.size, dtype=object)
    decoded[:] = [item.decode() for item in array.ravel()]
    return decoded.reshape(array.shape)


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    encoded = np.empty(array.size, dtype=object)
    encoded[:] = [item.encode() for item in array.ravel()]
    return encoded.reshape(array.shape)


def load_models(directory: Path) -> dict[str, OnnxModel]:
    """Models by name. Raises FileNotFoundError for a directory without any, ValueError for a broken one."""
    paths = sorted(directory.glob("*.onnx"))
    if not paths:
        raise FileNotFoundError(f"no models (*.onnx) in {directory}")
    return {path.stem: OnnxModel(path) for path in paths}
