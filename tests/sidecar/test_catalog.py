"""Last good versions: of configs, of expressions, of both together."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dag.problems import Problem
from dag.validate import Verdict
from shared.snapshot import Snapshot, digest_of
from sidecar import catalog as catalog_module
from sidecar.catalog import GRACE, Catalog, Content, judge, read_expression, read_service
from sidecar.source import Text, Unreadable
from tests.sidecar.texts import BROKEN, REFUSED, config, expression

Texts = dict[str, Text]


def served(text: bytes) -> bytes:
    return orjson.dumps(orjson.loads(text))


def settled(catalog: Catalog, texts: Texts, now: float) -> Content:
    """The content once nothing counts as half written any more."""
    catalog.update(texts, now)
    return catalog.update(texts, now + GRACE)


# ---------------------------------------------------------------- configs


def test_a_good_config_is_served() -> None:
    catalog = Catalog()
    content = catalog.update({"config-map/a": config()}, 0)
    assert content.configs["a"].text == served(config())
    assert content.configs["a"].digest == digest_of(served(config()))
    assert content == Content(configs=content.configs)
    assert catalog.problems == {}


def test_digest_is_of_the_content_not_of_its_layout() -> None:
    first = Catalog().update({"config-map/a": config()}, 0)
    second = Catalog().update({"config-map/a": served(config())}, 0)
    assert first == second


def test_the_order_of_keys_is_content() -> None:
    value = json.loads(config(compute_id="x"))
    turned = json.dumps(dict(reversed(value.items()))).encode()
    texts: Texts = {"expression-config/x": expression("x")}
    first = Catalog().update({**texts, "config-map/a": config(compute_id="x")}, 0)
    second = Catalog().update({**texts, "config-map/a": turned}, 0)
    assert first.configs["a"].digest != second.configs["a"].digest


@pytest.mark.parametrize("bad", [BROKEN, REFUSED, b"", Unreadable("cannot be read: Permission denied")])
def test_a_broken_edit_keeps_the_last_good_version(bad: Text) -> None:
    catalog = Catalog()
    good = catalog.update({"config-map/a": config()}, 0)
    content = settled(catalog, {"config-map/a": bad}, 10)
    assert content.configs == good.configs
    assert content.refused == {}
    assert content.kept["a"]
    assert len(catalog.problems["config-map/a"]) >= 1
    mended = catalog.update({"config-map/a": config("mrp")}, 20)
    assert mended.kept == {}
    assert mended.configs["a"].text == served(config("mrp"))


def test_a_config_that_was_never_good_is_refused_with_a_reason() -> None:
    content = Catalog().update({"config-map/a": BROKEN, "config-map/b": config()}, 0)
    assert list(content.configs) == ["b"]
    assert "is no JSON" in content.refused["a"]


def test_a_deleted_config_is_gone_with_its_last_good_version() -> None:
    catalog = Catalog()
    catalog.update({"config-map/a": config()}, 0)
    assert catalog.update({}, 1) == Content()
    assert settled(catalog, {"config-map/a": BROKEN}, 2).configs == {}


def test_what_is_good_again_after_a_restart_of_rules_only() -> None:
    """What an older release served, and this one refuses, does not come back."""
    good = Catalog().update({"config-map/a": config(), "config-map/b": config()}, 0)
    odd = Catalog().update({"config-map/c": config()}, 0).configs["c"]
    bad = type(odd)(served(REFUSED), "x", frozenset())
    catalog = Catalog(Content({**good.configs, "c": bad}))
    assert list(catalog.last.configs) == ["a", "b"]
    content = catalog.update({"config-map/a": BROKEN, "config-map/c": BROKEN}, 0)
    assert list(content.configs) == ["a"]
    assert list(content.refused) == ["c"]


# ---------------------------------------------------------------- half-written texts


def test_a_half_written_text_is_no_error_until_it_stays_so() -> None:
    catalog = Catalog()
    good = catalog.update({"config-map/a": config()}, 0)
    assert catalog.update({"config-map/a": BROKEN}, 10) == good
    assert catalog.problems == {}
    assert catalog.settles_at == 10 + GRACE
    assert catalog.update({"config-map/a": BROKEN}, 10.9 * GRACE) == good
    content = catalog.update({"config-map/a": BROKEN}, 10 + GRACE)
    assert "is no JSON" in content.kept["a"]
    assert catalog.settles_at is None


def test_every_change_gets_its_own_time() -> None:
    catalog = Catalog()
    catalog.update({"config-map/a": config()}, 0)
    catalog.update({"config-map/a": BROKEN}, 10)
    assert catalog.update({"config-map/a": BROKEN + b'"a":'}, 10.5).kept == {}
    assert catalog.settles_at == 10.5 + GRACE


def test_a_new_half_written_config_is_unknown_at_first() -> None:
    catalog = Catalog()
    catalog.update({}, 0)
    assert catalog.update({"config-map/a": BROKEN}, 1) == Content()
    assert list(catalog.update({"config-map/a": BROKEN}, 1 + GRACE).refused) == ["a"]


def test_a_good_change_waits_for_nothing() -> None:
    catalog = Catalog()
    catalog.update({}, 0)
    assert list(catalog.update({"config-map/a": config()}, 0.001).configs) == ["a"]


def test_what_is_broken_at_the_start_is_an_error_at_once() -> None:
    assert list(Catalog().update({"config-map/a": BROKEN}, 5).refused) == ["a"]


# ---------------------------------------------------------------- expressions


def test_configs_and_their_expressions_change_together() -> None:
    catalog = Catalog()
    texts: Texts = {"config-map/a": config(compute_id="e"), "expression-config/e": expression("x 2 *")}
    content = catalog.update(texts, 0)
    assert content.expressions == {"e": "x 2 *"}
    assert content.configs["a"].compute_ids == {"e"}
    new: Texts = {
        "config-map/a": config(compute_id="e", variable="y"),
        "expression-config/e": expression("y 3 *"),
    }
    content = catalog.update(new, 1)
    assert content.expressions == {"e": "y 3 *"}
    assert content.kept == {}


def test_an_expression_that_does_not_parse_keeps_its_last_good_text() -> None:
    catalog = Catalog()
    texts: Texts = {"config-map/a": config(compute_id="e"), "expression-config/e": expression("x 2 *")}
    good = catalog.update(texts, 0)
    assert settled(catalog, {**texts, "expression-config/e": expression("x *")}, 10) == good
    assert "expression 'x *'" in catalog.problems["expression-config/e"][0]


def test_an_expression_that_would_break_a_config_keeps_its_last_good_text() -> None:
    catalog = Catalog()
    texts: Texts = {
        "config-map/a": config(compute_id="e"),
        "config-map/b": config(compute_id="f"),
        "expression-config/e": expression("x 2 *"),
        "expression-config/f": expression("x"),
    }
    catalog.update(texts, 0)
    texts["expression-config/e"] = expression("y 2 *")
    texts["expression-config/f"] = expression("x 5 *")
    content = settled(catalog, texts, 10)
    assert content.expressions == {"e": "x 2 *", "f": "x 5 *"}
    assert list(content.configs) == ["a", "b"]
    assert "config 'a' could not be served" in catalog.problems["expression-config/e"][0]


def test_a_config_whose_new_version_needs_the_refused_expression_is_kept_too() -> None:
    """b fits the new text of e, a fits only the old one: a goes first, and b stays as it was."""
    catalog = Catalog()
    texts: Texts = {
        "config-map/a": config(compute_id="e"),
        "config-map/b": config(compute_id="e"),
        "expression-config/e": expression("x 2 *"),
    }
    old = catalog.update(texts, 0)
    texts["config-map/b"] = config(compute_id="e", variable="y")
    texts["expression-config/e"] = expression("y 2 *")
    content = settled(catalog, texts, 10)
    assert content.expressions == old.expressions
    assert content.configs == old.configs
    assert "uses 'x'" in content.kept["b"]


def test_a_deleted_expression_stays_while_a_config_needs_it() -> None:
    catalog = Catalog()
    texts: Texts = {"config-map/a": config(compute_id="e"), "expression-config/e": expression("x")}
    catalog.update(texts, 0)
    del texts["expression-config/e"]
    content = settled(catalog, texts, 10)
    assert content.expressions == {"e": "x"}
    assert list(content.configs) == ["a"]
    assert catalog.update({}, 20) == Content()


def test_without_its_expression_a_new_config_is_refused() -> None:
    content = Catalog().update({"config-map/a": config(compute_id="e")}, 0)
    assert "there is no expression 'e'" in content.refused["a"]


def test_expressions_computed_elsewhere_are_not_needed_here() -> None:
    content = Catalog(check_expressions=False).update({"config-map/a": config(compute_id="e")}, 0)
    assert list(content.configs) == ["a"]


# ---------------------------------------------------------------- the service config


def test_what_was_judged_before_is_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds are all there is to serve what was saved, and some configs take 70 ms each."""
    texts: Texts = {"config-map/a": config(compute_id="e"), "expression-config/e": expression("x")}
    last = Catalog().update(texts, 0)

    def refuse(name: str, *_: object) -> Verdict:
        return Verdict(name, (Problem("", "judged again"),), (), None)

    monkeypatch.setattr(catalog_module, "judge", refuse)
    catalog = Catalog(last, judged=True)
    assert catalog.last == last
    assert catalog.update(texts, 0) == last
    changed = catalog.update({**texts, "expression-config/e": expression("x x *")}, 10)
    assert changed.kept == {} and changed.configs == last.configs and changed.expressions == {"e": "x"}
    assert settled(catalog, {**texts, "config-map/a": config("mrp")}, 20).kept == {"a": "judged again"}
    assert Catalog(last).last.configs == {}


