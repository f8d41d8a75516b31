"""What is logged of one request besides its matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dag.component import Failure

__all__ = ["Event"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One scored request. All of it is small: cells stay in the matrix, errors as the DAG has noted them."""

    method: int  # number of the RPC, as in REQUEST frames: RetrieveModelScore, point, pair, slate
    model_config_id: str
    digest: str  # of the config's document: SHA-256, hexadecimal
    request_id: bytes  # unique; text, as the answer's trailing metadata has it
    tracking_id: str
    user_id: str = ""
    parent_entity: tuple[str, ...] = ()
    request_ns: int  # when the request came, Unix nanoseconds
    endpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)  # model component → endpoint asked
    failures: Sequence[Failure] = ()  # of the targets; those of the slates are with the slates
