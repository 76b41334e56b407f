"""What a job leaves for the hospital alone, at rest: the report with real images and the exact audit."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from busgen_client import cohort_files, consent, storage
from busgen_client.cli import app
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.cohort_files import encrypt, verify
from busgen_client.cohort_rows import JournalRow
from busgen_client.consent import withdraw
from busgen_client.console.accounts import Accounts
from busgen_client.console.app import create_app
from busgen_client.console.roles import Role
from busgen_client.papers import Paper, read_paper, read_sealed_paper, write_paper
from busgen_client.protocol import job_folder
from busgen_client.settings import NodeSettings, load_settings
from busgen_client.storage import MAGIC, StorageSettings, Vault
from busgen_core.errors import SealError, StateError, StorageKeyError
from busgen_core.wire import JobState
from tests.client.node import job_in, lay_out, take_in

PAGE = b"<!doctype html><title>the nearest pair of somebody</title>"


@pytest.fixture
def node(tmp_path: Path) -> NodeSettings:
    """A node with a job in review, its papers there."""
    settings = lay_out(tmp_path)
    take_in(open_cohort(settings), ["p1", "p2"], role="member", images=1)
    job_in(settings, "c1", JobState.REVIEW)
    for paper in Paper:
        write_paper(vault(settings), settings.data, "c1", paper, PAGE)
    return settings


def vault(settings: NodeSettings) -> Vault:
    return Vault(settings.data, settings.storage)


def events(store: CohortStore) -> list[tuple[str, str]]:
    with Session(store.engine) as session:
        return [(row.event, row.detail) for row in session.scalars(select(JournalRow).where(JournalRow.event.startswith("paper.")))]


def test_papers_are_sealed_each_for_its_job(node: NodeSettings) -> None:
    """Nothing of them is in the data folder in clear; they open in their own job's place, and in no other's or each other's."""
    assert not any(b"nearest" in file.read_bytes() for file in node.data.rglob("*") if file.is_file())
    assert all(read_paper(vault(node), node.data, "c1", paper) == PAGE for paper in Paper)
    other, own = job_folder(node.data, "c2"), job_folder(node.data, "c1")
    other.mkdir()
    (other / Paper.REPORT).write_bytes((own / Paper.REPORT).read_bytes())
    (own / Paper.AUDIT).write_bytes((own / Paper.REPORT).read_bytes())
    for campaign, paper in (("c2", Paper.REPORT), ("c1", Paper.AUDIT)):
        with pytest.raises(SealError):
            read_paper(vault(node), node.data, campaign, paper)


def test_a_site_that_seals_nothing_has_papers_in_clear(tmp_path: Path) -> None:
    """With key = none they are written and read as they are."""
    plain = Vault(tmp_path, StorageSettings(key="none"))
    write_paper(plain, tmp_path, "c1", Paper.REPORT, PAGE)
    assert (job_folder(tmp_path, "c1") / Paper.REPORT).read_bytes() == PAGE == read_paper(plain, tmp_path, "c1", Paper.REPORT)
    with pytest.raises(StateError, match="no audit"):
        read_paper(plain, tmp_path, "c1", Paper.AUDIT)


def test_what_a_signature_rests_on_is_sealed(node: NodeSettings, tmp_path: Path) -> None:
    """A paper in clear, which a site that seals has from before, is still read by people, and no signature rests on it."""
    (job_folder(node.data, "c1") / Paper.REVIEWED).write_bytes(b"0" * 64)
    assert read_paper(vault(node), node.data, "c1", Paper.REVIEWED) == b"0" * 64
    with pytest.raises(SealError, match="not sealed"):
        read_sealed_paper(vault(node), node.data, "c1", Paper.REVIEWED)
    assert read_sealed_paper(vault(node), node.data, "c1", Paper.AUDIT) == PAGE
    plain = Vault(tmp_path, StorageSettings(key="none"))
    write_paper(plain, tmp_path, "c1", Paper.REVIEWED, PAGE)
    assert read_sealed_paper(plain, tmp_path, "c1", Paper.REVIEWED) == PAGE


@pytest.mark.parametrize("command", ["report", "audit"])
def test_the_officer_gets_a_readable_copy(node: NodeSettings, tmp_path: Path, command: str) -> None:
    """The copy is for its owner only, the journal has a line of it, and no file is overwritten."""
    runner, out = CliRunner(), tmp_path / "copy"
    ask = ["review", command, "c1", "--out", str(out), "--config", str(tmp_path / "node.toml")]
    assert runner.invoke(app, ask).exit_code == 0
    assert (out.read_bytes(), out.stat().st_mode & 0o777) == (PAGE, 0o600)
    assert [event for event, _ in events(open_cohort(node))] == ["paper.copied"]
    out.write_bytes(b"mine")
    assert isinstance(runner.invoke(app, ask).exception, StateError)
    assert out.read_bytes() == b"mine"


