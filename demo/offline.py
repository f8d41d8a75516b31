"""The features of a config, joined offline: what training reads, and what served scores are held against.

Reads the same config document as the service does and follows the same keys, so a model is trained on
exactly the columns, in exactly the order and with exactly the zeros for missing values, that it is asked
with later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dag.config import FeatureComponent, ModelConfig, ModelInput, PredatorComponent
from demo.tables import Column, Table
from shared.datatypes import DataType, data_type

__all__ = ["join", "model", "tensor"]

MISSING_TEXT = b"0.0"  # what a model is sent where a string has no value


def join(config: ModelConfig, tables: Mapping[str, Table], ids: Sequence[str]) -> dict[str, Column]:
    """Every fetched column of the config by its matrix name, a row for each id.

    The components of the config must stand in an order in which keys are fetched before they are used.
    Raises KeyError for an entity, feature or key column that does not exist.
    """
    texts = {config.response_config.features[0]: np.strings.encode(np.array(ids, dtype=np.str_), "utf-8")}
    joined: dict[str, Column] = {}
    for component in config.component_config.feature_components:
        table = tables[component.fs_request.label]
        rows = _rows(table, [texts[key.col] for key in component.fs_keys])
        fetched = _fetch(component, table, rows)
        joined |= fetched
        texts |= {
            name: np.asarray(column.values, dtype=np.bytes_)
            for name, column in fetched.items()
            if column.kind is DataType.STRING
        }
    return joined


def _rows(table: Table, parts: Sequence[npt.NDArray[np.bytes_]]) -> npt.NDArray[np.intp]:
    """The table's row for each key, −1 where it has none. Parts are joined as the service joins them."""
    keys = parts[0]
    for part in parts[1:]:
        keys = np.strings.add(np.strings.add(keys, b"|"), part)
    distinct, which = np.unique(keys, return_inverse=True)
    return table.rows(tuple(key.decode().split("|")) for key in distinct.tolist())[which]


def _fetch(component: FeatureComponent, table: Table, rows: npt.NDArray[np.intp]) -> dict[str, Column]:
    found = rows >= 0
    fetched = {}
    for group in component.fs_request.feature_groups:
        for feature in group.features:
            column = table.columns[group.label, feature]
            present = column.present[rows] & found
            values = column.values[rows]
            values[~present] = np.zeros((), dtype=values.dtype)
            name = f"{component.col_name_prefix}{table.entity}:{group.label}:{feature}"
            fetched[name] = Column(column.kind, values, present)
    return fetched


def tensor(spec: ModelInput, columns: Mapping[str, Column]) -> npt.NDArray[np.generic]:
    """[rows, *shape] of one model input: its features side by side, converted to its data type.

    BYTES is an object array of bytes. Raises KeyError for a feature that no component fetches.
    """
    kind = data_type(spec.data_type)
    parts = [_cells(columns[name], kind) for name in spec.features]
    return np.concatenate(parts, axis=1).reshape(-1, *spec.shape)


def _cells(column: Column, kind: DataType) -> npt.NDArray[np.generic]:
    if kind is DataType.STRING:
        texts = np.where(column.present, column.values, MISSING_TEXT)
        return texts.astype(object).reshape(-1, 1)
    return column.values.reshape(len(column.values), -1).astype(kind.dtype)


def model(config: ModelConfig, name: str) -> PredatorComponent:
    """The component that calls the named model. Raises KeyError when there is none."""
    for component in config.component_config.predator_components:
        if component.model_name == name:
            return component
    raise KeyError(f"no predator component calls the model {name!r}")
