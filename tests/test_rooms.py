"""Who imports whom: the order of docs/architecture.md, kept by reading the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    ("cli",),
    ("frontdoor", "workers", "sidecar"),
    ("inferlog",),
    ("components",),
    ("dag",),
    ("shared", "rpc"),
    ("proto",),
)
"""From top to bottom: a room imports itself and rooms of lower layers."""

ROOMS = [room for layer in LAYERS for room in layer]

FORBIDDEN = {
    "rpc": {"proto": "it knows nothing of Inferflow"},
    "dag": {"rpc": "it knows no gRPC", "proto": "it knows no messages"},
    "shared": {"proto": "frames carry bytes, whatever is in them"},
    "frontdoor": {
        "components": "it never parses a request",
        "dag": "it never parses a request",
    },
    "workers": {"sidecar": "they do not know where configs come from"},
}
"""What lower rooms a room must not know all the same."""

PROCESSES_AND_SOCKETS = {
    "asyncio",
    "multiprocessing",
    "select",
    "selectors",
    "socket",
    "subprocess",
    "uvloop",
}


def modules(room: str) -> list[Path]:
    found = sorted(path for path in (ROOT / room).rglob("*.py") if not path.stem.endswith("_pb2"))
    assert found, f"no modules in {room}/"
    return found


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module imported, place) of everything that a module imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, place
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}: packages are imported by their own names"
            assert node.module is not None
            yield node.module, place
            for alias in node.names:  # `from proto import onfs_pb2` names a module, too
                yield f"{node.module}.{alias.name}", place


def imported_from(room: str, names: set[str]) -> list[str]:
    """The places in a room that import from one of these top-level packages."""
    return sorted(
        {
            f"{place} imports {name}"
            for path in modules(room)
            for name, place in imports(path)
            if name.split(".")[0] in names
        }
    )


def test_every_package_is_a_room() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "demo", "bench"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_downwards(room: str) -> None:
    layer = next(number for number, rooms in enumerate(LAYERS) if room in rooms)
    above = {other for rooms in LAYERS[: layer + 1] for other in rooms} - {room}
    assert imported_from(room, above) == []


@pytest.mark.parametrize(
    ("room", "other"), [(room, other) for room, others in FORBIDDEN.items() for other in others]
)
def test_rooms_do_not_know_what_they_must_not(room: str, other: str) -> None:
    assert imported_from(room, {other}) == [], FORBIDDEN[room][other]


def test_the_front_door_knows_messages_in_one_place_only() -> None:
    places = {place.partition(":")[0] for place in imported_from("frontdoor", {"proto"})}
    assert places <= {"frontdoor/services.py"}


def test_nghttp2_is_what_tests_compare_with() -> None:
    assert [place for room in ROOMS for place in imported_from(room, {"ngh2"})] == []


@pytest.mark.parametrize("room", ["components", "dag", "inferlog"])
def test_components_and_the_dag_know_no_processes_and_no_sockets(room: str) -> None:
    assert imported_from(room, PROCESSES_AND_SOCKETS) == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_do_not_lean_on_tests_demo_or_benchmarks(room: str) -> None:
    assert imported_from(room, {"tests", "demo", "bench"}) == []
