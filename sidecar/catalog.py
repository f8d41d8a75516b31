"""From what a source holds to what workers are to serve.

A Catalog remembers the last good version of everything, so that a broken edit takes nothing out of service:

- a config that is refused keeps its last good version, and its reason is noted (`kept`); without one it is
  `refused`, and requests to it are answered with the reason;
- an expression that does not parse keeps its last good text, and so does one whose new text would break a
  config that has no good version to go with it: configs and expressions fit each other at every moment;
- what is gone from the source is gone, but for an expression that a kept config still needs.

A text that changed less than `GRACE` seconds ago is no error yet: it may be half written. Pure but for its own
memory: time comes in as an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import orjson

from components.expression import parse
from dag.problems import Problem
from dag.validate import Verdict, bounded_reason, validate
from sidecar.source import CONFIGS, EXPRESSIONS, SERVICE, Text, Unreadable

__all__ = ["GRACE", "Catalog", "Content", "Document", "judge", "read_expression", "read_service"]

GRACE = 1.0
"""Seconds for which a changed text that is broken counts as half written."""

LOGGING_TYPES = ("proto", "arrow", "parquet")


@dataclass(frozen=True)
class Document:
    """One usable config: its JSON text without blanks, keys in the order they were written."""

    text: bytes
    digest: str  # SHA-256 of the text, hexadecimal
    compute_ids: frozenset[str]  # the expressions it needs


@dataclass(frozen=True)
class Content:
    """What workers are to serve; equal contents need no new version."""

    configs: Mapping[str, Document] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    """Configs that have no good version, with the reason."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Configs that are served in an older version, with what is wrong with the newest."""
    expressions: Mapping[str, str] = field(default_factory=dict)
    service: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, version: int) -> bytes:
        """The snapshot document of docs/architecture.md, with this version number."""
        return msgspec.json.encode(
            {
                "version": version,
                "configs": {
                    name: {"digest": document.digest, "document": msgspec.Raw(document.text)}
                    for name, document in self.configs.items()
                },
                "refused": self.refused,
                "kept": self.kept,
                "expressions": self.expressions,
                "service": self.service,
            }
        )

    def fingerprint(self, name: str) -> str:
        """What decides how the config `name` is served: its document and its expressions. "" without it."""
        document = self.configs.get(name)
        if document is None:
            return ""
        used = [[compute_id, self.expressions.get(compute_id)] for compute_id in sorted(document.compute_ids)]
        return f"{document.digest}:{digest_of(orjson.dumps(used))}"

    def __repr__(self) -> str:
        return (
            f"<Content {len(self.configs)} configs, {len(self.kept)} of them kept, {len(self.refused)} refused, "
            f"{len(self.expressions)} expressions>"
        )


