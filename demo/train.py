"""Fits the demo's four models. `demo.export` writes them to ONNX.

`late` (chance of leaving more than 15 minutes late) and `delay` (expected minutes) learn from the departures
of January to October, from the very tensors that the config asks them with. `later` (if one of two departures
leaves late, is it the first?) and `bank` (is an airport's hour of departures disrupted?) score slates. They
learn from what `late` and `delay` say of days that these were not fitted on, as they will be asked about such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from demo.data import LATE_MINUTES, TRAINING_MONTHS

__all__ = ["Models", "Tensors", "bank_features", "evaluate", "train"]

Array = npt.NDArray[Any]
Tensors = Mapping[str, Mapping[str, Array]]
"""Model name → input name → [departures, *shape]."""

FOLDS = 3
DELAY_RANGE = (-30.0, 240.0)  # minutes; a handful of delays of a day would rule the fit of the mean
DISRUPTED_SHARE = 1 / 3  # of a bank's departures late or cancelled
SMALLEST_BANK = 5
PAIRS = 100_000
_PACE = {"learning_rate": 0.08, "max_iter": 150, "early_stopping": False, "random_state": 13}


@dataclass(frozen=True)
class Models:
    """The fitted estimators; `later` and `bank` take what the first two answer."""

    late: Pipeline
    delay: Pipeline
    later: LogisticRegression
    bank: Pipeline


@dataclass(frozen=True)
class _Base:
    late: Pipeline
    delay: Pipeline

    def scores(self, tensors: Tensors, rows: Array) -> Array:
        """[rows, 2]: chance of being late and expected minutes, what slate models are asked with."""
        chance = self.late.predict_proba(_late_matrix(tensors, rows))[:, 1]
        return np.stack([chance, self.delay.predict(_delay_frame(tensors, rows))], axis=1)


def train(tensors: Tensors, departures: pd.DataFrame, report: Callable[[str], None]) -> Models:
    """Fit on the training months of the departures; `report` is told what is being done.

    Rows of `tensors` are those of `departures`.
    """
    rows = np.flatnonzero(departures["scheduled"].dt.month <= TRAINING_MONTHS)
    known = departures.iloc[rows].reset_index(drop=True)
    unseen = np.empty((len(rows), 2))
    folds = GroupKFold(FOLDS).split(rows, groups=known["scheduled"].dt.day_of_year)
    for number, (fit, ask) in enumerate(folds):
        report(f"fitting fold {number + 1} of {FOLDS}")
        unseen[ask] = _fit_base(tensors, departures, rows[fit]).scores(tensors, rows[ask])
    report("fitting late and delay")
    base = _fit_base(tensors, departures, rows)
    report("fitting the slate models")
    return Models(base.late, base.delay, _fit_later(unseen, known), _fit_bank(unseen, known))


def _fit_base(tensors: Tensors, departures: pd.DataFrame, rows: Array) -> _Base:
    left = rows[departures["delay"].notna().to_numpy()[rows]]
    delay = departures["delay"].to_numpy()[left]
    matrix = _late_matrix(tensors, left)
    late = Pipeline(
        [
            # Passing all columns through is what lets the exported model take its inputs as two tensors.
            ("join", ColumnTransformer([("all", "passthrough", list(range(matrix.shape[1])))])),
            ("trees", HistGradientBoostingClassifier(**_PACE)),
        ]
    )
    names = [0, 1]
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    minutes = Pipeline(
        [
            ("join", ColumnTransformer([("names", encode, names)], remainder="passthrough")),
            ("trees", HistGradientBoostingRegressor(**_PACE)),
        ]
    )
    return _Base(
        late.fit(matrix, (delay > LATE_MINUTES).astype(np.int64)),
        minutes.fit(_delay_frame(tensors, left), np.clip(delay, *DELAY_RANGE)),
    )


def _late_matrix(tensors: Tensors, rows: Array) -> Array:
    return np.concatenate([array[rows] for array in tensors["late"].values()], axis=1)


def _delay_frame(tensors: Tensors, rows: Array) -> pd.DataFrame:
    inputs = tensors["delay"]
    names = pd.DataFrame(inputs["names"][rows]).map(bytes.decode).add_prefix("name")
    return pd.concat([names, pd.DataFrame(inputs["numbers"][rows]).add_prefix("number")], axis=1)


def _fit_later(scores: Array, known: pd.DataFrame) -> LogisticRegression:
    """On the difference of two departures' scores; without intercept, so that order does not matter."""
    first, second = _pairs(known)
    late = (known["delay"] > LATE_MINUTES).to_numpy()
    return LogisticRegression(fit_intercept=False).fit(scores[first] - scores[second], late[first])


