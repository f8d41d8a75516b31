"""The demo from beginning to end: what is asked, in which order, and what is said about the answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations, pairwise

import grpc
import numpy as np
import numpy.typing as npt
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.text import Text

from demo import display
from demo.client import Answer, Client, Row
from demo.pod import ROOT, DemoError, Pod
from demo.prepare import CONFIGS, HERE, STEPS, Departures, Prepared, config, digest
from shared.process import cores

__all__ = ["Story", "auc", "banks_of", "on_route", "one_late"]

BATCH = 200  # targets of a call that scores the whole day
REPEATS = 200
SHOWN_PAIRS = 6
SHOWN_TEXTS = 3
LOGGED = "demo"  # tracking id of the request that is logged
LOG_SECONDS = 30.0  # until the log sidecar has started and written
LOGGED_COLUMNS = ("_tracking_id", "_entity", "late_probability", "expected_delay")
SMALLEST_BANK = 5
WIDE = 100  # columns of a terminal
Report = Callable[[str], None]


class Story:
    """Shows the departures of one day and route."""

    def __init__(self, console: Console, day: str, route: str, rows: int, port: int) -> None:
        self._console = console
        self._day = day
        self._route = route
        self._shown = rows
        self._port = port

    def tell(self, keep: bool) -> None:
        """Prepare what is not there, start everything, ask, show, and stop (with `keep`: at Ctrl-C).

        Raises DemoError when it cannot go on.
        """
        self._console.print(_headline(self._day, self._route))
        prepared = self._prepare()
        departures = prepared.departures()
        day = departures.where(departures.day == self._day)
        route = on_route(day, self._day, self._route)
        with Pod(prepared, self._port) as pod:
            with self.working("Started feature server, model server and service") as report:
                pod.start(report)
            self._show_dag()
            client = Client(pod.address)
            try:
                self._show_departures(client, day, route, prepared.metrics())
                self._show_pairs(client, route)
                self._show_banks(client, day.where(day.origin == route.origin[0]))
                self._show_texts(client, route)
                self._show_timings(client, route)
                self._show_logs(pod, client, route)
            except grpc.RpcError as error:
                raise pod.failure(f"answered {error.code().name}: {error.details()}") from error
            finally:
                client.close()
            self._show_next(pod, str(route.id[0]), keep)
            if keep:
                pod.wait()

    # ------------------------------------------------------------ steps that take a while

    def _prepare(self) -> Prepared:
        prepared = Prepared(HERE / ".data" / digest())
        if not prepared.exists:
            with self.working("Read a year of flights and trained four models", STEPS) as report:
                _run_prepare(prepared, report)
        return prepared

    @contextmanager
    def working(self, done: str, steps: int | None = None, *, quick: bool = False) -> Iterator[Report]:
        """A progress display for the block, which reports what it does; ends as one line.

        Without a terminal it is a line for each report, or none for what is quick.
        """
        start = time.monotonic()
        if self._console.is_terminal:
            columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True) as progress:
                task = progress.add_task("", total=steps)

                def report(what: str) -> None:
                    progress.update(task, description=what, advance=1)

                yield report
        else:
            yield lambda what: None if quick else self._console.print(f"  {what} …")
        self._console.print(
            Text.assemble(("✓ ", "green"), done, (f"  {time.monotonic() - start:.1f} s", "dim"))
        )

    # ------------------------------------------------------------ scenes

    def _show_dag(self) -> None:
        self._scene("The config `departures`: what the service does for a row")
        self._show(display.dag_view(config(), _expressions()))

    def _show_departures(
        self, client: Client, day: Departures, route: Departures, metrics: Mapping[str, float]
    ) -> None:
        self._scene(f"PointWise: {self._route} on {self._day}, the riskiest departures first")
        answer = self._checked(client.point_wise("departures", route.id.tolist()))
        delays = dict(zip(route.id.tolist(), route.delay.tolist(), strict=True))
        self._show(display.departure_table(answer.targets, delays, self._shown, self._narrow))
        rows = self._score(client, day)
        scores = np.array([[row.number("late_probability"), row.number("expected_delay")] for row in rows])
        left = ~np.isnan(day.delay)
        late = day.delay[left] > display.LATE_MINUTES
        apart = np.abs(scores - day.scores).max()
        self._show(
            Text.assemble(
                f"All {len(day)} departures of the day, scored by the service: ",
                (f"AUC {auc(late, scores[left, 0]):.3f}", "bold"),
                f", {late.mean():.0%} were late. ",
                "Served scores are those computed offline, bit by bit."
                if apart == 0
                else f"Served scores differ from those computed offline by at most {apart:.1g}.",
            )
        )
        self._show(display.model_quality(metrics))

    def _score(self, client: Client, day: Departures) -> list[Row]:
        ids = day.id.tolist()
        rows: list[Row] = []
        calls = range(0, len(ids), BATCH)
        with self.working(f"Scored the {len(ids)} departures of the day", len(calls), quick=True) as report:
            for start in calls:
                report(f"scoring departures from {start}")
                rows += client.point_wise("departures", ids[start : start + BATCH]).targets
        self._checked(Answer(rows))
        return rows

    def _show_pairs(self, client: Client, route: Departures) -> None:
        self._scene("PairWise: one of the two left late. Which?")
        pairs = one_late(route.delay)
        if not pairs:
            self._show(
                Text("All departures of this day and route were late, or none: there is no such pair.")
            )
            return
        answer = self._checked(client.pair_wise("departure_pairs", route.id.tolist(), pairs))
        chances = [row.number("first_is_later") for row in answer.groups]
        names = [_flight(route, index) for index in range(len(route))]
        asked = list(zip(pairs, chances, strict=True))
        neighbours = set(pairwise(range(len(route))))
        near = [pair for pair in asked if pair[0] in neighbours] or asked
        lines = [
            (names[first], names[second], chance, route.delay[first], route.delay[second])
            for (first, second), chance in near[:SHOWN_PAIRS]
        ]
        self._show(display.pair_table(lines, self._narrow))
        right = np.mean(
            [(chance > 0.5) == (route.delay[first] > display.LATE_MINUTES) for (first, _), chance in asked]
        )
        self._show(Text(f"Of all {len(pairs)} such pairs of the day and route {right:.0%} are right."))

    def _show_banks(self, client: Client, departures: Departures) -> None:
        self._scene(f"SlateWise: the hours of {departures.origin[0]}, each a slate of departures")
        banks = banks_of(departures.minute)
        answer = self._checked(
            client.slate_wise("departure_banks", departures.id.tolist(), list(banks.values()))
        )
        trouble = np.isnan(departures.delay) | (departures.delay > display.LATE_MINUTES)
        self._show(
            display.bank_table(
                (hour, len(indices), row.number("bank_disrupted"), float(trouble[indices].mean()))
                for (hour, indices), row in zip(banks.items(), answer.groups, strict=True)
            )
        )

    def _show_texts(self, client: Client, route: Departures) -> None:
        self._scene("RetrieveModelScore: the same rows as text")
        rows = client.retrieve("departures", "flight_id", route.id[:SHOWN_TEXTS].tolist())
        self._show(display.text_table([list(line) for line in zip(*rows, strict=True)]))

    def _show_timings(self, client: Client, route: Departures) -> None:
        self._scene("How long it takes, as this client sees it")
        ids = route.id.tolist()
        with self.working(
            f"Asked PointWise {REPEATS} times for {len(ids)} departures", REPEATS, quick=True
        ) as report:
            for _ in range(REPEATS):
                report("asking PointWise again and again")
                client.point_wise("departures", ids)
        self._show(display.timing_table(client.took))
        told = f"One call at a time; every process of the demo shares {cores()} cores with this client."
        self._show(Text(told, style="dim"))

    def _show_logs(self, pod: Pod, client: Client, route: Departures) -> None:
        self._scene("The inference log: what was served, for training")
        client.point_wise("departures", route.id.tolist(), tracking_id=LOGGED)
        with self.working("Asked once more, with a tracking id, and read the log", quick=True) as report:
            report("waiting for the log")
            lines = pod.logged(["--limit", str(SHOWN_TEXTS), "--format", "json"], LOG_SECONDS)
        rows = [json.loads(line) for line in lines.splitlines()]
        if not rows:
            self._show(Text("Nothing is logged yet: the log sidecar is still starting.", style="dim"))
            return
        self._show(
            display.text_table(
                [LOGGED_COLUMNS, *([str(row[name]) for name in LOGGED_COLUMNS] for row in rows)]
            )
        )
        told = f"`inferflow logs cat {pod.log_dir}`: {len(rows[0])} columns, with what every model was given."
        self._show(Text(told, style="dim"))

    def _show_next(self, pod: Pod, flight: str, keep: bool) -> None:
        self._scene("Go on" if keep else "Go on: `make demo-up` leaves all this running")
        request = json.dumps({"model_config_id": "departures", "targets": [{"id": flight}]})
        where = CONFIGS.relative_to(ROOT)
        for what, command in (
            ("ask", f"grpcurl -plaintext -d '{request}' {pod.address} Predict/InferPointWise"),
            ("check", f".venv/bin/inferflow validate {where}"),
            ("change", f"{where}/config-map/departures.json and save: the service takes it over"),
        ):
            self._console.print(Text.assemble((f"  {what:8}", "bold"), command), soft_wrap=True)
        if keep:
            self._console.print(
                Text(
                    f"\n  gRPC on {pod.address}, logs in {pod.directory}. Ctrl-C stops everything.",
                    style="bold",
                ),
                soft_wrap=True,
            )

    # ------------------------------------------------------------ small things

    @property
    def _narrow(self) -> bool:
        return self._console.width < WIDE

    def _scene(self, title: str) -> None:
        self._console.print()
        self._console.print(Rule(Text(title, style="bold"), align="left", style="dim"))

    def _show(self, what: RenderableType) -> None:
        self._console.print(Padding(what, (0, 0, 0, 2)))

    def _checked(self, answer: Answer) -> Answer:
        """The answer, after its errors have been shown: a row with one was scored without what failed."""
        rows = [*answer.targets, *answer.groups]
        for error, count in Counter(row.error for row in rows if row.error).most_common(3):
            self._show(Text(f"! {count} of {len(rows)} rows: {error}", style="yellow"))
        return answer


def _headline(day: str, route: str) -> Panel:
    return Panel(
        Text.assemble(
            ("Which departures will be late?\n", "bold"),
            "336,776 flights from New York in 2013, with planes, airports, carriers and weather. The models "
            f"learned from January to October; here they meet {day}, {route}. Every feature was known an hour "
            "before the hour of departure.",
        ),
        title="Inferflow",
        border_style="cyan",
    )


def _run_prepare(prepared: Prepared, report: Report) -> None:
    """Prepare in a process of its own: what it needs of memory is free again afterwards."""
    command = [sys.executable, "-m", "demo.child", str(os.getpid()), "demo.prepare", str(prepared.directory)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
        try:
            assert process.stdout is not None  # it is a pipe
            for line in process.stdout:
                report(line.strip())
        finally:
            if sys.exc_info()[0] is not None:
                process.terminate()
            process.wait()
        if process.returncode != 0:
            errors.seek(0)
            raise DemoError(f"Preparing the data failed:\n{errors.read()[-2000:]}")


def on_route(day: Departures, name: str, route: str) -> Departures:
    if not len(day):
        raise DemoError(f"No departures on {name!r}: choose a day from 2013-11-01 to 2013-12-31.")
    origin, _, dest = route.partition("-")
    chosen = day.where((day.origin == origin) & (day.dest == dest))
    if not len(chosen):
        flown = sorted(set(zip(day.origin.tolist(), day.dest.tolist(), strict=True)))
        there = ", ".join("-".join(pair) for pair in flown if pair[0] == origin) or "EWR-…, JFK-… or LGA-…"
        raise DemoError(f"No departures on the route {route!r} on {name}: choose of {there}.")
    return chosen


def _expressions() -> dict[str, str]:
    files = (CONFIGS / "expression-config").glob("*.json")
    return {path.stem: json.loads(path.read_text())["expression"] for path in files}


def _flight(departures: Departures, index: int) -> str:
    return f"{display.clock(departures.minute[index])} {departures.id[index].split('-')[1]}"


def auc(late: npt.NDArray[np.bool_], chance: npt.NDArray[np.floating]) -> float:
    """The chance that a late departure is ranked above one that was not; NaN when all are alike."""
    high, low = chance[late][:, None], chance[~late][None, :]
    if not high.size or not low.size:
        return float("nan")
    return float(((high > low) + (high == low) / 2).mean())


def one_late(delays: npt.NDArray[np.floating]) -> list[tuple[int, int]]:
    """All pairs (first, second) of departures that left, of which just one was late."""
    late = delays > display.LATE_MINUTES
    left = np.flatnonzero(~np.isnan(delays)).tolist()
    return [(first, second) for first, second in combinations(left, 2) if late[first] != late[second]]


def banks_of(minutes: npt.NDArray[np.integer]) -> dict[int, list[int]]:
    """Hour → indices of the departures scheduled in it, for hours with enough of them."""
    hours = minutes // 60
    banks = {hour: np.flatnonzero(hours == hour).tolist() for hour in sorted(set(hours.tolist()))}
    return {hour: indices for hour, indices in banks.items() if len(indices) >= SMALLEST_BANK}
