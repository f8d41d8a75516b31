"""The data types, held to the enum of the wire."""

from __future__ import annotations

import numpy as np
import pytest

from proto import predict_pb2
from shared.datatypes import DataType, data_type, tensor_name

KNOWN = [kind for kind in DataType if kind]


def test_numbers_and_labels_are_those_of_the_wire() -> None:
    assert {kind.label: int(kind) for kind in DataType} == dict(predict_pb2.DataType.items())


@pytest.mark.parametrize("kind", KNOWN)
def test_vectors_and_elements(kind: DataType) -> None:
    assert kind.is_vector == kind.name.endswith("_VECTOR")
    assert kind.vector.element is kind.element
    assert kind.element.vector is kind.vector
    assert not kind.element.is_vector
    assert kind.vector.is_vector


def test_unknown_has_no_vector() -> None:
    assert DataType.UNKNOWN.vector is DataType.UNKNOWN
    assert DataType.UNKNOWN.element is DataType.UNKNOWN
    assert DataType.UNKNOWN.size == 0


@pytest.mark.parametrize("kind", KNOWN)
def test_sizes_are_those_of_the_array_types(kind: DataType) -> None:
    if kind.element is DataType.STRING:
        assert kind.size == 0
        with pytest.raises(KeyError):
            _ = kind.dtype
    else:
        assert kind.size == kind.dtype.itemsize
        assert kind.dtype == kind.dtype.newbyteorder("<")


@pytest.mark.parametrize("kind", KNOWN)
def test_a_type_is_found_by_all_its_names(kind: DataType) -> None:
    short = kind.label.removeprefix("DataType")
    for name in (kind.label, kind.label.lower(), kind.label.upper(), short, short.lower(), short.upper()):
        assert data_type(name) is kind


def test_bytes_is_text() -> None:
    assert data_type("BYTES") is DataType.STRING


@pytest.mark.parametrize(
    "name", ["", "datatype", "DataType", "Unknown", "DataTypeUnknown", "FP31", "vector", " FP32"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown data type {name!r}"):
        data_type(name)


def test_tensors_have_the_names_of_the_open_inference_protocol() -> None:
    assert {tensor_name(kind) for kind in KNOWN} == {
        "FP8E5M2", "FP8E4M3", "FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64",
        "UINT8", "UINT16", "UINT32", "UINT64", "BYTES", "BOOL",
    }  # fmt: skip
    assert tensor_name(DataType.STRING_VECTOR) == "BYTES"


@pytest.mark.parametrize("kind", [kind for kind in KNOWN if kind.size])
def test_bytes_of_the_wire_are_little_endian(kind: DataType) -> None:
    one = np.ones(1, kind.dtype).tobytes()
    assert len(one) == kind.size
    if kind.size > 1:
        assert one[::-1] == np.ones(1, kind.dtype).view(f"V{kind.size}").tobytes()[::-1]
        assert one[-1] == (0 if "INT" in kind.name else one[-1])
