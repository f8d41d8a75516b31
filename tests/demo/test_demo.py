"""The demo with its real data and models. Prepares them if they are not there yet (a minute or two)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.pod import ROOT, DemoError, Pod
from demo.prepare import HERE, Prepared, config, digest, prepare

pytestmark = [pytest.mark.full, pytest.mark.slow]
SECONDS = 420.0  # for a first start, which compiles


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    there = Prepared(HERE / ".data" / digest())
    if not there.exists:
        prepare(there.directory)
    return there


@pytest.fixture(scope="module")
def flights() -> Any:
    from demo.data import read_departures

    return read_departures()


@pytest.fixture(scope="module")
def tables(flights: Any) -> Any:
    from demo.data import build_tables

    return build_tables(flights)


def test_nothing_of_the_board_happened_after_the_features_were_taken(flights: Any, tables: Any) -> None:
    """An hour's features are those of an hour before it began: recounted here from the departures themselves."""
    import pandas as pd

    random = np.random.default_rng(7)
    table = tables["origin_hour"]
    for row in random.integers(100, len(table), 200).tolist():
        origin, hour = table.keys[row]
        known = pd.Timestamp(hour.replace("T", " ") + ":00") - pd.Timedelta(hours=1)
        gone = flights[
            (flights["origin"] == origin)
            & (flights["left"] >= known - pd.Timedelta(hours=2))
            & (flights["left"] < known)
        ]
        column = table.columns["board", "departures"]
        assert column.values[row] == len(gone), (origin, hour)
        if len(gone):
            late = table.columns["board", "late_share"].values[row]
            assert late == pytest.approx((gone["delay"] > 15).mean(), abs=1e-6), (origin, hour)


def test_no_flight_can_leave_early_enough_to_be_in_its_own_features(flights: Any) -> None:
    assert (flights["hour"] - flights["left"]).max() < np.timedelta64(1, "h")


def test_carrier_records_do_not_know_the_months_to_be_shown(flights: Any, tables: Any) -> None:
    from demo.data import build_tables

    changed = flights.copy()
    changed.loc[changed["scheduled"].dt.month > 10, "delay"] = 999.0
    again = build_tables(changed)["carrier"].columns["history", "record"].values
    assert np.array_equal(again, tables["carrier"].columns["history", "record"].values)


def test_models_learn_from_january_to_october_only(flights: Any) -> None:
    """Fitting with other delays in the held-out months gives the same models."""
    from demo.train import train

    some = flights[flights["scheduled"].dt.day_of_year % 15 == 0].reset_index(drop=True)
    count = len(some)
    random = np.random.default_rng(1)
    numbers = random.normal(size=(count, 4)).astype(np.float32)
    names = np.array([[b"UA", b"EWR"], [b"AA", b"JFK"]], dtype=object)[random.integers(0, 2, count)]
    tensors = {"late": {"numbers": numbers}, "delay": {"names": names, "numbers": numbers}}
    changed = some.copy()
    changed.loc[changed["scheduled"].dt.month > 10, "delay"] = 999.0
    one, other = (train(tensors, departures, lambda _: None) for departures in (some, changed))
    assert np.array_equal(one.late.predict_proba(numbers), other.late.predict_proba(numbers))
    assert np.array_equal(one.bank.predict_proba(numbers), other.bank.predict_proba(numbers))
    assert np.array_equal(one.later.coef_, other.later.coef_)


def test_exported_models_say_what_the_fitted_ones_say(tmp_path: Path) -> None:
    import pandas as pd

    from dag.config import ModelInput
    from demo.export import export
    from demo.onnx_models import load_models
    from demo.train import bank_features, train

    random = np.random.default_rng(2)
    count = 3000
    numbers = random.normal(size=(count, 3)).astype(np.float32)
    record = random.normal(size=(count, 2)).astype(np.float32)
    names = np.array([[b"UA", b"EWR"], [b"AA", b"JFK"]], dtype=object)[random.integers(0, 2, count)]
    scheduled = pd.Timestamp("2013-01-01") + pd.to_timedelta(random.integers(0, 60 * 24, count), unit="h")
    delay = numbers[:, 0] * 20 + (names[:, 0] == b"UA") * 30
    departures = pd.DataFrame(
        {"scheduled": scheduled, "hour": scheduled, "origin": names[:, 1], "delay": delay}
    )
    tensors = {"late": {"numbers": numbers, "record": record}, "delay": {"names": names, "numbers": numbers}}
    models = train(tensors, departures, lambda _: None)
    spec = {
        name: ModelInput(name=name, features=[], shape=[size], data_type=kind) for name, size, kind in SPECS
    }
    export(models, [spec["numbers"], spec["record"]], [spec["names"], spec["numbers"]], tmp_path)
    served = load_models(tmp_path)
    assert set(served) == {"late", "delay", "later", "bank"}

    chance = served["late"].run(tensors["late"], ["probabilities"])[0]
    fitted = models.late.predict_proba(np.concatenate([numbers, record], axis=1))
    # Thresholds are float32 in ONNX: a value that lies between the two roundings goes the other way.
    assert np.mean(np.abs(chance - fitted) > 1e-5) < 0.01
    minutes = served["delay"].run(tensors["delay"], ["minutes"])[0][:, 0]
    frame = pd.DataFrame([[word.decode() for word in row] for row in names]).add_prefix("name")
    frame = pd.concat([frame, pd.DataFrame(numbers).add_prefix("number")], axis=1)
    assert np.mean(np.abs(minutes - models.delay.predict(frame)) > 1e-2) < 0.01

    scores = np.stack([chance[:, 1], minutes], axis=1)
    for first, second in ((0, 1), (1, 0), (5, 9)):
        answer = served["later"].run({"departures": scores[[first, second]]}, ["first_is_later"])[0]
        expected = models.later.predict_proba(scores[[first]] - scores[[second]])[0, 1]
        assert answer == pytest.approx(expected, abs=1e-5)
    for size in (1, 2, 17):
        answer = served["bank"].run({"departures": scores[:size]}, ["disrupted"])[0]
        expected = models.bank.predict_proba(bank_features(scores[:size])[None])[0, 1]
        assert answer == pytest.approx(expected, abs=1e-4)


