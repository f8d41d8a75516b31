"""From what a source holds to what workers are to serve.

A Catalog remembers the last good version of everything, so that a broken edit takes nothing out of service:

- a config that is refused keeps its last good version, and its reason is noted (`kept`); without one it is
  `refused`, and requests to it are answered with the reason;
- an expression that does not parse keeps its last good text, and so does one whose new text would break a
  config that has no good version to go with it: configs and expressions fit each other at every moment;
- what is gone from the source is gone, but for an expression that a kept config still needs.

- a config that workers cannot serve, or whose new endpoint does not answer, keeps its last good version too:
  `reject` and `hold` say so, for exactly this version of it.

A text that changed less than `GRACE` seconds ago is no error yet: it may be half written. Pure but for its own
memory: time comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import cachetools
import msgspec
import orjson

from components.expression import parse
from dag.problems import Problem
from dag.validate import Verdict, bounded_reason, validate
from shared.snapshot import Head, Snapshot, digest_of
from sidecar.rules import rules
from sidecar.source import CONFIGS, EXPRESSIONS, SERVICE, Text, Unreadable

__all__ = [
    "GRACE",
    "Catalog",
    "Content",
    "Document",
    "compute_ids",
    "fingerprint",
    "judge",
    "read_expression",
    "read_service",
]

GRACE = 1.0
"""Seconds for which a changed text that is broken counts as half written."""

VERDICTS_KEPT = 8
"""A text that is put is judged when it is checked, when it is written and when it is seen in its source."""

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
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Configs that are served in an older version, with the endpoint that the newest waits for."""
    expressions: Mapping[str, str] = field(default_factory=dict)
    service: Mapping[str, Any] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict, compare=False)
    """By key: the revision of the source that is served. The same text in a later revision is no change."""

    def encode(self, version: int) -> bytes:
        """The snapshot of `shared.snapshot` with this version number."""
        return Snapshot.encode(*self.parts(version))

    def parts(self, version: int) -> tuple[Head, dict[str, tuple[str, bytes]]]:
        """What that snapshot is made of: the arguments of `Snapshot.encode`."""
        head = Head(
            version=version,
            refused=dict(self.refused),
            kept=dict(self.kept),
            waiting=dict(self.waiting),
            expressions=dict(self.expressions),
            service=dict(self.service),
            revisions=dict(self.revisions),
            rules=rules(),
        )
        documents = {name: (document.digest, document.text) for name, document in self.configs.items()}
        return head, documents

    @classmethod
    def of(cls, snapshot: Snapshot) -> tuple[int, Content, bool]:
        """The version number and the content of a snapshot, and whether it was judged by today's rules.

        Raises ValueError.
        """
        head = snapshot.head
        documents = {}
        for name, entry in head.configs.items():
            text = snapshot.document(name)
            documents[name] = Document(text, entry.digest, frozenset(compute_ids(text)))
        content = cls(
            documents, head.refused, head.kept, head.waiting, head.expressions, head.service, head.revisions
        )
        return head.version, content, head.rules == rules()

    def text(self, key: str) -> bytes:
        """What is served for a key, as a source would hold it. Raises KeyError."""
        if key.startswith(CONFIGS):
            return self.configs[key.removeprefix(CONFIGS)].text
        if key.startswith(EXPRESSIONS):
            return orjson.dumps({"expression": self.expressions[key.removeprefix(EXPRESSIONS)]})
        if key == SERVICE and self.service:
            return orjson.dumps(self.service)
        raise KeyError(key)

    @cached_property
    def digests(self) -> dict[str, str]:
        """The keys of everything that is served, with the SHA-256 of its text."""
        found = {CONFIGS + name: document.digest for name, document in self.configs.items()}
        others = [EXPRESSIONS + name for name in self.expressions] + [SERVICE] * bool(self.service)
        return found | {key: digest_of(self.text(key)) for key in others}

    @cached_property
    def versions(self) -> dict[str, str]:
        """By key: what tells its version from others. For a config that includes its expressions."""
        return self.digests | {CONFIGS + name: self.fingerprint(name) for name in self.configs}

    def fingerprint(self, name: str) -> str:
        """What decides how the config `name` is served: its document and its expressions. "" without it."""
        document = self.configs.get(name)
        return "" if document is None else fingerprint(document, self.expressions)

    def __repr__(self) -> str:
        return (
            f"<Content {len(self.configs)} configs, {len(self.kept)} of them kept, {len(self.waiting)} waiting, "
            f"{len(self.refused)} refused, {len(self.expressions)} expressions>"
        )


def fingerprint(document: Document, expressions: Mapping[str, str]) -> str:
    """The version of a config together with these expressions, of which only those count that it needs."""
    used = [[compute_id, expressions.get(compute_id)] for compute_id in sorted(document.compute_ids)]
    return f"{document.digest}:{digest_of(orjson.dumps(used))}" if used else document.digest


class _Compute(msgspec.Struct, frozen=True):
    compute_id: str


class _Computes(msgspec.Struct, frozen=True):
    numerix_components: list[_Compute] = []


