"""What counting costs a request: everything that is recorded for it, and nothing else.

    python -m bench.metrics [--components N] [--calls N]

A worker's part of one request is played without the request: an answer is counted, components begin and end, calls
end. The publication of a board (once a second, on a thread of its own) is measured beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from dag.meters import PlanMeters, Watch
from rpc.status import Status
from shared.board import Board
from shared.board_file import encode
from workers.call_meters import CallMeters
from workers.meters import RequestMeters

__all__ = ["main"]

ROUNDS = 30
REQUESTS = 2000
MODELS = 20


def play(components: int, calls: int) -> Callable[[], None]:
    """One request's worth of recording."""
    board = Board("worker-0")
    names = [f"component_{number}" for number in range(components)]
    plan = PlanMeters(board, "model", names, {names[0]: 60})
    requests = RequestMeters(board)
    upstreams = CallMeters(board, "onfs", "127.0.0.1:8080")

    def request() -> None:
        run_components(plan)
        for _ in range(calls):
            upstreams.rows.value += 50
            upstreams.ended(0, 1.5)
        requests.answered("model", 1, Status.OK, 3.5, 100)

    return request


def run_components(plan: PlanMeters) -> None:
    """What is recorded of a request's components, which run one after the other."""
    watch: Watch | None = None
    for meters in plan.components:
        now = time.monotonic()
        after, watch = watch, Watch(meters)
        watch.begin(now, after, now + 1.0)
        watch.end(time.monotonic())
    if watch is not None:
        watch.ended_last()


def best(action: Callable[[], object], times: int) -> float:
    """CPU seconds of one call, in the best of some rounds: what disturbs the machine only ever adds."""
    found = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(times):
            action()
        found = min(found, (time.thread_time() - began) / times)
    return found


def full_board() -> Board:
    """The board of a worker that serves MODELS models."""
    board = Board("worker-0")
    requests = RequestMeters(board)
    for number in range(MODELS):
        plan = PlanMeters(board, f"model_{number}", [f"component_{one}" for one in range(5)], {})
        for _ in range(50):
            run_components(plan)
            requests.answered(f"model_{number}", 1, Status.OK, 3.5, 100)
    return board


def main() -> None:
    """Prints µs."""
    parser = argparse.ArgumentParser(prog="python -m bench.metrics", description=__doc__)
    parser.add_argument("--components", type=int, default=4)
    parser.add_argument("--calls", type=int, default=4)
    arguments = parser.parse_args()
    request = best(play(arguments.components, arguments.calls), REQUESTS)
    print(
        f"a request of {arguments.components} components and {arguments.calls} calls: {request * 1e6:.1f} µs"
    )
    board = full_board()
    published = best(lambda: encode(board, 0.0), 5)
    size = len(encode(board, 0.0))
    print(f"a record of {len(list(board))} series ({size} bytes): {published * 1e6:.0f} µs a second")


if __name__ == "__main__":
    main()
