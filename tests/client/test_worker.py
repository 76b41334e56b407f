"""The worker's phases, in this process, on a tiny foundation: what it refuses, what it survives, what it signs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from busgen_client.audited import TABLE
from busgen_client.cohort import CohortStore
from busgen_client.drawing import SELECTED, not_chosen, released_images
from busgen_client.jobs import JobRow, JobStore
from busgen_client.keys import create_keys, public_keys
from busgen_client.protocol import NodeProtocol, foundation_part, job_folder, release_file
from busgen_client.pseudonyms import MEMBER_SHARE
from busgen_client.release import approve, lay_out_again
from busgen_client.settings import AuditSettings, NodeSettings, load_settings
from busgen_client.worker import Worker
from busgen_core.digests import sha256_bytes
from busgen_core.downstream import train_classifier
from busgen_core.errors import BusgenError, ConsentWithdrawnError, GateRefusedError, InputError, SignatureError, StateError
from busgen_core.foundation import foundation_digest, load_foundation
from busgen_core.images import encode_png
from busgen_core.labels import Pathology
from busgen_core.phantom import simulate
from busgen_core.repository import arrays, read_parquet, write_parquet
from busgen_core.styles import STYLES, restyle
from busgen_core.transfer import folder_files, pack, unpack
from busgen_core.wire import FOUNDATION_FILES, Campaign, ErrorReply, JobState, Offer, ReleaseChunk, ReleaseRequest, ScoreReply, ScoreRequest
from busgen_privacy.admission import check
from busgen_privacy.attacked import Release
from busgen_privacy.audit import travelling
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.findings import Findings
from busgen_privacy.ledger import Ledger
from tests.client.node import lay_out, new_image
from tests.journeys.world import tiny_foundation
from tests.privacy.found import COPIES, findings

PASSPHRASE = b"a passphrase for tests"


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_foundation(tmp_path_factory.mktemp("foundation") / "tiny")


def phantom_cohort(patients: int, *, seed: int) -> Cohort:
    frames = [simulate(list(Pathology)[i % 3], seed=seed + i) for i in range(patients)]
    return Cohort(
        images=np.stack([f.image for f in frames]),
        classes=tuple(f.pathology for f in frames),
        boxes=tuple(f.box for f in frames),
        patients=tuple(f"{seed}-{i}" for i in range(patients)),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What a worker asked of the suite."""

    release: Release
    holdout: Cohort
    public: np.ndarray
    given: dict[str, object]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What was asked of the suite, which finds nothing and spends no time; what the gate decides on that is of no matter to the claims."""
    calls: list[Asked] = []

    def found_nothing(release: Release, _: Cohort, holdout: Cohort, public: np.ndarray, **given: object) -> Findings:
        calls.append(Asked(release, holdout, public, given))
        assert release.more is not None
        copies = COPIES.model_copy(update={"compared": len(release.images) + len(release.more)})
        return findings(epsilon=release.epsilon, members=200, holdout=100, released=len(release.images), registered_copies=copies)

    monkeypatch.setattr("busgen_client.worker.run_suite", found_nothing)
    monkeypatch.setattr("busgen_client.worker.travelling", lambda found, policy, *_, **__: travelling(found, policy, SeededGaussian(2)))
    return calls


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeSettings:
    """Settings of a node with keys; its cohort is in memory, everything else on disk."""
    (tmp_path / "ca.crt").write_text("")
    content = {
        "site": "north",
        "data": "data",
        "hub": {"address": "127.0.0.1:1", "ca_file": "ca.crt", "bundle_sha256": ["0" * 64]},
        "adapt": {"mechanisms": ["vote", "mean", "dp-sgd"], "steps": 3, "draws": 1, "threads": 1},
        "policy": {"lifetime_epsilon": 16.0, "campaign_epsilon": 8.0, "public_cohort": 40, "auto_accept": True},
    }
    (tmp_path / "node.toml").write_text(tomli_w.dumps(content))
    settings = load_settings(tmp_path / "node.toml")
    create_keys(settings.data, PASSPHRASE)
    cohorts = {"member": phantom_cohort(40, seed=0), "holdout": phantom_cohort(24, seed=1000)}
    monkeypatch.setattr(CohortStore, "load", lambda self, role, only=(): cohorts[role])
    monkeypatch.setattr(CohortStore, "ids", lambda self, role: [])
    monkeypatch.setattr(Worker, "_drawn", lambda self, members, holdout: None)  # nobody of it is in the store
    monkeypatch.setattr(CohortStore, "count_patients", lambda self, role: len(set(cohorts[role].patients)))
    return settings


def untrained(node: NodeSettings) -> NodeSettings:
    """The same node without DP-SGD, whose noise is the longest to find and whose training is of no matter to the claim."""
    return node.model_copy(update={"adapt": node.adapt.model_copy(update={"mechanisms": ("vote", "mean")})})


def campaign(foundation: Path, name: str = "c1", epsilon: float = 8.0) -> Campaign:
    packed = pack(folder_files(foundation, FOUNDATION_FILES))
    return Campaign(
        campaign_id=name,
        images={Pathology.NORMAL: 4, Pathology.BENIGN: 8, Pathology.MALIGNANT: 8},
        epsilon=epsilon,
        delta=1e-5,
        foundation=foundation_digest(foundation),
        foundation_bytes=len(packed),
        foundation_package=sha256_bytes(packed),
        deadline="2035-01-01",
    )


def accept(node: NodeSettings, foundation: Path, offer: Campaign) -> JobStore:
    """Offer a campaign through the protocol and put its foundation there."""
    protocol = NodeProtocol(node)
    protocol.respond(Offer(campaign=offer).model_dump_json(), b"")
    part = foundation_part(node.data, offer.campaign_id)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(pack(folder_files(foundation, FOUNDATION_FILES)))
    return protocol.jobs


def work_on(node: NodeSettings, jobs: JobStore) -> None:
    """A new worker for each phase, until the officer is waited for."""
    while jobs.need("c1").state != JobState.REVIEW:
        assert Worker(node).step()


def test_a_job_goes_through_all_phases_with_a_new_worker_for_each(node: NodeSettings, foundation: Path) -> None:
    """Each phase goes on from what the last worker left; the signed release verifies and its statement holds.

    Without DP-SGD, which goes the whole way in the journey.
    """
    node, offer = untrained(node), campaign(foundation)
    jobs = accept(node, foundation, offer)
    seen = []
    while jobs.need("c1").state != JobState.REVIEW:
        seen.append(jobs.need("c1").state)
        assert Worker(node).step()
    assert seen == ["accepted", "adapting", "generating", "auditing"]
    with pytest.raises(SignatureError):
        approve(node, jobs, "c1", b"not the passphrase")
    assert jobs.need("c1").state == JobState.REVIEW
    manifest = approve(node, jobs, "c1", PASSPHRASE)
    assert (manifest.images, manifest.gate.verdict) == (20, "release")
    check(unpack(release_file(node.data, "c1").read_bytes()), public_keys(node), offer)
    with pytest.raises(StateError):
        approve(node, jobs, "c1", PASSPHRASE)
    _hub_can_fetch_it(node)
    _a_model_is_scored_once(node)


def _hub_can_fetch_it(node: NodeSettings) -> None:
    protocol = NodeProtocol(node)
    reply, data = protocol.respond(ReleaseRequest(campaign_id="c1", offset=10, length=100).model_dump_json(), b"")
    assert isinstance(reply, ReleaseChunk)
    assert data == release_file(node.data, "c1").read_bytes()[10:110]


def _a_model_is_scored_once(node: NodeSettings) -> None:
    cohort = phantom_cohort(30, seed=5000)
    lesions = [i for i, p in enumerate(cohort.classes) if p is not Pathology.NORMAL]
    weights = train_classifier(cohort.images[lesions], [cohort.classes[i] for i in lesions], seed=0, epochs=1).to_bytes()
    request = ScoreRequest(campaign_id="c1", model_id="c1-pool", weights_sha256=sha256_bytes(weights), edges=(0.4, 0.5, 0.6)).model_dump_json()
    protocol, worker = NodeProtocol(node), Worker(node)
    codes = [protocol.respond(request, data)[0] for data in (b"", weights, b"")]
    assert [c.code for c in codes if isinstance(c, ScoreReply)] == ["weights-needed", "pending", "pending"]
    assert worker.step()
    first, second = protocol.respond(request, b"")[0], protocol.respond(request, b"")[0]
    assert isinstance(first, ScoreReply)
    assert first.counts is not None
    assert first == second  # the noise is drawn once, so asking again averages nothing out
    assert not worker.step()


def test_an_exhausted_ledger_refuses_before_any_gradient(node: NodeSettings, foundation: Path) -> None:
    """Campaigns of epsilon 8 are begun until the lifetime cap of 16 is reached: the next is refused by name, with nothing adapted."""
    node = untrained(node)
    worker, ledger = Worker(node), Ledger(node.data / "ledger.jsonl", site="north")
    for number in range(6):
        jobs = accept(node, foundation, campaign(foundation, f"c{number}"))
        assert worker.step()
        state = jobs.need(f"c{number}").state
        if state == JobState.REFUSED:
            break
        assert state == JobState.ADAPTING  # reserved; nothing is trained in this test
        jobs.move(f"c{number}", JobState.FAILED)
    assert jobs.need(f"c{number}").code == "budget-exceeded"
    assert number >= 2
    assert not (job_folder(node.data, f"c{number}") / "adapt").exists()
    assert 8 < ledger.spent("members", 1e-5) <= 16
    assert f"c{number}" not in {e.reference for e in ledger.entries()}


def test_a_foundation_with_another_digest_fails_the_job_by_name(node: NodeSettings, foundation: Path) -> None:
    """A foundation that is not the campaign's is never trained on, and nothing is reserved for it."""
    offer = campaign(foundation).model_copy(update={"foundation": "0" * 64})
    jobs = accept(node, foundation, offer)
    assert Worker(node).step()
    assert (jobs.need("c1").state, jobs.need("c1").code) == ("failed", "checkpoint-invalid")
    assert Ledger(node.data / "ledger.jsonl", site="north").entries() == ()


