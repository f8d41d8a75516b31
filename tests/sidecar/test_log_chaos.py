"""Hand-overs by the hundred thousand while log sidecars and workers are killed: no torn row, books that balance."""

from __future__ import annotations

import random

import pytest

from tests.sidecar.log_chaos import either_killed, sidecars_killed, workers_killed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.full)])
def test_killed_log_sidecars(kills: int) -> None:
    outcome = sidecars_killed(random.Random(1), kills)
    assert outcome.kills == kills


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.full)])
def test_killed_workers(kills: int) -> None:
    outcome = workers_killed(random.Random(2), kills)
    assert outcome.kills == kills
    assert outcome.hand_overs > 0


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.full)])
def test_log_sidecars_and_workers_killed(kills: int) -> None:
    outcome = either_killed(random.Random(3), kills)
    assert outcome.kills >= kills
    assert outcome.rows > 0
