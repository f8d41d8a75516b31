"""The DAG of a config: both readings of the dependency map, order, and everything that can be wrong."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dag.config import ROOT
from dag.problems import Problem, did_you_mean, join
from dag.topology import PATH, Topology, TopologyCache, TopologyError, topology


def problems(dependency: dict[str, list[str]], components: list[str]) -> tuple[Problem, ...]:
    with pytest.raises(TopologyError) as caught:
        topology(dependency, components)
    return caught.value.problems


# ---------------------------------------------------------------- readings


def test_component_to_what_it_depends_on() -> None:
    made = topology({"fetch": [ROOT], "rank": ["fetch", ROOT]}, ["fetch", "rank"])
    assert made == Topology(
        ("fetch", "rank"), {"fetch": (), "rank": ("fetch",)}, {"fetch": ("rank",), "rank": ()}
    )
    assert made.first == ("fetch",)


def test_parent_to_children_when_the_root_is_only_a_key() -> None:
    made = topology({ROOT: ["fetch"], "fetch": ["rank"]}, ["fetch", "rank"])
    assert made == topology({"fetch": [ROOT], "rank": ["fetch"]}, ["fetch", "rank"])


def test_the_root_as_a_key_with_an_empty_list_says_nothing() -> None:
    made = topology({ROOT: [], "fetch": [ROOT]}, ["fetch"])
    assert made.order == ("fetch",)


def test_a_name_listed_twice_counts_once() -> None:
    made = topology({"fetch": [ROOT, ROOT], "rank": ["fetch", "fetch"]}, ["fetch", "rank"])
    assert made.parents["rank"] == ("fetch",)
    assert made.children["fetch"] == ("rank",)


def test_ties_follow_the_order_of_the_component_lists() -> None:
    dependency = {"c": [ROOT], "a": [ROOT], "b": [ROOT], "last": ["a", "b", "c"]}
    assert topology(dependency, ["b", "c", "a", "last"]).order == ("b", "c", "a", "last")
    assert topology(dependency, ["last", "a", "b", "c"]).order == ("a", "b", "c", "last")


def test_ancestors_are_all_that_came_before_on_every_path() -> None:
    made = topology({"a": [ROOT], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": [ROOT]}, list("abcde"))
    assert made.ancestors() == {
        "a": frozenset(),
        "b": {"a"},
        "c": {"a"},
        "d": {"a", "b", "c"},
        "e": frozenset(),
    }


# ---------------------------------------------------------------- what is refused


def test_empty() -> None:
    assert problems({}, ["a"]) == (Problem(PATH, "is empty: no component would ever run"),)


def test_undefined_component_in_a_list() -> None:
    (found,) = problems({"fetch": [ROOT], "rank": ["fetch", "fecth"]}, ["fetch", "rank"])
    assert found.path == f"{PATH}.rank[1]"
    assert "no component named 'fecth' is defined" in found.message
    assert found.message.endswith("did you mean 'fetch'?")


def test_undefined_component_as_a_key() -> None:
    (found,) = problems({"fetch": [ROOT], "ghost": ["fetch"]}, ["fetch"])
    assert found.path == f"{PATH}.ghost"


def test_a_component_that_waits_only_for_an_undefined_one_is_not_blamed_twice() -> None:
    (found,) = problems({"fetch": [ROOT], "rank": ["ghost"]}, ["fetch", "rank"])
    assert "'ghost'" in found.message


def test_cycle_is_shown_as_a_path() -> None:
    (found,) = problems({"a": [ROOT, "c"], "b": ["a"], "c": ["b"], "d": ["c"]}, list("abcd"))
    assert found == Problem(f"{PATH}.a", "cycle: a → c → b → a (each depends on the next)")


def test_component_that_depends_on_itself() -> None:
    (found,) = problems({"a": [ROOT, "a"]}, ["a"])
    assert found.message.startswith("cycle: a → a ")


def test_every_knot_of_cycles_is_named() -> None:
    dependency = {"a": [ROOT, "b"], "b": ["a"], "c": ["d", "a"], "d": ["c"], "e": ["d"], "f": ["f", ROOT]}
    messages = [found.message for found in problems(dependency, list("abcdef"))]
    assert [message.split(" (")[0] for message in messages] == [
        "cycle: a → b → a",
        "cycle: c → d → c",
        "cycle: f → f",
    ]


def test_second_root() -> None:
    (found,) = problems({"fetch": [ROOT], "rank": ["fetch", "other"]}, ["fetch", "other", "rank"])
    assert found.path == f"{PATH}.rank[1]"
    assert "'other' is a second root" in found.message
    assert f'write "other": ["{ROOT}"]' in found.message


def test_component_that_nothing_connects_to_the_root() -> None:
    (found,) = problems({"fetch": [ROOT], "alone": []}, ["fetch", "alone"])
    assert found.path == f"{PATH}.alone"
    assert "'alone' is not connected" in found.message


def test_second_root_among_children_lists_says_where_to_put_it() -> None:
    (found,) = problems({ROOT: ["a"], "b": ["c"]}, ["a", "b", "c"])
    assert found.path == f"{PATH}.b"
    assert f"list it under '{ROOT}'" in found.message


def test_nothing_names_the_root() -> None:
    (found,) = problems({"a": [], "b": ["a"]}, ["a", "b"])
    assert f"nothing leads from {ROOT} to it" in found.message


def test_the_root_depends_on_nothing() -> None:
    (found,) = problems({ROOT: ["a"], "a": [ROOT]}, ["a"])
    assert found == Problem(f"{PATH}.{ROOT}[0]", f"{ROOT} is the root: it cannot depend on 'a'")


def test_defined_component_left_out_of_the_dag() -> None:
    (found,) = problems({"a": [ROOT]}, ["a", "b"])
    assert found == Problem(PATH, "component 'b' is defined but not in the DAG, so it would never run")


def test_everything_wrong_is_said_at_once() -> None:
    found = problems({"a": ["a"], "b": ["ghost", ROOT], "c": []}, ["a", "b", "c", "d"])
    assert [problem.message.split(":")[0] for problem in found] == [
        "no component named 'ghost' is defined in component_config",
        "'c' is not connected",
        "cycle",
        "component 'd' is defined but not in the DAG, so it would never run",
    ]


def test_odd_names_stand_in_brackets() -> None:
    (found,) = problems({"a.b c": ["ghost", ROOT]}, ["a.b c"])
    assert found.path == f'{PATH}["a.b c"][0]'


# ---------------------------------------------------------------- properties

NAMES = [*"abcdef", ROOT, "ghost"]


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=4), max_size=8))
def test_any_map_is_ordered_or_refused_with_reasons(dependency: dict[str, list[str]]) -> None:
    known = list("abcdef")
    try:
        made = topology(dependency, known)
    except TopologyError as error:
        assert error.problems
        assert all(problem.path.startswith(PATH) for problem in error.problems)
        return
    assert sorted(made.order) == known
    place = {name: index for index, name in enumerate(made.order)}
    for name in known:
        assert all(place[parent] < place[name] for parent in made.parents[name])
        assert all(name in made.parents[child] for child in made.children[name])
    assert made.first


@given(st.permutations(list("abcdef")), st.data())
def test_both_readings_of_one_dag_agree(order: list[str], data: st.DataObject) -> None:
    parents = {
        name: data.draw(st.lists(st.sampled_from(order[:index]), unique=True)) if index else []
        for index, name in enumerate(order)
    }
    upwards = {name: above or [ROOT] for name, above in parents.items()}
    downwards: dict[str, list[str]] = {ROOT: []}
    for name, above in upwards.items():
        for parent in above:
            downwards.setdefault(parent, []).append(name)
    assert topology(upwards, list("abcdef")) == topology(downwards, list("abcdef"))


# ---------------------------------------------------------------- cache


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_cache_gives_the_same_topology_until_it_expires() -> None:
    clock = Clock()
    cache = TopologyCache(size=2, ttl_seconds=10, clock=clock)
    first = cache.get({"a": [ROOT]}, ["a"])
    assert cache.get({"a": [ROOT]}, iter(["a"])) is first
    clock.now = 10.0
    again = cache.get({"a": [ROOT]}, ["a"])
    assert again == first
    assert again is not first


def test_cache_tells_component_lists_apart() -> None:
    cache = TopologyCache(size=4, ttl_seconds=10)
    dependency = {"a": [ROOT], "b": [ROOT]}
    assert cache.get(dependency, ["a", "b"]).order == ("a", "b")
    assert cache.get(dependency, ["b", "a"]).order == ("b", "a")
    with pytest.raises(TopologyError):
        cache.get(dependency, ["a"])
    assert repr(cache) == "TopologyCache(2 of 4, ttl 10 s)"


def test_cache_drops_what_was_not_used_for_longest() -> None:
    cache = TopologyCache(size=1, ttl_seconds=10)
    first = cache.get({"a": [ROOT]}, ["a"])
    cache.get({"b": [ROOT]}, ["b"])
    assert cache.get({"a": [ROOT]}, ["a"]) is not first


def test_cache_of_size_zero_keeps_nothing() -> None:
    cache = TopologyCache(size=0, ttl_seconds=10)
    assert cache.get({"a": [ROOT]}, ["a"]) is not cache.get({"a": [ROOT]}, ["a"])


def test_cache_is_used_by_many_threads() -> None:
    ticks = Clock()
    cache = TopologyCache(size=3, ttl_seconds=1, clock=ticks)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for step in range(300):
            name = "abcdef"[(seed + step) % 6]
            ticks.now += 0.1
            made = cache.get({name: [ROOT]}, [name])
            if made.order != (name,):
                wrong.append(made)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------- paths


def test_paths() -> None:
    assert join("", "a", 0, "b") == "a[0].b"
    assert join("a", "x y", "") == 'a["x y"][""]'
    assert join("", "ключ") == '["ключ"]'
    assert str(Problem("", "is no JSON")) == "is no JSON"
    assert str(Problem("a", "wrong")) == "a: wrong"


def test_did_you_mean() -> None:
    assert did_you_mean("scroe", ["score", "other"]) == "; did you mean 'score'?"
    assert did_you_mean("zzz", ["score"]) == ""
