"""A page as a reader finds it: its tags, headers, cells, and what its figures say."""

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Read(HTMLParser):
    """What stands in an HTML text."""

    tags: Counter = field(default_factory=Counter)
    heads: list = field(default_factory=list)
    cells: list = field(default_factory=list)
    tips: dict = field(default_factory=dict)  # (figure, series, head): what is said of a mark
    links: list = field(default_factory=list)
    meta: dict = field(default_factory=dict)
    ids: list = field(default_factory=list)
    words: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.into, self.figure, self.series = None, "", ""

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        given = dict(attrs)
        assert len(given) == len(attrs), attrs
        assert not [key for key in given if key.startswith("on")]
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[key] for key in ("href", "src", "action", "data") if key in given]
        if tag == "meta":
            self.meta[given.get("name", given.get("http-equiv"))] = given.get("content")
        if tag == "figure":
            self.figure = given.get("data-name", "")
        if tag == "g" and "data-name" in given:
            self.series = given["data-name"]
        if "data-tip" in given:
            self.tips[self.figure, self.series, given["data-head"]] = given["data-tip"]
        if tag in ("th", "td"):
            self.into = self.heads if tag == "th" and given.get("scope") == "col" else self.cells
            self.into.append("")

    def handle_endtag(self, tag):
        self.into = None if tag in ("th", "td") else self.into

    def handle_data(self, data):
        self.words.append(data)
        if self.into is not None:
            self.into[-1] += data


def read(text):
    """What stands in a page."""
    found = Read()
    found.feed(text)
    found.close()
    return found
