"""The services that the door stands for. The one file of this room that knows the generated modules."""

from __future__ import annotations

from google.protobuf.descriptor import FileDescriptor

from proto import inferflow_pb2, predict_pb2

__all__ = ["FILES", "METHODS", "SERVICES"]

METHODS: tuple[bytes, ...] = (
    b"/Inferflow/RetrieveModelScore",
    b"/Predict/InferPointWise",
    b"/Predict/InferPairWise",
    b"/Predict/InferSlateWise",
)
"""Paths of the unary methods. The index is what REQUEST frames carry: append, never reorder."""

SERVICES: tuple[str, ...] = ("Inferflow", "Predict")
"""Names that health answers for, besides the empty one."""

FILES: tuple[FileDescriptor, ...] = (inferflow_pb2.DESCRIPTOR, predict_pb2.DESCRIPTOR)
"""What reflection shows."""
