"""`inferflow validate`: what it prints and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS, main
from tests.sidecar.texts import BROKEN, REFUSED, config, expression


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A config directory with one good config that computes."""
    (tmp_path / "config-map").mkdir()
    (tmp_path / "expression-config").mkdir()
    (tmp_path / "config-map" / "good.json").write_bytes(config(compute_id="e"))
    (tmp_path / "expression-config" / "e.json").write_bytes(expression("x 2 *"))
    (tmp_path / "service-config.json").write_text("{}")
    return tmp_path


def validate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    """Exit code, lines of standard output, standard error."""
    code = main(["validate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_a_directory_of_good_configs(capsys: pytest.CaptureFixture[str], tree: Path) -> None:
    code, lines, errors = validate(capsys, tree)
    assert code == 0
    assert lines == [
        f"{tree}/config-map/good.json: ok",
        f"{tree}/expression-config/e.json: ok",
        f"{tree}/service-config.json: ok",
        "ok: 3 ok, 0 refused, 0 warnings",
    ]
    assert errors == ""


def test_every_problem_has_its_file_and_path(capsys: pytest.CaptureFixture[str], tree: Path) -> None:
    (tree / "config-map" / "bad.json").write_bytes(REFUSED)
    (tree / "config-map" / "cut.json").write_bytes(BROKEN)
    (tree / "expression-config" / "f.json").write_bytes(expression("x +"))
    (tree / "service-config.json").write_text("[]")
    code, lines, _ = validate(capsys, tree)
    assert code == 1
    bad = f"{tree}/config-map/bad.json"
    assert f"{bad}: refused" in lines
    assert f"{bad}: dag_execution_config.component_dependency: is empty: no component would ever run" in lines
    assert any(line.startswith(f"{bad}: component_config: has neither") for line in lines)
    assert any(line.startswith(f"{tree}/config-map/cut.json: is no JSON: ") for line in lines)
    assert any(line.startswith(f"{tree}/expression-config/f.json: token 2 ('+')") for line in lines)
    assert f"{tree}/service-config.json: expected a JSON object" in lines
    assert lines[-1] == "not ok: 2 ok, 4 refused, 0 warnings"


def test_one_file_is_checked_with_the_expressions_beside_it(
    capsys: pytest.CaptureFixture[str], tree: Path
) -> None:
    file = tree / "config-map" / "good.json"
    assert validate(capsys, file)[0] == 0
    (tree / "expression-config" / "e.json").write_bytes(expression("y"))
    code, lines, _ = validate(capsys, file)
    assert code == 1
    assert "expression 'e' uses 'y', which no variable here maps" in lines[1]


def test_a_file_of_its_own_is_checked_without_expressions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_bytes(config(compute_id="e"))
    assert validate(capsys, tmp_path / "a.json")[0] == 0
    assert validate(capsys, tmp_path)[0] == 0, "a directory without parts holds configs"


@pytest.mark.parametrize("kind", ["map", "one", "directory", "tree"])
def test_expressions_from_elsewhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tree: Path, kind: str
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(config(compute_id="e", variable="y"))
    (tmp_path / "map.json").write_text(json.dumps({"e": "y 1 +", "f": "1"}))
    (tmp_path / "e.json").write_bytes(expression("y 1 +"))
    path = {
        "map": tmp_path / "map.json",
        "one": tmp_path / "e.json",
        "directory": tree / "expression-config",
        "tree": tree,
    }[kind]
    code, lines, _ = validate(capsys, file, "--expressions", path)
    if kind in ("map", "one"):
        assert code == 0
    else:
        assert code == 1
        assert "uses 'x'" in lines[1]


def test_an_unknown_expression_is_refused_unless_a_service_computes_it(
    capsys: pytest.CaptureFixture[str], tree: Path
) -> None:
    (tree / "expression-config" / "e.json").unlink()
    code, lines, _ = validate(capsys, tree)
    assert code == 1
    assert "there is no expression 'e'" in lines[1]
    assert validate(capsys, tree, "--numerix-service")[0] == 0


def test_warnings_fail_only_when_strict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(config().replace(b'"catalog:real:price"', b'"position"'))
    code, lines, _ = validate(capsys, file)
    assert code == 0
    assert lines[0] == f"{file}: ok"
    place = "component_config.predator_components[0].inputs[0].features[0]"
    assert lines[1].startswith(f"{file}: warning: {place}: no component writes 'position'")
    assert lines[2] == "ok: 1 ok, 0 refused, 1 warnings"
    assert validate(capsys, file, "--strict")[0] == 1
    assert validate(capsys, file, "--strict", "--given", "other, position")[0] == 0


def test_json(capsys: pytest.CaptureFixture[str], tree: Path) -> None:
    (tree / "config-map" / "bad.json").write_bytes(BROKEN)
    code, lines, _ = validate(capsys, tree, "--json")
    assert code == 1
    result = json.loads("\n".join(lines))
    assert result["ok"] is False
    assert [Path(one["file"]).name for one in result["files"] if one["ok"]] == [
        "good.json",
        "e.json",
        "service-config.json",
    ]
    (bad,) = [one for one in result["files"] if not one["ok"]]
    assert bad["errors"][0]["path"] == ""
    assert bad["errors"][0]["message"].startswith("is no JSON")
    assert bad["warnings"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json"], "nowhere.json: No such file or directory"),
        (["empty"], "empty: holds no config (neither config-map/*.json nor *.json)"),
        (["a.json", "--expressions", "nowhere"], "nowhere: No such file or directory"),
        (["a.json", "--expressions", "broken.json"], "broken.json: is no JSON: "),
        (["a.json", "--expressions", "list.json"], "list.json: expected one JSON object"),
    ],
)
def test_arguments_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.json").write_bytes(config())
    (tmp_path / "broken.json").write_bytes(BROKEN)
    (tmp_path / "list.json").write_text("[]")
    code, lines, errors = validate(capsys, *arguments)
    assert code == 2
    assert lines == []
    assert errors.startswith(f"inferflow validate: {message}")


def test_no_command_and_unknown_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nonsense"], ["validate"], ["validate", "x", "--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: inferflow" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("inferflow 0.")
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command.name in shown for command in COMMANDS)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: inferflow {command} " in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error(tree: Path) -> None:
    for number in range(2000):  # more than a pipe holds
        (tree / "config-map" / f"bad{number}.json").write_bytes(BROKEN)
    command = [sys.executable, "-m", "cli.main", "validate", str(tree)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
