"""The door for free text."""

import socket

import pytest
import spacy
import spacy.cli
from hypothesis import given
from hypothesis import strategies as st

from busgen_core.errors import ConfigError
from busgen_privacy.deidentify import deny_words
from busgen_privacy.text import LONGEST, scrub
from busgen_privacy.vocabulary import TOKEN, breast_words, device_words, read_words

DEVICES = ["GE Logiq 5 @10-12MHz", "GE LOGIQ E9 / LOGIQ E9 Agile", "EPIQ 7C", "iU22", "S2000", "SSD-4000", "U-Systems @10-14MHz"]

LEAKS = {
    "e-mail": ("LOGIQ a.b@example.org", "example"),
    "phone": ("LOGIQ +1 216-445-2200", "445"),
    "date with slashes": ("LOGIQ 12/03/1985", "1985"),
    "date as DICOM writes it": ("LOGIQ 19850306", "1985"),
    "record number": ("LOGIQ 404040404", "4040"),
    "name as DICOM writes it": ("LOGIQ DOE^JANE", "DOE"),
    "address of a machine": ("LOGIQ 10.20.30.40", "20"),
    "link": ("LOGIQ https://example.org/x", "example"),
}


@pytest.mark.parametrize("device", DEVICES)
def test_device_models_pass_unchanged(device: str) -> None:
    """Models of real scanners survive the door."""
    assert scrub(device) == device


@pytest.mark.parametrize(("text", "part"), LEAKS.values(), ids=LEAKS)
def test_identifying_pattern_is_struck_out(text: str, part: str) -> None:
    """What identifies by its shape goes, the model beside it stays."""
    assert part not in scrub(text)
    assert scrub(text).startswith("LOGIQ")


def test_denied_word_is_struck_out_in_any_case() -> None:
    """A word of the header's own names does not survive, however it is written."""
    assert scrub("Logiq of JANE", deny={"jane"}) == "Logiq of"


def test_denied_word_glued_to_others_empties_the_text() -> None:
    """A name inside a longer word makes the whole text untrusted."""
    assert scrub("Logiq xjanex", deny={"jane"}) == ""
    assert scrub("Logiq_jane", deny={"jane"}) == "Logiq_"  # joined, not glued


def test_prose_is_not_kept() -> None:
    """Text longer than a short field is dropped whole, and so is text of control characters."""
    assert scrub("a" * (LONGEST + 1)) == ""
    assert scrub("\x00\x1b\n") == ""


def test_door_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up on the network, not even the list of top-level domains."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert scrub("write to nobody@elsewhere.example.net now") == "write to now"


DATES = {
    "English": ("12 March 1985", "March 12, 1985", "12-Mar-85", "12th of May 1985", "Sept. 1985"),
    "German": ("12. März 1985", "12.3.85", "3. Jänner 1985", "Dezember 1985"),
    "French": ("12 février 1985", "1er août 1985", "déc. 1985", "12/03/1985"),
    "Spanish": ("12 de marzo de 1985", "3 de septiembre del 1985", "ene 1985"),
    "Portuguese": ("12 de março de 1985", "1º de maio de 1985", "fev/1985"),
    "Polish": ("12 marca 1985", "3 października 1985", "12 grudnia 85"),
    "Arabic": ("12 Kanun al-thani 1985", "3 Ramadan 1405", "12 Aghustus 1985", "1 Dhu al-hijjah 1405", "7 Rabi II 1405"),
    "numbers": ("1985-03-12", "19850312", "12 03 1985", "3-5-85", "03/1985", "1985", "10:15:23", "12/03/85 10:15"),
}


@pytest.mark.parametrize("date", [date for dates in DATES.values() for date in dates])
def test_date_is_struck_out(date: str) -> None:
    """Dates in seven languages and in numbers leave no digit and no month."""
    assert scrub(f"LOGIQ {date}") == "LOGIQ"


NAMES = {
    "English": ("Mrs. Penhaligon", "Dr Quirke", "seen by Tamsin Penrose", "Emily Smith"),
    "German": ("Frau Übelhör", "Herrn Dr. Öztürk", "Patientin: Trübswetter", "Wolfgang Becker", "von der Tann"),
    "French": ("Mme Lefèvre-Picquet", "M. Duplessix", "Docteur Quignard", "née Lefebvre"),
    "Spanish": ("Sra. Ibarretxe", "Doña Inés", "paciente: Goikoetxea", "Rodríguez"),
    "Portuguese": ("Dra. Conceição", "Senhora Brandão", "dos Santos", "nome: Conceição"),
    "Polish": ("Pani Brzęczyszczykiewicz", "lek. Żak", "Kowalska", "Wiśniewski", "pacjentka Źdźbło"),
    "Arabic": ("Sayyida Qamar", "Abu Bakr", "ibn Khaldun", "al-Tikriti", "Fatima", "Abdul-Rahman"),
}


