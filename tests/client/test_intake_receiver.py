"""The C-STORE receiver against senders that behave, and senders that do not."""

import errno
import io
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom import Dataset, dcmread
from pynetdicom import AE, build_context, dimse_messages
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from sqlalchemy import select
from sqlalchemy.orm import Session

from busgen_client import cli
from busgen_client.cohort import CohortStore
from busgen_client.cohort_rows import ImageRow, QuarantineRow
from busgen_client.consent import withdraw
from busgen_client.database import open_store
from busgen_client.intake import entity, incoming, receiver, spool
from busgen_client.intake.dicom import SPOOL, intake_dicom
from busgen_client.intake.entity import VERIFICATION, associated
from busgen_client.intake.findings import IntakeResult
from busgen_client.intake.labels import read_labels
from busgen_client.intake.receiver import receiving
from busgen_client.intake.run import take_in
from busgen_client.intake.spool import Spool
from busgen_client.pacs import PacsSettings, PeerSettings
from busgen_client.settings import NodeSettings, load_settings
from busgen_core.errors import ConfigError, StateError, StorageFullError, UnavailableError
from tests.client.node import cohort
from tests.client.orthanc import free_port

# The library forgets to close a socket whose peer was quicker; Python closes it when it collects the association, and warns.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"), pytest.mark.usefixtures("unread", "collected")]

ULTRASOUND, EXPLICIT = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.1.2.1"
OUT_OF_RESOURCES = 0xA700


@pytest.fixture
def store(node: NodeSettings) -> CohortStore:
    return cohort(node)


@pytest.fixture
def pacs() -> PacsSettings:
    return PacsSettings(port=free_port(), associations=4, peers={"scanner": PeerSettings(ae_title="SCANNER", host="127.0.0.1")})


def call(pacs: PacsSettings, *, title: str = "SCANNER", called: str = "BUSGEN") -> Association:
    """An association from a sender, established or not."""
    sender = AE(title)
    sender.acse_timeout = sender.dimse_timeout = sender.connection_timeout = 10
    contexts = [build_context(ULTRASOUND, EXPLICIT), build_context(VERIFICATION)]
    return sender.associate("127.0.0.1", pacs.port, contexts, called)


@contextmanager
def sending(pacs: PacsSettings) -> Iterator[Association]:
    line = call(pacs)
    assert line.is_established
    yield line
    line.release()


def send(pacs: PacsSettings, objects: Sequence[Dataset]) -> list[int | None]:
    with sending(pacs) as line:
        return [line.send_c_store(each).get("Status") for each in objects]


def drain(store: CohortStore, waiting: Spool, labels: Path | None, *, held: bool = False) -> IntakeResult:
    return take_in(store, waiting.sources(read_labels(labels), held=held), total=None, event="test", progress=False)


def test_stored_is_answered_for_what_is_on_the_disk(node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset]) -> None:
    """Each object that was answered with success is one whole file, readable by the node's user alone, whose name says nothing; twice is once."""
    waiting = Spool(store, node.data)
    with receiving(pacs, node.data, waiting):
        assert send(pacs, [*objects[:3], objects[0]]) == [0, 0, 0, 0]
    files = waiting.waiting()
    stored = [dcmread(io.BytesIO(store.vault.read(file, role=SPOOL, name=file.stem))) for file in files]
    assert [each.SOPInstanceUID for each in stored[:2]] == [each.SOPInstanceUID for each in objects[1:3]]
    assert {each.PixelData for each in stored} == {each.PixelData for each in objects[:3]}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (node.data / "spool").stat().st_mode & 0o777 == 0o700
    assert all(set(file.stem) <= set("0123456789abcdef-") for file in files)
    assert not any(file.name.startswith("partial") for file in (node.data / "spool").iterdir())