def test_the_protocol_answers_nonsense_with_a_code(node: NodeSettings) -> None:
    """Unknown, malformed and misplaced messages get a code and no free text."""
    protocol = NodeProtocol(node)
    for text in ("", "{}", '{"kind": "shell"}', '{"kind": "status", "campaign_id": "../x"}', '{"kind": "status", "campaign_id": "none"}'):
        reply, data = protocol.respond(text, b"")
        assert isinstance(reply, ErrorReply)
        assert reply.code in {"config-invalid", "wrong-state"}
        assert data == b""


def test_the_same_campaign_with_other_terms_is_refused(node: NodeSettings, foundation: Path) -> None:
    """A hub cannot raise epsilon under a name that was accepted before."""
    jobs = accept(node, foundation, campaign(foundation, epsilon=4.0))
    reply, _ = NodeProtocol(node).respond(Offer(campaign=campaign(foundation, epsilon=8.0)).model_dump_json(), b"")
    assert isinstance(reply, ErrorReply)
    assert reply.code == "wrong-state"
    assert Campaign.model_validate_json(jobs.need("c1").campaign).epsilon == 4.0


def test_states_move_only_along_their_ways(node: NodeSettings, foundation: Path) -> None:
    """An ended job cannot be moved on, and a phase cannot be skipped."""
    jobs = accept(node, foundation, campaign(foundation))
    with pytest.raises(StateError):
        jobs.move("c1", JobState.REVIEW)
    jobs.move("c1", JobState.FAILED)
    with pytest.raises(StateError):
        jobs.move("c1", JobState.ADAPTING)


