"""Sentences of the reports, apart from their layout: one JSON file a language, all with the same keys; ``sources.json`` is for all languages."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Union

from busgen_core.errors import ConfigError

Texts = Mapping[str, Union[str, Sequence[str], "Texts"]]


@cache
def texts(language: str = "en") -> Texts:
    """All sentences of a language.

    Raises:
        ConfigError: a language that is not there.
    """
    if not language.isalpha() or len(language) > 3 or not (file := files(__name__).joinpath(f"{language}.json")).is_file():
        raise ConfigError(f"the report is not translated to {language[:20]!r}; texts/en.json holds what to translate")
    found: Texts = json.loads(file.read_text(encoding="utf-8"))
    return found


@cache
def sources() -> Mapping[str, str]:
    """Papers behind each attack and figure, by name; never translated."""
    found: Mapping[str, str] = json.loads(files(__name__).joinpath("sources.json").read_text(encoding="utf-8"))
    return found
