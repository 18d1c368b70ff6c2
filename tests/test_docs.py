"""README.md and docs/*.md: relative links lead to files and headings, no page is orphaned, README is short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README_BYTES = 12_000
LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    """The text without its fenced blocks and `code`, in which brackets are no links."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The #anchors that GitHub gives a page's headings: lower case, no punctuation, hyphens for spaces."""
    found = set()
    fenced = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for heading in re.findall(r"^#+ (.*)$", fenced, re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def test_the_pages_are_there():
    assert len(PAGES) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = [t for t in LINK.findall(without_code(page.read_text())) if "://" not in t]
    assert targets, f"{page.name} links to no other page"
    for target in targets:
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {target}, but {path.name} has no such heading"


def test_every_page_and_picture_is_linked():
    linked = set()
    for page in PAGES:
        for target in LINK.findall(without_code(page.read_text())):
            linked.add((page.parent / target.partition("#")[0]).resolve())
    files = [p.resolve() for p in (ROOT / "docs").iterdir() if p.suffix in (".md", ".png")]
    assert not [p.name for p in files if p not in linked]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES
