"""What all tests share: how much Hypothesis tries.

    pytest --hypothesis-profile=thorough tests/components

tries four times as much as the fast loop does.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No example is timed: a busy machine is no bug.
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=400)
settings.load_profile("quick")
