"""How much a property test tries, as a share of what the Hypothesis profile says (tests/conftest.py)."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["tries"]


def tries(share: float) -> settings:
    """Settings for a test whose examples are dear (or cheap): this share of the profile's number of them."""
    return settings(max_examples=max(1, round(settings().max_examples * share)))
