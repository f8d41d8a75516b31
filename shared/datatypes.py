"""The data types that travel on the wire, in configs and in matrices.

Numbers of the enum are those of `DataType` in proto/predict.proto. All values are little-endian.
"""

from __future__ import annotations

import enum

import ml_dtypes
import numpy as np

__all__ = ["DataType", "data_type", "tensor_name"]


class DataType(enum.IntEnum):
    """A cell's type: fifteen scalars, then their vectors in the same order."""

    UNKNOWN = 0
    FP8E5M2 = 1
    FP8E4M3 = 2
    FP16 = 3
    FP32 = 4
    FP64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    UINT8 = 10
    UINT16 = 11
    UINT32 = 12
    UINT64 = 13
    STRING = 14
    BOOL = 15
    FP8E5M2_VECTOR = 16
    FP8E4M3_VECTOR = 17
    FP16_VECTOR = 18
    FP32_VECTOR = 19
    FP64_VECTOR = 20
    INT8_VECTOR = 21
    INT16_VECTOR = 22
    INT32_VECTOR = 23
    INT64_VECTOR = 24
    UINT8_VECTOR = 25
    UINT16_VECTOR = 26
    UINT32_VECTOR = 27
    UINT64_VECTOR = 28
    STRING_VECTOR = 29
    BOOL_VECTOR = 30

    @property
    def is_vector(self) -> bool:
        return self > 15

    @property
    def element(self) -> DataType:
        """The scalar type of one element (itself for a scalar)."""
        return DataType(self - 15) if self > 15 else self

    @property
    def vector(self) -> DataType:
        """The vector type of this element type (itself for a vector; UNKNOWN has none)."""
        return self if self > 15 or self == 0 else DataType(self + 15)

    @property
    def size(self) -> int:
        """Bytes of one element; 0 for strings and UNKNOWN, whose length varies."""
        return _SIZES[self.element]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """NumPy dtype of one element. Raises KeyError for strings and UNKNOWN."""
        return _DTYPES[self.element]

    @property
    def label(self) -> str:
        """The name as configs and .proto files write it: DataTypeFP32Vector."""
        return f"DataType{_LABELS[self.element]}{'Vector' if self.is_vector else ''}"


_SIZES = dict(zip(range(16), (0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 0, 1), strict=True))
_LABELS = dict(
    zip(
        range(16),
        "Unknown FP8E5M2 FP8E4M3 FP16 FP32 FP64 Int8 Int16 Int32 Int64 "
        "Uint8 Uint16 Uint32 Uint64 String Bool".split(),
        strict=True,
    )
)
_DTYPES: dict[int, np.dtype[np.generic]] = {
    DataType.FP8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DataType.FP8E4M3: np.dtype(ml_dtypes.float8_e4m3fn),
    DataType.FP16: np.dtype("<f2"),
    DataType.FP32: np.dtype("<f4"),
    DataType.FP64: np.dtype("<f8"),
    DataType.INT8: np.dtype("<i1"),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.UINT8: np.dtype("<u1"),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.BOOL: np.dtype("<u1"),
}
_BY_NAME = {t.label.removeprefix("DataType").lower(): t for t in DataType if t}
_BY_NAME["bytes"] = DataType.STRING


def data_type(name: str) -> DataType:
    """The type that a config names: `DataTypeFP32Vector`, `FP32`, `fp32`, `INT64`, `BYTES`, ….

    Raises ValueError for a name that is none.
    """
    found = _BY_NAME.get(name.lower().removeprefix("datatype"))
    if found is None:
        raise ValueError(f"unknown data type {name!r}")
    return found


def tensor_name(kind: DataType) -> str:
    """The datatype of a tensor in the open inference protocol: FP32, INT64, BOOL, BYTES, …."""
    element = kind.element
    return "BYTES" if element is DataType.STRING else element.name