def test_the_audit_is_of_what_is_laid_out_and_looks_at_the_pool(node: NodeSettings, foundation: Path, asked: list[Asked]) -> None:
    """Images of the pool that were not chosen are searched for copies too; an audit of other images is never taken up, one of the same images is."""
    node = untrained(node)
    jobs = accept(node, foundation, campaign(foundation))
    work_on(node, jobs)
    folder, first = job_folder(node.data, "c1"), asked[0].release
    pool = arrays([image for shard in sorted((folder / "pool").glob("*.parquet")) for image in read_parquet(shard.read_bytes())])[0]
    drawn = {restyle(pool[row], style).tobytes(): row for row in range(len(pool)) for style in STYLES}
    chosen = {drawn[image.tobytes()] for image in first.images}
    assert first.more is not None
    assert [image.tobytes() for image in first.more] == [image.tobytes() for row, image in enumerate(pool) if row not in chosen]
    assert len(first.more) == 60  # 20 images, 4 candidates for each
    assert len(not_chosen(folder, released_images(folder), most=7)) == 7

    lay_out_again(jobs, "c1")
    assert Worker(node).step()
    assert (len(asked), jobs.need("c1").state) == (1, "review")  # of the same images: taken up
    samples = folder / "samples" / SELECTED
    samples.write_bytes(write_parquet(released_images(folder)[::-1]))
    lay_out_again(jobs, "c1")
    assert Worker(node).step()
    assert len(asked) == 2
    assert approve(node, jobs, "c1", PASSPHRASE).files[TABLE] == sha256_bytes(samples.read_bytes())


