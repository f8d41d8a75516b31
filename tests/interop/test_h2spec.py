"""What h2spec, the conformance test of HTTP/2, finds at a front door."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.frontdoor.process import PATIENCE, Pod
from tests.interop.tools import tool

pytestmark = [pytest.mark.full, pytest.mark.slow]

# What does not begin like HTTP/2 is answered in HTTP/1.1, which h2spec cannot read.
NOT_APPLICABLE = {"Sends invalid connection preface"}


def test_the_front_door_conforms(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    with Pod() as pod:
        subprocess.run(
            [tool("h2spec"), "-p", str(pod.port), "-P", "/health/self", "-j", report],
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=10 * PATIENCE,
        )
        assert pod.get("/health/self")[0] == 200
    cases = list(ElementTree.parse(report).iter("testcase"))
    wrong = {
        case.get("classname", "")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert len(cases) >= 140
    assert wrong == NOT_APPLICABLE
