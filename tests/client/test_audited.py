"""Only what was audited and laid out for review is signed: every other release that lies in its place ends in a named error."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from busgen_client.audited import TABLE, keep_audit, keep_reviewed, kept_audit, table_digest
from busgen_client.cli import app
from busgen_client.cohort import open_cohort
from busgen_client.database import open_store
from busgen_client.jobs import JobStore
from busgen_client.papers import Paper, sealed_name
from busgen_client.protocol import job_folder
from busgen_client.release import approve, build_unsigned
from busgen_client.settings import NodeSettings
from busgen_client.storage import StorageSettings, Vault
from busgen_core.digests import sha256_file
from busgen_core.errors import BusgenError, ContentMismatchError, SealError, StateError, StorageKeyError
from busgen_core.images import encode_png
from busgen_core.labels import Pathology
from busgen_core.release import MANIFEST
from busgen_core.repository import SyntheticImage, arrays
from busgen_core.wire import JobState
from busgen_privacy.audit import travelling
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.dp.plan import AdaptationPlan
from busgen_privacy.findings import Findings
from busgen_privacy.ledger import Ledger
from tests.client.node import PASSPHRASE, campaign, job_in, lay_out, take_in
from tests.privacy.found import findings

PLAN = AdaptationPlan(public_cohort=40, epsilon=8.0, delta=1e-5, audit_noise=4.0, mean_noise=3.0)


def drawn(seed: int = 0) -> list[SyntheticImage]:
    """Noise with the labels that the campaign asks for."""
    labels = [label for label, count in campaign().images.items() for _ in range(count)]
    frames = np.random.default_rng(seed).integers(0, 256, (len(labels), 64, 64), np.uint8)
    return [
        SyntheticImage(sample_id=f"{i:08d}", png=encode_png(frame), pathology=label, box=None if label is Pathology.NORMAL else (0.1, 0.2, 0.5, 0.75))
        for i, (frame, label) in enumerate(zip(frames, labels, strict=True))
    ]


def vault(node: NodeSettings) -> Vault:
    return Vault(node.data, node.storage)


def audit_of(images: Sequence[SyntheticImage]) -> Findings:
    """An audit of these images that found nothing."""
    return findings(epsilon=1.5, members=200, holdout=100, released=len(images), table_sha256=table_digest(images))


def laid_out(node: NodeSettings, images: Sequence[SyntheticImage], audit: Findings) -> None:
    """Audit, report and unsigned release in the job's folder, as the worker leaves them."""
    store = open_cohort(node)
    keep_audit(vault(node), node.data, "c1", audit)
    build_unsigned(
        job_folder(node.data, "c1"),
        settings=node,
        campaign=campaign(),
        plan=PLAN,
        images=images,
        more=arrays(images)[0][:0],
        audit=audit,
        travels=travelling(audit, node.policy, SeededGaussian(2)),
        ledger=Ledger(node.data / "ledger.jsonl", site=node.site),
        members=store.load("member"),
        vault=vault(node),
    )


@pytest.fixture
def node(tmp_path: Path) -> NodeSettings:
    """A node with a job in review."""
    settings = lay_out(tmp_path)
    take_in(open_cohort(settings), ["p1", "p2"], role="member", images=1)
    job_in(settings, "c1", JobState.REVIEW)
    images = drawn()
    laid_out(settings, images, audit_of(images))
    return settings


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job's folder as another node made it for the same campaign: its release is whole, of other images, and nobody here audited it."""
    settings = lay_out(tmp_path_factory.mktemp("other"))
    take_in(open_cohort(settings), ["p1", "p2"], role="member", images=1)
    images = drawn(9)
    laid_out(settings, images, audit_of(images))
    return job_folder(settings.data, "c1")


def swapped(node: NodeSettings, other: Path) -> Path:
    """Put the other release in the place of the audited one."""
    folder = job_folder(node.data, "c1")
    shutil.rmtree(folder / "release")
    shutil.copytree(other / "release", folder / "release")
    return folder


def with_a_clear_digest(node: NodeSettings, other: Path) -> None:
    folder = swapped(node, other)
    (folder / Paper.REVIEWED).write_text(sha256_file(folder / "release" / MANIFEST))


def with_its_own_papers(node: NodeSettings, other: Path) -> None:
    folder = swapped(node, other)
    for paper in (Paper.REVIEWED, Paper.AUDIT):
        shutil.copy(other / paper, folder / paper)


def with_a_sealed_digest(node: NodeSettings, other: Path) -> None:
    keep_reviewed(vault(node), node.data, "c1", (swapped(node, other) / "release" / MANIFEST).read_bytes())


