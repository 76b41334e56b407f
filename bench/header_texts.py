"""Free texts of breast ultrasound with one identifier each, in seven languages: names from Faker's lists, dates in words from Babel's, neither of
which the product has seen. Arabic names and months in Latin letters are written here, each in several spellings.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from bench.planted import DATE_FORMATS

LOCALES = {"English": "en_GB", "German": "de_DE", "French": "fr_FR", "Spanish": "es_ES", "Portuguese": "pt_BR", "Polish": "pl_PL", "Arabic": ""}
TEXTS = {
    "English": ("US breast left {}", "Ultrasound bilateral {} follow up", "right axilla, {}"),
    "German": ("Mamma links {}", "Sonographie Mamma beidseits {}", "Kontrolle rechts, {}"),
    "French": ("echographie sein gauche {}", "sein droit {} controle", "kyste, {}"),
    "Spanish": ("ecografia mama izquierda {}", "mama derecha {} control", "axila, {}"),
    "Portuguese": ("ultrassom mama esquerda {}", "mama direita {}", "cisto, {}"),
    "Polish": ("USG piersi lewej {}", "USG piersi {} kontrolne", "torbiel, {}"),
    "Arabic": ("US breast {}", "ultrasound left {} screening", "right breast, {}"),
}
TITLES = {"English": "Mrs", "German": "Frau", "French": "Mme", "Spanish": "Sra.", "Portuguese": "Dra.", "Polish": "Pani", "Arabic": "Sayyida"}
ARABIC_GIVEN = (
    "Muhammad",
    "Mohamed",
    "Fatima",
    "Fatimah",
    "Fatma",
    "Khadija",
    "Khadeeja",
    "Zaynab",
    "Zainab",
    "Abdulrahman",
    "Nawal",
    "Hind",
    "Suad",
)
ARABIC_FAMILY = (
    "al-Sayed",
    "El-Masri",
    "Haddad",
    "bin Rashid",
    "Abu Bakr",
    "ibn Khaldun",
    "al-Tikriti",
    "Qabbani",
    "Benali",
    "Trabelsi",
    "El Amrani",
)
ARABIC_MONTHS = (
    *("Yanayir", "Fibrayir", "Mars", "Abril", "Mayu", "Yunyu", "Yulyu", "Aghustus", "Sibtambar", "Uktubar", "Nufimbir", "Disimbir"),
    *("Shubat", "Nisan", "Ayyar", "Haziran", "Tammuz", "Aylul", "Tishrin al-awwal", "Kanun al-thani", "Ramadan", "Shawwal", "Rajab", "Muharram"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
        language: Its language.
        kind: name, titled name, date, date in words, number, phone or e-mail.
        text: The text, at most 64 characters.
        identifier: The part of it that identifies.
        person: The person meant, as "family^given".
    """

    language: str
    kind: str
    text: str
    identifier: str
    person: str


def texts(count: int, seed: int) -> Iterator[Text]:
    """``count`` texts, languages and kinds in turn."""
    from faker import Faker

    rng = random.Random(seed)
    fakers = {language: Faker(locale) for language, locale in LOCALES.items() if locale}
    for fake in fakers.values():
        fake.seed_instance(seed)
    made = 0
    while made < count:
        language = list(LOCALES)[made % len(LOCALES)]
        given, family = _person(fakers.get(language), rng)
        kind, identifier = _identifier(made // len(LOCALES), language, given, family, rng)
        text = rng.choice(TEXTS[language]).format(identifier)
        if len(text) <= 64:
            yield Text(language, kind, text.upper() if rng.random() < 0.3 else text, identifier, f"{family}^{given}")
            made += 1


def _person(fake: object, rng: random.Random) -> tuple[str, str]:
    if fake is None:
        return rng.choice(ARABIC_GIVEN), rng.choice(ARABIC_FAMILY)
    return fake.first_name(), fake.last_name()


def _identifier(turn: int, language: str, given: str, family: str, rng: random.Random) -> tuple[str, str]:
    day = date(1925, 1, 1) + timedelta(days=rng.randrange(36_000))
    number = str(rng.randrange(10**6, 10**10))
    kinds = (
        ("name", f"{given} {family}"),
        ("name", f"{family}, {given}"),
        ("titled name", f"{TITLES[language]} {family}"),
        ("date", day.strftime(DATE_FORMATS[turn % len(DATE_FORMATS)])),
        ("date in words", _in_words(day, language, rng)),
        ("number", number),
        ("phone", f"+{rng.randrange(1, 99)} {number[:3]} {number[3:]}"),
        ("e-mail", f"{family.split()[-1].lower()}@example.org"),
    )
    return kinds[turn % len(kinds)]


def _in_words(day: date, language: str, rng: random.Random) -> str:
    if not LOCALES[language]:
        return f"{day.day} {rng.choice(ARABIC_MONTHS)} {day.year}"
    from babel.dates import format_date

    return format_date(day, rng.choice(("d MMMM yyyy", "long", "d MMM yyyy", "MMMM yyyy")), locale=LOCALES[language])
