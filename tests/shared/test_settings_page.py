"""docs/settings.md says what the code says."""

from pathlib import Path

from shared.settings_page import page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_made_from_the_settings() -> None:
    assert (DOCS / "settings.md").read_text() == page(), (
        "run python -m shared.settings_page > docs/settings.md"
    )
