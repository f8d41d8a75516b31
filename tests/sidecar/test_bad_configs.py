"""Bad configs, some hundreds: each is refused with the place of its mistake, and takes nothing out of service.

The kinds that are written by hand are in tests.dag.test_validate. Here wrong values are put at every place of a
good config, and texts are cut.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dag.problems import join
from sidecar.catalog import GRACE, Catalog
from sidecar.source import DirectorySource
from tests.dag.configs import CONFIGS, EXPRESSIONS, good
from tests.dag.test_validate import REFUSED
from tests.sidecar.texts import expression

KNOWN = {**EXPRESSIONS, "weighted": "p q *"}
EXPRESSION_TEXTS = {f"expression-config/{name}": expression(text) for name, text in KNOWN.items()}


DEMO = DirectorySource(Path(__file__).parents[2] / "demo" / "configs").read()


class Bad(NamedTuple):
    """A bad text, and the path that the reason must name; "" for the document as a whole."""

    name: str
    text: bytes
    path: str


def leaves(value: Any, *steps: str | int) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value of a document, with the steps that lead to it."""
    yield steps, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield from leaves(item, *steps, step)


def replaced(document: Any, steps: tuple[str | int, ...], value: Any) -> bytes:
    """The document with another value at this place."""
    if not steps:
        return json.dumps(value).encode()
    changed = copy.deepcopy(document)
    inner = changed
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = value
    return json.dumps(changed).encode()


WRONG: dict[type, list[Any]] = {
    str: [5, ["x"], {"x": "y"}, True],
    int: ["five", [5], {"x": 5}, 5.5],
    bool: ["yes", 1, [True]],
    list: ["x", 5, {"x": "y"}],
    dict: ["x", 5, ["x"]],
}
"""What is no value of a type. `null` means absent, so it is not among them."""


def wrong_types() -> Iterator[Bad]:
    document = good()
    for steps, value in leaves(document):
        for number, wrong in enumerate(WRONG[type(value)]):
            path = join("", *steps)
            yield Bad(f"{path or 'document'}-{number}", replaced(document, steps, wrong), path)


def cut_texts() -> Iterator[Bad]:
    """A file that was cut somewhere, as by a full disk."""
    text = json.dumps(good()).encode()
    for at in range(0, len(text) - 1, len(text) // 40):
        yield Bad(f"cut-{at}", text[:at], "")


CASES = [*wrong_types(), *cut_texts()]


def settled(catalog: Catalog, text: bytes, now: float) -> Any:
    texts = {**EXPRESSION_TEXTS, "config-map/a": text}
    catalog.update(texts, now)
    return catalog.update(texts, now + GRACE)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """One that serves a good version of the config. It keeps it, whatever comes: that is what is tested."""
    made = Catalog()
    assert settled(made, json.dumps(good()).encode(), 0).configs.keys() == {"a"}
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_version_is_refused_at_its_place_and_the_old_one_serves(catalog: Catalog, case: Bad) -> None:
    before = catalog.last.configs["a"]
    content = settled(catalog, case.text, 10)
    assert content.configs["a"] == before
    reasons = catalog.problems["config-map/a"]
    assert content.kept["a"].startswith(reasons[0])
    if case.path:
        assert any(reason.startswith(case.path) for reason in reasons), reasons


@given(st.data())
def test_whatever_is_put_anywhere_the_old_version_or_a_good_one_serves(data: st.DataObject) -> None:
    document = good()
    steps, _ = data.draw(st.sampled_from(list(leaves(document))))
    value = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
            ),
            max_leaves=5,
        )
    )
    catalog = Catalog()
    settled(catalog, json.dumps(document).encode(), 0)
    content = settled(catalog, replaced(document, steps, value), 10)
    assert content.configs.keys() == {"a"}
    assert ("a" in content.kept) == ("config-map/a" in catalog.problems)


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - REFUSED.keys()))
def test_no_good_config_is_refused(name: str) -> None:
    catalog = Catalog(check_expressions=False)
    assert catalog.update({f"config-map/{name}": CONFIGS[name]}, 0).configs.keys() == {name}
    assert catalog.problems == {}


def test_the_configs_of_the_demo_are_good() -> None:
    catalog = Catalog()
    assert len(catalog.update(DEMO, 0).configs) >= 3
    assert catalog.problems == {}