def test_an_object_is_synced_before_success(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is flushed to the disk, then renamed, then its folder flushed, all before the answer goes out."""
    steps: list[str] = []
    store.vault.check()  # makes its keys
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file"), sync(handle))[1])
    monkeypatch.setattr(Path, "rename", lambda path, target: (steps.append("rename"), rename(path, target))[1])
    monkeypatch.setattr(incoming, "SUCCESS", 0xB007)  # a warning, so that the answer can be told from one sent earlier
    with receiving(pacs, node.data, Spool(store, node.data)):
        assert send(pacs, objects[:1]) == [0xB007]
        assert steps == ["file", "rename", "folder"]


def test_an_association_aborted_half_way_loses_and_leaves_nothing(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset]
) -> None:
    """Whole objects stay, the torn one is deleted at once, and the sender can send again."""
    waiting = Spool(store, node.data)
    with receiving(pacs, node.data, waiting):
        line = call(pacs)
        assert [line.send_c_store(each)["Status"].value for each in objects[:2]] == [0, 0]
        for part in half_of(objects[2]):
            line.dul.send_pdu(part)
        (torn,) = until(lambda: [file for file in partials(node) if file.stat().st_size > 1000])
        line.abort()
        assert len(waiting.waiting()) == 2
        until(lambda: not torn.exists())
        assert send(pacs, objects[:3]) == [0, 0, 0]
    assert len(waiting.waiting()) == 3


def test_what_a_crash_left_half_written_is_swept(node: NodeSettings, store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished files of a dead process go when the next one starts; while it runs, at once those that nobody has open, and those that
    nobody writes to any more."""
    dead = node.data / "spool" / "partial-4194305"  # above the largest process id of Linux
    dead.mkdir(parents=True)
    (dead / "torn.dcm").write_bytes(b"x")
    waiting = Spool(store, node.data)
    with waiting.receiving() as folder:
        assert not dead.exists()
        (folder / "torn.dcm").write_bytes(b"x")
        (folder / "whole.sealed").write_bytes(b"x")  # on its way into the spool
        with (folder / "coming.dcm").open("wb"):
            waiting.sweep()
            assert sorted(file.name for file in partials(node)) == ["coming.dcm", "whole.sealed"]
            monkeypatch.setattr(spool, "STALE_SECONDS", -1.0)
            waiting.sweep()
            assert not partials(node)


def test_an_object_that_is_too_large_takes_no_room_while_it_comes(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the largest that is taken in, nothing of it stays on the disk; when it ends, it is refused, and the same association goes on."""
    most, seen = 20_000, [0]
    monkeypatch.setattr(spool, "LARGEST", most)
    look = Spool.outgrown

    def looking(waiting: Spool, size: int) -> bool:
        seen.append(sum(file.stat().st_size for file in partials(node)))
        return look(waiting, size)

    monkeypatch.setattr(Spool, "outgrown", looking)
    monkeypatch.setattr(entity, "PDU_BYTES", 4096)
    with receiving(pacs, node.data, Spool(store, node.data)):
        small = deepcopy(objects[1])
        small.PixelData = small.PixelData[:5000]
        assert send(pacs, [objects[0], small]) == [OUT_OF_RESOURCES, 0]
        assert not partials(node)
    assert most < max(seen) < most + 2 * 4096


def test_an_object_that_never_ends_is_not_kept(
    node: NodeSettings,
    store: CohortStore,
    pacs: PacsSettings,
    objects: list[Dataset],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When what comes in is more than the spool holds, it is deleted although it has not ended; the next sender stores as ever."""
    monkeypatch.setattr(spool, "LOOK_SECONDS", 0.0)
    caplog.set_level(logging.WARNING)
    waiting = Spool(store, node.data, most_bytes=10_000)
    with receiving(pacs, node.data, waiting):
        line = call(pacs)
        for part in half_of(objects[0]):
            line.dul.send_pdu(part)
        until(lambda: "receiver.no_room" in caplog.messages)
        assert not partials(node)
        small = deepcopy(objects[1])
        small.PixelData = small.PixelData[:1000]
        assert send(pacs, [small]) == [0]
        line.abort()


def test_a_disk_that_fails_breaks_one_association_and_leaves_nothing(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread dies of it, which the tests would say; the torn file is deleted, and the next object is stored."""

    def on_a_full_disk(*words: object, **more: object) -> object:
        file = tempfile.NamedTemporaryFile(*words, **more)  # type: ignore[call-overload]  # noqa: SIM115
        file.write(b"something of it")
        file.write = fail
        return file

    def fail(_data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with receiving(pacs, node.data, Spool(store, node.data)):
        with monkeypatch.context() as patched:
            patched.setattr(dimse_messages, "NamedTemporaryFile", on_a_full_disk)
            line = call(pacs)
            assert line.send_c_store(objects[0]).get("Status") is None
            until(lambda: line.is_aborted)
        until(lambda: not partials(node))
        assert send(pacs, objects[:1]) == [0]


def half_of(header: Dataset) -> list[object]:
    """The first protocol data units of a C-STORE that is never finished."""
    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    content = encode(header, False, True)
    assert content is not None
    request.DataSet = io.BytesIO(content)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    parts = list(message.encode_msg(1, 4096))
    return parts[: len(parts) // 2]


def partials(node: NodeSettings) -> list[Path]:
    return list((node.data / "spool").glob("partial-*/*"))


def until(look: Callable[[], object], seconds: float = 120.0) -> list[Path]:
    """What ``look`` finds, once it finds anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found if isinstance(found, list) else []
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    ("title", "called", "host"),
    {
        "unknown title": ("STRANGER", "BUSGEN", "127.0.0.1"),
        "another node meant": ("SCANNER", "ELSEWHERE", "127.0.0.1"),
        "right title, wrong address": ("SCANNER", "BUSGEN", "192.0.2.1"),
    }.values(),
    ids=["unknown title", "another node meant", "right title, wrong address"],
)
def test_strangers_are_refused(node: NodeSettings, store: CohortStore, pacs: PacsSettings, title: str, called: str, host: str) -> None:
    """Title, called title and address must all be right."""
    with receiving(pacs, node.data, Spool(store, node.data)):
        line = call(pacs)
        assert line.is_established
        line.release()
    there = pacs.model_copy(update={"peers": {"scanner": PeerSettings(ae_title="SCANNER", host=host)}})
    with receiving(there, node.data, Spool(store, node.data)):
        assert not call(there, title=title, called=called).is_established


def test_a_title_is_bound_to_its_address(node: NodeSettings, store: CohortStore, pacs: PacsSettings) -> None:
    """One peer cannot speak in the name of another."""
    peers = {"here": PeerSettings(ae_title="HERE", host="127.0.0.1"), "there": PeerSettings(ae_title="THERE", host="192.0.2.1")}
    both = pacs.model_copy(update={"peers": peers})
    with receiving(both, node.data, Spool(store, node.data)):
        line = call(both, title="HERE")
        assert line.is_established
        line.release()
        assert call(both, title="THERE").is_rejected


def test_nobody_is_heard_when_nobody_is_named(node: NodeSettings, store: CohortStore, pacs: PacsSettings) -> None:
    """Without a peer that may send, the receiver does not start."""
    quiet = pacs.model_copy(update={"peers": {"scanner": PeerSettings(ae_title="SCANNER", host="127.0.0.1", sends=False)}})
    with pytest.raises(ConfigError, match="no peer may send"), receiving(quiet, node.data, Spool(store, node.data)):
        pass


def test_a_flood_of_associations_is_refused_by_limit(node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset]) -> None:
    """Of 200 associations at once, as many are accepted as the limit says; a sender that was there before, and one after, store as ever."""
    waiting = Spool(store, node.data)
    with receiving(pacs, node.data, waiting):
        with sending(pacs) as early:
            with ThreadPoolExecutor(40) as pool:
                lines = list(pool.map(lambda _: call(pacs), range(200)))
            assert sum(line.is_established for line in lines) <= pacs.associations - 1
            assert sum(line.is_rejected for line in lines) > 0
            assert early.send_c_store(objects[0])["Status"].value == 0
            for line in lines:
                if line.is_established:
                    line.release()
        until(lambda: not any(thread.name.startswith("AcceptorThread") for thread in threading.enumerate()))
        assert send(pacs, objects[1:2]) == [0]
    assert len(waiting.waiting()) == 2


def test_a_full_spool_refuses_until_there_is_room(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over its limit the spool answers 'out of resources', and new associations 'temporary congestion'; after intake it takes again."""
    monkeypatch.setattr(spool, "LOOK_SECONDS", 0.0)
    waiting = Spool(store, node.data, most_bytes=100_000)
    with receiving(pacs, node.data, waiting):
        assert send(pacs, objects[:4]) == [0, 0, OUT_OF_RESOURCES, OUT_OF_RESOURCES]
        refused = call(pacs)
        primitive = refused.acceptor.primitive
        assert refused.is_rejected
        assert primitive is not None
        assert (primitive.result, primitive.result_source, primitive.diagnostic) == (2, 3, 1)
        assert drain(store, waiting, study / "labels.csv").added == 2
        assert send(pacs, objects[2:4]) == [0, 0]


def test_a_disk_that_is_nearly_full_refuses(node: NodeSettings, store: CohortStore, tmp_path: Path) -> None:
    """With less room on the disk than must stay free, nothing is kept, and nothing is left behind."""
    tight = Spool(store, node.data, free_bytes=float("inf"))
    with tight.receiving(), pytest.raises(StorageFullError):
        tight.put(b"x", "1.2.3")
    assert not tight.waiting()
    assert not partials(node)


def test_tls_is_required_where_it_is_configured(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], tmp_path: Path
) -> None:
    """With certificates, a peer that shows one is heard; plain text and no certificate are not, and who never shakes hands keeps nobody waiting."""
    certificate, key = self_signed(tmp_path)
    secure = pacs.model_copy(update={"certificate_file": certificate, "key_file": key, "ca_file": certificate})
    there = PeerSettings(ae_title="BUSGEN", host="127.0.0.1", port=pacs.port, tls=True)
    bare = PacsSettings(ae_title="SCANNER", ca_file=certificate)
    shown = bare.model_copy(update={"certificate_file": certificate, "key_file": key})
    contexts = [build_context(ULTRASOUND, EXPLICIT)]
    with receiving(secure, node.data, Spool(store, node.data)), socket.create_connection(("127.0.0.1", pacs.port)):
        assert not call(secure).is_established
        for stranger in (bare, PacsSettings(ae_title="SCANNER")):
            with pytest.raises(UnavailableError), associated(stranger, there, contexts):
                pass
        with associated(shown, there, contexts) as line:
            assert line.send_c_store(objects[0])["Status"].value == 0


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    (folder / "node.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "node.key").write_bytes(pem)
    return folder / "node.crt", folder / "node.key"


def test_a_second_receiver_is_refused_by_name(node: NodeSettings, store: CohortStore, pacs: PacsSettings) -> None:
    """Two receivers would answer for one spool."""
    with receiving(pacs, node.data, Spool(store, node.data)):
        other = pacs.model_copy(update={"port": free_port()})
        with pytest.raises(StateError, match="another receiver"), receiving(other, node.data, Spool(store, node.data)):
            pass


def test_a_taken_port_is_named(node: NodeSettings, store: CohortStore, pacs: PacsSettings) -> None:
    """A port that another program has is an error that says so."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", pacs.port))
        other.listen()
        with pytest.raises(UnavailableError, match="in use"), receiving(pacs, node.data, Spool(store, node.data)):
            pass