def test_sampling_goes_on_shard_by_shard(node: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is on disk is kept as it is, and the images are the same as without the interruption."""
    monkeypatch.setattr("busgen_client.drawing.SHARD_IMAGES", 8)
    node = untrained(node)
    offer = campaign(foundation)
    jobs = accept(node, foundation, offer)
    worker = Worker(node)
    while jobs.need("c1").state != JobState.GENERATING:
        worker.step()
    row = jobs.need("c1")
    worker.step()
    chosen = job_folder(node.data, "c1") / "samples" / SELECTED
    pool = sorted((job_folder(node.data, "c1") / "pool").glob("*.parquet"))
    shards = [*pool, chosen]
    before = [s.read_bytes() for s in shards]
    assert len(pool) == 10  # 20 images, 4 candidates for each
    assert len(released_images(job_folder(node.data, "c1"))) == 20
    kept = shards[0].stat().st_mtime_ns
    pool[-1].unlink()
    chosen.unlink()
    monkeypatch.setattr(JobStore, "move", lambda *_, **__: None)
    Worker(node)._generate(row)
    assert [s.read_bytes() for s in shards] == before
    assert shards[0].stat().st_mtime_ns == kept


def test_shadows_come_from_half_of_the_holdout_and_go_with_the_audit(node: NodeSettings, foundation: Path, asked: list[Asked]) -> None:
    """With ``audit.shadows`` the suite gets networks adapted to 12 of the 24 holdout patients, and public images with their patients; then they go.

    Fails if the setting is not asked, if members teach a shadow, or if a shadow is the foundation or the attacked network.
    """
    public = phantom_cohort(6, seed=5000)
    folder = node.data.parent / "public"
    folder.mkdir()
    for number, image in enumerate(public.images):
        (folder / f"{number}.png").write_bytes(encode_png(image))
    (folder / "images.csv").write_text("file,patient,device\n" + "".join(f"{n}.png,p{n // 2},scanner {n % 2}\n" for n in range(6)))
    node = node.model_copy(update={"audit": AuditSettings(public=folder, shadows=1)})
    jobs = accept(node, foundation, campaign(foundation))
    work_on(node, jobs)
    (call,) = asked
    release, scanners = call.release, ("scanner 0", "scanner 1") * 3
    assert np.array_equal(call.public, public.images)
    assert len(call.holdout.patient_rows()) == 24
    assert (call.given["groups"], call.given["scanners"]) == (("p0", "p0", "p1", "p1", "p2", "p2"), scanners)
    assert release.access is not None
    assert release.shadows is not None
    (shadow,) = release.shadows.networks
    assert len(release.shadows.patients) == 12
    assert all(patient.startswith("1000-") for patient in release.shadows.patients)
    for other in (release.access.adapted, release.access.reference):
        assert any(not np.array_equal(a.numpy(), b.numpy()) for a, b in zip(shadow.state_dict().values(), other.state_dict().values(), strict=True))
    assert not (job_folder(node.data, "c1") / "shadows").exists()


def test_one_picture_on_both_sides_ends_a_job_before_anything_is_spent(node: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit would refuse it after all was spent, so the job ends at its start by name: no reservation, no file of the adaptation."""
    cohorts = {"member": phantom_cohort(40, seed=0), "holdout": phantom_cohort(24, seed=1000)}
    cohorts["holdout"].images[3] = cohorts["member"].images[7]
    monkeypatch.setattr(CohortStore, "load", lambda self, role, only=(): cohorts[role])
    jobs = accept(node, foundation, campaign(foundation))
    assert Worker(node).step()
    row = jobs.need("c1")
    assert (row.state, row.code) == ("failed", "input-invalid")
    assert "1 pictures are of members and of holdout patients at once" in row.message
    assert "busgen-node cohort doubles" in row.message
    assert not Ledger(node.data / "ledger.jsonl", site=node.site).charged("members")
    assert not (job_folder(node.data, "c1") / "adapt").exists()


def test_roles_that_were_drawn_are_told_from_those_that_a_table_named(tmp_path: Path) -> None:
    """Where the node drew each patient's role the audit may count on the draw; with one that a table named, also the drawn one, it may not."""
    node = lay_out(tmp_path)
    worker = Worker(node)
    for number in range(40):
        worker.cohort.add(new_image(worker.cohort, f"p{number}", 0, role=None))
    sides = worker.cohort.load("member"), worker.cohort.load("holdout")
    assert worker._drawn(*sides) == MEMBER_SHARE
    assert worker._drawn(sides[0].only(sides[0].patients[:1]), sides[1]) is None  # so uneven by no draw
    worker.cohort.add(new_image(worker.cohort, "named", 0, role="member"))
    assert worker._drawn(worker.cohort.load("member"), worker.cohort.load("holdout")) is None


LEFT = "shadows/0/adapted.safetensors"


def planted_shadow(node: NodeSettings, jobs: JobStore) -> Path:
    """A shadow network's file in the job's folder."""
    file = job_folder(node.data, "c1") / LEFT
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"network")
    return file


