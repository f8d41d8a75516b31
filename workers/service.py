"""The service of one worker: from a request's bytes to its answer's, without sockets.

Belongs to the I/O thread. A request holds the plan it started with until it is answered, whatever is activated
meanwhile, and its matrix slot until no thread touches it any more.
"""

from __future__ import annotations

import datetime
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from components.feature_init import initialize
from dag.component import Scoring
from dag.executor import Execution, Executor
from dag.plan import Plan
from rpc.status import Status
from shared.board import Board
from shared.shm_matrix import MatrixFull, MatrixPool, Slot
from workers import responses
from workers.meters import RequestMeters
from workers.plans import PlanSet
from workers.requests import ADAPTERS, BadRequest, Inquiry, Reading

if TYPE_CHECKING:  # nothing of OpenTelemetry is imported while tracing is off
    from workers.tracing import PassedOn, RequestTrace, Tracing

__all__ = ["RETRIEVE", "Answered", "InferenceLog", "Served", "Service", "Ticket", "user_id"]

log = logging.getLogger(__name__)

OK: Final = Status.OK  # which an enum looks up each time

RETRIEVE, POINT_WISE, PAIR_WISE, SLATE_WISE = range(4)


class Answered:
    """The one answer of a request.

    `request_id` is unique; the client sees it as trailing metadata, and it is in the request's log.
    """

    __slots__ = ("body", "message", "request_id", "status")

    def __init__(self, status: Status, message: str, body: bytes, request_id: bytes) -> None:
        self.status = status
        self.message = message
        self.body = body
        self.request_id = request_id

    def __repr__(self) -> str:
        return f"<Answered {self.status.name} {self.message!r}, {len(self.body)} bytes>"


class InferenceLog(Protocol):
    """Who takes the matrices of requests that were answered."""

    def offer(self, served: Served) -> bool:
        """Whether it has taken the slot over: then it frees it. A refusal costs the request nothing."""
        ...


class Served:
    """A request that was answered, with its matrix still in its slot.

    `service` is the service config, as JSON; `came_ns` Unix time in ns.
    """

    __slots__ = (
        "came_ns",
        "metadata",
        "method",
        "plan",
        "request_id",
        "scoring",
        "service",
        "tracking_id",
    )

    def __init__(
        self,
        method: int,
        plan: Plan,
        service: bytes,
        scoring: Scoring,
        tracking_id: str,
        metadata: Mapping[bytes, bytes],
        request_id: bytes,
        came_ns: int,
    ) -> None:
        self.method = method
        self.plan = plan
        self.service = service
        self.scoring = scoring
        self.tracking_id = tracking_id
        self.metadata = metadata
        self.request_id = request_id
        self.came_ns = came_ns

    def __repr__(self) -> str:
        return f"<Served {self.request_id.decode()} of {self.plan!r}>"