SPECS = (("numbers", 3, "FP32"), ("record", 2, "FP32"), ("names", 2, "BYTES"))


def test_every_feature_and_model_of_the_configs_is_there(prepared: Prepared) -> None:
    from demo.onnx_models import load_models
    from demo.tables import load_tables

    tables, models = load_tables(prepared.tables), load_models(prepared.models)
    for name in ("departures", "departure_pairs", "departure_banks"):
        for fetch in config(name).component_config.feature_components:
            table = tables[fetch.fs_request.label]
            assert {key.schema for key in fetch.fs_keys} == set(table.key_names)
            for group in fetch.fs_request.feature_groups:
                for feature in group.features:
                    kind = table.columns[group.label, feature].kind
                    assert kind.label == group.data_type, (name, fetch.component, feature)
        for call in config(name).component_config.predator_components:
            model = models[call.model_name]
            assert {(spec.name, spec.datatype, spec.shape[1:]) for spec in model.inputs} == {
                (spec.name, spec.data_type, tuple(spec.shape)) for spec in call.inputs
            }
            assert {spec.name for spec in call.outputs} <= {spec.name for spec in model.outputs}


def test_models_are_better_than_chance_and_calibrated(prepared: Prepared) -> None:
    metrics = prepared.metrics()
    assert metrics["auc"] > 0.7
    assert metrics["minutes_error"] < metrics["minutes_error_of_mean"]
    assert metrics["pairs_right"] > 0.6
    assert metrics["bank_auc"] > 0.8
    assert abs(metrics["predicted_share"] - metrics["late_share"]) < 0.03


def demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "demo", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # or Ctrl-C of the tests would be one of the demo
    )


def of_this_demo(pid: int) -> list[int]:
    """Processes started by the demo `pid`, told by the temporary directory that only it has named."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != pid:
            try:
                parts = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"demo.child" in parts and str(pid).encode() in parts:
                found.append(int(entry.name))
    return found


def directories() -> set[Path]:
    return set(Path("/tmp").glob("inferflow-demo-*"))


@pytest.fixture
def before() -> Iterator[set[Path]]:
    there = directories()
    yield there
    assert directories() <= there


def test_the_demo_tells_its_story_and_leaves_nothing(prepared: Prepared, before: set[Path]) -> None:
    process = demo("--rows", "5")
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, ""), out
    assert "\x1b" not in out
    assert "Served scores are those computed offline, bit by bit." in " ".join(out.split())
    for scene in (
        "PointWise",
        "PairWise",
        "SlateWise",
        "RetrieveModelScore",
        "How long it takes",
        "The inference log",
        "grpcurl",
    ):
        assert scene in out
    assert re.search(r"All 1014 departures of the day, scored by the service: AUC 0\.\d{3}", out)
    assert of_this_demo(process.pid) == []


def test_it_stays_until_ctrl_c(prepared: Prepared, before: set[Path]) -> None:
    process = demo("--keep", "--route", "JFK-LAX", "--day", "2013-12-05")
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C stops everything" in line:
            break
    assert len(of_this_demo(process.pid)) >= 2, said
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.endswith("Stopped.\n")  # a line that was being printed may come again
    assert of_this_demo(process.pid) == []


def test_a_killed_demo_leaves_no_process(prepared: Prepared) -> None:
    there = directories()
    process = demo("--keep")
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C stops everything" in line:
            break
    (directory,) = directories() - there
    supervisor = int((directory / "run" / "supervisord.pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while of_this_demo(process.pid) or Path(f"/proc/{supervisor}").exists():
        assert time.monotonic() < end, "processes are left"
        time.sleep(0.1)
    for file in sorted(directory.rglob("*"), reverse=True):
        os.rmdir(file) if file.is_dir() else file.unlink()
    directory.rmdir()


def test_a_service_that_keeps_ending_is_given_up(
    prepared: Prepared, before: set[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Pod(prepared) as pod, pytest.raises(DemoError, match=r"(?s)does not get up.*broken here"):
        pod.start(lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--day", "2014-01-01"), "choose a day from 2013-11-01 to 2013-12-31"),
        (("--route", "LGA-XXX"), "LGA-ATL"),
    ],
)
def test_a_wrong_choice_is_told_before_anything_starts(
    prepared: Prepared, arguments: tuple[str, ...], advice: str
) -> None:
    process = demo(*arguments)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")
    assert advice in " ".join(out.split())
    assert "Started" not in out
