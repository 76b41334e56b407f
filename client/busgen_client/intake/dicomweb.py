"""A DICOMweb service as an archive: QIDO-RS to find, WADO-RS to fetch (PS3.18), through dicomweb-client.

Guarantees: neither addresses with UIDs nor answers get into logs or errors; no proxy and no stored credential is used that the settings
do not name.
"""

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import requests
from dicomweb_client import DICOMwebClient
from requests.auth import HTTPBasicAuth

from busgen_client.intake.header import SOP_CLASSES, quietly
from busgen_client.intake.query import MODALITY, Query, Series
from busgen_client.intake.spool import Spool
from busgen_client.pacs import DicomWebSettings
from busgen_core.errors import ConfigError, UnavailableError

PAGE = 500  # entries of one answer
TIMEOUT_SECONDS = (15.0, 300.0)  # to connect, and between two bytes

REFUSALS = frozenset({401, 403, 407, 429, 503})  # of the node or the moment, not of one object

Entry = dict[str, dict[str, object]]
Found = TypeVar("Found")
log = logging.getLogger("busgen.dicomweb")

for _name in ("dicomweb_client", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


class DicomWebArchive:
    """The DICOMweb service of the settings.

    Raises:
        ConfigError: a secret cannot be read.
    """

    def __init__(self, settings: DicomWebSettings) -> None:
        url = str(settings.url).rstrip("/")
        self._client = DICOMwebClient(url, session=_session(settings), permissive_uid=True, timeout=TIMEOUT_SECONDS)
        self._client.set_http_retry_params(retry=False)  # ``pull`` is patient already

    def find(self, query: Query) -> Iterator[Series]:
        """As ``Archive.find``. Of patients, nothing is asked for."""
        for first, last in query.windows():
            filters = {"StudyDate": f"{first:%Y%m%d}-{last:%Y%m%d}", "ModalitiesInStudy": MODALITY}
            for study in self._search(self._client.search_for_studies, filters, fields=["StudyDescription"]):
                if query.takes_study(_text(study, "00080020"), _text(study, "00081030")):
                    yield from self._series(query, _text(study, "0020000D"))

    def _series(self, query: Query, study: str) -> Iterator[Series]:
        us = {"Modality": MODALITY}
        for found in self._search(self._client.search_for_series, us, study_instance_uid=study, fields=["BodyPartExamined"]):
            if query.takes_series(_text(found, "00080060"), _text(found, "00180015")):
                series = _text(found, "0020000E")
                objects = self._search(self._client.search_for_instances, {}, study_instance_uid=study, series_instance_uid=series)
                wanted = [_text(each, "00080018") for each in objects if _text(each, "00080016") in {"", *SOP_CLASSES}]
                yield Series(study, series, tuple(dict.fromkeys(filter(None, wanted))))

    def _search(self, search: Callable[..., list[Entry]], filters: Mapping[str, str], **scope: object) -> list[Entry]:
        """All entries, page by page. A service that knows no offset sends its first page again, so nothing new is the end too."""
        entries: dict[str, Entry] = {}
        offset, before = 0, -1
        while len(entries) > before:
            before = len(entries)
            page = _entries(_asked(partial(search, search_filters=dict(filters), limit=PAGE, offset=offset, **scope)))
            entries |= {json.dumps(entry, sort_keys=True): entry for entry in page}
            offset += len(page)
        return list(entries.values())

    def fetch(self, series: Series, wanted: Sequence[str], spool: Spool) -> None:
        """As ``Archive.fetch``, one object after the other, each in the transfer syntax in which the service has it."""
        for uid in wanted:
            try:
                content = _asked(partial(self._object, series, uid))
            except _AnswerError as error:
                log.warning("dicomweb.object_failed status=%s", error.status)
            else:
                spool.put(content, uid)

    def _object(self, series: Series, uid: str) -> bytes:
        out = io.BytesIO()
        found = self._client.retrieve_instance(series.study, series.uid, uid, (("application/dicom", "*"),))
        found.save_as(out, enforce_file_format=True)
        return out.getvalue()


class _AnswerError(UnavailableError):
    """The service is there, and this is no answer: an HTTP status, or nothing that can be read."""

    def __init__(self, status: str) -> None:
        self.status = status
        super().__init__(f"the DICOMweb service gave no usable answer ({status}); check its address and this node's rights there")


def _asked(ask: Callable[[], Found]) -> Found:
    """What ``ask`` returns. Texts of its errors hold addresses with UIDs, or quote the answer, so they are dropped."""
    try:
        with quietly():
            return ask()
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in REFUSALS:
            raise UnavailableError(f"the DICOMweb service refuses this node (status {status}); check the secret in its settings") from None
        raise _AnswerError(f"status {status}") from None
    except requests.RequestException as error:
        raise UnavailableError(f"the DICOMweb service cannot be reached, or broke off ({type(error).__name__})") from None
    except Exception as error:
        raise _AnswerError(type(error).__name__) from None


def _session(settings: DicomWebSettings) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    if settings.ca_file:
        session.verify = str(settings.ca_file)
    if settings.token_file:
        session.headers["Authorization"] = f"Bearer {_secret(settings.token_file)}"
    if settings.password_file:
        user, _, password = _secret(settings.password_file).partition(":")
        session.auth = HTTPBasicAuth(user, password)
    return session


def _secret(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, ValueError):
        raise ConfigError("pacs.dicomweb.token_file or pacs.dicomweb.password_file cannot be read") from None


def _entries(page: object) -> list[Entry]:
    """One page of an answer, if it is what PS3.18 F.2 says: a list of objects.

    Raises:
        _AnswerError: it is not.
    """
    if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
        raise _AnswerError("not a list of data sets")
    return page


def _text(answer: Mapping[str, object], tag: str) -> str:
    """First value of an attribute in the DICOM JSON model (PS3.18 annex F); empty if there is none.

    Raises:
        _AnswerError: what stands there is no attribute.
    """
    attribute = answer.get(tag, {})
    if not isinstance(attribute, dict):
        raise _AnswerError("not an attribute")
    values = attribute.get("Value")
    return str(values[0]) if isinstance(values, list) and values and values[0] is not None else ""