def test_nothing_of_a_patient_is_logged(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    """With every logger at its most talkative, no line holds an identifier of the objects, and pynetdicom says nothing."""
    caplog.set_level(logging.DEBUG)
    with receiving(pacs, node.data, Spool(store, node.data)):
        send(pacs, objects[:2])
        assert call(pacs, title="STRANGER").is_rejected
    assert [record.message for record in caplog.records if record.name == "busgen.receiver"][-1] == "receiver.refused why=unknown"
    told = {str(value) for each in objects[:2] for value in (each.SOPInstanceUID, each.PatientID, each.PatientName, each.StudyInstanceUID)}
    assert len(told) >= 6
    assert not any(part in record.getMessage() for record in caplog.records for part in told)
    assert not any(record.name.startswith("pynetdicom") for record in caplog.records)


def test_what_waits_for_a_label_is_kept_and_taken_up_again(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], study: Path
) -> None:
    """Without labels every object goes to quarantine and is kept; with them it is admitted, and spool and quarantine are empty."""
    waiting = Spool(store, node.data)
    with receiving(pacs, node.data, waiting):
        assert send(pacs, objects) == [0] * len(objects)
    assert drain(store, waiting, None).codes == {"label-missing": len(objects)}
    assert not waiting.waiting()
    assert len(waiting.waiting(held=True)) == len(objects)
    assert drain(store, waiting, study / "labels.csv", held=True).added == len(objects)
    assert not any(path.is_file() for path in (node.data / "spool").rglob("*"))
    with Session(open_store(node.data)) as session:
        assert session.scalars(select(QuarantineRow)).all() == []