def test_the_service_config_is_passed_on_and_kept_when_broken() -> None:
    catalog = Catalog()
    text = b'{"v2-logging-type": "arrow", "compression-enabled": true, "other": 1}'
    content = catalog.update({"service-config": text}, 0)
    assert content.service == {"v2-logging-type": "arrow", "compression-enabled": True, "other": 1}
    assert settled(catalog, {"service-config": b'{"v2-logging-type": "csv"}'}, 10).service == content.service
    assert catalog.problems["service-config"] == (
        "v2-logging-type: expected one of proto, arrow, parquet, found 'csv'",
    )
    assert catalog.update({}, 20).service == {}


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        (b"[]", "expected a JSON object"),
        (b"{", "line 1, column 2"),
        (b'{"compression-enabled": 1}', "compression-enabled: expected true or false, found 1"),
        (b'{"V2LoggingType": 7}', "V2LoggingType: expected one of"),
        (Unreadable("is longer than 5 bytes"), "is longer than 5 bytes"),
    ],
)
def test_service_configs_that_are_refused(text: Text, piece: str) -> None:
    with pytest.raises(ValueError, match=piece):
        read_service(text)


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        (b"[]", "expected a JSON object"),
        (b"{}", '"expression": expected text, found None'),
        (b'{"expression": 3}', "found 3"),
        (b'{"expression": ""}', "empty"),
        (b'{"expression": "a b"}', "expression 'a b'"),
    ],
)
def test_expressions_that_are_refused(text: Text, piece: str) -> None:
    with pytest.raises(ValueError, match=piece):
        read_expression(text)


