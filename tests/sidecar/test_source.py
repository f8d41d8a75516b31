"""The directory source: what it reads, and when it says that something has changed. Nothing sleeps here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.source import MAX_DOCUMENT_BYTES, DirectorySource, SourceError, Unreadable

LATER = 10**18 * 4  # a clock for which every file was written long ago


class Looks:
    """Stands for sleeping: does the next thing of a script each time, and counts."""

    def __init__(self, *script: Callable[[], object]) -> None:
        self.script = list(script)
        self.taken = 0

    async def __call__(self, seconds: float) -> None:
        assert seconds == 0.5
        self.taken += 1
        self.script.pop(0)()


def nothing() -> None:
    pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "config-map").mkdir()
    (tmp_path / "expression-config").mkdir()
    return tmp_path


def looks_until_change(root: Path, *script: Callable[[], object]) -> int:
    """How many looks it took after a read until the change was seen."""
    looks = Looks(*script)
    source = DirectorySource(root, sleep=looks, clock_ns=lambda: LATER)
    source.read()
    asyncio.run(source.changed())
    return looks.taken


def test_keys_are_those_of_the_tree(root: Path) -> None:
    (root / "config-map" / "a.json").write_bytes(b"{}")
    (root / "config-map" / "b.c.json").write_bytes(b"1")
    (root / "expression-config" / "e.json").write_bytes(b"2")
    (root / "service-config.json").write_bytes(b"3")
    source = DirectorySource(root)
    assert source.read() == {
        "config-map/a": b"{}",
        "config-map/b.c": b"1",
        "expression-config/e": b"2",
        "service-config": b"3",
    }
    assert source.place("config-map/a") == f"{root}/config-map/a.json"
    assert repr(source) == f"<DirectorySource {root} 4 files>"


def test_other_files_are_left_alone(root: Path) -> None:
    for name in (".a.json", ".json", "a\nb.json", "a.json~", "a.json.swp", "README.md", ".hidden"):
        (root / "config-map" / name).write_bytes(b"x")
    (root / "else.json").write_bytes(b"x")
    assert DirectorySource(root).read() == {}


def test_parts_of_the_tree_may_be_missing(tmp_path: Path) -> None:
    assert DirectorySource(tmp_path).read() == {}


def test_a_missing_directory_is_an_error_not_emptiness(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"nowhere: is no directory \(INFERFLOW_CONFIG_DIR\)"):
        source.read()
    assert "not readable" in repr(source)


def test_a_part_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config-map").write_text("x")
    with pytest.raises(SourceError, match="config-map"):
        DirectorySource(tmp_path).read()


def test_a_link_that_leads_nowhere_is_no_file(root: Path) -> None:
    (root / "config-map" / "a.json").symlink_to("nowhere")
    assert DirectorySource(root).read() == {}


def test_what_cannot_be_read_is_not_taken_for_deleted(root: Path) -> None:
    (root / "config-map" / "a.json").mkdir()
    assert DirectorySource(root).read() == {"config-map/a": Unreadable("cannot be read: Is a directory")}


def test_a_file_that_is_far_too_long_is_not_read(root: Path) -> None:
    with open(root / "config-map" / "a.json", "wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    (found,) = DirectorySource(root).read().values()
    assert found == Unreadable(f"is longer than {MAX_DOCUMENT_BYTES} bytes")


# ---------------------------------------------------------------- changes


def test_a_new_file_is_a_change(root: Path) -> None:
    path = root / "config-map" / "a.json"
    assert looks_until_change(root, nothing, nothing, lambda: path.write_bytes(b"{}")) == 3


def test_a_deleted_file_is_a_change(root: Path) -> None:
    path = root / "config-map" / "a.json"
    path.write_bytes(b"{}")
    assert looks_until_change(root, nothing, path.unlink) == 2


def test_a_rewritten_file_is_a_change(root: Path) -> None:
    path = root / "config-map" / "a.json"
    path.write_bytes(b"{}")
    os.utime(path, ns=(1, 1))
    assert looks_until_change(root, nothing, lambda: path.write_bytes(b"[]")) == 2


def test_a_replaced_file_is_a_change_even_with_the_old_time_and_size(root: Path) -> None:
    path, scratch = root / "config-map" / "a.json", root / "config-map" / ".a"
    for file in (path, scratch):
        file.write_bytes(b"{}")
        os.utime(file, ns=(1, 1))
    assert looks_until_change(root, nothing, lambda: scratch.replace(path)) == 2


def test_a_mounted_config_map_is_followed_through_its_links(root: Path) -> None:
    """The way Kubernetes updates a mounted ConfigMap: one link to a directory is replaced."""
    data = root / "config-map"
    for version in ("v1", "v2"):
        (data / version).mkdir()
        (data / version / "a.json").write_text(version)
    (data / "..data").symlink_to("v1")
    (data / "a.json").symlink_to("..data/a.json")
    assert DirectorySource(root).read() == {"config-map/a": b"v1"}

    def swap() -> None:
        (data / "..next").symlink_to("v2")
        (data / "..next").rename(data / "..data")

    assert looks_until_change(root, nothing, swap) == 2
    assert DirectorySource(root).read() == {"config-map/a": b"v2"}


def test_a_directory_that_goes_and_comes_is_a_change_both_times(tmp_path: Path) -> None:
    root = tmp_path / "configs"
    root.mkdir()
    looks = Looks(nothing, root.rmdir, nothing, root.mkdir)
    source = DirectorySource(root, sleep=looks, clock_ns=lambda: LATER)
    source.read()
    asyncio.run(source.changed())
    assert looks.taken == 2
    with pytest.raises(SourceError):
        source.read()
    asyncio.run(source.changed())
    assert looks.taken == 4
    assert source.read() == {}


def test_a_file_written_a_moment_ago_is_read_again(root: Path) -> None:
    """A second write in the same tick of the clock, of the same size, leaves no trace in the file's status."""
    path = root / "config-map" / "a.json"
    path.write_bytes(b"{}")
    written = path.stat().st_mtime_ns
    looks = Looks(nothing)
    source = DirectorySource(root, sleep=looks, clock_ns=lambda: written + 5_000_000)
    source.read()
    path.write_bytes(b"[]")
    os.utime(path, ns=(written, written))
    asyncio.run(source.changed())
    assert looks.taken == 1
    assert source.read() == {"config-map/a": b"[]"}


def test_the_real_clock_settles(root: Path) -> None:
    """With real time a file that was just written is read again, and then no more."""
    (root / "config-map" / "a.json").write_bytes(b"{}")
    os.utime(root / "config-map" / "a.json", ns=(0, 0))
    looks = Looks(nothing, nothing, (root / "service-config.json").touch)
    source = DirectorySource(root, sleep=looks)
    source.read()
    asyncio.run(source.changed())
    assert looks.taken == 3


def test_a_text_is_read_once_unless_its_mark_could_hide_a_change(tmp_path: Path) -> None:
    """With thousands of long configs this is what a look at the directory costs."""
    folder = tmp_path / "config-map"
    folder.mkdir()
    for name in ("old", "new"):
        (folder / f"{name}.json").write_text(name)
    long_ago = 10**18
    os.utime(folder / "old.json", ns=(long_ago, long_ago))
    source = DirectorySource(tmp_path)
    first, second = source.read(), source.read()
    assert first == second == {"config-map/new": b"new", "config-map/old": b"old"}
    assert second["config-map/old"] is first["config-map/old"]
    assert second["config-map/new"] is not first["config-map/new"]
    (folder / "old.json").write_text("odd")
    assert source.read()["config-map/old"] == b"odd"