def test_a_patient_who_withdraws_is_not_left_in_the_spool(node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset]) -> None:
    """Withdrawal deletes that patient's objects from the spool, waiting or held, and no other patient's; what comes later is not kept."""
    waiting = Spool(store, node.data)
    with waiting.receiving():
        for each in objects:
            put(waiting, each)
        assert drain(store, waiting, None).quarantined == len(objects)
        put(waiting, objects[0])
        patient = objects[0].PatientID
        theirs = sum(each.PatientID == patient for each in objects)
        withdraw(node, store.pseudonyms.patient_key(patient, issuer=objects[0].IssuerOfPatientID), known=False)
        assert len(waiting.waiting(held=True)) == len(objects) - theirs
        assert not waiting.waiting()
        put(waiting, objects[0])
        assert drain(store, waiting, None).codes in ({"consent-withdrawn": 1}, {"label-missing": 1})


def put(waiting: Spool, header: Dataset) -> None:
    out = io.BytesIO()
    header.save_as(out)
    waiting.put(out.getvalue(), header.SOPInstanceUID)


def test_the_receiver_waits_for_another_intake(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another intake runs, objects are received and wait; afterwards they are taken in. The other way round the second is refused."""
    monkeypatch.setattr(receiver, "BATCH_SECONDS", 0.05)
    labelled, stop = pacs.model_copy(update={"labels": study / "labels.csv"}), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with store.intake():
            running = pool.submit(receiver.receive, store, node.data, labelled, progress=False, stop=stop)
            until(lambda: reachable(pacs.port))
            assert send(pacs, objects[:2]) == [0, 0]
            with pytest.raises(StateError, match="another intake"):
                intake_dicom(store, study, study / "labels.csv", progress=False)
            time.sleep(0.3)
            assert len(Spool(store, node.data).waiting()) == 2
        until(lambda: not Spool(store, node.data).waiting())
        stop.set()
        assert replace(running.result(), codes={}) == IntakeResult(added=2)


def reachable(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def test_a_receiver_that_is_killed_loses_nothing(
    node: NodeSettings, store: CohortStore, pacs: PacsSettings, objects: list[Dataset], study: Path, tmp_path: Path
) -> None:
    """A real receiver refuses an object that the disk cannot take and goes on; killed, every object that it said is stored is taken in later,
    and sending all again adds only what is missing.
    """
    config = tmp_path / "node.toml"
    peers = {"scanner": {"ae_title": "SCANNER", "host": "127.0.0.1"}}
    config.write_text(config.read_text() + "\n" + tomli_w.dumps({"pacs": {"port": pacs.port, "peers": peers, "free_gib": 0.0}}))
    command = [str(Path(sys.executable).parent / "busgen-node"), "intake", "receive", "--json", "--config", str(config)]
    process = subprocess.Popen(command, preexec_fn=limited, stderr=subprocess.PIPE)
    try:
        until(lambda: reachable(pacs.port), seconds=60)
        big = dcmread(study / "IM00001")
        big.SOPInstanceUID, big.PixelData, big.NumberOfFrames = "1.2.3.4", b"\0" * 2**21, 42
        line = call(pacs)
        assert line.send_c_store(big).get("Status") != 0
        assert send(pacs, objects[:4]) == [0, 0, 0, 0]
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        process.communicate()
    waiting = Spool(store, node.data)
    with waiting.receiving():
        pass
    assert not partials(node)
    first = drain(store, waiting, study / "labels.csv").added + drain(store, waiting, study / "labels.csv", held=True).added
    assert first == 4
    with receiving(pacs, node.data, waiting):
        assert set(send(pacs, objects)) == {0}
    again = drain(store, waiting, study / "labels.csv")
    assert (again.added, again.duplicates) == (len(objects) - 4, 4)
    with Session(open_store(node.data)) as session:
        assert len(session.scalars(select(ImageRow)).all()) == len(objects)


def test_start_runs_the_receiver_where_it_is_switched_on(node: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """'busgen-node start' keeps a receiver alive beside worker and SuperNode, only if node.toml says so."""
    config, started = tmp_path / "node.toml", list[list[str]]()
    monkeypatch.setattr(cli, "supervise", lambda programs, **_: started.append([program.name for program in programs]))
    cli.start(config)
    config.write_text(config.read_text() + "\n[pacs]\nreceive = true\n")
    cli.start(config)
    assert [set(names) & {"receiver"} for names in started] == [set(), {"receiver"}]


@pytest.mark.parametrize(
    "wrong",
    [
        "ae_title = 'ABCDEFGHIJKLMNOPQ'",
        "ae_title = 'BACK\\SLASH'",
        "port = 0",
        "key_file = 'node.key'",
        "[pacs.peers.x]\nae_title = 'X'",
        "[pacs.peers.x]\nae_title = 'X'\nhost = '127.0.0.1'\n[pacs.peers.y]\nae_title = 'X'\nhost = '127.0.0.2'",
        "[pacs.dicomweb]\nurl = 'ftp://x'",
    ],
)
def test_wrong_settings_are_named(node: NodeSettings, tmp_path: Path, wrong: str) -> None:
    """What DICOM or TLS could not work with is refused when node.toml is read, and the setting is named."""
    config = tmp_path / "node.toml"
    config.write_text(config.read_text() + f"\n[pacs]\n{wrong}\n")
    with pytest.raises(ConfigError, match="pacs"):
        load_settings(config)
