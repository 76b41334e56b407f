"""What Presidio looks for in free text: its own pattern recognizers, and ours for what DICOM writes differently from prose, for names and for
dates in English, German, French, Spanish, Portuguese, Polish and Arabic in Latin letters. They read text that ``vocabulary.fold`` has freed of
accents.

Presidio's own e-mail and URL recognizers ask tldextract, which fetches a list from the network at first use. Their patterns are
used here without that check: more is struck out, nothing is fetched. Importing Presidio costs seconds, so it waits for the first text.
"""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from busgen_core.errors import ConfigError
from busgen_privacy.vocabulary import read_words

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine, EntityRecognizer
    from presidio_analyzer.nlp_engine import NlpEngine

# Month names and their short forms. Arabic: the Gregorian months of Egypt and of the Levant, and the Islamic months, in usual transliterations.
MONTHS = {
    "English": "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|"
    "dec(?:ember)?",
    "German": "januar|janner|februar|marz|mrz|mai|juni|juli|august|september|oktober|okt|november|dezember|dez",
    "French": "janv(?:ier)?|fevr?(?:ier)?|mars|avr(?:il)?|mai|juin|juil(?:let)?|aout|septembre|octobre|novembre|decembre",
    "Spanish": "enero|ene|febrero|marzo|abr(?:il)?|mayo|junio|julio|agosto|ago|sep?tiembre|octubre|noviembre|diciembre|dic",
    "Portuguese": "janeiro|fevereiro|fev|marco|maio|junho|julho|setembro|set|outubro|out|novembro|dezembro",
    "Polish": "stycz(?:en|nia)|sty|lut(?:y|ego)?|marzec|marca|kwie(?:cien|tnia)|kwi|maja?|czerw(?:iec|ca)|cze|lip(?:iec|ca)?|sierp(?:ien|nia)|sie|"
    "wrze(?:sien|snia)|wrz|pazdziernika?|paz|listopada?|lis|grud(?:zien|nia)|gru",
    "Arabic": "yana?yir|fibra?yir|abril|mayu|yunyu|yulyu|aghustus|sibtambar|uktubar|nu[fv]imbir|disimbir|kanun|shubat|ad[hd]ar|nisan|ayyar|haziran|"
    "tammuz|aylul|tishrin|muharram|safar|rabi|jumada|rajab|sha'?ban|ramadan|shawwal|dhu",
}
_MONTH = "(?:" + "|".join(MONTHS.values()) + r")\b\.?(?:\s+(?:al|ath|at|ash|el|il|I{1,2})\b[\s-]*[a-z'-]*)?"  # kanun al-thani, rabi II
_DAY = r"(?:[0-3]?\d)(?:st|nd|rd|th|er|[ºª])?\.?"

TITLES = (
    "mrs?|ms|miss|dr|drs|prof|rev|sir|sr|herrn?|frau|fr|hr|fraulein|mme|mlle|monsieur|madame|mademoiselle|docteur|pr|sra|srta|senora?|senorita|don|"
    "dona|doctora?|dra|senhora?|doutora?|profa|pani?|lek|mgr|doc|sayyida?|sayyed|sheikh|shaikh|hajj?i?|ustadh?|ustaz|doktor|med"
)
LABELS = (
    "patient(?:in|e)?|pat|pt|name|nachname|vorname|nom|prenom|nombre|apellidos?|nome|sobrenome|nazwisko|imie|pacjent(?:ka)?|pacjentki|paciente|ism|"
    "geb|geboren|nee|born|dob|physician|arzt|arztin|medecin|medico|medica|lekarz|operator|referr(?:ed by|er)|seen by|reported by|signed|dictated by"
)
_CAPITAL = r"(?-i:\p{Lu})[\p{L}'-]*"
_NAMES = rf"{_CAPITAL}\.?(?:[\s,-]+{_CAPITAL}){{0,2}}"

