"""The run directory is private; socket files of the dead are taken over, those of the living are not."""

import os
import socket
import stat
from pathlib import Path

import pytest

from shared.rundir import RunDirError, UnixListener, private_directory


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(os.fspath(path)) == 0


def test_it_is_made_with_its_parents_and_private(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "run")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert private_directory(made) == made


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert private_directory(Path("run")) == tmp_path / "run"


def test_a_directory_that_others_may_enter_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_to_all = tmp_path / "run"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    with pytest.raises(RunDirError, match="has mode 0755, must be 0700"):
        private_directory(open_to_all)
    assert stat.S_IMODE(open_to_all.stat().st_mode) == 0o755


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirError, match="cannot be made: File exists"):
        private_directory(tmp_path / "run")


def test_a_listener_listens_and_removes_its_file(tmp_path: Path) -> None:
    listener = UnixListener(tmp_path / "door-0.sock")
    assert can_connect(listener.path)
    listener.socket.close()
    listener.remove()
    assert not listener.path.exists()
    listener.remove()


def test_the_socket_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "door-0.sock"
    UnixListener(path).socket.close()
    assert path.exists()
    listener = UnixListener(path)
    assert can_connect(path)
    listener.socket.close()


def test_the_socket_of_a_living_process_is_not(tmp_path: Path) -> None:
    living = UnixListener(tmp_path / "door-0.sock")
    with pytest.raises(RunDirError, match="another process listens there"):
        UnixListener(living.path)
    assert can_connect(living.path)
    living.socket.close()


def test_nor_that_of_one_that_is_too_busy_to_accept(tmp_path: Path) -> None:
    busy = UnixListener(tmp_path / "door-0.sock", backlog=0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.connect(os.fspath(busy.path))
        with pytest.raises(RunDirError, match="another process listens there"):
            UnixListener(busy.path)
    busy.socket.close()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "door-0.sock"
    path.write_text("precious")
    with pytest.raises(RunDirError, match="is no socket"):
        UnixListener(path)
    assert path.read_text() == "precious"


def test_the_file_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "door-0.sock"
    first = UnixListener(path)
    first.socket.close()
    second = UnixListener(path)
    first.remove()
    assert can_connect(path)
    second.socket.close()
    second.remove()
    assert not path.exists()


def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="at most 107"):
        UnixListener(tmp_path / ("x" * 120))
