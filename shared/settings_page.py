"""docs/settings.md, made from the settings themselves: `python -m shared.settings_page > docs/settings.md`."""

from __future__ import annotations

from shared.settings import Settings

__all__ = ["page"]

HEAD = """# Settings

Every setting is an environment variable with a default that works on a laptop; a variable that is empty counts as
unset. `python -m cli.up` (`make up`) checks them all before it starts anything and names every bad one with its
bound. This page is made from the code: `python -m shared.settings_page > docs/settings.md`.

| variable | default | values | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{row.name}` | {_code(row.default)} | {_cell(row.bound)} | {_cell(row.meaning)} |"
        for row in Settings.table()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