LONG_NUMBER = "LONG_NUMBER"
PATTERNS = {
    "DICOM_NAME": (r"[^\s^]+(?:\^[^\s^]*)+",),  # PS3.5 6.2.1: components of a name are separated by ^
    LONG_NUMBER: (r"\d(?:[-./ ]?\d){5,}", r"(?<!\d)\d+[a-z]{1,3}\d{4,}|\b[a-z]{1,3}[-_ ]?\d{5,}"),  # record numbers, dates as YYYYMMDD, UIDs
    "DATE_IN_WORDS": (
        rf"\b{_DAY}[\s/.-]*(?:de\s+|of\s+|den\s+)?(?:{_MONTH})[\s,/.-]*(?:(?:de|del)\s+)?(?:'?\d{{4}}|'?\d{{2}})?\b",
        rf"\b(?:{_MONTH})[\s/.-]*{_DAY}\b(?:[\s,/.-]+\d{{2,4}})?\b",
        rf"\b(?:{_MONTH})[\s,/.-]*(?:de\s+|del\s+)?'?\d{{2,4}}\b",
    ),
    "DATE_IN_NUMBERS": (
        r"\b\d{1,4}\s?[./-]\s?\d{1,2}\s?[./-]\s?\d{1,4}\b",
        r"\b(?:0?[1-9]|1[0-2])[./-](?:1[89]|20|14)\d\d\b|\b(?:1[89]|20|14)\d\d[./-](?:0?[1-9]|1[0-2])\b",
        r"(?<![\w-])(?:19|20)\d\d(?![\w-])",
        r"\b[0-2]?\d:[0-5]\d(?::[0-5]\d)?\b",
    ),
    "NAME_AFTER_TITLE": (rf"\b(?:{TITLES})\b\.?\s+(?:(?:{TITLES})\b\.?\s+)*{_NAMES}", rf"\b(?-i:M)\.\s+{_NAMES}"),
    "NAME_AFTER_LABEL": (rf"\b(?:{LABELS})\b\s*[:=.]?\s*{_NAMES}",),
    "NAME_WITH_PARTICLE": (
        r"\b(?:bin|ibn|bint|abu|abou|abd(?:ul|el|al)?|umm|oum)[\s-]+(?:al-|el-)?\p{L}{2,}|\b(?:al|el)-\p{L}{3,}",
        rf"\b(?:von(?: der| dem)?|van(?: de[nr]?)?|de la|del|dos|das|da)\s+{_CAPITAL}|\b(?:Mc|O')\p{{L}}{{3,}}",
    ),
    "NAME_BY_ENDING": (r"\b\p{L}{3,}(?:[sc]k[iay]|dzk[ia]|wicz|czyk|czak|enko|ovic|guez|quez|[lnrpdt]ez|mann|meyer|meier|maier|mayer)\b",),
}


def engine(model: str) -> "AnalyzerEngine":
    """Presidio's engine with all recognizers of this module, and with the names that an installed spaCy model finds.

    Args:
        model: Name or folder of a spaCy model; empty for none. Nothing is downloaded.

    Raises:
        ConfigError: the model is not installed.
    """
    return _engine(model)


def check_model(model: str) -> None:
    """Refuse a language model that is not on this machine: Presidio would try to download it.

    Raises:
        ConfigError: the model is not installed.
    """
    import spacy.util

    if not (spacy.util.is_package(model) or (Path(model) / "config.cfg").is_file()):
        raise ConfigError("a language model of deidentify.nlp_models is not installed on this machine; install it or take it out of node.toml")


@lru_cache(maxsize=8)
def _engine(model: str) -> "AnalyzerEngine":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside its imports are not ours to mend
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry

        registry = RecognizerRegistry([*_ours(), *_theirs(model)], supported_languages=["en"])
        return AnalyzerEngine(registry=registry, nlp_engine=_nlp(model), supported_languages=["en"])


def _nlp(model: str) -> "NlpEngine":
    """The language model, or an engine that loads nothing. Every text counts as "en": the patterns know no language."""
    from presidio_analyzer.nlp_engine import NoOpNlpEngine, SpacyNlpEngine

    if model:
        check_model(model)
    found: NlpEngine = (
        SpacyNlpEngine([{"lang_code": "en", "model_name": model}]) if model else NoOpNlpEngine([{"lang_code": "en", "model_name": "none"}])
    )
    found.load()
    return found


def _ours() -> list["EntityRecognizer"]:
    from presidio_analyzer import Pattern, PatternRecognizer

    patterned = [
        PatternRecognizer(supported_entity=entity, patterns=[Pattern(f"{entity}-{i}", regex, 1.0) for i, regex in enumerate(regexes)])
        for entity, regexes in PATTERNS.items()
    ]
    return [*patterned, PatternRecognizer(supported_entity="FREQUENT_NAME", deny_list=sorted(read_words("names")))]


def _theirs(model: str) -> list["EntityRecognizer"]:
    from presidio_analyzer import PatternRecognizer
    from presidio_analyzer.predefined_recognizers import (
        DateRecognizer,
        EmailRecognizer,
        IpRecognizer,
        MacAddressRecognizer,
        PhoneRecognizer,
        SpacyRecognizer,
        UrlRecognizer,
    )

    offline = [
        PatternRecognizer(supported_entity="EMAIL_ADDRESS", patterns=EmailRecognizer.PATTERNS),
        PatternRecognizer(supported_entity="URL", patterns=UrlRecognizer.PATTERNS),
    ]
    plain = [DateRecognizer(), IpRecognizer(), MacAddressRecognizer(), PhoneRecognizer()]
    return [*offline, *plain, *([SpacyRecognizer()] if model else [])]
