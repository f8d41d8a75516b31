"""`inferflow validate`: what the config sidecar would say about these files, before they are put there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from dag.problems import Problem
from sidecar.catalog import judge, read_expression, read_service
from sidecar.source import CONFIGS, EXPRESSIONS, SERVICE, DirectorySource, SourceError, Text, Unreadable

__all__ = ["add_arguments", "run"]

DETAILS = """\
A FILE is one model config, named after its model_config_id; a directory is either laid out as
INFERFLOW_CONFIG_DIR (config-map/, expression-config/, service-config.json) or holds one model config a file.
Expressions are those of the directory, or of the expression-config/ beside a file's config-map/.
Exit code: 0 all can be served, 1 some are refused (with --strict also: there are warnings), 2 wrong arguments."""


class Report(NamedTuple):
    """What is to be said about one file."""

    file: str
    errors: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()


class UsageError(Exception):
    """Arguments that cannot be used."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DETAILS
    parser.add_argument("paths", nargs="+", metavar="FILE", type=Path, help="a model config, or a directory")
    parser.add_argument(
        "--expressions",
        metavar="PATH",
        type=Path,
        help="numerix expressions: a directory of <compute_id>.json, or one JSON file {compute_id: expression}",
    )
    parser.add_argument(
        "--numerix-service",
        action="store_true",
        help="a Numerix service computes the expressions: do not look for them",
    )
    parser.add_argument(
        "--given",
        metavar="NAMES",
        action="append",
        default=[],
        help="comma-separated columns that requests bring: they need no warning",
    )
    parser.add_argument("--strict", action="store_true", help="warnings fail, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints the verdicts on all files; returns the exit code."""
    given = {name.strip() for names in arguments.given for name in names.split(",")}
    try:
        expressions = None if arguments.expressions is None else _expressions(arguments.expressions)
        files = [file for path in arguments.paths for file in _files(path)]
    except (UsageError, SourceError) as error:
        print(f"inferflow validate: {error}", file=sys.stderr)
        return 2
    reports = list(_reports(files, expressions, given, numerix_service=arguments.numerix_service))
    refused = sum(bool(report.errors) for report in reports)
    warnings = sum(len(report.warnings) for report in reports)
    passed = not refused and not (arguments.strict and warnings)
    if arguments.json:
        sys.stdout.write(orjson.dumps(_as_json(reports, passed), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        for report in reports:
            _print(report)
        counts = f"{len(reports) - refused} ok, {refused} refused, {warnings} warnings"
        print(f"{'ok' if passed else 'not ok'}: {counts}")
    return 0 if passed else 1


# ---------------------------------------------------------------- reading


class _File(NamedTuple):
    """One text to look at, with the tree it stands in (None: it stands alone)."""

    place: str
    key: str
    text: Text
    tree: Mapping[str, Text] | None


def _files(path: Path) -> Iterator[_File]:
    """Everything to look at below `path`. Raises UsageError, SourceError."""
    if not path.is_dir():
        yield _File(str(path), CONFIGS + path.stem, _read(path), _tree_around(path))
        return
    source = DirectorySource(path)
    tree = source.read()
    if tree:
        yield from (_File(source.place(key), key, text, tree) for key, text in tree.items())
        return
    flat = sorted(path.glob("*.json"))
    if not flat:
        raise UsageError(f"{path}: holds no config (neither config-map/*.json nor *.json)")
    for file in flat:
        yield from _files(file)


def _tree_around(file: Path) -> Mapping[str, Text] | None:
    """The tree that a file stands in: the one whose config-map/ it is in, if that has expressions."""
    directory = file.absolute().parent
    in_tree = directory.name == CONFIGS.rstrip("/") and (directory.parent / EXPRESSIONS).is_dir()
    return DirectorySource(directory.parent).read() if in_tree else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _expressions(path: Path) -> dict[str, str]:
    """The expressions of `--expressions`. Raises UsageError, SourceError."""
    if path.is_dir():
        if (path / EXPRESSIONS).is_dir():
            return _texts_of(DirectorySource(path).read())
        return _texts_of({EXPRESSIONS + file.stem: _read(file) for file in path.glob("*.json")})
    try:
        value = orjson.loads(_read(path))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise UsageError(f"{path}: expected one JSON object {{compute_id: expression}}")
    return {path.stem: value["expression"]} if value.keys() == {"expression"} else value


def _texts_of(tree: Mapping[str, Text]) -> dict[str, str]:
    """The expression texts of a tree, whether they parse or not: the configs that need them will say."""
    found = {}
    for key, text in tree.items():
        if key.startswith(EXPRESSIONS) and not isinstance(text, Unreadable):
            try:
                expression = orjson.loads(text)["expression"]
            except (ValueError, TypeError, KeyError):
                continue  # the file's own report says what is wrong with it
            if isinstance(expression, str):
                found[key.removeprefix(EXPRESSIONS)] = expression
    return found


# ---------------------------------------------------------------- judging


def _reports(
    files: Sequence[_File],
    expressions: Mapping[str, str] | None,
    given: Collection[str],
    numerix_service: bool,
) -> Iterator[Report]:
    for file in files:
        if file.key.startswith(CONFIGS):
            known = expressions
            if known is None and file.tree is not None:
                known = _texts_of(file.tree)
            name = file.key.removeprefix(CONFIGS)
            verdict = judge(name, file.text, None if numerix_service else known, given)
            yield Report(file.place, verdict.errors, verdict.warnings)
        else:
            yield Report(file.place, _other_problems(file))


def _other_problems(file: _File) -> tuple[Problem, ...]:
    """What is wrong with a text that is no model config."""
    try:
        if file.key == SERVICE:
            read_service(file.text)
        else:
            read_expression(file.text)
    except ValueError as error:
        return (Problem("", str(error)),)
    return ()


# ---------------------------------------------------------------- printing


def _print(report: Report) -> None:
    print(f"{report.file}: {'refused' if report.errors else 'ok'}")
    for problem in report.errors:
        print(f"{report.file}: {problem}")
    for problem in report.warnings:
        print(f"{report.file}: warning: {problem}")


def _as_json(reports: Sequence[Report], passed: bool) -> dict[str, Any]:
    files = [
        {
            "file": report.file,
            "ok": not report.errors,
            "errors": [problem._asdict() for problem in report.errors],
            "warnings": [problem._asdict() for problem in report.warnings],
        }
        for report in reports
    ]
    return {"ok": passed, "files": files}
