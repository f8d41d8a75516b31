"""The generated modules are what the compiler makes of the .proto files."""

from __future__ import annotations

from pathlib import Path

import grpc_tools  # type: ignore[import-untyped]
import pytest
from grpc_tools import protoc

PROTO = Path(__file__).parent.parent / "proto"
NAMES = sorted(path.stem for path in PROTO.glob("*.proto"))
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def test_every_generated_module_has_its_source() -> None:
    assert NAMES
    generated = {path.name for path in PROTO.glob("*_pb2*")}
    assert generated == {f"{name}_pb2{ending}" for name in NAMES for ending in (".py", ".pyi")}


@pytest.mark.parametrize("name", NAMES)
def test_generated_modules_are_up_to_date(name: str, tmp_path: Path) -> None:
    arguments = [f"-I{PROTO}", f"-I{WELL_KNOWN}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", *arguments, f"{name}.proto"]) == 0
    for made in sorted(tmp_path.iterdir()):
        committed = (PROTO / made.name).read_text()
        assert committed == made.read_text(), f"proto/{made.name} is out of date: run `make proto`"