def digest_of(text: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(text).hexdigest()


def judge(
    name: str, text: Text, expressions: Mapping[str, str] | None, given: Collection[str] = ()
) -> Verdict:
    """The verdict on a config as its source holds it. `expressions` and `given` are those of `validate`."""
    if isinstance(text, Unreadable):
        return Verdict(name, (Problem("", text.reason),), (), None)
    return validate(
        text, name=name, expressions=expressions, expression_names=lambda one: parse(one).names, given=given
    )


def read_expression(text: Text) -> str:
    """The postfix expression of a text `{"expression": "…"}`. Raises ValueError saying what is wrong."""
    value = _object(text)
    expression = value.get("expression")
    if not isinstance(expression, str):
        raise ValueError(f'"expression": expected text, found {expression!r}')
    parse(expression)
    return expression


def read_service(text: Text) -> dict[str, Any]:
    """The service config. Raises ValueError saying what is wrong."""
    value = _object(text)
    for key, item in value.items():
        match key.replace("-", "").lower():
            case "v2loggingtype" if item not in LOGGING_TYPES:
                raise ValueError(f"{key}: expected one of {', '.join(LOGGING_TYPES)}, found {item!r}")
            case "compressionenabled" if not isinstance(item, bool):
                raise ValueError(f"{key}: expected true or false, found {item!r}")
    return value


def _object(text: Text) -> dict[str, Any]:
    if isinstance(text, Unreadable):
        raise ValueError(text.reason)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


class Catalog:
    """The last good version of everything, and what is wrong with the newest. Belongs to one thread."""

    def __init__(self, last: Content | None = None, *, check_expressions: bool = True) -> None:
        """`last` is what was served before (None: nothing); of it stays what is still good today.

        `check_expressions` is whether numerix components are computed here, so that every compute_id needs
        an expression.
        """
        self.problems: dict[str, tuple[str, ...]] = {}
        """By key: all that is wrong with a text that is not served for it."""
        self.settles_at: float | None = None
        """When to call `update` again although nothing changed: a text that may be half written."""
        self._check = check_expressions
        self._since: dict[str, tuple[Text, float]] | None = None
        self._answers: dict[_Question, _Judged] = {}
        self._asked: dict[_Question, _Judged] = {}
        self._rejected: dict[str, tuple[str, str]] = {}  # config → (fingerprint, reason)
        self.last = self._still_good(last or Content())
        """What is to be served: the outcome of the last `update`, at first what is good of `last`."""

    def __repr__(self) -> str:
        return f"<Catalog {self.last!r}, {len(self.problems)} problems>"

    def update(self, seen: Mapping[str, Text], now: float) -> Content:
        """What is to be served now that the source holds `seen`. `now` in seconds, of any one clock."""
        young = self._note_changes(seen, now)
        self.problems = {}
        expressions = self._expressions(_below(EXPRESSIONS, seen))
        configs, broken = self._resolve(_below(CONFIGS, seen), expressions)
        self._answers, self._asked = self._asked, {}
        service = self._service(seen)
        self.problems.update((CONFIGS + name, errors) for name, errors in broken.items())
        unsettled = self.problems.keys() & young.keys()
        self.settles_at = min((young[key] for key in unsettled), default=None)
        for key in unsettled:
            del self.problems[key]
        reasons = {
            name: bounded_reason(errors) for name, errors in broken.items() if CONFIGS + name in self.problems
        }
        self.last = Content(
            configs=configs,
            refused={name: reason for name, reason in reasons.items() if name not in configs},
            kept={name: reason for name, reason in reasons.items() if name in configs},
            expressions=expressions,
            service=service,
        )
        return self.last

    def reject(self, name: str, fingerprint: str, reason: str, active: Content) -> None:
        """A worker cannot serve this config as it is: `update` is to fall back on what is `active`.

        `fingerprint` is that of the content at fault, so that a later edit gets its chance.
        """
        self._rejected[name] = (fingerprint, reason)
        self.last = active

    # --- what changed

    def _note_changes(self, seen: Mapping[str, Text], now: float) -> dict[str, float]:
        """Notes when each text was first seen; returns when the young ones will have settled."""
        before = self._since
        # What is there at the start may have been there for years: it gets no grace.
        since = now - GRACE if before is None else now
        old = before or {}
        self._since = {
            key: old[key] if key in old and old[key][0] == text else (text, since)
            for key, text in seen.items()
        }
        ends = {key: first + GRACE for key, (_, first) in self._since.items()}
        return {key: end for key, end in ends.items() if end > now}

    # --- the parts

    def _expressions(self, texts: Mapping[str, Text]) -> dict[str, str]:
        found = {}
        for compute_id, text in texts.items():
            try:
                found[compute_id] = read_expression(text)
            except ValueError as error:
                self.problems[EXPRESSIONS + compute_id] = (str(error),)
                if compute_id in self.last.expressions:
                    found[compute_id] = self.last.expressions[compute_id]
        return found

    def _service(self, seen: Mapping[str, Text]) -> Mapping[str, Any]:
        if SERVICE not in seen:
            return {}
        try:
            return read_service(seen[SERVICE])
        except ValueError as error:
            self.problems[SERVICE] = (str(error),)
            return self.last.service

    def _resolve(
        self, texts: Mapping[str, Text], expressions: dict[str, str]
    ) -> tuple[dict[str, Document], dict[str, tuple[str, ...]]]:
        """The configs to serve, and what is wrong with those whose newest text is not among them.

        Puts old texts back into `expressions` where a config needs them, and begins again: others may need
        theirs then. Every round puts one back for good, so it ends.
        """
        while True:
            known = _Known(expressions)
            chosen: dict[str, Document] = {}
            broken: dict[str, tuple[str, ...]] = {}
            for name, text in texts.items():
                document, errors = self._fit(name, text, known)
                if document is None:
                    broken[name] = errors
                    document = self._older(name, known)
                if document is not None:
                    chosen[name] = document
                elif self._put_back(name, expressions):
                    break
            else:
                return chosen, broken

    def _older(self, name: str, known: _Known) -> Document | None:
        """The last good version, if there is one and it goes with these expressions."""
        last = self.last.configs.get(name)
        return None if last is None else self._fit(name, last.text, known)[0]

    def _put_back(self, name: str, expressions: dict[str, str]) -> bool:
        """Gives the last good version of a config the expressions it was good with. False: it has them."""
        last = self.last.configs.get(name)
        changed = False
        for compute_id in sorted(last.compute_ids) if last is not None else ():
            text = self.last.expressions.get(compute_id)
            if text is not None and expressions.get(compute_id) != text:
                expressions[compute_id] = text
                why = f"the old text is kept: with the new one config {name!r} could not be served"
                self.problems.setdefault(EXPRESSIONS + compute_id, (why,))
                changed = True
        return changed

    def _fit(self, name: str, text: Text, known: _Known) -> _Judged:
        """The document of a text that can be served with these expressions, or all that is wrong with it."""
        document, errors = self._judged(name, text, known)
        if document is not None and name in self._rejected:
            fingerprint, reason = self._rejected[name]
            if fingerprint == Content({name: document}, expressions=known.expressions).fingerprint(name):
                return None, (reason,)
        return document, errors

    def _judged(self, name: str, text: Text, known: _Known) -> _Judged:
        """The verdict of `judge`; what was asked by this update or the last is not looked at again."""
        question = (name, text, known.digest if self._check else "")
        if question not in self._asked:
            found = self._answers.get(question)
            self._asked[question] = found if found is not None else self._look(name, text, known)
        return self._asked[question]

    def _look(self, name: str, text: Text, known: _Known) -> _Judged:
        verdict = judge(name, text, known.expressions if self._check else None)
        if verdict.config is None or isinstance(text, Unreadable):
            return None, tuple(map(str, verdict.errors))
        compact = orjson.dumps(orjson.loads(text))
        needs = frozenset(one.compute_id for one in verdict.config.component_config.numerix_components)
        return Document(compact, digest_of(compact), needs), ()

    def _still_good(self, last: Content) -> Content:
        """What of `last` passes today: it may stem from an older release, with other rules."""
        known = _Known(last.expressions)
        good = {
            name: document
            for name, document in last.configs.items()
            if self._judged(name, document.text, known)[0] is not None
        }
        return replace(last, configs=good, refused={}, kept={})


class _Known:
    """The expressions of one round, with a digest to remember verdicts by."""

    def __init__(self, expressions: Mapping[str, str]) -> None:
        self.expressions = dict(expressions)
        self.digest = digest_of(orjson.dumps(sorted(expressions.items())))


_Question = tuple[str, Text, str]  # config, text, digest of the expressions
_Judged = tuple[Document | None, tuple[str, ...]]  # the document, or all that is wrong


def _below(prefix: str, seen: Mapping[str, Text]) -> dict[str, Text]:
    """What stands under this prefix, by the rest of the key, in the order of the keys."""
    return {key.removeprefix(prefix): seen[key] for key in sorted(seen) if key.startswith(prefix)}