# ---------------------------------------------------------------- what workers cannot serve


def test_a_rejected_config_falls_back_to_what_is_active() -> None:
    catalog = Catalog()
    active = catalog.update({"config-map/a": config(), "config-map/b": config()}, 0)
    texts: Texts = {"config-map/a": config(endpoint="elsewhere"), "config-map/b": config("mrp")}
    bad = catalog.update(texts, 10)
    catalog.reject("a", bad.fingerprint("a"), "elsewhere: no such host", active)
    content = catalog.update(texts, 11)
    assert content.configs["a"] == active.configs["a"]
    assert content.configs["b"] == bad.configs["b"]
    assert catalog.update(texts, 11 + GRACE).kept == {"a": "elsewhere: no such host"}
    texts["config-map/a"] = config(endpoint="again-elsewhere")
    assert catalog.update(texts, 12).configs["a"].text == served(config(endpoint="again-elsewhere"))


def test_a_rejected_expression_falls_back_to_what_is_active() -> None:
    catalog = Catalog()
    texts: Texts = {"config-map/a": config(compute_id="e"), "expression-config/e": expression("x")}
    active = catalog.update(texts, 0)
    texts["expression-config/e"] = expression("x 2 *")
    bad = catalog.update(texts, 10)
    catalog.reject("a", bad.fingerprint("a"), "too hard", active)
    assert settled(catalog, texts, 11).expressions == active.expressions


# ---------------------------------------------------------------- content


def test_fingerprint_is_of_a_config_and_its_own_expressions() -> None:
    texts: Texts = {
        "config-map/a": config(compute_id="e"),
        "expression-config/e": expression("x"),
        "expression-config/f": expression("x"),
    }
    first = Catalog().update(texts, 0)
    other = Catalog().update({**texts, "expression-config/f": expression("x 1 +")}, 0)
    changed = Catalog().update({**texts, "expression-config/e": expression("x 1 +")}, 0)
    assert first.fingerprint("a") == other.fingerprint("a") != changed.fingerprint("a")
    assert first.fingerprint("nothing") == ""


def test_encode_gives_the_snapshot_document() -> None:
    texts: Texts = {
        "config-map/a": config(compute_id="e"),
        "config-map/b": BROKEN,
        "expression-config/e": expression("x"),
        "service-config": b'{"predator-hosts": "x"}',
    }
    content = Catalog().update(texts, 0)
    snapshot = Snapshot.decode(content.encode(17))
    head = snapshot.head
    assert head.version == 17
    assert json.loads(snapshot.document("a")) == json.loads(config(compute_id="e"))
    assert head.configs["a"].digest == content.configs["a"].digest
    assert head.refused.keys() == {"b"}
    assert head.kept == head.waiting == {}
    assert head.expressions == {"e": "x"}
    assert head.service == {"predator-hosts": "x"}
    assert repr(content) == "<Content 1 configs, 0 of them kept, 0 waiting, 1 refused, 1 expressions>"
    assert Content.of(snapshot) == (17, content, True)


