"""The hand-over of scored matrices to the log sidecar: which requests are logged, and what is noted of them.

Nothing is encoded and no cell is copied here: see `shared.log_link`. Belongs to the I/O thread.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from dag.component import Failure, Slates
from dag.plan import Plan
from shared.log_link import ConfigVersion, LogLink
from shared.log_record import Failures, LoggedConfig, Notes
from workers.responses import sampled
from workers.service import RETRIEVE, Served, user_id

__all__ = ["Handover"]

PARENT_ENTITIES = (b"parent_catalog_id", b"search_query", b"clp_id", b"collection_id")
"""Metadata of a request: the first that is not empty is the log's parent entity."""


class Handover:
    """Offers what was served to the log sidecar, if it is sampled."""

    def __init__(self, link: LogLink, sampling_tz: datetime.tzinfo) -> None:
        self.link = link
        self._sampling_tz = sampling_tz

    def offer(self, served: Served) -> bool:
        """Whether the log sidecar has the slot now. See `workers.service.InferenceLog`."""
        plan = served.plan
        if not self._is_sampled(served, plan.config.response_config.logging_perc):
            return False
        scoring = served.scoring
        slates = scoring.slates
        return self.link.lend(
            scoring.matrix,
            None if slates is None else slates.matrix,
            lambda: _notes(served),
            ConfigVersion(plan.model_config_id, plan.digest, served.service),
            lambda: _document(plan, served.service),
        )

    def _is_sampled(self, served: Served, percentage: int) -> bool:
        """RetrieveModelScore by user and day, so that a user's requests of a day are logged all or none."""
        if not 0 < percentage < 100:
            return percentage >= 100
        if served.method == RETRIEVE:
            user = user_id(served.plan, served.scoring, served.metadata)
            return sampled(user, percentage, datetime.datetime.now(self._sampling_tz))
        return random.random() * 100 < percentage

    def __repr__(self) -> str:
        return f"<Handover {self.link!r}>"


def _notes(served: Served) -> Notes:
    scoring = served.scoring
    common = (
        served.method,
        served.request_id,
        served.tracking_id,
        _user(served).decode("utf-8", "replace"),
        _parent_entity(served.metadata),
        served.came_ns,
        scoring.routes,
        _failures(scoring.failures),
    )
    slates = scoring.slates
    return Notes(*common) if slates is None else Notes(*common, *_slates(slates))


def _user(served: Served) -> bytes:
    """The user of a request; of a Predict call only by metadata: what features it brings is nobody's name."""
    if served.method == RETRIEVE:
        return user_id(served.plan, served.scoring, served.metadata)
    return served.metadata.get(b"user-id", b"")


def _slates(slates: Slates) -> tuple[Failures, bytes, bytes]:
    sizes = np.diff(slates.bounds).astype(np.int32)
    return _failures(slates.failures), sizes.tobytes(), slates.rows.tobytes()


def _failures(failures: Iterable[Failure]) -> Failures:
    return [
        (failure.component, failure.cause, None if failure.rows is None else failure.rows.tobytes())
        for failure in failures
    ]


def _parent_entity(metadata: Mapping[bytes, bytes]) -> str:
    for name in PARENT_ENTITIES:
        if value := metadata.get(name):
            return value.decode("utf-8", "replace")
    return ""


def _document(plan: Plan, service: bytes) -> bytes:
    return msgspec.json.encode(
        LoggedConfig(
            plan.model_config_id,
            plan.digest,
            msgspec.Raw(service),
            msgspec.Raw(msgspec.json.encode(plan.config)),
        )
    )
