"""The container image, without a container engine: the steps of its build, and what they make, as it would run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shared.settings import Settings
from tests.deploy.charts import kept
from tests.e2e.asking import POINT, config, errors, score, write_models
from tests.e2e.pod import UpstreamProcess
from tests.frontdoor.process import PATIENCE, ROOT, eventually, free_port
from tests.interop.tools import run, tool

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
BUILD, FINAL = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
USER = 10001


def environment(stage: str) -> dict[str, str]:
    """The ENV of a stage, arguments of the build put in."""
    level = re.search(r"^ARG CPU_LEVEL=(\S+)$", stage, re.MULTILINE)
    assert level is not None
    lines = stage.replace("\\\n", " ")
    pairs = [pair for line in re.findall(r"^ENV (.*)$", lines, re.MULTILINE) for pair in line.split()]
    return {
        name: text.strip('"').replace("$CPU_LEVEL", level[1])
        for name, _, text in (pair.partition("=") for pair in pairs)
    }


def packages() -> set[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return set(tomllib.load(file)["tool"]["setuptools"]["packages"])


def test_all_rooms_are_in_the_image() -> None:
    installed = re.search(r"^rooms=\((.*)\)$", (DOCKER / "install.sh").read_text(), re.MULTILINE)
    assert installed is not None
    assert set(installed[1].split()) == packages()
    context = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{room}" for room in packages()} <= set(context)


def test_the_environment_is_one_of_settings() -> None:
    variables = {name for row in Settings.table() for name in row.name.split(" or ")}
    ours = {name: text for name, text in environment(FINAL).items() if name.startswith("INFERFLOW_")}
    assert ours.keys() <= variables
    (deployment,) = [one for one in kept("small") if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    rendered = {one["name"]: one.get("value") for one in container["env"]}
    assert ours.items() <= rendered.items(), "the chart's volumes are where the image writes"


def test_kernels_run_as_they_were_compiled() -> None:
    assert environment(BUILD)["NUMBA_CPU_NAME"] == environment(FINAL)["NUMBA_CPU_NAME"]
    assert environment(FINAL)["NUMBA_CPU_FEATURES"] == ""
    assert 'NUMBA_CPU_FEATURES=""' in (DOCKER / "install.sh").read_text()


def test_nobody_is_root() -> None:
    assert f"USER {USER}:{USER}" in FINAL
    (deployment,) = [one for one in kept("small") if one["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == USER


@pytest.mark.full
def test_hadolint_finds_nothing() -> None:
    assert run(tool("hadolint"), DOCKER / "Dockerfile") == ""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="image-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.full
def test_what_is_installed_runs_read_only_as_a_user_without_rights(place: Path, tmp_path: Path) -> None:
    """Needs root: it gives all rights away."""
    build = {**os.environ, **environment(BUILD), "PYTHON": sys.executable}
    install = [DOCKER / "install.sh", place / "prefix"]
    subprocess.run(install, env=build, check=True, timeout=30 * PATIENCE)
    writable = place / "w"
    (writable / "configs" / "config-map").mkdir(parents=True)
    (writable / "configs" / "config-map" / "shop.json").write_bytes(config())
    log = writable / "log"
    log.touch()
    for path in (writable, log):
        os.chown(path, USER, USER)
    python = place / "prefix" / "venv" / "bin" / "python"
    inside = [Path(__file__).parent / "as_container.sh", writable, python, "-m", "cli.main"]
    port = free_port()
    with UpstreamProcess(write_models(tmp_path, {"shop": config()})) as upstreams, log.open("ab") as output:
        environ = {
            **environment(FINAL),
            "PATH": f"{python.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TMPDIR": str(writable),  # a volume on /tmp in the image
            "APP_PORT": str(port),
            "INFERFLOW_ADMIN_PORT": str(free_port()),
            "INFERFLOW_RUN_DIR": str(writable / "run"),
            "INFERFLOW_STATE_DIR": str(writable / "state"),
            "INFERFLOW_CONFIG_DIR": str(writable / "configs"),
            "INFERFLOW_WORKERS": "1",
            "INFERFLOW_PIN": "false",
            "INFERFLOW_DRAIN_SECONDS": "5",
            "EXTERNAL_SERVICE_ONFS_FS_HOST": "127.0.0.1",
            "EXTERNAL_SERVICE_ONFS_FS_PORT": str(upstreams.port),
            "EXTERNAL_SERVICE_PREDATOR_PORT": str(upstreams.port),
        }
        pod = subprocess.Popen([*inside, "up"], env=environ, cwd="/", stdout=output, stderr=output)
        try:

            def ready() -> bool:
                assert pod.poll() is None, log.read_text()
                return subprocess.run([*inside, "probe"], env=environ, cwd="/", check=False).returncode == 0

            eventually(ready, "the pod is ready", log.read_text)
            assert str(USER) in Path(f"/proc/{pod.pid}/status").read_text()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                answer = channel.unary_unary(POINT)(score("shop", ["a", "b"]), timeout=PATIENCE)
            assert errors(answer) == ["", ""]
            pod.send_signal(signal.SIGTERM)
            assert pod.wait(PATIENCE) == 0, log.read_text()
        finally:
            if pod.poll() is None:
                pod.kill()
                pod.wait(PATIENCE)
    assert list((writable / "run").iterdir()) == []
    assert not [line for line in log.read_text().splitlines() if '"level":"error"' in line]