class _Needs(msgspec.Struct, frozen=True):
    component_config: _Computes = _Computes()


def compute_ids(text: bytes) -> list[str]:
    """The expressions that a config needs, in its order, read without the rest of it. Raises ValueError."""
    found = msgspec.json.decode(text, type=_Needs)
    return [one.compute_id for one in found.component_config.numerix_components]


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

    def __init__(
        self, last: Content | None = None, *, judged: bool = False, check_expressions: bool = True
    ) -> None:
        """`last` is what was served before (None: nothing); of it stays what is still good today.

        `judged` is whether `last` has passed the rules of today, so that it need not be judged again.

        `check_expressions` is whether numerix components are computed here, so that every compute_id needs
        an expression.
        """
        self.problems: dict[str, tuple[str, ...]] = {}
        """By key: all that is wrong with a text that is not served for it."""
        self.settles_at: float | None = None
        """When to call `update` again although nothing changed: a text that may be half written."""
        self.checks_expressions = check_expressions
        """Whether every compute_id needs an expression."""
        self._since: dict[str, tuple[Text, float]] | None = None
        self._verdicts: cachetools.LRUCache[_Question, Verdict] = cachetools.LRUCache(VERDICTS_KEPT)
        self._found: _Memory[_Question, _Found] = _Memory()
        self._needs: _Memory[bytes, tuple[str, ...]] = _Memory()
        self._rejected: dict[str, tuple[str, str]] = {}  # config → (fingerprint, reason)
        self._held: dict[str, tuple[str, str]] = {}  # config → (fingerprint, reason)
        known = last or Content()
        self._passed = {name: known.fingerprint(name) for name in known.configs} if judged else {}
        self.last = replace(known, refused={}, kept={}, waiting={}) if judged else self._still_good(known)
        """What is to be served: the outcome of the last `update`, at first what is good of `last`."""

    def __repr__(self) -> str:
        return f"<Catalog {self.last!r}, {len(self.problems)} problems>"

    def update(
        self, seen: Mapping[str, Text], now: float, revisions: Mapping[str, int] | None = None
    ) -> Content:
        """What is to be served now that the source holds `seen`. `now` in seconds, of any one clock.

        `revisions` of the source, by key.
        """
        young = self._note_changes(seen, now)
        self.problems = {}
        expressions = self._expressions(_below(EXPRESSIONS, seen))
        configs, broken, waiting = self._resolve(_below(CONFIGS, seen), expressions)
        self._found.forget()
        self._needs.forget()
        service = self._service(seen)
        self.problems.update((CONFIGS + name, errors) for name, errors in broken.items())
        old = {*self.problems, *(CONFIGS + name for name in waiting)}
        unsettled = self.problems.keys() & young.keys()
        self.settles_at = min((young[key] for key in unsettled), default=None)
        for key in unsettled:
            del self.problems[key]
        reasons = {
            name: bounded_reason(errors) for name, errors in broken.items() if CONFIGS + name in self.problems
        }
        content = Content(
            configs=configs,
            refused={name: reason for name, reason in reasons.items() if name not in configs},
            kept={name: reason for name, reason in reasons.items() if name in configs},
            waiting={name: reason for name, reason in waiting.items() if name in configs},
            expressions=expressions,
            service=service,
        )
        before, newest = self.last.revisions, revisions or {}
        served = {key: (before if key in old else newest).get(key, 0) for key in content.digests}
        self.last = replace(content, revisions=served)
        return self.last

    def verdict(self, name: str, text: Text, expressions: Mapping[str, str]) -> Verdict:
        """The verdict on a text for this config, with these expressions. The last few are remembered."""
        question = self._question(name, text, expressions)
        verdict = self._verdicts.get(question)
        if verdict is None:
            verdict = judge(name, text, expressions if self.checks_expressions else None)
            self._verdicts[question] = verdict
        return verdict

    def reject(self, name: str, fingerprint: str, reason: str, active: Content) -> None:
        """A worker cannot serve this config as it is: `update` is to fall back on what is `active`.

        `fingerprint` is that of the content at fault, so that a later edit gets its chance.
        """
        self._rejected[name] = (fingerprint, reason)
        self.last = active

    def hold(self, name: str, fingerprint: str, reason: str, active: Content) -> None:
        """The new endpoint of this version of a config does not answer: `update` is to leave it at its old one.

        `fingerprint` is that of the content that waits; `release` ends it, and so does a later edit.
        """
        self._held[name] = (fingerprint, reason)
        self.last = active

    def release(self, name: str) -> None:
        """The next `update` may take the newest version of this config again."""
        self._held.pop(name, None)

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

    def _resolve(self, texts: Mapping[str, Text], expressions: dict[str, str]) -> _Resolved:
        """The configs to serve; of those whose newest text is not among them, what is wrong or waited for.

        Puts old texts back into `expressions` where a config needs them, and begins again: others may need
        theirs then. Every round puts one back for good, so it ends.
        """
        while True:
            found = _Resolved({}, {}, {})
            for name, text in texts.items():
                document, errors = self._judged(name, text, expressions)
                document, errors = self._servable(name, document, errors, expressions)
                waits = "" if document is None else self._waits(name, document, expressions)
                if waits:
                    found.waiting[name] = waits
                elif document is None:
                    found.broken[name] = errors
                if document is None or waits:
                    document = self._older(name, expressions)
                if document is not None:
                    found.configs[name] = document
                elif self._put_back(name, expressions):
                    break
            else:
                return found

    def _older(self, name: str, expressions: Mapping[str, str]) -> Document | None:
        """The last good version, if there is one and it goes with these expressions."""
        last = self.last.configs.get(name)
        if last is None:
            return None
        document, errors = self._judged(name, last.text, expressions)
        document, _ = self._servable(name, document, errors, expressions)
        return None if document is None or self._waits(name, document, expressions) else document

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

    def _servable(
        self,
        name: str,
        document: Document | None,
        errors: tuple[str, ...],
        expressions: Mapping[str, str],
    ) -> _Found:
        """The document, unless workers said that they cannot serve it with these expressions."""
        if document is not None and name in self._rejected:
            rejected, reason = self._rejected[name]
            if rejected == fingerprint(document, expressions):
                return None, (reason,)
        return document, errors

    def _waits(self, name: str, document: Document, expressions: Mapping[str, str]) -> str:
        """What this version of a config waits for; "" when it does not."""
        held, reason = self._held.get(name, ("", ""))
        return reason if held and held == fingerprint(document, expressions) else ""

    def _judged(self, name: str, text: Text, expressions: Mapping[str, str]) -> _Found:
        """The document of a text that can be served with these expressions, or all that is wrong with it.

        What was asked by this update or the last is not looked at again: the verdict depends on the text and
        the expressions that it names, not on the others.
        """
        question = self._question(name, text, expressions)
        return self._found.get(question, lambda: self._look(name, text, expressions))

    def _question(self, name: str, text: Text, expressions: Mapping[str, str]) -> _Question:
        needs = () if isinstance(text, Unreadable) else self._needs.get(text, lambda: _named(text))
        used = tuple(expressions.get(compute_id) for compute_id in needs) if self.checks_expressions else ()
        return name, text, used

    def _look(self, name: str, text: Text, expressions: Mapping[str, str]) -> _Found:
        passed = self._passed_before(name, text, expressions)
        if passed is not None:
            return passed, ()
        verdict = self.verdict(name, text, expressions)
        if verdict.config is None or isinstance(text, Unreadable):
            return None, tuple(map(str, verdict.errors))
        return _document(text), ()

    def _passed_before(self, name: str, text: Text, expressions: Mapping[str, str]) -> Document | None:
        """The document of a text that is what was judged before this process began, blanks apart."""
        if name not in self._passed or isinstance(text, Unreadable):
            return None
        try:
            document = _document(text)
        except ValueError:
            return None
        return document if fingerprint(document, expressions) == self._passed[name] else None

    def _still_good(self, last: Content) -> Content:
        """What of `last` passes today: it may stem from an older release, with other rules."""
        good = {
            name: document
            for name, document in last.configs.items()
            if self._judged(name, document.text, last.expressions)[0] is not None
        }
        return replace(last, configs=good, refused={}, kept={}, waiting={})


