"""Every way in from a real PACS: sent by it, fetched with C-GET and C-MOVE, and over DICOMweb; and with everything going wrong."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
import tomli_w
from pydicom import Dataset, dcmread
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from busgen_client.cli import app
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ImageRow
from busgen_client.database import open_store
from busgen_client.intake import pull as pulling
from busgen_client.intake import receiver
from busgen_client.intake.dicomweb import DicomWebArchive
from busgen_client.intake.dimse import PacsArchive, fetching
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.pull import found, pull
from busgen_client.intake.query import Archive, Query, Series
from busgen_client.intake.spool import Spool
from busgen_client.pacs import DicomWebSettings, PacsSettings, PeerSettings
from busgen_client.settings import NodeSettings
from busgen_core.errors import ConfigError, StateError, UnavailableError
from tests.client.node import cohort
from tests.client.orthanc import Orthanc, free_port, listens

# The library forgets to close a socket whose peer was quicker; Python closes it when it collects the association, and warns.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"), pytest.mark.usefixtures("unread", "collected")]

WAYS = ("get", "move", "web")
YEARS = Query(since=date(2020, 1, 1), until=date(2024, 12, 31))


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@contextmanager
def archive(folder: Path, port: int, objects: Sequence[Dataset]) -> Iterator[Orthanc]:
    """An Orthanc that knows the node, filled over C-STORE."""
    running = Orthanc(folder, {"node": ("BUSGEN", port)})
    try:
        sender = AE("SCANNER").associate("127.0.0.1", running.dicom_port, [build_context(objects[0].SOPClassUID)], "ORTHANC")
        assert [sender.send_c_store(each)["Status"].value for each in objects] == [0] * len(objects)
        sender.release()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, port: int, objects: list[Dataset]) -> Iterator[Orthanc]:
    with archive(tmp_path_factory.mktemp("orthanc"), port, objects) as running:
        yield running


@pytest.fixture
def store(node: NodeSettings) -> CohortStore:
    return cohort(node)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(receiver, "BATCH_SECONDS", 0.05)


def settings(port: int, orthanc: Orthanc, way: str = "get", **changes: object) -> PacsSettings:
    peer = PeerSettings(ae_title="ORTHANC", host="127.0.0.1", port=orthanc.dicom_port, retrieve="move" if way == "move" else "get")
    return PacsSettings(port=port, peers={"archive": peer}, dicomweb=DicomWebSettings(url=orthanc.web)).model_copy(update=changes)


def reached(pacs: PacsSettings, way: str) -> Archive:
    return DicomWebArchive(pacs.dicomweb) if way == "web" and pacs.dicomweb else PacsArchive(pacs, pacs.peers["archive"])


def fetch_all(node: NodeSettings, store: CohortStore, pacs: PacsSettings, way: str, labels: Path | None, query: Query = YEARS) -> IntakeResult:
    """Find and pull, as the command does."""
    spool, there = Spool(store, node.data), reached(pacs, way)
    with fetching(pacs, pacs.peers["archive"], node.data, spool):
        return pull(store, spool, there, found(there, query, progress=False), labels, progress=False)


def stored(node: NodeSettings) -> int:
    with Session(open_store(node.data)) as session:
        return len(session.scalars(select(ImageRow)).all())


@contextmanager
def running(node: NodeSettings, store: CohortStore, pacs: PacsSettings) -> Iterator[Future[IntakeResult]]:
    """A receiver that runs until the block ends; its result holds the counts then."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(receiver.receive, store, node.data, pacs, progress=False, stop=stop)
        try:
            until(lambda: result.done() or listens(pacs.port))
            yield result
        finally:
            stop.set()
            result.result()


