"""The ServerApp. It keeps nothing: each turn reads the hub's store, asks what is due, and writes what came back.

A run that dies loses nothing; the launcher starts another, which goes on from the store.
"""

import datetime
import fcntl
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from busgen_core.digests import sha256_bytes
from busgen_core.errors import BusgenError, CheckpointError, StateError, TransferError, UnavailableError
from busgen_core.keys import PublicKey
from busgen_core.release import TrustedKeys
from busgen_core.transfer import append_chunk
from busgen_core.wire import (
    Campaign,
    ErrorReply,
    FoundationChunk,
    Hello,
    HelloReply,
    JobState,
    JobStatus,
    Payload,
    Receipt,
    ReleaseChunk,
    ReleaseRequest,
    ScoreReply,
    ScoreRequest,
)
from busgen_server.catalogue import admit, rejected_id
from busgen_server.database import SiteRow, open_store
from busgen_server.foundations import Packages
from busgen_server.round import JobView, Judged, SiteView, next_request, settled
from busgen_server.settings import CONFIG_VARIABLE, HubSettings, load_settings
from busgen_server.store import HubStore

HELLO_SECONDS = 60.0
ROLL_CALL_SECONDS = 90.0  # a run without campaigns greets every node that is there, and ends after so long at the latest
LOST_SECONDS = 150.0  # a message without reply for so long is sent anew
REPEAT_SECONDS = 10.0  # pause after an error from a node

BUSY = (JobState.ADAPTING, JobState.GENERATING)
BUSY_FACTOR = 3  # such a node is asked less often: each question starts a process beside its work

log = logging.getLogger("busgen.conductor")
app = ServerApp()
Reply = TypeVar("Reply", bound=Payload)


@dataclass(slots=True)
class Sent:
    """A message that waits for its reply."""

    site: str
    campaign_id: str
    request: Payload
    at: float
    fetch: threading.Thread | None = None
    replies: list[Message] = field(default_factory=list)


@dataclass(slots=True)
class Memory:
    """What this run remembers of a site; losing it costs a repeated message, nothing else."""

    hello_at: float = -1e9
    asked_at: float = -1e9
    not_before: float = -1e9
    receipts: set[str] = field(default_factory=set)
    with_weights: set[str] = field(default_factory=set)


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, _context: Context) -> None:
    """Conduct all open campaigns until none is left, or call the roll where none is open; one conductor at a time."""
    settings = load_settings(Path(os.environ[CONFIG_VARIABLE]))
    lock = hold_lock(settings.data)
    if lock is None:
        log.warning("conductor.busy another run conducts")
        return
    with lock:
        conductor = Conductor(grid, settings)
        while conductor.turn():
            time.sleep(1.0)


def hold_lock(data: Path) -> IO[bytes] | None:
    """The conductor's lock, or None when another process holds it; it is free again when the file is closed."""
    data.mkdir(parents=True, exist_ok=True)
    stream = (data / "conductor.lock").open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


