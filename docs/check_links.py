"""Check that every relative link and anchor of the documentation leads somewhere. Standard library only.

python docs/check_links.py
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "data").glob("*.md")])
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(page: Path) -> list[str]:
    """Return a sentence for each link of a page that leads nowhere."""
    problems = []
    for match in _LINK.finditer(_CODE.sub("", page.read_text(encoding="utf-8"))):
        link = unquote(match[1] or match[2])
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            problems.append(f"{page.relative_to(ROOT)}: {link} does not exist.")
        elif anchor and anchor not in anchors(target):
            problems.append(f"{page.relative_to(ROOT)}: {link} has no such heading.")
    return problems


def main() -> None:
    """Print what leads nowhere; the exit status tells whether anything does."""
    problems = [problem for page in PAGES for problem in broken_links(page)]
    print("\n".join(problems) or f"All links of {len(PAGES)} pages lead somewhere.")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
