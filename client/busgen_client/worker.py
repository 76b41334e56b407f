"""The worker: takes accepted jobs through their phases, one at a time, each phase able to go on after a kill."""

import io
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy.exc import OperationalError

from busgen_client.audited import keep_audit, kept_audit, table_digest
from busgen_client.cohort import open_cohort
from busgen_client.cohort_rows import DRAWN, Role
from busgen_client.consent import remove_pictures
from busgen_client.database import open_store
from busgen_client.drawing import SELECTED, draw_pool, job_seed, not_chosen, released_images, select
from busgen_client.jobs import JobRow, JobStore, ScoreRow
from busgen_client.planning import measured, plan_for
from busgen_client.protocol import COHORT_FILE, foundation_part, job_folder, model_file
from busgen_client.pseudonyms import MEMBER_SHARE
from busgen_client.release import build_unsigned
from busgen_client.settings import CONFIG_VARIABLE, NodeSettings, load_settings
from busgen_client.settle import at_work, record_work
from busgen_core.downstream import Classifier
from busgen_core.errors import BudgetExceededError, BusgenError, ConsentWithdrawnError, GateRefusedError, InputError, UnavailableError
from busgen_core.files import write_whole
from busgen_core.foundation import Foundation, load_foundation, unpack_foundation
from busgen_core.labels import Pathology
from busgen_core.repository import arrays, write_parquet
from busgen_core.scores import noised, patient_counts
from busgen_core.transfer import unpack
from busgen_core.wire import Campaign, JobState, ScoreRequest
from busgen_privacy.attacked import Release, check_people
from busgen_privacy.attacks.base import Access
from busgen_privacy.audit import travelling
from busgen_privacy.cohort import Cohort
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.dp.adaptation import load, run
from busgen_privacy.dp.noise import SecureGaussian
from busgen_privacy.dp.noise import noised as with_noise
from busgen_privacy.dp.plan import AdaptationPlan
from busgen_privacy.dp.reference import Reference, reference_of
from busgen_privacy.findings import Findings
from busgen_privacy.folders import read_people, read_scanners
from busgen_privacy.leak import like_a_draw
from busgen_privacy.ledger import Ledger, NamedEvent
from busgen_privacy.lookalikes import in_both
from busgen_privacy.scored import USUAL
from busgen_privacy.shadows import set_aside
from busgen_privacy.shadows import train as train_shadows
from busgen_privacy.suite import DRAWS
from busgen_privacy.suite import run as run_suite

log = logging.getLogger("busgen.worker")

SHADOWS = "shadows"  # folder of a job's shadow networks, until its audit is kept
IDLE_SECONDS = 1.0
CRASH_LIMIT = 5  # a phase that crashed so often in a row fails the job


@dataclass(frozen=True)
class Public:
    """Public images for the audit, uint8 [n, px, px]; patient and scanner of each, or nothing where unknown."""

    images: NDArray[np.uint8]
    patients: tuple[str, ...] = ()
    scanners: tuple[str, ...] = ()


