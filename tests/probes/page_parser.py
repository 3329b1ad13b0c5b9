"""A page taken apart by the standard library's parser, for tests of what it holds."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Page(HTMLParser):
    """Elements with their attributes, ids, links, text outside scripts, and the data of a page; tags must balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()
        assert not self.open, f"elements that are never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]][-1] += data
        else:
            self.words.append(data)

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]

    @property
    def anchors(self) -> list[str]:
        return [(a["href"] or "").removeprefix("#") for tag, a in self.elements if tag == "a"]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        """The JSON behind the figures; NaN and infinities are refused."""

        def refused(name: str) -> Any:
            raise AssertionError(f"{name} is no JSON")

        scripts = [a for tag, a in self.elements if tag == "script"]
        (number,) = [i for i, a in enumerate(scripts) if a.get("id") == "data"]
        read: dict[str, Any] = json.loads(self.raw["script"][number], parse_constant=refused)
        return read