def test_no_copy_without_key_or_job(node: NodeSettings, tmp_path: Path) -> None:
    """Without the site's key, and for a job that is not there, the command ends in the named error and writes nothing."""
    (node.data / "keys" / "storage.key").unlink()
    for campaign, error in (("c1", StorageKeyError), ("../c1", StateError), ("c9", StateError)):
        answer = CliRunner().invoke(app, ["review", "report", campaign, "--out", str(tmp_path / "copy"), "--config", str(tmp_path / "node.toml")])
        assert isinstance(answer.exception, error)
    assert not (tmp_path / "copy").exists()


def test_papers_from_before_are_sealed_and_take_part_in_a_rotation(node: NodeSettings) -> None:
    """'verify' names what is not sealed or damaged, 'encrypt' seals it and puts it under a new key; the old one is gone, both open."""
    report, audit, reviewed = (job_folder(node.data, "c1") / paper for paper in Paper)
    report.write_bytes(PAGE)
    whole = audit.read_bytes()
    audit.write_bytes(whole[:-1])
    store = open_cohort(node)
    assert verify(store, progress=False).found == (("unsealed", "jobs/c1/report.html"), ("damaged", "jobs/c1/audit-local.json"))
    audit.write_bytes(whole)
    encrypt(store, node.data, rotate=True, progress=False)
    assert report.read_bytes()[:22] == audit.read_bytes()[:22] == reviewed.read_bytes()[:22] != whole[:22]
    assert report.read_bytes().startswith(MAGIC)
    assert len(json.loads((node.data / "storage.json").read_text())["keys"]) == 1
    assert [read_paper(vault(node), node.data, "c1", paper) for paper in Paper] == [PAGE] * 3
    assert verify(store, progress=False).found == ()


def test_a_report_that_a_withdrawal_deleted_does_not_come_back(node: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the deletion falls between reading a report and sealing it anew, 'encrypt' deletes it again."""
    store, report = open_cohort(node), job_folder(node.data, "c1") / Paper.REPORT
    withdraw(node, store.pseudonyms.patient_key("p1"))
    assert not report.exists()
    write_paper(vault(node), node.data, "c1", Paper.REPORT, PAGE)
    plain_write = storage.write_durably

    def deleted_before(path: Path, content: bytes) -> None:
        if path == report:
            consent.remove_pictures(store.engine, node.data)
            assert not report.exists()
        plain_write(path, content)

    monkeypatch.setattr(storage, "write_durably", deleted_before)
    encrypt(store, node.data, rotate=True, progress=False)
    assert cohort_files.verify(store, progress=False).whole
    assert not report.exists()


def test_the_console_shows_the_report_to_officers_alone(node: NodeSettings, tmp_path: Path) -> None:
    """An officer reads it, under a policy that runs and fetches nothing, and the journal says who; a steward and a stranger do not."""
    settings, store = load_settings(tmp_path / "node.toml"), open_cohort(node)
    console = create_app(settings, store)
    for name, role in (("ada", Role.OFFICER), ("bea", Role.STEWARD)):
        Accounts(store).add(name, role, "a sentence for tests")

    async def ask(name: str, address: str) -> httpx.Response:
        cookies = {"busgen-console-80": console.state.desk.sessions.begin(name) if name else ""}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=console), base_url="http://localhost", cookies=cookies) as browser:
            return await browser.get(address)

    async def all_of_them() -> list[httpx.Response]:
        report = "/jobs/c1/report"
        return [await ask(*each) for each in (("ada", report), ("bea", report), ("", report), ("ada", "/jobs/c9/report"), ("ada", "/"), ("bea", "/"))]

    officer, steward, stranger, nothing, front, other_front = asyncio.run(all_of_them())
    assert [answer.status_code for answer in (officer, steward, stranger, nothing)] == [200, 403, 401, 409]
    assert officer.content == PAGE
    assert "default-src 'none'" in officer.headers["content-security-policy"]
    assert "script" not in officer.headers["content-security-policy"]
    assert officer.headers["cache-control"] == "no-store"
    assert b"nearest" not in steward.content + stranger.content
    assert ("/jobs/c1/report" in front.text, "/jobs/c1/report" in other_front.text) == (True, False)
    assert [json.loads(detail)["who"] for _, detail in events(store)] == ["ada"]
