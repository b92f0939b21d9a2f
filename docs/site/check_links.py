"""`python docs/site/check_links.py build/site`: every link of the built pages leads somewhere.

Pages, files and anchors within the site are looked up; nothing that a page needs may come from
another host. Reports of studies, which are complete pages of their own, are checked too. Links to
other hosts are counted only. Exit code 1 and one line for each broken link.
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("img", "src"), ("script", "src"), ("source", "src"), ("iframe", "src")}
NOT_LOADED = {"canonical", "next", "prev", "edit", "alternate"}


class Page(HTMLParser):
    """Anchors of a page, what it links to, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of one element."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") not in NOT_LOADED and "href" in values:
            self.loaded.append(values["href"])
        self.loaded += [value for name, value in values.items() if (tag, name) in LOADED]


@cache
def page_of(path: Path) -> Page:
    """The parsed page of a file."""
    return Page(path.read_text(encoding="utf-8"))


def fault(address: str, page: Path, site: Path) -> str:
    """What is wrong with an address on a page; empty if it leads to a file and an anchor."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return ""
    found = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
    if found.is_dir():
        found = found / "index.html"
    if not found.is_relative_to(site.resolve()) or not found.is_file():
        return "no such file"
    if parts.fragment and found.suffix == ".html":
        anchors = page_of(found).anchors
        if unquote(parts.fragment) not in anchors and parts.fragment not in anchors:
            return "no such anchor"
    return ""


def main(folder: str) -> int:
    """Check all pages of a folder; print what is broken and how many links were checked."""
    site, links, broken = Path(folder), 0, []
    pages = sorted(site.rglob("*.html"))
    for page in pages:
        if page.name == "404.html":  # whose addresses are those of the site's root
            continue
        parsed = page_of(page.resolve())
        for address in [*parsed.links, *parsed.loaded]:
            links += 1
            if message := fault(address, page, site):
                broken.append(f"{page.relative_to(site)}: {address}: {message}")
        for address in parsed.loaded:
            if urlsplit(address).netloc:
                broken.append(f"{page.relative_to(site)}: {address}: loaded from another host")
    print("\n".join([*dict.fromkeys(broken), f"{len(pages)} pages, {links} links checked"]))
    return 1 if broken or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
