"""Which etcd keys hold what.

| key in etcd, after `/config/inferflow/services/<APP_NAME>/` | key of the config tree |
|---|---|
| `model-config/config-map/<model_config_id>` | `config-map/<model_config_id>` |
| `model-config/service-config` | `service-config` |
| `model-config/service-config/<field>` | `service-config/<field>` |

and `/config/numerix/expression-config/<compute_id>` is `expression-config/<compute_id>`.

Below the folders that are read, `-` and case do not count in a segment, but for the last one of a model config
and of an expression: those are ids. The folders themselves are read as they are written here, because etcd
reads ranges of bytes.
"""

from __future__ import annotations

from typing import Final

from sidecar.source import CONFIGS, EXPRESSIONS, SERVICE, is_key

__all__ = ["EtcdKeys"]

_EXPRESSION_FOLDER: Final = "/config/numerix/expression-config/"


def plain(segment: str) -> str:
    """A segment as it is compared: without `-`, in lower case."""
    return segment.replace("-", "").lower()


class EtcdKeys:
    """The keys of one service."""

    def __init__(self, app_name: str) -> None:
        """`app_name` is APP_NAME, as it stands in the keys."""
        self._folder = f"/config/inferflow/services/{app_name}/"

    def __repr__(self) -> str:
        return f"<EtcdKeys {self._folder}>"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What to read: every key of interest starts with one of these, and they do not overlap."""
        return (self._folder, _EXPRESSION_FOLDER)

    def place(self, key: str) -> str:
        """Where in etcd a key of the config tree is to be written."""
        if key.startswith(EXPRESSIONS):
            return _EXPRESSION_FOLDER + key.removeprefix(EXPRESSIONS)
        return f"{self._folder}model-config/{key}"

    def key(self, place: str) -> str | None:
        """The key of the config tree that is at this place; None: what is there is none of ours."""
        if place.startswith(_EXPRESSION_FOLDER):
            return _with_id(EXPRESSIONS, place.removeprefix(_EXPRESSION_FOLDER))
        if not place.startswith(self._folder):
            return None
        root, _, rest = place.removeprefix(self._folder).partition("/")
        if plain(root) != "modelconfig":
            return None
        branch, _, name = rest.partition("/")
        match plain(branch):
            case "configmap":
                return _with_id(CONFIGS, name)
            case "serviceconfig":
                return f"{SERVICE}/{plain(name)}" if name else SERVICE
        return None


def _with_id(branch: str, name: str) -> str | None:
    key = branch + name
    return key if is_key(key) else None
