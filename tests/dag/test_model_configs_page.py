"""docs/model-configs.md: its examples are what it says they are, and no field is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from cli.main import main
from dag.config import ModelConfig
from dag.validate import validate

PAGE = (Path(__file__).parents[2] / "docs" / "model-configs.md").read_text()
EXAMPLES = {
    found["file"]: (found["text"], found["verdict"])
    for found in re.finditer(
        r"^`(?P<file>[a-z-]+/\w+\.json)`(?P<verdict>[^\n]*)\n```json\n(?P<text>.*?)^```$",
        PAGE,
        re.MULTILINE | re.DOTALL,
    )
}
REFUSALS = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_json_block_is_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("```json") >= 5


@pytest.mark.parametrize("file", [file for file, (_, verdict) in EXAMPLES.items() if not verdict])
def test_example_is_good(capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str) -> None:
    """Without a warning: what the page shows is what one should write."""
    for name, (text, verdict) in EXAMPLES.items():
        if not verdict:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    assert main(["validate", "--strict", str(tmp_path)]) == 0
    assert f"{tmp_path}/{file}: ok" in capsys.readouterr().out


def test_refusal_is_shown_as_it_is() -> None:
    ((text, _),) = [example for example in EXAMPLES.values() if example[1]]
    expressions = {Path(name).stem: "x" for name in EXAMPLES if name.startswith("expression-config")}
    found = validate(text, name="mistakes", expressions=expressions)
    assert ["".join(f"{problem}\n" for problem in found.errors)] == REFUSALS


def fields(struct: type[msgspec.Struct]) -> set[str]:
    """The names of all fields, of this struct and of those in it, as the document writes them."""
    schema = json.dumps(msgspec.json.schema(struct))
    names: set[str] = set()
    for definition in json.loads(schema)["$defs"].values():
        names.update(definition["properties"])
    return names


@pytest.mark.parametrize("field", sorted(fields(ModelConfig)))
def test_field_is_described(field: str) -> None:
    assert f"`{field}`" in PAGE


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(#([\w-]+)\)", PAGE):
        assert target in headings
