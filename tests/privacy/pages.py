"""What tests read out of a report: its outline, what it carries, its numbers and its colours."""

import base64
import re
from collections.abc import Mapping
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Tags that were opened and never closed, addresses, headings, what pictures are called, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[int] = []
        self.nameless: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action", "xlink:href"}]
        self.look(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.look(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data

    def look(self, tag: str, attrs: Mapping[str, str | None]) -> None:
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        told = {"img": attrs.get("alt"), "svg": attrs.get("aria-label") if attrs.get("role") == "img" else attrs.get("aria-hidden")}
        if tag in told and not told[tag]:
            self.nameless.append(tag)


def carried(text: str) -> list[bytes]:
    """Everything in a page that could be a picture: data addresses, long base64 or hex, long lists of bytes. Decoded where it decodes."""
    found = [base64.b64decode(data) for data in re.findall(r"data:[^,\"' ]*;base64,([A-Za-z0-9+/=]+)", text)]
    rest = re.sub(r"data:[^,\"' ]*;base64,[A-Za-z0-9+/=]+", "", text)
    found += [one.encode() for one in re.findall(r"[A-Za-z0-9+/_%-]{64,}={0,2}", rest)]
    return found + [one.encode() for one in re.findall(r"(?:\b\d{1,3}\b[\s,;]+){64,}", rest)]


def numbers(text: str) -> set[str]:
    """Every number of a page without its style sheet, as it is written there."""
    return set(re.findall(r"\d+(?:\.\d+)?", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)))


def colours(text: str) -> list[dict[str, str]]:
    """The palettes of a page's style sheet, in their order: light, dark, print; #rrggbb by name."""
    found = []
    for block in re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL):
        named = re.findall(r"--(\w+): #([0-9a-f]{3,6})", block)
        found.append({name: value if len(value) == 6 else "".join(2 * one for one in value) for name, value in named})
    return found


def contrast(one: str, other: str) -> float:
    """Contrast of two colours (WCAG 2.2, success criterion 1.4.3).

    >>> contrast("000000", "ffffff")
    21.0
    """

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)
