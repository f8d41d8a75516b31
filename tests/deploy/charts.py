"""The Helm chart rendered over a matrix of values; the renders are kept, so that tests need no helm.

`python -m tests.deploy.charts` renders anew (helm: tests/interop/get_tools.sh). A digest beside the renders tells
when the chart or the values have changed since.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.frontdoor.process import PATIENCE, ROOT
from tests.interop.tools import tool

__all__ = [
    "CASES",
    "CHART",
    "KUBERNETES",
    "RENDERS",
    "Manifest",
    "digest",
    "helm",
    "kept",
    "render",
    "stored_digest",
    "values",
]

CHART = ROOT / "deploy" / "helm" / "inferflow"
RENDERS = ROOT / "tests" / "data" / "helm"
CASES = ("small", "etcd", "everything")
KUBERNETES = "1.31.0"

Manifest = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs helm. It finds nothing on the network to ask, and needs nothing."""
    return subprocess.run(
        [tool("helm"), *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def render(case: str) -> str:
    """What helm makes of the chart with the values of this case."""
    run = helm(
        "template", "rank", CHART, "--namespace", "ranking", "--kube-version", KUBERNETES, "-f", values(case)
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def values(case: str) -> Path:
    return RENDERS / f"{case}.values.yaml"


def kept(case: str) -> list[Manifest]:
    """The manifests of this case as they were rendered last."""
    documents = yaml.safe_load_all((RENDERS / f"{case}.yaml").read_text())
    return [document for document in documents if document]


def digest() -> str:
    """Of everything that a render depends on."""
    files = sorted(path for path in CHART.rglob("*") if path.is_file() and path.suffix != ".md")
    summed = hashlib.sha256()
    for path in [*files, *map(values, CASES)]:
        summed.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return summed.hexdigest()


def stored_digest() -> str:
    return (RENDERS / "digest").read_text().strip()


def _write() -> None:
    for case in CASES:
        (RENDERS / f"{case}.yaml").write_text(render(case))
    (RENDERS / "digest").write_text(digest() + "\n")


if __name__ == "__main__":
    _write()