def test_what_a_config_waits_for_keeps_its_old_version_until_it_is_released() -> None:
    catalog = Catalog()
    texts: Texts = {"config-map/a": config(), "config-map/b": config()}
    active = settled(catalog, texts, 0)
    texts = {"config-map/a": config(endpoint="faraway"), "config-map/b": config("mrp")}
    wanted = settled(catalog, texts, 10)
    catalog.hold("a", wanted.fingerprint("a"), "waiting for faraway", active)
    held = catalog.update(texts, 20)
    assert held.waiting == {"a": "waiting for faraway"}
    assert held.kept == held.refused == {}
    assert held.configs == {"a": active.configs["a"], "b": wanted.configs["b"]}
    assert catalog.update({**texts, "config-map/a": config("other")}, 30).waiting == {}
    assert catalog.update(texts, 40).waiting == {"a": "waiting for faraway"}
    catalog.release("a")
    assert catalog.update(texts, 50) == wanted


def test_revisions_are_those_of_what_is_served() -> None:
    catalog = Catalog()
    texts: Texts = {"config-map/a": config(), "expression-config/e": expression("x")}
    first = catalog.update(texts, 0, {"config-map/a": 5, "expression-config/e": 6})
    assert first.revisions == {"config-map/a": 5, "expression-config/e": 6}
    broken: Texts = {"config-map/a": BROKEN, "expression-config/e": expression("y")}
    second = catalog.update(broken, 10, {"config-map/a": 7, "expression-config/e": 8})
    assert second.revisions == {"config-map/a": 5, "expression-config/e": 8}
    same = Catalog().update(texts, 0, {"config-map/a": 50})
    assert same == first, "the same text in a later revision is no change"


def test_a_config_is_judged_again_only_when_an_expression_of_its_own_changes() -> None:
    """With many long configs this is what an activation costs."""
    catalog = Catalog()
    texts: Texts = {
        "config-map/a": config(compute_id="e"),
        "config-map/b": config(),
        "expression-config/e": expression("x"),
        "expression-config/f": expression("x"),
    }
    first = catalog.update(texts, 0)
    second = catalog.update({**texts, "expression-config/f": expression("x x *")}, 1)
    assert second.configs["a"] is first.configs["a"]
    third = catalog.update({**texts, "expression-config/e": expression("x x *")}, 2)
    assert third.configs["a"] is not second.configs["a"]
    assert third.configs["b"] is first.configs["b"]
    assert third.fingerprint("a") != second.fingerprint("a")


def test_judge_of_an_unreadable_text() -> None:
    assert judge("a", Unreadable("cannot be read"), None).reason == "cannot be read"


# ---------------------------------------------------------------- properties

EXPRESSION_TEXTS = st.sampled_from(
    [expression("x"), expression("y"), expression("x y +"), expression("x +"), BROKEN]
)
CONFIG_TEXTS = st.sampled_from(
    [
        config(),
        config("mrp"),
        config(compute_id="e"),
        config(compute_id="e", variable="y"),
        config(compute_id="f"),
        BROKEN,
        REFUSED,
        Unreadable("gone wrong"),
    ]
)
TEXTS = st.fixed_dictionaries(
    {},
    optional={
        "config-map/a": CONFIG_TEXTS,
        "config-map/b": CONFIG_TEXTS,
        "expression-config/e": EXPRESSION_TEXTS,
        "expression-config/f": EXPRESSION_TEXTS,
    },
)


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_whatever_happens_what_is_served_is_good_and_nothing_good_is_lost(history: list[Texts]) -> None:
    catalog = Catalog()
    before = Content()
    for step, texts in enumerate(history):
        content = settled(catalog, texts, 10.0 * step)
        for name, document in content.configs.items():
            assert judge(name, document.text, content.expressions).ok
        names = {key.removeprefix("config-map/") for key in texts if key.startswith("config-map/")}
        assert content.configs.keys() | content.refused.keys() == names
        assert not content.configs.keys() & content.refused.keys()
        assert content.kept.keys() <= content.configs.keys()
        assert before.configs.keys() & names <= content.configs.keys(), "what was served still is"
        assert catalog.update(texts, 10.0 * step + 2 * GRACE) == content, "nothing new, nothing changed"
        before = content


def test_a_text_that_is_checked_and_then_put_is_judged_once() -> None:
    catalog = Catalog()
    text = config(compute_id="e")
    catalog.update({"expression-config/e": expression("x")}, 0)
    checked = catalog.verdict("a", text, catalog.last.expressions)
    assert checked.ok
    catalog.update({"expression-config/e": expression("x"), "config-map/a": text}, 1)
    assert catalog.verdict("a", text, {"e": "x", "other": "y"}) is checked
    assert not catalog.verdict("a", text, {"e": "x y +"}).ok