def until(look: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.mark.parametrize("way", WAYS)
def test_all_is_fetched_once(
    node: NodeSettings,
    store: CohortStore,
    orthanc: Orthanc,
    port: int,
    study: Path,
    objects: list[Dataset],
    way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Everything that the PACS has is in the cohort, a second run fetches nothing, the spool is empty, and no log line names anybody."""
    caplog.set_level(logging.DEBUG)
    pacs = settings(port, orthanc, way)
    assert fetch_all(node, store, pacs, way, study / "labels.csv") == IntakeResult(added=len(objects))
    assert fetch_all(node, store, settings(port, orthanc, "nowhere"), way, study / "labels.csv") == IntakeResult(duplicates=len(objects))
    assert list((node.data / "spool").iterdir()) == []
    assert stored(node) == len(objects)
    told = {str(value) for each in objects for value in (each.SOPInstanceUID, each.StudyInstanceUID, each.PatientID, each.PatientName)}
    ours = [record for record in caplog.records if record.name != "httpx"]  # the test's own client
    assert not any(part in record.getMessage() for record in ours for part in told)


@pytest.mark.parametrize("way", ["get", "web"])
def test_only_what_was_asked_for_is_found(orthanc: Orthanc, port: int, objects: list[Dataset], way: str) -> None:
    """Dates, description and body part are conditions; a series of which the PACS names no body part does not match one."""
    there = reached(settings(port, orthanc, way), way)

    def count(**changes: object) -> int:
        asked = {"since": YEARS.since, "until": YEARS.until} | changes
        return sum(len(each.objects) for each in found(there, Query(**asked), progress=False))  # type: ignore[arg-type]

    first = min(each.StudyDate for each in objects)
    day = date.fromisoformat(first)
    assert count(procedure="us br*") == len(objects)
    assert count(procedure="*thyroid*") == 0
    assert count(body_part="BREAST") == 0
    assert count(since=day, until=day) == sum(each.StudyDate == first for each in objects)
    assert count(since=date(2019, 1, 1), until=date(2019, 12, 31)) == 0


def test_an_answer_that_the_library_drops_is_noticed(orthanc: Orthanc, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """pynetdicom can lose an answer to a query in its own queue (its issue 875): then the query fails, and does not just find less."""
    ask = Association.send_c_find

    def forgetful(line: Association, *words: object) -> Iterator[tuple[Dataset, Dataset | None]]:
        answers = list(ask(line, *words))  # type: ignore[arg-type]
        return iter(answers[1:] if len(answers) > 1 else answers)

    monkeypatch.setattr(Association, "send_c_find", forgetful)
    with pytest.raises(UnavailableError, match="got lost"):
        found(reached(settings(port, orthanc), "get"), YEARS, progress=False)


def test_questions_in_quick_succession_lose_nothing(orthanc: Orthanc, port: int, objects: list[Dataset]) -> None:
    """Five hundred questions over a few associations, as fast as they can be asked, always find the same."""
    there = reached(settings(port, orthanc), "get")
    assert {sum(len(each.objects) for each in found(there, YEARS, progress=False)) for _ in range(6)} == {len(objects)}


def test_other_modalities_stay_where_they_are(tmp_path: Path, port: int, objects: list[Dataset]) -> None:
    """A CT series of the same study is neither found nor fetched."""
    other = dcmread(objects[0].filename)
    other.Modality, other.SeriesInstanceUID, other.SOPInstanceUID = "CT", "1.2.3.4", "1.2.3.4.5"
    with archive(tmp_path / "orthanc", port, [objects[0], other]) as there:
        for way in ("get", "web"):
            assert [len(each.objects) for each in found(reached(settings(port, there, way), way), YEARS, progress=False)] == [1]


def test_what_it_sends_is_taken_in(node: NodeSettings, store: CohortStore, orthanc: Orthanc, port: int, study: Path, objects: list[Dataset]) -> None:
    """C-STORE from the PACS, twice: each object once; and a storage commitment that is true of each object."""
    pacs = settings(port, orthanc, labels=study / "labels.csv", commitment=True)
    with running(node, store, pacs) as result:
        assert orthanc.send("node", orthanc.instances()) == "Success"
        until(lambda: stored(node) == len(objects))
        here = [(each.SOPClassUID, each.SOPInstanceUID) for each in objects]
        assert orthanc.commitment("node", here)["Status"] == "Success"
        answer = orthanc.commitment("node", [*here, (objects[0].SOPClassUID, "1.2.3.4")])
        assert [each["SOPInstanceUID"] for each in answer["Failures"]] == ["1.2.3.4"]  # type: ignore[attr-defined]
        assert len(answer["Success"]) == len(here)  # type: ignore[arg-type]
        assert orthanc.send("node", orthanc.instances()) == "Success"
    assert result.result() == IntakeResult(added=len(objects), duplicates=len(objects))


def test_what_is_in_quarantine_is_not_committed(node: NodeSettings, store: CohortStore, orthanc: Orthanc, port: int, objects: list[Dataset]) -> None:
    """An object that arrived and waits for its label is answered as failed: the node has not taken it in."""
    with running(node, store, settings(port, orthanc, commitment=True)):
        assert orthanc.send("node", orthanc.instances()[:1]) == "Success"
        (uid,) = (orthanc.client.get(f"/instances/{each}/simplified-tags").json()["SOPInstanceUID"] for each in orthanc.instances()[:1])
        answer = orthanc.commitment("node", [(objects[0].SOPClassUID, uid)])
    assert answer["Status"] == "Failure"
    assert [(each["SOPInstanceUID"], each["FailureReason"]) for each in answer["Failures"]] == [(uid, 0x0110)]  # type: ignore[attr-defined]


def test_no_commitment_is_given_unless_it_is_switched_on(node: NodeSettings, store: CohortStore, orthanc: Orthanc, port: int) -> None:
    """The node is no archive, so by default it does not speak of commitment at all."""
    with running(node, store, settings(port, orthanc)):
        line = AE("ORTHANC").associate("127.0.0.1", port, [build_context("1.2.840.10008.1.20.1")], "BUSGEN")
        assert not line.accepted_contexts
        line.release() if line.is_established else None


@pytest.mark.parametrize("way", ["get", "web"])
def test_a_pacs_that_dies_while_it_is_asked_loses_nothing(
    node: NodeSettings, store: CohortStore, tmp_path: Path, port: int, study: Path, objects: list[Dataset], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a transfer: the command says how much is missing; run again, it fetches that and nothing twice."""
    with archive(tmp_path / "orthanc", port, objects) as there:
        pacs = settings(port, there, way)
        kill_after(there, monkeypatch, arrivals=5)
        with pytest.raises(UnavailableError, match=f"{len(objects) - 5} objects did not arrive"):
            fetch_all(node, store, pacs, way, study / "labels.csv")
        assert stored(node) == 5
        there.start()
        assert fetch_all(node, store, pacs, way, study / "labels.csv") == IntakeResult(added=len(objects) - 5, duplicates=5)
    assert stored(node) == len(objects)


def kill_after(there: Orthanc, monkeypatch: pytest.MonkeyPatch, *, arrivals: int) -> None:
    """Kill the archive when so many objects have arrived, before the last of them is answered."""
    admit, seen = Spool.admit, [0]

    def counting(spool: Spool, finished: Path, sop_uid: str) -> None:
        admit(spool, finished, sop_uid)
        seen[0] += 1
        if seen[0] == arrivals:
            there.kill()

    monkeypatch.setattr(Spool, "admit", counting)


def test_a_pacs_that_dies_while_it_sends_loses_nothing(
    node: NodeSettings, store: CohortStore, tmp_path: Path, port: int, study: Path, objects: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of its C-STOREs, started again, and told to send all: every object is there, none twice."""
    with archive(tmp_path / "orthanc", port, objects) as there:
        with running(node, store, settings(port, there, labels=study / "labels.csv")) as result:
            with monkeypatch.context() as patched:
                kill_after(there, patched, arrivals=4)
                there.send("node", there.instances(), wait=False)
                until(lambda: stored(node) == 4)
            there.start()
            assert there.send("node", there.instances()) == "Success"
        assert result.result() == IntakeResult(added=len(objects), duplicates=4)
    assert stored(node) == len(objects)


def test_a_pull_that_is_killed_goes_on_from_the_spool(
    node: NodeSettings, store: CohortStore, orthanc: Orthanc, port: int, study: Path, objects: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had arrived when the node stopped is taken in by the next run, and not fetched again."""
    pacs, spool = settings(port, orthanc), Spool(store, node.data)
    there = reached(pacs, "get")
    series = found(there, YEARS, progress=False)
    with fetching(pacs, pacs.peers["archive"], node.data, spool):
        there.fetch(series[0], series[0].objects, spool)
    assert len(spool.waiting()) == len(series[0].objects)
    fetched: list[Series] = []
    fetch = PacsArchive.fetch
    monkeypatch.setattr(PacsArchive, "fetch", lambda archive, each, *rest: (fetched.append(each), fetch(archive, each, *rest))[1])
    assert fetch_all(node, store, pacs, "get", study / "labels.csv").added == len(objects)
    assert series[0] not in fetched
    assert len(fetched) == len(series) - 1


def test_a_move_works_beside_a_running_receiver(
    node: NodeSettings, store: CohortStore, orthanc: Orthanc, port: int, study: Path, objects: list[Dataset]
) -> None:
    """A node that receives all day can also pull with C-MOVE: the receiver takes the objects, and nothing is lost between the two."""
    pacs = settings(port, orthanc, "move", labels=study / "labels.csv")
    with running(node, store, pacs) as result:
        pulled = fetch_all(node, store, pacs, "move", study / "labels.csv")
    assert pulled.added + result.result().added == len(objects)
    assert stored(node) == len(objects)


def test_a_pull_keeps_a_second_intake_out(node: NodeSettings, store: CohortStore, orthanc: Orthanc, port: int, study: Path) -> None:
    """While one intake runs, a pull is refused by name, before anything is fetched."""
    with store.intake(), pytest.raises(StateError, match="another intake"):
        fetch_all(node, store, settings(port, orthanc), "get", study / "labels.csv")
    assert not Spool(store, node.data).waiting()


@pytest.mark.parametrize("way", WAYS)
def test_an_archive_that_is_not_there_is_named(node: NodeSettings, store: CohortStore, orthanc: Orthanc, port: int, way: str) -> None:
    """Nobody listening is an error that says what to check, not a hang or an empty result."""
    nobody = PeerSettings(ae_title="ORTHANC", host="127.0.0.1", port=free_port())
    pacs = settings(port, orthanc).model_copy(
        update={"peers": {"archive": nobody}, "dicomweb": DicomWebSettings(url=f"http://127.0.0.1:{free_port()}/x")}
    )
    with pytest.raises(UnavailableError, match="cannot be reached"):
        fetch_all(node, store, pacs, way, None)


def test_a_dicomweb_secret_is_sent_and_never_shown(orthanc: Orthanc, tmp_path: Path) -> None:
    """A service that wants a secret gets the one in the file; without it the error says so, and holds neither secret nor address."""
    secret = tmp_path / "secret"
    secret.write_text("user:a long password\n")
    seen: list[str] = []
    with http_server(lambda headers: (seen.append(headers.get("Authorization", "")), 401 if len(seen) == 1 else 200)[1]) as url:
        with pytest.raises(UnavailableError, match="refuses this node") as caught:
            found(DicomWebArchive(DicomWebSettings(url=url)), Query(since=date(2024, 1, 1), until=date(2024, 1, 2)), progress=False)
        assert (
            found(
                DicomWebArchive(DicomWebSettings(url=url, password_file=secret)),
                Query(since=date(2024, 1, 1), until=date(2024, 1, 2)),
                progress=False,
            )
            == []
        )
    assert seen[0] == ""
    assert seen[1].startswith("Basic ")
    assert "password" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        DicomWebArchive(DicomWebSettings(url=url, token_file=tmp_path / "nowhere"))


GOOD = {
    "studies": {"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "00080020": {"vr": "DA", "Value": ["20240101"]}},
    "series": {"0020000E": {"vr": "UI", "Value": ["1.2.3.4"]}, "00080060": {"vr": "CS", "Value": ["US"]}},
    "instances": {"00080018": {"vr": "UI", "Value": ["1.2.3.4.5"]}},
}
ODD = ("null", "[1]", "[null]", "[[]]", '"x"', "1", '[{{"{tag}": null}}]', '[{{"{tag}": [1]}}]', '[{{"{tag}": "x"}}]')


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("level", "tag"), [("studies", "00080020"), ("series", "00080060"), ("instances", "00080018")])
def test_a_dicomweb_answer_that_is_none_is_named(level: str, tag: str, odd: str) -> None:
    """JSON that is no list of data sets, at whichever question, ends in the error that says so, and shows nothing of it."""
    bodies = {name: json.dumps([entry]) for name, entry in GOOD.items()} | {level: odd.format(tag=tag)}
    with http_server(lambda _: 200, lambda path: bodies[path.partition("?")[0].rpartition("/")[2]].encode()) as url:
        archive = DicomWebArchive(DicomWebSettings(url=url))
        with pytest.raises(UnavailableError, match=r"no usable answer \(not a"):
            list(archive.find(Query(since=date(2024, 1, 1), until=date(2024, 1, 2))))


def test_dicomweb_answers_that_are_whole_are_understood() -> None:
    """The counter-check: the same service without an odd answer has one object."""
    with http_server(lambda _: 200, lambda path: json.dumps([GOOD[path.partition("?")[0].rpartition("/")[2]]]).encode()) as url:
        (series,) = DicomWebArchive(DicomWebSettings(url=url)).find(Query(since=date(2024, 1, 1), until=date(2024, 1, 2)))
    assert (series.study, series.uid, series.objects) == ("1.2.3", "1.2.3.4", ("1.2.3.4.5",))


@contextmanager
def http_server(answer: Callable[[dict[str, str]], int], body: Callable[[str], bytes] = lambda _: b"[]") -> Iterator[str]:
    """A service that answers every question with what ``body`` gives for its path and the status that ``answer`` gives."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer(dict(self.headers.items())))
            self.send_header("Content-Type", "application/dicom+json")
            self.end_headers()
            self.wfile.write(body(self.path))

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_commands_pull_count_and_take_up_again(
    node: NodeSettings, orthanc: Orthanc, port: int, tmp_path: Path, study: Path, objects: list[Dataset]
) -> None:
    """The commands, from node.toml to counts: a dry run, a pull without labels, what waits with them, and DICOMweb, which has nothing left to do."""
    config = tmp_path / "node.toml"
    peer = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom_port}
    config.write_text(
        config.read_text() + "\n" + tomli_w.dumps({"pacs": {"port": port, "peers": {"archive": peer}, "dicomweb": {"url": orthanc.web}}})
    )

    def run(*words: object) -> object:
        done = CliRunner().invoke(app, ["intake", *map(str, words), "--json", "--config", str(config)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    span, nothing = ("--from", "2020-01-01", "--to", "2024-12-31"), {"added": 0, "duplicates": 0, "skipped": 0, "quarantined": 0}
    studies = len({each.StudyInstanceUID for each in objects})
    assert run("pull", "archive", *span, "--dry-run") == {"studies": studies, "series": studies, "objects": len(objects)}
    assert run("pull", "archive", *span) == nothing | {"quarantined": len(objects)}
    assert run("waiting", "--labels", study / "labels.csv") == nothing | {"added": len(objects)}
    assert run("dicomweb", *span, "--labels", study / "labels.csv") == nothing | {"duplicates": len(objects)}
    with pytest.raises(ConfigError, match="no peer called"):
        CliRunner().invoke(app, ["intake", "pull", "elsewhere", *span, "--config", str(config)], catch_exceptions=False)
