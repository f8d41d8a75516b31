"""Feature tables: what the feature server serves and what the models are trained on.

A `Table` holds one entity: a row for each key, and typed columns named by group and feature. NumPy only, so
that the servers start at once and tests need none of the demo's requirements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.datatypes import DataType, data_type

__all__ = ["Column", "Key", "Table", "load_tables", "save_tables"]

Key = tuple[str, ...]
_SEPARATOR = "/"  # in the names of an .npz member; no group or feature of the demo has it


@dataclass(frozen=True, repr=False)
class Column:
    """One feature of an entity, a value or nothing for each row.

    `values` is [rows] (a vector feature: [rows, dim]) of the type's little-endian dtype, or dtype `S` for
    strings; what it holds where `present` is False is of no account.
    """

    kind: DataType
    values: npt.NDArray[np.generic]
    present: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.present):
            raise ValueError(f"{len(self.values)} values with {len(self.present)} presence flags")
        expected = "S" if self.kind.element is DataType.STRING else self.kind.dtype
        if self.values.dtype != expected and self.values.dtype.kind != expected:
            raise ValueError(f"a {self.kind.name} column needs dtype {expected}, got {self.values.dtype}")

    @classmethod
    def of(cls, kind: DataType, values: Sequence[object]) -> Column:
        """A column from Python values, where None is no value."""
        present = np.array([value is not None for value in values], dtype=np.bool_)
        if kind is DataType.STRING:
            texts = [b"" if value is None else str(value).encode() for value in values]
            return cls(kind, np.array(texts, dtype="S"), present)
        some = next((value for value in values if value is not None), 0)
        filled = [np.zeros_like(some) if value is None else value for value in values]
        return cls(kind, np.array(filled, dtype=kind.dtype), present)

    def cell(self, row: int) -> bytes:
        """The wire bytes of one value (a vector's elements concatenated), empty when there is none."""
        if not self.present[row]:
            return b""
        value = self.values[row]
        return bytes(value) if self.kind is DataType.STRING else value.tobytes()

    def __repr__(self) -> str:
        return f"<Column {self.kind.name} {self.values.shape}, {int(self.present.sum())} present>"


class Table:
    """All rows of one entity. `columns` is keyed by (group, feature)."""

    def __init__(
        self,
        entity: str,
        key_names: Sequence[str],
        keys: Iterable[Key],
        columns: Mapping[tuple[str, str], Column],
    ) -> None:
        self.entity = entity
        self.key_names = tuple(key_names)
        self.columns = dict(columns)
        self._rows: dict[Key, int] = {}
        for row, key in enumerate(keys):
            if len(key) != len(self.key_names):
                raise ValueError(
                    f"{entity}: key {key!r} has not the {len(self.key_names)} parts {key_names!r}"
                )
            if self._rows.setdefault(key, row) != row:
                raise ValueError(f"{entity}: key {key!r} twice, in rows {self._rows[key]} and {row}")
        for name, column in self.columns.items():
            if len(column.values) != len(self._rows):
                raise ValueError(
                    f"{entity}: {name} has {len(column.values)} values for {len(self._rows)} keys"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Table {self.entity} by {'|'.join(self.key_names)}: {len(self)} rows × {len(self.columns)}>"

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(self._rows)

    def row(self, key: Key) -> int | None:
        """The row of a key, None when there is none."""
        return self._rows.get(key)

    def rows(self, keys: Iterable[Key]) -> npt.NDArray[np.intp]:
        """[keys] row numbers, −1 for an unknown key."""
        return np.array([self._rows.get(key, -1) for key in keys], dtype=np.intp)

    def take(self, rows: npt.NDArray[np.intp]) -> Table:
        """A table of some of the rows."""
        keys = self.keys
        columns = {
            name: Column(column.kind, column.values[rows], column.present[rows])
            for name, column in self.columns.items()
        }
        return Table(self.entity, self.key_names, [keys[row] for row in rows], columns)


def save_tables(tables: Iterable[Table], directory: Path) -> None:
    """Write one `<entity>.npz` a table."""
    for table in tables:
        members: dict[str, npt.NDArray[np.generic]] = {
            "key_names": np.array(table.key_names),
            "keys": np.array(table.keys).reshape(len(table), len(table.key_names)),
        }
        for (group, feature), column in table.columns.items():
            name = _SEPARATOR.join((column.kind.label, group, feature))
            members[f"values/{name}"] = column.values
            members[f"present/{name}"] = column.present
        with (directory / f"{table.entity}.npz").open("wb") as file:
            np.savez(file, **members)  # type: ignore[arg-type]  # the stub takes members for `allow_pickle`


def load_tables(directory: Path) -> dict[str, Table]:
    """The tables of a directory by entity. Raises FileNotFoundError when it holds none."""
    paths = sorted(directory.glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"no feature tables (*.npz) in {directory}")
    return {path.stem: _load(path) for path in paths}


def _load(path: Path) -> Table:
    with np.load(path) as members:
        columns = {}
        for member in members.files:
            kind, _, name = member.partition(_SEPARATOR)
            if kind == "values":
                label, group, feature = name.split(_SEPARATOR)
                columns[group, feature] = Column(
                    data_type(label), members[member], members[f"present/{name}"]
                )
        keys = [tuple(key) for key in members["keys"].tolist()]
        return Table(path.stem, members["key_names"].tolist(), keys, columns)
