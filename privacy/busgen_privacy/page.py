"""The page that both reports are: one HTML file that needs nothing else, the verdict and its reasons first, printable, light or dark.

No script, no font, no picture from elsewhere; a content security policy in the file holds a browser to that.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, exp

from jinja2 import Environment, PackageLoader, StrictUndefined

from busgen_privacy.texts import sources, texts

SIZES = ((1e6, "million"), (1e3, "thousand"))
MOST_SAID = 1e9  # a factor beyond which no reader learns from its size


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How an attack or a figure is computed, for the appendix.

    Attributes:
        name: Of the attack, or of the figure in the reader's language.
        words: The formula in words.
        source: Papers.
        cost: Network passes or distances, where something was run.
    """

    name: str
    words: str
    source: str
    cost: str = ""


def render_page(template: str, *, language: str, **values: object) -> str:
    """A template on ``page.html``; everything that it shows is escaped.

    Raises:
        ConfigError: a language that is not there.
    """
    return _environment().get_template(template).render(t=texts(language), language=language, **values)


@cache
def _environment() -> Environment:
    found = Environment(loader=PackageLoader("busgen_privacy"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"css": css_string, "pairs": of_a_hundred}
    return found


def css_string(text: str) -> str:
    r"""Text for inside the quotes of a style sheet's string: nothing in it can end the string or the sheet, and nothing is left to escape.

    >>> css_string('a "b" </style>')
    'a \\22 b\\22  \\3c /style\\3e '
    """
    return re.sub(r"""["'\\<>&\n]""", lambda found: f"\\{ord(found[0]):x} ", text)


def of_a_hundred(auc: float) -> str:
    """An AUC as pairs told apart of 100, rounded up: what is said to be caught is caught.

    >>> of_a_hundred(0.6561)
    '66'
    """
    return str(ceil(auc * 100 - 1e-9))


def promise_in_words(epsilon: float, language: str = "en") -> str:
    """What epsilon means for one patient, e to the epsilon.

    >>> promise_in_words(1.0)
    '2.7'
    >>> promise_in_words(8.0)
    '3.0 thousand'
    """
    factor, words = exp(min(epsilon, 300)), group("sizes", language)
    if factor >= MOST_SAID:
        return words["beyond"]
    for size, name in SIZES:
        if factor >= size:
            return f"{factor / size:.1f} {words[name]}"
    return f"{factor:.1f}"


def group(name: str, language: str) -> Mapping[str, str]:
    """The sentences of one group of ``texts``, by key."""
    found = texts(language)[name]
    if not isinstance(found, Mapping):
        raise KeyError(name)
    return {key: str(value) for key, value in found.items()}


def figures(names: Iterable[str], language: str) -> list[Method]:
    """How figures are computed, in this order.

    >>> figures(["auc"], "en")[0].source
    'Mann & Whitney 1947, doi:10.1214/aoms/1177730491'
    """
    titles, words = group("figure_names", language), group("figure_words", language)
    return [Method(name=titles[name], words=words[name], source=sources()[name]) for name in names]


def methods_named(text: str, language: str) -> list[Method]:
    """How the attacks work whose names stand in a sentence.

    >>> [method.name for method in methods_named("Largest AUC of the attacks domias, gan-leaks.", "en")]
    ['domias', 'gan-leaks']
    """
    words, there = group("methods", language), set(re.findall(r"[a-z][a-z-]+[a-z]", text))
    return [Method(name=name, words=told, source=sources()[name]) for name, told in words.items() if name in there]


def data_url(png: bytes) -> str:
    """A picture inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
