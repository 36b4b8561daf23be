"""What the site has besides docs/: the README as its first page, and every file of the project that a page links to.

A hook of mkdocs (mkdocs.yml). Links in pages are those of the repository, where they lead somewhere as well; each is
turned into the place that its file has on the site.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"(?<=\]\()(?!\w+://|#)([^)\s#]+)")


def place(file: Path) -> str:
    """Where a file of the repository lies on the site, relative to its root."""
    if file == ROOT / "README.md":
        return "index.md"
    return file.relative_to(DOCS if DOCS in file.parents else ROOT).as_posix()


def linked(page: Path) -> Iterator[Path]:
    """Files of the repository that a page leads to."""
    for name in _LINK.findall(page.read_text(encoding="utf-8")):
        there = (page.parent / name).resolve()
        if there.is_file() and ROOT in there.parents:
            yield there


def outside() -> list[Path]:
    """The README, and what its pages and those of docs/ lead to, directly or not, outside of docs/."""
    found, ahead = {ROOT / "README.md"}, [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    while ahead:
        page = ahead.pop()
        new = {each for each in linked(page) if DOCS not in each.parents} - found
        found |= new
        ahead += [each for each in new if each.suffix == ".md"]
    return sorted(found)


def on_files(files: Files, config: Any) -> Files:
    for file in outside():
        files.append(File.generated(config, place(file), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between places in the repository become links between places on the site."""
    source = Path(page.file.abs_src_path)
    here = Path(place(source)).parent

    def moved(link: re.Match[str]) -> str:
        there = (source.parent / link[1]).resolve()
        if not there.is_file():
            return link[1]
        return Path(os.path.relpath(place(there), here)).as_posix()

    return _LINK.sub(moved, markdown)