def _document(text: bytes) -> Document:
    """The document of a config. Raises ValueError for what is none."""
    compact = orjson.dumps(orjson.loads(text))
    return Document(compact, digest_of(compact), frozenset(compute_ids(compact)))


class _Resolved(NamedTuple):
    """Outcome of one update for the configs, by model_config_id."""

    configs: dict[str, Document]
    broken: dict[str, tuple[str, ...]]
    waiting: dict[str, str]


_Question = tuple[str, Text, tuple[str | None, ...]]  # config, text, the expressions that it names
_Found = tuple[Document | None, tuple[str, ...]]  # the document, or all that is wrong

K = TypeVar("K")
V = TypeVar("V")


class _Memory(Generic[K, V]):
    """Answers to questions; `forget` drops those that were not asked since the time before."""

    def __init__(self) -> None:
        self._old: dict[K, V] = {}
        self._new: dict[K, V] = {}

    def get(self, question: K, find: Callable[[], V]) -> V:
        """The answer that is known, or found now."""
        if question not in self._new:
            self._new[question] = self._old[question] if question in self._old else find()
        return self._new[question]

    def forget(self) -> None:
        """Ends a round."""
        self._old, self._new = self._new, {}


def _named(text: bytes) -> tuple[str, ...]:
    """The expressions that a text names, as far as it can be read: what cannot needs none to be refused."""
    try:
        return tuple(compute_ids(text))
    except (ValueError, RecursionError):
        return ()


def _below(prefix: str, seen: Mapping[str, Text]) -> dict[str, Text]:
    """What stands under this prefix, by the rest of the key, in the order of the keys."""
    return {key.removeprefix(prefix): seen[key] for key in sorted(seen) if key.startswith(prefix)}
