"""What h2spec, the conformance test of HTTP/2, finds at a front door."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.frontdoor.process import PATIENCE, Pod
from tests.interop.tools import tool

pytestmark = [pytest.mark.full, pytest.mark.slow]

# What does not begin like HTTP/2 is answered in HTTP/1.1, which h2spec cannot read.
NOT_APPLICABLE = {"Sends invalid connection preface"}
_WRONG_LENGTH = 'Sends a HEADERS frame with the "content-length" header field which does not equal the '
RACES = {
    # These are no gRPC calls: they are refused at their headers, and over when DATA come that were not sent along.
    f"{_WRONG_LENGTH}DATA frame payload length",
    f"{_WRONG_LENGTH}sum of the multiple DATA frames payload length",
    # A peer that has said GOAWAY and has no streams is closed; what it sends then may meet a reset.
    "Sends a GOAWAY frame",
    "Sends a GOAWAY frame with unknown error code",
}


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
    text = re.sub(rb"[\0-\x08]", b"?", report.read_bytes())  # it shows bytes of frames as they are
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    wrong = {
        case.get("classname", "")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert len(cases) >= 140
    assert wrong - RACES == NOT_APPLICABLE
