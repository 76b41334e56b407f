"""A PACS as an archive, over DIMSE: C-FIND, then C-GET or C-MOVE (PS3.4 annex C, Study Root)."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydicom import Dataset
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association

from busgen_client.intake.entity import FIND, GET, MOVE, PLAIN, associated, storage_contexts
from busgen_client.intake.header import SOP_CLASSES, quietly
from busgen_client.intake.incoming import incoming
from busgen_client.intake.query import MODALITY, Query, Series
from busgen_client.intake.receiver import receiving
from busgen_client.intake.spool import Spool
from busgen_client.pacs import PacsSettings, PeerSettings
from busgen_core.errors import StateError, UnavailableError

LONGEST_LIST = 500  # UIDs in one request
SUCCESS, PENDING, PARTLY = 0x0000, (0xFF00, 0xFF01), 0xB000  # PS3.4 C.4.1.1.4, C.4.2.1.5


class PacsArchive:
    """A peer of the settings, asked and fetched from as they say.

    Args:
        settings: This node's title, port and certificates.
        peer: The PACS.
    """

    def __init__(self, settings: PacsSettings, peer: PeerSettings) -> None:
        self._settings, self._peer, self._heard = settings, peer, 0

    def find(self, query: Query) -> Iterator[Series]:
        """As ``Archive.find``. Of patients, nothing is asked for."""
        with self._line(FIND) as line:
            for first, last in query.windows():
                days = f"{first:%Y%m%d}-{last:%Y%m%d}"
                studies = self._ask(line, "STUDY", StudyDate=days, ModalitiesInStudy=MODALITY, StudyDescription="", StudyInstanceUID="")
                for study in studies:
                    if query.takes_study(_text(study, "StudyDate"), _text(study, "StudyDescription")):
                        yield from self._series(line, query, _text(study, "StudyInstanceUID"))

    def _series(self, line: Association, query: Query, study: str) -> Iterator[Series]:
        for found in self._ask(line, "SERIES", StudyInstanceUID=study, Modality=MODALITY, BodyPartExamined="", SeriesInstanceUID=""):
            if query.takes_series(_text(found, "Modality"), _text(found, "BodyPartExamined")):
                series = _text(found, "SeriesInstanceUID")
                objects = self._ask(line, "IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID="", SOPClassUID="")
                wanted = [_text(each, "SOPInstanceUID") for each in objects if _text(each, "SOPClassUID") in {"", *SOP_CLASSES}]
                yield Series(study, series, tuple(dict.fromkeys(filter(None, wanted))))

    def _ask(self, line: Association, level: str, **keys: str) -> list[Dataset]:
        """All answers to one C-FIND; as many as came over the network, or an error."""
        answers: list[Dataset] = []
        _awake(line)
        self._heard = told = 0
        for status, answer in line.send_c_find(_identifier(level, **keys), FIND):
            code, told = status.get("Status"), told + 1
            if code in PENDING and answer is not None:
                answers.append(answer)
            elif code != SUCCESS:
                raise UnavailableError(f"{self._peer.ae_title} {_broke(code)} while it was asked for {level.lower()} entries")
        if told != self._heard:
            raise UnavailableError(f"{self._heard - told} answers of {self._peer.ae_title} got lost on this side; run the same command again")
        return answers

    def _hear(self, _event: evt.Event) -> None:
        self._heard += 1

    def fetch(self, series: Series, wanted: Sequence[str], spool: Spool) -> None:
        """As ``Archive.fetch``; the whole series at once where all of it is wanted."""
        keys = {"StudyInstanceUID": series.study, "SeriesInstanceUID": series.uid}
        if set(wanted) == set(series.objects):
            parts = [_identifier("SERIES", **keys)]
        else:
            lists = (wanted[start : start + LONGEST_LIST] for start in range(0, len(wanted), LONGEST_LIST))
            parts = [_identifier("IMAGE", **keys, SOPInstanceUID="\\".join(uids)) for uids in lists]
        with self._get_line(spool) if self._peer.retrieve == "get" else self._line(MOVE) as line:
            for part in parts:
                self._retrieve(line, part)

    def _retrieve(self, line: Association, part: Dataset) -> None:
        move = self._peer.retrieve == "move"
        answers = line.send_c_move(part, self._settings.ae_title, MOVE) if move else line.send_c_get(part, GET)
        for status, _ in answers:
            if (code := status.get("Status")) not in (SUCCESS, PARTLY, *PENDING):
                raise UnavailableError(f"{self._peer.ae_title} {_broke(code)} while it sent objects")

    @contextmanager
    def _line(self, model: str) -> Iterator[Association]:
        handlers: list[evt.EventHandlerType] = [(evt.EVT_DIMSE_RECV, self._hear)]
        with quietly(), associated(self._settings, self._peer, [build_context(model, list(PLAIN))], handlers=handlers) as line:
            yield line

    @contextmanager
    def _get_line(self, spool: Spool) -> Iterator[Association]:
        contexts = [build_context(GET, list(PLAIN)), *storage_contexts()]
        roles = [build_role(uid, scp_role=True) for uid in sorted(SOP_CLASSES)]
        with quietly(), associated(self._settings, self._peer, contexts, roles=roles, handlers=incoming(spool)) as line:
            yield line


@contextmanager
def fetching(settings: PacsSettings, peer: PeerSettings, data: Path, spool: Spool) -> Iterator[None]:
    """What must run while objects of a peer are fetched: for C-MOVE a receiver, unless one runs on this node already.

    Raises:
        ConfigError: no peer may send, or a certificate cannot be read.
        UnavailableError: the port cannot be listened on.
    """
    with ExitStack() as stack:
        if peer.retrieve == "get":
            stack.enter_context(spool.receiving())
        else:
            with suppress(StateError):
                stack.enter_context(receiving(settings, data, spool))
        yield


def _awake(line: Association) -> None:
    """Wait until the library's own thread runs again after the last request; asleep, it would take an answer to the next one and drop it
    (pynetdicom issue 875)."""
    while line.is_established and getattr(line, "_is_paused", False):
        time.sleep(0.0005)


def _identifier(level: str, **keys: str) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _text(answer: Dataset, keyword: str) -> str:
    value = answer.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _broke(code: int | None) -> str:
    return "broke off" if code is None else f"answered with status 0x{code:04X}"