@pytest.mark.parametrize("error", [InputError, ConsentWithdrawnError, GateRefusedError])
def test_no_ending_of_a_job_leaves_a_shadow(node: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch, error: type[BusgenError]) -> None:
    """However a phase ends the job, shadows go; what a killed worker left of an ended job goes when the next one starts."""
    jobs = accept(node, foundation, campaign(foundation))
    worker = Worker(node)

    def ends(row: JobRow) -> None:
        planted_shadow(node, jobs)
        raise error("ended")

    monkeypatch.setattr(worker, "_begin", ends)
    assert worker.step()
    folder = job_folder(node.data, "c1") / "shadows"
    assert not folder.exists()
    if error is not ConsentWithdrawnError:  # that one finds the job ended already
        planted_shadow(node, jobs)
        Worker(node)
        assert not folder.exists()


@pytest.mark.usefixtures("asked")
def test_a_kept_audits_shadows_go_also_after_a_kill(node: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker killed between keeping the audit and deleting its shadows: the next one takes up the audit and deletes them."""
    node = untrained(node)
    jobs = accept(node, foundation, campaign(foundation))
    work_on(node, jobs)
    lay_out_again(jobs, "c1")
    left = planted_shadow(node, jobs)
    monkeypatch.setattr("busgen_client.worker.run_suite", lambda *_, **__: pytest.fail("the kept audit was not taken up"))
    assert Worker(node).step()
    assert not left.exists()


def test_public_images_are_those_of_the_jobs_beginning(node: NodeSettings, foundation: Path) -> None:
    """The folder may be gone when the audit comes: the job kept its images. One that is empty or gone at the beginning ends it, nothing spent."""
    folder = node.data.parent / "public"
    folder.mkdir()
    public = phantom_cohort(3, seed=5000)
    for number, image in enumerate(public.images):
        (folder / f"{number}.png").write_bytes(encode_png(image))
    node = node.model_copy(update={"audit": AuditSettings(public=folder)})
    jobs = accept(node, foundation, campaign(foundation))
    worker = Worker(node)
    assert worker.step()
    assert jobs.need("c1").state == "adapting"
    for file in folder.iterdir():
        file.unlink()
    kept = worker._public(jobs.need("c1"), load_foundation(foundation))
    assert np.array_equal(kept.images, public.images)
    assert len(kept.patients) == 3
    spent = Ledger(node.data / "ledger.jsonl", site=node.site).charged("members")
    jobs.end("c1", JobState.FAILED, code="test", message="out of the way")
    accept(node, foundation, campaign(foundation, name="c2"))
    assert worker.step()
    row = jobs.need("c2")
    assert (row.state, row.code) == ("failed", "input-invalid")
    assert "doubles" not in row.message
    assert Ledger(node.data / "ledger.jsonl", site=node.site).charged("members") == spent


def test_too_few_patients_for_shadows_end_a_job_before_anything_is_spent(
    node: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``audit.shadows`` and three holdout patients the audit could not run: said at the start."""
    cohorts = {"member": phantom_cohort(40, seed=0), "holdout": phantom_cohort(3, seed=1000)}
    monkeypatch.setattr(CohortStore, "load", lambda self, role, only=(): cohorts[role])
    jobs = accept(node.model_copy(update={"audit": AuditSettings(shadows=1)}), foundation, campaign(foundation))
    assert Worker(node.model_copy(update={"audit": AuditSettings(shadows=1)})).step()
    row = jobs.need("c1")
    assert row.state == "failed"
    assert "four holdout patients" in row.message
    assert not Ledger(node.data / "ledger.jsonl", site=node.site).charged("members")


def test_a_cohort_without_holdout_ends_a_job_before_anything_is_spent(node: NodeSettings, foundation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody set aside: no audit could be, and the job says so at its start."""
    nobody = phantom_cohort(2, seed=1000).only(())
    cohorts = {"member": phantom_cohort(40, seed=0), "holdout": nobody}
    monkeypatch.setattr(CohortStore, "load", lambda self, role, only=(): cohorts[role])
    jobs = accept(node, foundation, campaign(foundation))
    assert Worker(node).step()
    assert (jobs.need("c1").state, jobs.need("c1").code) == ("failed", "input-invalid")
    assert "two holdout patients" in jobs.need("c1").message
    assert not Ledger(node.data / "ledger.jsonl", site=node.site).charged("members")