class Worker:
    """One node's worker. All state is on disk; a new worker goes on where the last one stopped."""

    def __init__(self, settings: NodeSettings) -> None:
        engine = open_store(settings.data)
        self.engine, self.settings = engine, settings
        self.jobs = JobStore(engine)
        self.cohort = open_cohort(settings, engine)
        self.ledger = Ledger(settings.data / "ledger.jsonl", site=settings.site)
        remove_pictures(engine, settings.data)
        self._sweep_shadows()
        if settings.adapt.threads:
            torch.set_num_threads(settings.adapt.threads)

    def _sweep_shadows(self) -> None:
        """Delete what shadow networks a job left that is not being audited: it ended, was withdrawn, or its audit is kept."""
        for row in self.jobs.all():
            if row.state != JobState.AUDITING:
                forget_shadows(job_folder(self.settings.data, row.campaign_id))

    def run_forever(self) -> None:
        """Work until the process ends; the heartbeat goes on during long phases."""
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            if not self.step():
                time.sleep(IDLE_SECONDS)

    def _beat(self) -> None:
        while True:
            try:
                self.jobs.beat()
            except OperationalError:
                log.warning("heartbeat.locked")
            time.sleep(5)

    def step(self) -> bool:
        """Do one phase of one job, or one score; False when there is nothing to do."""
        for row in self.jobs.all():
            phase = {
                JobState.ACCEPTED: self._begin,
                JobState.ADAPTING: self._adapt,
                JobState.GENERATING: self._generate,
                JobState.AUDITING: self._audit,
            }.get(JobState(row.state))
            if phase is not None and (row.state != JobState.ACCEPTED or foundation_ready(self.settings.data, row)):
                self._guarded(row, phase)
                return True
        for score in self.jobs.pending_scores():
            self._score(score)
            return True
        return False

    def _guarded(self, row: JobRow, phase: Callable[[JobRow], None]) -> None:
        """Run a phase; our errors end the job by name, anything else is logged and tried again a few times."""
        folder = job_folder(self.settings.data, row.campaign_id)
        crashes = folder / "crashes"
        try:
            started = time.monotonic()
            phase(row)
            log.info("phase.done campaign=%s phase=%s seconds=%.1f", row.campaign_id, row.state, time.monotonic() - started)
            crashes.unlink(missing_ok=True)
        except ConsentWithdrawnError as error:  # the job has ended while the phase ran
            remove_pictures(self.engine, self.settings.data)
            forget_shadows(folder)
            log.warning("job.stopped campaign=%s code=%s", row.campaign_id, error.code)
        except (BudgetExceededError, GateRefusedError) as error:
            self.jobs.end(row.campaign_id, JobState.REFUSED, code=error.code, message=str(error))
            forget_shadows(folder)
            log.warning("job.refused campaign=%s code=%s", row.campaign_id, error.code)
        except BusgenError as error:
            self.jobs.end(row.campaign_id, JobState.FAILED, code=error.code, message=str(error))
            forget_shadows(folder)
            log.error("job.failed campaign=%s code=%s", row.campaign_id, error.code)
        except Exception as error:
            count = (int(crashes.read_text()) if crashes.exists() else 0) + 1
            crashes.write_text(str(count))
            log.exception("phase.crashed campaign=%s phase=%s count=%d", row.campaign_id, row.state, count)
            if count >= CRASH_LIMIT:
                message = f"{type(error).__name__} in phase {row.state}; see the worker's log"
                self.jobs.end(row.campaign_id, JobState.FAILED, code="worker-crash", message=message)
                forget_shadows(folder)

    # 1. Budget first: nothing private is read for training before the ledger holds the reservation. What could not be audited is not begun.
    def _begin(self, row: JobRow) -> None:
        campaign = Campaign.model_validate_json(row.campaign)
        foundation, plan = self._foundation(campaign), self._plan(campaign)
        self._freeze(row)
        self._auditable(row, foundation, plan)
        record_work(job_folder(self.settings.data, row.campaign_id), self.ledger, row.campaign_id)
        figures = ("audit figures", plan.audit_event())
        cap = (min(campaign.epsilon, self.settings.policy.campaign_epsilon), campaign.delta)
        self._reserve("members", row.campaign_id, [*plan.mechanisms(), figures], campaign_cap=cap)
        self._reserve("holdout", row.campaign_id, [figures], campaign_cap=cap)
        self.jobs.move(row.campaign_id, JobState.ADAPTING)

    def _freeze(self, row: JobRow) -> None:
        """Bind the job to the images of this moment; what intake adds later waits for the next campaign."""
        file = job_folder(self.settings.data, row.campaign_id) / COHORT_FILE
        if not file.exists():
            write_whole(file, json.dumps({"member": self.cohort.ids("member"), "holdout": self.cohort.ids("holdout")}).encode())

    def _auditable(self, row: JobRow, foundation: Foundation, plan: AdaptationPlan) -> None:
        """Refuse before anything is spent what the audit would refuse after all was: sides or public images that it cannot tell apart."""
        members, holdout, public = self._frozen(row, "member"), self._frozen(row, "holdout"), self._public(row, foundation)
        if same := in_both(members.images, holdout.images):
            raise InputError(f"{same} pictures are of members and of holdout patients at once; 'busgen-node cohort doubles' lists them")
        check_people(members, holdout, public.images, public.patients)
        if self.settings.audit.shadows and plan.dpsgd is not None:
            set_aside(holdout, seed=0)

    def _public(self, row: JobRow, foundation: Foundation) -> Public:
        """Images that attacks are calibrated on: those of the settings as they were when the job began, or the foundation's."""
        kept, folder = job_folder(self.settings.data, row.campaign_id) / "public.npz", self.settings.audit.public
        if folder is not None and not kept.exists():
            people = read_people(str(folder), one_image_each=True)
            packed = io.BytesIO()
            np.savez(packed, images=people.images, patients=np.array(people.patients), scanners=np.array(read_scanners(str(folder)), dtype=str))
            write_whole(kept, packed.getvalue())
        if not kept.exists():
            return Public(self._reference(foundation).images)
        with np.load(kept) as found:
            return Public(found["images"], tuple(found["patients"].tolist()), tuple(found["scanners"].tolist()))

    def _frozen(self, row: JobRow, role: Role) -> Cohort:
        images: list[str] = json.loads((job_folder(self.settings.data, row.campaign_id) / COHORT_FILE).read_text())[role]
        return self.cohort.load(role, only=images)

    def _reserve(self, account: str, reference: str, events: Sequence[NamedEvent], *, campaign_cap: tuple[float, float] | None = None) -> None:
        policy = self.settings.policy
        self.ledger.reserve(
            account=account,
            reference=reference,
            events=events,
            cap_epsilon=policy.lifetime_epsilon,
            delta=policy.lifetime_delta,
            campaign_cap=campaign_cap,
        )

    # 2. Adaptation, resumable from its own checkpoint.
    def _adapt(self, row: JobRow) -> None:
        campaign = Campaign.model_validate_json(row.campaign)
        foundation = self._foundation(campaign)
        folder = job_folder(self.settings.data, row.campaign_id)
        with at_work(folder, "adaptation", self.ledger, row.campaign_id), self._progress(row, JobState.ADAPTING) as report:
            run(
                foundation,
                self._frozen(row, "member"),
                self._plan(campaign),
                folder=folder / "adapt",
                reference=partial(self._reference, foundation),
                progress=report,
            )
            self.ledger.commit("members", row.campaign_id)
        self.jobs.move(row.campaign_id, JobState.GENERATING)

    # 3. A pool in shards, each drawn once; what is released is chosen from it.
    def _generate(self, row: JobRow) -> None:
        campaign = Campaign.model_validate_json(row.campaign)
        foundation = self._foundation(campaign)
        folder = job_folder(self.settings.data, row.campaign_id)
        plan, target = self._plan(campaign), folder / "samples" / SELECTED
        if not target.exists():
            adapted = load(foundation, plan, folder / "adapt")
            network = adapted.network.to("cuda" if torch.cuda.is_available() else "cpu")
            with self._progress(row, JobState.GENERATING) as report:
                pool = draw_pool(foundation, network, campaign, folder, candidates=plan.candidates, progress=report)
            chosen = select(pool, adapted, campaign, partial(self._reference, foundation), seed=job_seed(folder))
            write_whole(target, write_parquet(chosen))
        self.jobs.move(row.campaign_id, JobState.AUDITING)

    # 4. The audit attacks the result; the gate decides; the release waits, unsigned, for the officer.
    def _audit(self, row: JobRow) -> None:
        campaign = Campaign.model_validate_json(row.campaign)
        foundation = self._foundation(campaign)
        folder = job_folder(self.settings.data, row.campaign_id)
        images = released_images(folder)
        more, table = not_chosen(folder, images, most=(USUAL - 1) * len(images)), table_digest(images)
        vault, members = self.cohort.vault, self._frozen(row, "member")
        audit = kept_audit(vault, self.settings.data, row.campaign_id, table=table, compared=len(images) + len(more))
        if audit is None:
            holdout = self._frozen(row, "holdout")
            release = replace(self._attacked(row, foundation, arrays(images)[0], more, holdout), member_share=self._drawn(members, holdout))
            public = self._public(row, foundation)
            audit = self._attack(row, release, members, holdout, public, self._reference(foundation).images).model_copy(
                update={"table_sha256": table}
            )
            keep_audit(vault, self.settings.data, row.campaign_id, audit)
        forget_shadows(folder)
        travels = travelling(audit, self.settings.policy, SecureGaussian(), noise_multiplier=self._plan(campaign).audit_noise)
        verdict = build_unsigned(
            folder,
            settings=self.settings,
            campaign=campaign,
            plan=self._plan(campaign),
            images=images,
            more=more,
            audit=audit,
            travels=travels,
            ledger=self.ledger,
            members=members,
            vault=vault,
        )
        self.ledger.commit("holdout", row.campaign_id)
        if verdict.verdict != "release":
            raise GateRefusedError(f"campaign {row.campaign_id}: {'; '.join(verdict.reasons)}")
        self.jobs.move(row.campaign_id, JobState.REVIEW, progress=1.0)

    def _drawn(self, members: Cohort, holdout: Cohort) -> float | None:
        """Chance with which each patient was drawn a member; None where a table named the role of one, or the sides do not look like such a draw."""
        people, _ = self.cohort.split()
        named = any(people[patient].rule != DRAWN for side in (members, holdout) for patient in side.patient_rows())
        sizes = len(members.patient_rows()), len(holdout.patient_rows())
        return None if named or not like_a_draw(*sizes, share=MEMBER_SHARE) else MEMBER_SHARE

    def _attack(self, row: JobRow, release: Release, members: Cohort, holdout: Cohort, public: Public, before: NDArray[np.uint8]) -> Findings:
        folder = job_folder(self.settings.data, row.campaign_id)
        with at_work(folder, "audit", self.ledger, row.campaign_id), self._progress(row, JobState.AUDITING) as report:
            return run_suite(
                release,
                members,
                holdout,
                public.images,
                groups=public.patients,
                scanners=public.scanners,
                before=before if public.scanners else None,
                policy=self.settings.policy.gate,
                draws=DRAWS,
                seed=secrets.randbits(32),
                progress=lambda _, done, total: report(done, total),
            )

    def _attacked(self, row: JobRow, foundation: Foundation, images: NDArray[np.uint8], more: NDArray[np.uint8], holdout: Cohort) -> Release:
        """What the audit attacks. Where nothing was trained the network is the public foundation, and there is nothing in it to attack."""
        campaign, folder = Campaign.model_validate_json(row.campaign), job_folder(self.settings.data, row.campaign_id)
        plan = self._plan(campaign)
        release = Release(images=images, more=more if len(more) else None, epsilon=self._promised(campaign), delta=campaign.delta)
        if plan.dpsgd is None:
            return replace(release, no_access="nothing was trained, so the network is the public foundation as it was")
        adapted = load(foundation, plan, folder / "adapt").network
        release = replace(release, access=Access(adapted=adapted, reference=foundation.network, scheduler=foundation.scheduler))
        if not (count := self.settings.audit.shadows):
            return release
        with at_work(folder, "audit", self.ledger, row.campaign_id), self._progress(row, JobState.AUDITING) as report:
            where, seed = folder / SHADOWS, job_seed(folder)
            return replace(release, shadows=train_shadows(foundation, holdout, plan.dpsgd, count=count, folder=where, seed=seed, progress=report))

    def _score(self, row: ScoreRow) -> None:
        """Score a downstream model on holdout patients; the counts are noised and paid for by the holdout account."""
        request = ScoreRequest.model_validate_json(row.request)
        policy = self.settings.policy
        event = GaussianEvent(noise_multiplier=policy.score_noise, sample_rate=1.0, count=1)
        try:
            classifier = Classifier.from_bytes(model_file(self.settings.data, row.model_id).read_bytes())
            self._reserve("holdout", f"score-{row.model_id}", [("score", event)])
            holdout = self.cohort.load("holdout")
            keep = [i for i, p in enumerate(holdout.classes) if p is not Pathology.NORMAL]
            counts = patient_counts(
                classifier.predict(holdout.images[keep]),
                [holdout.classes[i] for i in keep],
                [holdout.patients[i] for i in keep],
                request.edges,
            )
            # One patient moves the counts by at most 1, so the deviation in patients is the noise multiplier too.
            mechanism = partial(with_noise, bound=1.0, noise_multiplier=policy.score_noise, source=SecureGaussian())
            answer = noised(counts, noise=policy.score_noise, mechanism=mechanism)
            self.jobs.finish_score(row.model_id, counts=answer)
            self.ledger.commit("holdout", f"score-{row.model_id}")
        except BusgenError as error:
            log.warning("score.refused model=%s code=%s", row.model_id, error.code)
            self.jobs.finish_score(row.model_id, counts=None, code=error.code)
        except Exception:
            log.exception("score.crashed model=%s", row.model_id)
            self.jobs.finish_score(row.model_id, counts=None, code="worker-crash")

    def _plan(self, campaign: Campaign) -> AdaptationPlan:
        """The job's plan: made once, then read back, so that a change of settings cannot change a promise half-way."""
        file = job_folder(self.settings.data, campaign.campaign_id) / "plan.json"
        if not file.exists():
            plan = plan_for(
                self.settings,
                epsilon=campaign.epsilon,
                delta=campaign.delta,
                images=sum(campaign.images.values()),
                pace=lambda: measured(self._foundation(campaign), draws=self.settings.adapt.draws),
            )
            log.info("plan.made campaign=%s reasons=%s", campaign.campaign_id, "; ".join(plan.reasons))
            write_whole(file, json.dumps(plan.to_dict()).encode())
        return AdaptationPlan.from_dict(json.loads(file.read_text()))

    def _promised(self, campaign: Campaign) -> float:
        """Epsilon that this job's events spend: what the audit is held against."""
        plan = self._plan(campaign)
        return epsilon_of([*plan.events(), plan.audit_event()], delta=campaign.delta).epsilon

    def _reference(self, foundation: Foundation) -> Reference:
        return reference_of(foundation, self.settings.data / "foundations", progress=lambda done, total: log.info("reference %d of %d", done, total))

    def _foundation(self, campaign: Campaign) -> Foundation:
        return load_foundation(foundation_folder(self.settings.data, campaign), expected_digest=campaign.foundation)

    @contextmanager
    def _progress(self, row: JobRow, state: JobState) -> Iterator[Callable[[int, int], None]]:
        """A callback (done, total) that records progress at most every two seconds."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > 2 or done == total:
                last = time.monotonic()
                self.jobs.move(row.campaign_id, state, progress=done / max(total, 1))

        yield report


def forget_shadows(folder: Path) -> None:
    """Delete a job's shadow networks, which know holdout patients; where that fails the next start of the worker tries again."""
    if not (folder / SHADOWS).exists():
        return
    try:
        shutil.rmtree(folder / SHADOWS)
    except OSError as error:
        log.error("shadows.left campaign=%s error=%s", folder.name, type(error).__name__)


def foundation_ready(data: Path, row: JobRow) -> bool:
    """True once every byte of the campaign's foundation is here."""
    part = foundation_part(data, row.campaign_id)
    return part.exists() and part.stat().st_size == Campaign.model_validate_json(row.campaign).foundation_bytes


def foundation_folder(data: Path, campaign: Campaign) -> Path:
    """The campaign's foundation, unpacked once and checked against its digest."""
    folder = data / "foundations" / campaign.foundation
    if not folder.exists():
        part = foundation_part(data, campaign.campaign_id)
        if not part.exists():
            raise UnavailableError("the campaign's foundation has not arrived")
        fresh = folder.with_name(f"{folder.name}.new")
        unpack_foundation(unpack(part.read_bytes()), fresh, expected_digest=campaign.foundation)
        fresh.replace(folder)
    return folder


def main() -> None:
    """``python -m busgen_client.worker``; the configuration's path is in the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    Worker(load_settings(Path(os.environ[CONFIG_VARIABLE]))).run_forever()


if __name__ == "__main__":
    main()