class _Refused(Exception):
    """The service does not take this request now."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class Ticket:
    """A request in flight; `cancel` ends it without an answer.

    What a request needs until its end stands here, not in nested functions: those refer to each other, and only
    the garbage collector would find them and the matrix when the request is over.
    """

    __slots__ = (
        "_answer",
        "_began",
        "_came_ns",
        "_deadline",
        "_execution",
        "_metadata",
        "_method",
        "_plan",
        "_request_id",
        "_rows",
        "_served",
        "_service",
        "_slot",
        "_trace",
        "_tracking_id",
    )

    def __init__(
        self,
        service: Service,
        method: int,
        metadata: Mapping[bytes, bytes],
        deadline: float | None,
        answer: Callable[[Answered], None],
        request_id: bytes,
        trace: RequestTrace | PassedOn | None,
    ) -> None:
        self._service = service
        self._method = method
        self._metadata = metadata
        self._deadline = deadline
        self._answer = answer
        self._request_id = request_id
        self._trace = trace
        self._came_ns = time.time_ns()
        self._began = time.monotonic()
        self._plan: Plan | None = None
        self._tracking_id = ""
        self._rows = 0
        self._slot: Slot | None = None
        self._execution: Execution | None = None
        self._served = False

    def cancel(self) -> None:
        if self._execution is not None:
            self._execution.cancel()

    def read(self, body: bytes) -> Scoring:
        """The matrix of the request, in a slot. Raises BadRequest, MatrixFull, _Refused."""
        service = self._service
        slot = service.pool.acquire()
        try:
            inquiry = service.read(self._method, self._metadata, body, slot)
            plan = service.plans.find(inquiry.model_config_id)
            brought = inquiry.bring(plan)
            self._plan = plan
            self._tracking_id = inquiry.tracking_id
            scoring = initialize(plan, brought, slot)
        except BaseException:
            service.pool.release(slot)
            raise
        self._slot = slot
        self._rows = brought.rows
        if self._trace is not None:
            self._trace.planned(plan, self._tracking_id, brought.rows)
        return scoring

    def start(self, scoring: Scoring) -> None:
        """Runs the DAG over what was read."""
        plan = self._plan
        assert plan is not None
        self._service.in_flight += 1
        self._execution = Execution(
            self._service.executor, plan, scoring, self._deadline, self._done, self._idle, self._trace
        )
        self._execution.start()

    def reply(self, status: Status, message: str, body: bytes = b"") -> None:
        """Gives the answer."""
        trace_id = ""
        if self._trace is not None:
            trace_id = self._trace.trace_id
            self._trace.finish(status, message)
        model = "" if self._plan is None else self._plan.model_config_id
        took = (time.monotonic() - self._began) * 1e3
        self._service.meters.answered(model, self._method, status, took, self._rows, trace_id)
        self._answer(Answered(status, message, body, self._request_id))

    def _done(self, execution: Execution) -> None:
        """The DAG has run."""
        plan, scoring = self._plan, execution.scoring
        assert plan is not None
        if scoring.failures or (scoring.slates is not None and scoring.slates.failures):
            self._count_failures(plan, scoring)
        if execution.error is not None:
            self.reply(Status.RESOURCE_EXHAUSTED, str(execution.error))
            return
        if self._deadline is not None and self._service.executor.loop.time() >= self._deadline:
            # The upstream calls were cut short by it: what they left is nobody's answer.
            self.reply(Status.DEADLINE_EXCEEDED, "the client's deadline passed")
            return
        try:
            out = self._service.respond(self._method, plan, scoring, self._metadata)
        except responses.ResponseTooLarge as large:
            self.reply(Status.RESOURCE_EXHAUSTED, str(large))
            return
        except Exception as error:
            log.exception("response failed", extra={"model_config_id": plan.model_config_id})
            self.reply(Status.INTERNAL, f"the response could not be built: {type(error).__name__}: {error}")
            return
        self._served = True
        self.reply(OK, "", out)

    def _idle(self, execution: Execution) -> None:
        """Nobody touches the matrix any more."""
        slot, self._slot = self._slot, None
        assert slot is not None
        self._service.in_flight -= 1
        if not self._is_lent(execution.scoring):
            self._service.pool.release(slot)

    def _is_lent(self, scoring: Scoring) -> bool:
        """Whether the inference log has the slot now."""
        inference_log, version = self._service.inference_log, self._service.plans.active
        if not self._served or not self._tracking_id or inference_log is None or version is None:
            return False
        assert self._plan is not None
        return inference_log.offer(
            Served(
                self._method,
                self._plan,
                version.service,
                scoring,
                self._tracking_id,
                self._metadata,
                self._request_id,
                self._came_ns,
            )
        )

    def _count_failures(self, plan: Plan, scoring: Scoring) -> None:
        _count_failures(plan, scoring)
        percent = plan.config.component_config.error_logging_percent
        if percent and random.random() * 100 < percent:
            _log_failures(plan, scoring, self._tracking_id, self._request_id, self._trace)

    def __repr__(self) -> str:
        return f"<Ticket {self._request_id.decode()} of {self._execution!r}>"


class Service:
    """Scores requests. `in_flight` counts those whose slot is not free yet."""

    def __init__(
        self,
        executor: Executor,
        pool: MatrixPool,
        *,
        max_in_flight: int,
        reading: Reading,
        sampling_tz: datetime.tzinfo,
        board: Board,
        inference_log: InferenceLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.plans = PlanSet()
        self.in_flight = 0
        self.max_in_flight = max_in_flight
        self.meters = RequestMeters(board)
        self.executor = executor
        self.pool = pool
        self._reading = reading
        self._sampling_tz = sampling_tz
        self.inference_log = inference_log
        self._tracing = tracing
        self._prefix = os.urandom(6).hex().encode()  # of request ids: no other worker has it
        self._requests = 0

    def handle(
        self,
        method: int,
        metadata: Mapping[bytes, bytes],
        body: bytes,
        deadline: float | None,
        answer: Callable[[Answered], None],
    ) -> Ticket:
        """Scores a request; `answer` is called exactly once, maybe at once, unless the ticket is cancelled.

        `method` is the place in the list of methods, `deadline` on the clock of the loop.
        """
        self._requests += 1
        trace = self._tracing.begin(method, metadata) if self._tracing is not None else None
        request_id = b"%b%x" % (self._prefix, self._requests)
        ticket = Ticket(self, method, metadata, deadline, answer, request_id, trace)
        try:
            scoring = ticket.read(body)
        except _Refused as refused:
            ticket.reply(refused.status, str(refused))
        except BadRequest as bad:
            ticket.reply(Status.INVALID_ARGUMENT, str(bad))
        except MatrixFull as full:
            ticket.reply(Status.RESOURCE_EXHAUSTED, str(full))
        except Exception as error:
            # A mistake of ours costs this request, not the link that it came over with all the others.
            log.exception("request failed")
            ticket.reply(Status.INTERNAL, f"the request could not be read: {type(error).__name__}: {error}")
        else:
            ticket.start(scoring)
        return ticket

    def read(self, method: int, metadata: Mapping[bytes, bytes], body: bytes, slot: Slot) -> Inquiry:
        """A request, as far as it can be read without its plan. Raises BadRequest, MatrixFull, _Refused."""
        if self.in_flight >= self.max_in_flight:
            raise _Refused(
                Status.RESOURCE_EXHAUSTED,
                f"{self.in_flight} requests in flight, the limit is {self.max_in_flight}",
            )
        if method >= len(ADAPTERS):
            raise _Refused(Status.UNIMPLEMENTED, f"method {method} is none of {len(ADAPTERS)}")
        return ADAPTERS[method](body, metadata, self._reading, slot)

    def respond(self, method: int, plan: Plan, scoring: Scoring, metadata: Mapping[bytes, bytes]) -> bytes:
        """The body of an answer. Raises ResponseTooLarge."""
        reference = self._reading.reference_codecs
        if method == POINT_WISE:
            return responses.point_wise(plan, scoring, reference=reference)
        if method in (PAIR_WISE, SLATE_WISE):
            return responses.slate_wise(plan, scoring, reference=reference)
        percentage = plan.config.response_config.model_schema_features_perc
        shown = percentage > 0 and responses.sampled(
            user_id(plan, scoring, metadata), percentage, datetime.datetime.now(self._sampling_tz)
        )
        return responses.retrieve(plan, scoring, model_schema=shown, reference=reference)

    def __repr__(self) -> str:
        return f"<Service {self.in_flight} of {self.max_in_flight} in flight, {self.plans!r}>"


def _count_failures(plan: Plan, scoring: Scoring) -> None:
    plan.meters.failed(scoring.failures, scoring.matrix.rows)
    if scoring.slates is not None:
        plan.meters.failed(scoring.slates.failures, scoring.slates.matrix.rows)


def _log_failures(
    plan: Plan, scoring: Scoring, tracking_id: str, request_id: bytes, trace: RequestTrace | PassedOn | None
) -> None:
    """What went wrong, without what was in the request: causes may quote values, kinds do not."""
    failures = [*scoring.failures, *(scoring.slates.failures if scoring.slates is not None else ())]
    kinds = Counter((failure.component, failure.kind) for failure in failures)
    log.warning(
        "rows without their part",
        extra={
            "model_config_id": plan.model_config_id,
            "tracking_id": tracking_id,
            "request_id": request_id.decode(),
            **({"trace_id": trace.trace_id} if trace is not None and trace.trace_id else {}),
            "rows": scoring.matrix.rows,
            "failed": {f"{component}: {kind}": count for (component, kind), count in kinds.items()},
        },
    )


def user_id(plan: Plan, scoring: Scoring, metadata: Mapping[bytes, bytes]) -> bytes:
    """The user of a request: its entity or feature of this name, else its metadata."""
    external = plan.layout.external.get("user_id")
    column = None if external is None else scoring.matrix.texts[external]
    if column is not None:
        return column.texts(scoring.matrix.all_rows[:1])[0]
    return metadata.get(b"user-id", b"")