class Conductor:
    """One run over all open campaigns. Never more than one message to a site at a time, so no site waits for another."""

    def __init__(self, grid: Grid, settings: HubSettings) -> None:
        self.grid = grid
        self.settings = settings
        self.store = HubStore(open_store(settings.data))
        self.packages = Packages(settings.data)
        self.sent: dict[str, Sent] = {}
        self.memory: dict[str, Memory] = {}
        self.started = time.monotonic()

    def turn(self) -> bool:
        """One turn: take in replies, send what is due. False when no campaign is open and every node that is there has been greeted."""
        online = {str(n) for n in self.grid.get_node_ids()}
        self._collect({s.name for s in self.store.sites() if s.node_id in online})
        campaigns = [c for c in self.store.campaigns() if c.state in ("open", "scoring")]
        offers = [Campaign.model_validate(c.offer) for c in campaigns]
        self.packages.keep_only({offer.foundation for offer in offers})
        busy = {sent.site for sent in self.sent.values()}
        for site in self.store.sites():
            if site.node_id in online and site.name not in busy:
                self._speak(site, offers)
        for row, offer in zip(campaigns, offers, strict=True):
            self._close(offer, row.state)
        greeted = all(s.node_id not in online or self._greeted(s.name) for s in self.store.sites())
        return bool(campaigns) or (not greeted and time.monotonic() - self.started < ROLL_CALL_SECONDS)

    def _greeted(self, site: str) -> bool:
        return self.memory.setdefault(site, Memory()).hello_at > self.started

    def _speak(self, site: SiteRow, campaigns: list[Campaign]) -> None:
        memory = self.memory.setdefault(site.name, Memory())
        if time.monotonic() < memory.not_before:
            return
        if not campaigns and not self._greeted(site.name):
            self._send(site, None, Hello(), memory)
        for campaign in campaigns:
            request = next_request(self._view(site, campaign, memory), chunk_bytes=self.settings.chunk_bytes)
            if request is not None and self._try_send(site, campaign, request, memory):
                return

    def _try_send(self, site: SiteRow, campaign: Campaign, request: Payload, memory: Memory) -> bool:
        """Send, unless the campaign's foundation is damaged here: its own campaign waits until it is whole again, the others go on."""
        try:
            self._send(site, campaign, request, memory)
        except CheckpointError as error:
            self._failed(site.name, request, error.code, str(error), memory)
            return False
        return True

    def _view(self, site: SiteRow, campaign: Campaign, memory: Memory) -> SiteView:
        now = time.monotonic()
        job = self._job(campaign, site.name)
        judged = self._judged(campaign, site.name, job)
        part = self._part(job.release_id) if job and job.release_id else None
        return SiteView(
            campaign=campaign,
            hello_due=now - memory.hello_at > HELLO_SECONDS,
            status_due=now - memory.asked_at > self.settings.poll_seconds * (BUSY_FACTOR if job and job.state in BUSY else 1),
            job=job,
            held=part.stat().st_size if part is not None and part.exists() else 0,
            judged=judged,
            receipt_told=judged is not None and judged.release_id in memory.receipts,
            scores_due=self._scores_due(campaign, site.name) if judged is not None and judged.admitted else (),
        )

    def _judged(self, campaign: Campaign, site: str, job: JobView | None) -> Judged | None:
        known = self.store.job(campaign.campaign_id, site)
        if job is None or known is None or not job.release_id:
            return None
        for row in self.store.releases(campaign_id=campaign.campaign_id):
            if row.site == site and row.release_id in (job.release_id, rejected_id(known.release_sha256)):
                return Judged(release_id=job.release_id, admitted=row.state == "admitted", code=row.code)
        return None

    def _scores_due(self, campaign: Campaign, site: str) -> list[ScoreRequest]:
        due = []
        for model in self.store.models(campaign.campaign_id):
            final = any(
                s.site == site and (s.counts is not None or s.code not in ("", "pending", "weights-needed"))
                for s in self.store.scores(model.model_id)
            )
            if not final:
                due.append(
                    ScoreRequest(campaign_id=campaign.campaign_id, model_id=model.model_id, weights_sha256=model.sha256, edges=tuple(model.edges))
                )
        return due

    def _send(self, site: SiteRow, campaign: Campaign | None, request: Payload, memory: Memory) -> None:
        data = b""
        if campaign is not None and isinstance(request, FoundationChunk):
            data = self.packages.package(campaign)[request.offset : request.offset + self.settings.chunk_bytes]
        if campaign is not None and isinstance(request, ScoreRequest) and request.model_id in memory.with_weights:
            model = next(m for m in self.store.models(campaign.campaign_id) if m.model_id == request.model_id)
            data = (self.settings.data / model.weights).read_bytes()
        if not isinstance(request, Hello):
            memory.asked_at = time.monotonic()
        records = RecordDict({"payload": ConfigRecord({"json": request.model_dump_json()})})
        if data:
            records["data"] = ArrayRecord({"bytes": Array(np.frombuffer(data, dtype=np.uint8))})
        message = Message(records, dst_node_id=int(site.node_id or 0), message_type="query", ttl=LOST_SECONDS)
        (message_id,) = self.grid.push_messages([message])
        self.sent[message_id] = Sent(site.name, campaign.campaign_id if campaign else "", request, time.monotonic())

    def _collect(self, online: set[str]) -> None:
        """Take in what has arrived; give up what was lost. Repeating a message is harmless, so giving up early is too."""
        for message_id, sent in list(self.sent.items()):
            age = time.monotonic() - sent.at
            if sent.replies:
                del self.sent[message_id]
                self._take(sent, sent.replies[0])
            elif age > LOST_SECONDS or (sent.site not in online and age > REPEAT_SECONDS):
                del self.sent[message_id]
                log.warning("message.lost site=%s kind=%s", sent.site, type(sent.request).__name__)
            elif sent.fetch is None or not sent.fetch.is_alive():
                sent.fetch = threading.Thread(target=self._fetch, args=(message_id, sent), daemon=True)
                sent.fetch.start()

    def _fetch(self, message_id: str, sent: Sent) -> None:
        """Ask for one reply, beside the others: Flower waits up to two hours for a node that died while it sent one."""
        try:
            sent.replies.extend(self.grid.pull_messages([message_id]))
        except Exception as error:  # httpx and Flower's own; the next turn tries again
            log.warning("pull.failed site=%s error=%s", sent.site, type(error).__name__)

    def _take(self, sent: Sent, message: Message) -> None:
        """Write one reply into the store; a reply that makes no sense costs the site a pause, nothing else."""
        memory = self.memory.setdefault(sent.site, Memory())
        try:
            if message.has_error():
                raise UnavailableError(f"Flower error {message.error.code}")
            text = str(message.content.config_records["payload"]["json"])
            data = b""
            if "data" in message.content.array_records:
                data = message.content.array_records["data"]["bytes"].numpy().tobytes()
            self._apply(sent, text, data, memory)
        except (BusgenError, ValidationError, KeyError) as error:
            self._failed(sent.site, sent.request, getattr(error, "code", "reply-invalid"), str(error), memory)

    def _failed(self, site: str, request: Payload, code: str, detail: str, memory: Memory) -> None:
        memory.not_before = time.monotonic() + REPEAT_SECONDS
        kind = type(request).__name__
        self.store.note("message.failed", site=site, kind=kind, code=code, detail=detail[:200])
        log.warning("message.failed site=%s kind=%s code=%s", site, kind, code)

    def _apply(self, sent: Sent, text: str, data: bytes, memory: Memory) -> None:
        if '"kind":"error"' in text:
            code = ErrorReply.model_validate_json(text).code
            if code == StateError.code and not isinstance(sent.request, Hello | ScoreRequest):
                self.store.forget_job(sent.campaign_id, sent.site)  # the node lost it: offer again
            raise UnavailableError(f"the node answered {code}")
        match sent.request:
            case Hello():
                reply = HelloReply.model_validate_json(text)
                if reply.site != sent.site:
                    raise StateError(f"the node registered for {sent.site} calls itself otherwise")
                self.store.record_hello(self.store.site(sent.site).node_id or "", reply)
                memory.hello_at = time.monotonic()
            case ReleaseRequest():
                self._take_release(sent, ReleaseChunk.model_validate_json(text), data)
            case ScoreRequest():
                score = ScoreReply.model_validate_json(text)
                if score.code == "weights-needed":
                    memory.with_weights.add(score.model_id)
                    memory.asked_at = -1e9
                elif score.code != "pending":
                    self.store.upsert_score(sent.site, score)
                    memory.asked_at = -1e9
                if score.code != "weights-needed":
                    memory.with_weights.discard(score.model_id)
            case _:
                status = JobStatus.model_validate_json(text)
                self.store.upsert_job(sent.site, status)
                memory.hello_at = time.monotonic()  # an answer is as good as a hello
                self.store.seen(sent.site)
                if isinstance(sent.request, Receipt):
                    memory.receipts.add(sent.request.release_id)

    def _take_release(self, sent: Sent, chunk: ReleaseChunk, data: bytes) -> None:
        if sha256_bytes(data) != chunk.chunk_sha256:
            raise TransferError("a piece of the release arrived damaged; it is asked for again")
        job = self.store.job(sent.campaign_id, sent.site)
        if job is None or chunk.release_id != job.release_id:
            raise TransferError("a piece of another release arrived")
        part = self._part(job.release_id)
        have = append_chunk(part, offset=chunk.offset, data=data, total=job.release_bytes, sha256=job.release_sha256)
        if have == job.release_bytes:
            site = self.store.site(sent.site)
            keys = TrustedKeys(site=site.name, node=PublicKey.from_hex(site.node_key), officer=PublicKey.from_hex(site.officer_key))
            admit(self.store, self.settings.data, keys, self.store.campaign(sent.campaign_id), part.read_bytes())
            part.unlink(missing_ok=True)

    def _part(self, release_id: str) -> Path:
        return self.settings.data / "incoming" / f"{sha256_bytes(release_id.encode())[:32]}.part"

    def _close(self, campaign: Campaign, state: str) -> None:
        """Open -> scoring once every site has said its last word, or the deadline has passed. The trainer does the rest."""
        if state != "open":
            return
        late = datetime.datetime.now(datetime.UTC).date() > datetime.date.fromisoformat(campaign.deadline[:10])
        sites = self.store.sites()
        if late or (sites and all(self._settled(campaign, site.name) for site in sites)):
            self.store.set_campaign_state(campaign.campaign_id, "scoring")

    def _settled(self, campaign: Campaign, site: str) -> bool:
        job = self._job(campaign, site)
        return settled(job, self._judged(campaign, site, job))

    def _job(self, campaign: Campaign, site: str) -> JobView | None:
        row = self.store.job(campaign.campaign_id, site)
        return None if row is None else JobView(state=JobState(row.state), foundation_have=row.foundation_have, release_id=row.release_id)
