"""Server reflection, grpc.reflection.v1 and v1alpha: tells tools what a server offers.

The messages of both versions are the same on the wire, so the generated module of v1alpha serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from rpc.calls import StreamCall, StreamHandler
from rpc.status import Status

__all__ = ["SERVICES", "Reflection"]

SERVICES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_MAX_FILES: Final = 1000  # in one answer; the imports of any sane service are fewer

_Response = reflection_pb2.ServerReflectionResponse


class Reflection:
    """Answers questions about services and the files that define them.

    Give `stream_handlers` to the server.
    """

    def __init__(self, files: Iterable[FileDescriptor], services: Iterable[str] = ()) -> None:
        """`files` define what is offered, their imports are added. `services` are further names to list."""
        self._files: dict[str, FileDescriptor] = {}
        for file in files:
            self._add(file)
        self._symbols: dict[str, FileDescriptor] = {}
        self._services: set[str] = set(services)
        self._extensions: dict[str, dict[int, FileDescriptor]] = {}
        for file in self._files.values():
            self._index(file)

    def _add(self, file: FileDescriptor) -> None:
        if file.name not in self._files:
            self._files[file.name] = file
            for imported in file.dependencies:
                self._add(imported)

    def _index(self, file: FileDescriptor) -> None:
        package = file.package
        for name, service in file.services_by_name.items():
            self._services.add(_full(package, name))
            self._symbols[_full(package, name)] = file
            for method in service.methods:
                self._symbols[method.full_name] = file
        for message in file.message_types_by_name.values():
            self._index_message(message, file)
        for enum in file.enum_types_by_name.values():
            self._index_enum(enum, file)
        for extension in file.extensions_by_name.values():
            self._index_extension(extension, file)

    def _index_message(self, message: Any, file: FileDescriptor) -> None:
        self._symbols[message.full_name] = file
        for field in message.fields:
            self._symbols[field.full_name] = file
        for oneof in message.oneofs:
            self._symbols[oneof.full_name] = file
        for extension in message.extensions:
            self._index_extension(extension, file)
        for enum in message.enum_types:
            self._index_enum(enum, file)
        for nested in message.nested_types:
            self._index_message(nested, file)

    def _index_enum(self, enum: Any, file: FileDescriptor) -> None:
        self._symbols[enum.full_name] = file
        scope = enum.full_name.rpartition(".")[0]
        for value in enum.values:  # protobuf names values beside their enum, not within
            self._symbols[_full(scope, value.name)] = file

    def _index_extension(self, extension: Any, file: FileDescriptor) -> None:
        self._symbols[extension.full_name] = file
        self._extensions.setdefault(extension.containing_type.full_name, {})[extension.number] = file

    @property
    def stream_handlers(self) -> Mapping[bytes, StreamHandler]:
        """Streaming methods by path."""
        return {b"/%s/ServerReflectionInfo" % name.encode(): self._open for name in SERVICES}

    def _open(self, call: StreamCall) -> None:
        call.on_message = partial(self._answer, call)
        call.on_end = call.end

    def _answer(self, call: StreamCall, body: bytes) -> None:
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(body)
        except DecodeError as error:
            call.fail(Status.INVALID_ARGUMENT, f"ServerReflectionRequest: {error}")
            return
        response = self.answer(request)
        response.valid_host = request.host
        response.original_request.CopyFrom(request)
        call.send(response.SerializeToString())

    def answer(
        self, request: reflection_pb2.ServerReflectionRequest
    ) -> reflection_pb2.ServerReflectionResponse:
        """Returns the answer to one question; an unknown name gives an error_response of NOT_FOUND."""
        match request.WhichOneof("message_request"):
            case "list_services":
                services = [reflection_pb2.ServiceResponse(name=name) for name in sorted(self._services)]
                return _Response(list_services_response=reflection_pb2.ListServiceResponse(service=services))
            case "file_by_filename":
                name = request.file_by_filename
                return _files(self._files.get(name), f"file {name}")
            case "file_containing_symbol":
                name = request.file_containing_symbol
                return _files(self._symbols.get(name), f"symbol {name}")
            case "file_containing_extension":
                asked = request.file_containing_extension
                found = self._extensions.get(asked.containing_type, {}).get(asked.extension_number)
                return _files(found, f"extension {asked.extension_number} of {asked.containing_type}")
            case "all_extension_numbers_of_type":
                return self._extension_numbers(request.all_extension_numbers_of_type)
            case _:
                return _error(Status.INVALID_ARGUMENT, "the request asks nothing")

    def _extension_numbers(self, name: str) -> reflection_pb2.ServerReflectionResponse:
        if name not in self._symbols:
            return _error(Status.NOT_FOUND, f"type {name} is not known")
        numbers = sorted(self._extensions.get(name, ()))
        return _Response(
            all_extension_numbers_response=reflection_pb2.ExtensionNumberResponse(
                base_type_name=name, extension_number=numbers
            )
        )

    def __repr__(self) -> str:
        return f"<Reflection {len(self._files)} files, services {sorted(self._services)}>"


def _full(package: str, name: str) -> str:
    return f"{package}.{name}" if package else name


def _error(status: Status, message: str) -> reflection_pb2.ServerReflectionResponse:
    return _Response(error_response=reflection_pb2.ErrorResponse(error_code=status, error_message=message))


def _files(file: FileDescriptor | None, what: str) -> reflection_pb2.ServerReflectionResponse:
    """Returns `file` and everything it imports, so that the client need not ask again."""
    if file is None:
        return _error(Status.NOT_FOUND, f"{what} is not known")
    found: dict[str, bytes] = {}
    waiting = [file]
    while waiting and len(found) < _MAX_FILES:
        one = waiting.pop()
        if one.name not in found:
            proto = FileDescriptorProto()
            one.CopyToProto(proto)
            found[one.name] = proto.SerializeToString()
            waiting.extend(one.dependencies)
    return _Response(
        file_descriptor_response=reflection_pb2.FileDescriptorResponse(file_descriptor_proto=found.values())
    )
