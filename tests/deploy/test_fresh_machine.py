"""From the chart to answered requests and back: the rendered pod, run on this machine as a cluster would run it.

Its volumes are directories and its addresses are this machine's; everything else, above all the environment, is
what the chart says.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.charts import Manifest, kept
from tests.e2e.asking import POINT, config, errors, score, write_models
from tests.e2e.pod import FIRST_START, OURS, Pod, UpstreamProcess
from tests.frontdoor.process import ROOT, eventually

pytestmark = pytest.mark.slow

CASE = "small"
HERE = (
    "APP_PORT",
    "INFERFLOW_ADMIN_PORT",
    "INFERFLOW_HOST",
    "EXTERNAL_SERVICE_ONFS_FS_HOST",
    "EXTERNAL_SERVICE_ONFS_FS_PORT",
    "EXTERNAL_SERVICE_PREDATOR_PORT",
)
"""What is different on this machine: free ports, and where the upstreams are."""


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(write_models(tmp_path_factory.mktemp("models"), {"shop": config()})) as upstreams:
        yield upstreams


def manifest(kind: str) -> Manifest:
    (found,) = [one for one in kept(CASE) if one["kind"] == kind]
    return found


def fill(volume: Mapping[str, Any], directory: Path) -> None:
    """What kubelet puts into a volume before the container starts."""
    directory.mkdir(parents=True)
    data = manifest("ConfigMap")["data"]
    for source in volume.get("projected", {}).get("sources", ()):
        for item in source["configMap"]["items"]:
            path = directory / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(data[item["key"]])


def in_container(container: Mapping[str, Any], root: Path) -> dict[str, str]:
    """The environment of the container, its mounts being below `root`."""
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    environ = {}
    for variable in container["env"]:
        text = variable["value"]
        if any(text == mount or text.startswith(f"{mount}/") for mount in mounts):
            text = f"{root}{text}"
        environ[variable["name"]] = text
    return environ


def test_the_rendered_pod_serves_and_drains(upstreams: UpstreamProcess) -> None:
    spec = manifest("Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    # The paths of its sockets must stay short.
    pod = Pod({}, upstreams=upstreams.port)
    root = pod.home / "c"
    for mount in container["volumeMounts"]:
        (volume,) = [one for one in spec["volumes"] if one["name"] == mount["name"]]
        fill(volume, Path(f"{root}{mount['mountPath']}"))
    pod.environ = {
        **{name: text for name, text in pod.environ.items() if not OURS.match(name) or name in HERE},
        **{name: text for name, text in in_container(container, root).items() if name not in HERE},
    }
    pod.run_dir = Path(pod.environ["INFERFLOW_RUN_DIR"])
    try:
        pod.start()
        eventually(lambda: probed(pod, container["livenessProbe"]), "it is alive", pod.text, FIRST_START)
        eventually(lambda: probed(pod, container["readinessProbe"]), "it is ready", pod.text, FIRST_START)
        assert errors(pod.call(POINT, score("shop", ["a", "b", "c"]))) == ["", "", ""]
        pod.check_nothing_left(pod.stop())
        assert (root / "var/lib/inferflow/state/active.snapshot").exists()
    finally:
        pod.discard()


def probed(pod: Pod, probe: Mapping[str, Any]) -> bool:
    """Asks as kubelet does, and as the command for those that cannot: both must say the same."""
    status, _ = pod.get(probe["httpGet"]["path"])
    if status != 200:
        return False
    asked = subprocess.run(
        [sys.executable, "-m", "cli.main", "probe", probe["httpGet"]["path"]],
        env={**pod.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        stdout=subprocess.DEVNULL,
    )
    return asked.returncode == 0
