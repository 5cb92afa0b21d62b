"""The documents hold together: relative links lead somewhere, papers bear real identifiers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "experiments/**/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAPER = re.compile(r"\[([^\]]+)\]\(https://arxiv\.org/abs/([^)]+)\)")


def without_code(text: str) -> str:
    """`text` without fenced and inline code, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_exist(document: Path) -> None:
    targets = LINK.findall(without_code(document.read_text(encoding="utf-8")))
    files = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [name for name in files if name and not (document.parent / name).exists()] == []


def test_papers_show_the_identifier_they_link_to() -> None:
    papers = PAPER.findall((ROOT / "docs" / "papers.md").read_text(encoding="utf-8"))
    assert papers
    assert [pair for pair in papers if pair[0] != pair[1]] == []
    assert [shown for shown, _ in papers if not re.fullmatch(r"\d{4}\.\d{4,5}", shown)] == []
    assert len({shown for shown, _ in papers}) == len(papers)


def test_the_readme_shows_the_table_of_first_light() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- first light: begin -->")[1].split("<!-- first light: end -->")[0].strip()
    report = (ROOT / "experiments" / "first_light" / "report.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in report.splitlines() if line.startswith("|"))
    assert shown == table