def with_another_jobs_audit(node: NodeSettings, _: Path) -> None:
    audit = job_folder(node.data, "c1") / Paper.AUDIT
    content = audit_of(drawn()).model_dump_json().encode()
    vault(node).write(audit, content, role="job", name=sealed_name(job_folder(node.data, "c2") / Paper.AUDIT))


def from_an_earlier_version(node: NodeSettings, _: Path) -> None:
    keep_audit(vault(node), node.data, "c1", audit_of(drawn()).model_copy(update={"table_sha256": None}))
    (job_folder(node.data, "c1") / Paper.REVIEWED).unlink()


def without_a_table(node: NodeSettings, _: Path) -> None:
    (job_folder(node.data, "c1") / "release" / TABLE).unlink()


def without_an_audit(node: NodeSettings, _: Path) -> None:
    (job_folder(node.data, "c1") / Paper.AUDIT).unlink()


ATTACKS: dict[str, tuple[Callable[[NodeSettings, Path], object], type[BusgenError], str]] = {
    "another whole release": (swapped, ContentMismatchError, "manifest is not the one"),
    "and its digest in clear": (with_a_clear_digest, SealError, "not sealed"),
    "and papers of another site's key": (with_its_own_papers, StorageKeyError, "storage.json does not have"),
    "laid out, and never audited": (with_a_sealed_digest, ContentMismatchError, "not those that were audited"),
    "another job's audit": (with_another_jobs_audit, SealError, "lies under another's name"),
    "audited by an earlier version": (from_an_earlier_version, StateError, "review again c1"),
    "no table": (without_a_table, ContentMismatchError, "not those that were audited"),
    "no audit": (without_an_audit, StateError, "audit-local.json"),
}


def test_what_was_laid_out_is_signed(node: NodeSettings) -> None:
    """Nothing was touched: the release is signed with both keys and packed."""
    assert approve(node, jobs(node), "c1", PASSPHRASE).images == 20
    assert jobs(node).need("c1").state == JobState.RELEASED


@pytest.mark.parametrize(("attack", "error", "words"), ATTACKS.values(), ids=ATTACKS)
def test_nothing_else_is_signed(
    node: NodeSettings, other: Path, attack: Callable[[NodeSettings, Path], object], error: type[BusgenError], words: str
) -> None:
    """Claim: what lies in the place of the audited release is refused by name before a key is used; the job goes on waiting."""
    attack(node, other)
    with pytest.raises(error, match=words):
        approve(node, jobs(node), "c1", PASSPHRASE)
    assert jobs(node).need("c1").state == JobState.REVIEW
    assert not list(job_folder(node.data, "c1").rglob("attestation*"))


def test_an_audit_of_other_images_is_not_laid_out(node: NodeSettings) -> None:
    """A report and a release are made only of the images that the audit is of."""
    with pytest.raises(ContentMismatchError):
        laid_out(node, drawn(9), audit_of(drawn()))


def test_an_audit_is_taken_up_again_only_for_its_own_images(node: NodeSettings) -> None:
    """The same table and as many images to compare: taken up. Other images, more of them, a paper in clear or of another version: audited anew."""
    table, compared = table_digest(drawn()), findings().registered_copies.compared
    audit = job_folder(node.data, "c1") / Paper.AUDIT
    kept = audit_of(drawn())
    assert kept_audit(vault(node), node.data, "c1", table=table, compared=compared) == kept
    assert kept_audit(vault(node), node.data, "c1", table=table_digest(drawn(9)), compared=compared) is None
    assert kept_audit(vault(node), node.data, "c1", table=table, compared=compared + 1) is None
    assert kept_audit(vault(node), node.data, "c9", table=table, compared=compared) is None
    audit.write_text(kept.model_dump_json())
    assert kept_audit(vault(node), node.data, "c1", table=table, compared=compared) is None
    plain = Vault(node.data, StorageSettings(key="none"))
    assert kept_audit(plain, node.data, "c1", table=table, compared=compared) == kept
    audit.write_text("{}")
    assert kept_audit(plain, node.data, "c1", table=table, compared=compared) is None


def test_the_officer_sends_a_job_back(node: NodeSettings, tmp_path: Path) -> None:
    """'review again' moves a job from review to the worker's audit; a job that is not in review is a named error."""
    ask = ["review", "again", "c1", "--config", str(tmp_path / "node.toml")]
    assert CliRunner().invoke(app, ask).exit_code == 0
    assert jobs(node).need("c1").state == JobState.AUDITING
    assert isinstance(CliRunner().invoke(app, ask).exception, StateError)


def jobs(node: NodeSettings) -> JobStore:
    return JobStore(open_store(node.data))