def _pairs(known: pd.DataFrame) -> tuple[Array, Array]:
    """Random pairs of departures from one airport on one day of which just one left late."""
    random = np.random.default_rng(13)
    left = np.flatnonzero(known["delay"].notna())
    block = known.groupby([known["origin"], known["scheduled"].dt.day_of_year]).ngroup().to_numpy()[left]
    order = np.argsort(block, kind="stable")
    left, block = left[order], block[order]
    at = random.integers(0, len(left), PAIRS)
    start, end = (np.searchsorted(block, block[at], side) for side in ("left", "right"))
    first, second = left[at], left[random.integers(start, end)]
    late = (known["delay"] > LATE_MINUTES).to_numpy()
    keep = late[first] != late[second]
    return first[keep], second[keep]


def bank_features(scores: Array) -> Array:
    """[4] of a bank's [departures, 2] scores: mean and greatest chance, mean and greatest minutes."""
    return np.stack([scores.mean(axis=0), scores.max(axis=0)], axis=1).ravel()


def _banks(known: pd.DataFrame) -> list[tuple[Array, bool]]:
    """Rows of each airport's hour with enough departures, and whether it was disrupted."""
    trouble = ((known["delay"] > LATE_MINUTES) | known["delay"].isna()).to_numpy()
    groups = known.groupby(["origin", "hour"]).indices.values()
    return [
        (rows, bool(trouble[rows].mean() >= DISRUPTED_SHARE)) for rows in groups if len(rows) >= SMALLEST_BANK
    ]


def _fit_bank(scores: Array, known: pd.DataFrame) -> Pipeline:
    banks = _banks(known)
    features = np.stack([bank_features(scores[rows]) for rows, _ in banks])
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(
        features, [disrupted for _, disrupted in banks]
    )


def evaluate(models: Models, scores: Array, held_out: pd.DataFrame) -> dict[str, float]:
    """How good the models are on departures that they have not seen.

    `scores` is [held-out departures, 2] of chance and minutes. Shares are 0…1, errors are in minutes; the
    error of the mean is what a model that always says the mean delay would have.
    """
    left = held_out["delay"].notna().to_numpy()
    delay = held_out["delay"].to_numpy()[left]
    late = delay > LATE_MINUTES
    chance, minutes = scores[left].T
    riskiest = chance >= np.quantile(chance, 0.9)
    first, second = _pairs(held_out)
    first_is_later = models.later.predict(scores[first] - scores[second])
    banks = _banks(held_out)
    bank_chance = models.bank.predict_proba(np.stack([bank_features(scores[rows]) for rows, _ in banks]))
    disrupted = [disrupted for _, disrupted in banks]
    return {
        "departures": float(left.sum()),
        "cancelled": float((~left).sum()),
        "late_share": float(late.mean()),
        "predicted_share": float(chance.mean()),
        "auc": float(roc_auc_score(late, chance)),
        "late_share_of_riskiest_tenth": float(late[riskiest].mean()),
        "minutes_error": float(np.abs(minutes - delay).mean()),
        "minutes_error_of_mean": float(np.abs(delay - delay.mean()).mean()),
        "pairs_right": float((first_is_later == (held_out["delay"].to_numpy()[first] > LATE_MINUTES)).mean()),
        "banks": float(len(banks)),
        "banks_disrupted": float(np.mean(disrupted)),
        "bank_auc": float(roc_auc_score(disrupted, bank_chance[:, 1])),
    }