@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])
def test_name_is_struck_out_by_its_shape(name: str) -> None:
    """Names that no header told of go by title, label, particle, ending or frequency; a title or label beside them may stay."""
    left = set(TOKEN.findall(scrub(f"LOGIQ {name}"))) - {"LOGIQ"}
    assert left <= {"seen", "by", "von", "der", "née", "paciente", "nome", "pacjentka", "Patientin", "M"}


@given(st.text(max_size=LONGEST))
def test_vocabulary_is_a_wall(text: str) -> None:
    """Whatever a text holds, with a vocabulary only its words come out."""
    assert all(token in breast_words() for token in TOKEN.findall(scrub(text, words=breast_words())))


def test_names_of_nobody_do_not_pass_the_vocabularies() -> None:
    """Names without title or label, which no pattern can tell from words, do not survive where there is a vocabulary; the rest does."""
    assert scrub("Mamma links 3 Uhr Zyste Trübswetter", words=breast_words()) == "Mamma links 3 Zyste"
    assert scrub("LOGIQ E9 (Penrose's room)", words=device_words()) == "LOGIQ E9"
    assert scrub("LOGIQ E9/Penrose", words=device_words()) == "LOGIQ"


@pytest.mark.parametrize("device", DEVICES)
def test_device_models_pass_the_vocabulary_unchanged(device: str) -> None:
    """Models of real scanners survive the vocabulary too."""
    assert scrub(device, words=device_words()) == device


def test_vocabularies_hold_no_frequent_name() -> None:
    """No word that may always survive is a frequent name."""
    assert len(read_words("names")) > 200
    assert not read_words("names") & (read_words("device") | read_words("breast"))


def test_site_words_open_the_vocabulary() -> None:
    """A site's own word survives, unless it is a name of the header."""
    words = device_words().with_words({"Zebranova"})
    assert scrub("ZEBRANOVA X5", words=words) == "ZEBRANOVA X5"
    assert scrub("ZEBRANOVA X5", words=words, deny={"zebranova"}) == "X5"


@pytest.mark.parametrize("text", ["12.3.1961", "12_03_1961", "03,12,1961", "0301234567", "(030) 123/45/67", "4711", "4711815"])
def test_denied_number_goes_however_it_is_written(text: str) -> None:
    """The header's own day, telephone and record numbers are known again; the model beside them stays."""
    left = scrub(f"LOGIQ E9 ({text})", deny=deny_words(["19610312", "+49 30 1234567", "00004711", "0004711815"]))
    assert left.strip(" ()") == "LOGIQ E9"


def test_measures_are_no_denied_number() -> None:
    """Digits of two numbers side by side are not put together to a short one."""
    assert scrub("GE Logiq 5 @10-12MHz", deny=deny_words(["1012", "51012"])) == "GE Logiq 5 @10-12MHz"


@pytest.mark.parametrize("text", ["Mueller", "MÜLLER", "Muller", "Müller"])
def test_denied_name_goes_in_every_spelling(text: str) -> None:
    """Umlauts written out, accents missing: the header's own name is known again."""
    assert scrub(f"LOGIQ {text}", deny=deny_words(["Müller"])) == "LOGIQ"


def test_denied_name_without_its_umlaut_goes_too() -> None:
    """A header that writes umlauts out still knows the name with them."""
    assert scrub("LOGIQ Schröter", deny=deny_words(["Schroeter"])) == "LOGIQ"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spaCy model as a site would install one, small: it knows one name."""
    folder = tmp_path_factory.mktemp("model")
    nlp = spacy.blank("xx")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Qwertz"}])
    nlp.to_disk(folder)
    return str(folder)


def test_installed_language_model_is_asked(model: str) -> None:
    """A name that only the site's model knows goes; the patterns work as before."""
    assert scrub("LOGIQ Qwertz") == "LOGIQ Qwertz"
    assert scrub("LOGIQ Qwertz 12 March 1985", models=(model,)) == "LOGIQ"


def test_missing_language_model_is_refused_and_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is not there is an error of the configuration; nobody downloads it."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(spacy.cli, "download", refuse)
    with pytest.raises(ConfigError):
        scrub("LOGIQ", models=("xx_nobody_has_this",))
