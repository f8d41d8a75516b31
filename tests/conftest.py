"""What all tests share: how much Hypothesis tries, and that no test is skipped.

    pytest --hypothesis-profile=thorough tests/components

tries four times as much as the fast loop does.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from shared import native

# No example is timed: a busy machine is no bug.
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=400)
settings.load_profile("quick")


def pytest_configure() -> None:
    """Has a run end at once whose compiled modules would not be those of the sources."""
    try:
        native.check()
    except native.StaleError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Has skipped tests fail: what a test needs is got by `make`, and a test that did not run tells nothing."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report
