"""The ledger: budgets, settling, crashes, full disks, edits, and several processes at once."""

import errno
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import BudgetExceededError, ConfigError, LedgerError, StorageFullError
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.ledger import Ledger

TRAIN, AUDIT = GaussianEvent(7.04, 0.25, 400), GaussianEvent(4.0, 1.0, 1)
NAMED = [("dp-sgd", TRAIN), ("audit figures", AUDIT)]
PROOF = "e" * 64
DELTA = 1e-5
ONE = epsilon_of([TRAIN, AUDIT], delta=DELTA).epsilon
TWO = epsilon_of([TRAIN, AUDIT] * 2, delta=DELTA).epsilon


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger."""
    return Ledger(tmp_path / "ledger.jsonl", site="cairo")


def reserve(ledger: Ledger, reference: str, *, account: str = "members", cap: float = 100.0, campaign: float | None = None) -> str:
    """Reserve one campaign's events."""
    own = None if campaign is None else (campaign, DELTA)
    return ledger.reserve(account=account, reference=reference, events=NAMED, cap_epsilon=cap, delta=DELTA, campaign_cap=own)


def test_reservations_are_spent_at_once_and_compose(ledger: Ledger) -> None:
    """A reservation counts before any commit; several compose to less than their sum; accounts are apart."""
    assert ledger.spent("members", DELTA) == 0
    assert reserve(ledger, "spring") == ledger.head
    assert ledger.spent("members", DELTA) == ONE
    reserve(ledger, "summer")
    assert ledger.spent("members", DELTA) == TWO < 2 * ONE
    ledger.commit("members", "spring")
    assert ledger.spent("members", DELTA) == TWO
    assert ledger.spent("holdout", DELTA) == 0


def test_a_cap_is_never_passed(ledger: Ledger) -> None:
    """What would pass the cap is refused before a byte is written; what just fits is not; a cap that is no number refuses."""
    reserve(ledger, "spring", cap=ONE)
    head = ledger.head
    with pytest.raises(BudgetExceededError) as caught:
        reserve(ledger, "summer", cap=TWO - 1e-6)
    assert (caught.value.site, caught.value.epsilon_after) == ("cairo", TWO)
    for cap in (float("nan"), 0.0, -1.0):
        with pytest.raises(ConfigError):
            reserve(ledger, "summer", cap=cap)
    assert ledger.head == head
    reserve(ledger, "summer", cap=TWO)


def test_a_campaign_cap_is_never_passed(ledger: Ledger) -> None:
    """A campaign whose own events pass its epsilon is refused by name with nothing written, whatever the lifetime allows; one that fits is not."""
    for cap in (ONE - 1e-9, float("nan"), 0.0):
        with pytest.raises((BudgetExceededError, ConfigError)):
            reserve(ledger, "spring", campaign=cap)
    assert ledger.entries() == ()
    reserve(ledger, "spring", campaign=ONE)
    reserve(ledger, "summer", campaign=ONE)  # the campaigns before it are the lifetime cap's business
    with pytest.raises(BudgetExceededError) as caught:
        reserve(ledger, "autumn", campaign=ONE - 1e-9)
    assert (caught.value.epsilon_after, caught.value.agreed) == (ONE, ONE - 1e-9)


def test_names_of_mechanisms_do_not_change_epsilon(ledger: Ledger) -> None:
    """What a mechanism is called is written down and charged the same; free text is no name."""
    ledger.reserve(account="members", reference="a", events=[("vote", TRAIN), ("class counts", AUDIT)], cap_epsilon=100, delta=DELTA)
    assert ledger.spent("members", DELTA) == ONE
    assert [event.mechanism for event in ledger.charged("members")] == ["vote", "class counts"]
    for name in ("", "Ward 7", "a\nb", "x" * 41):
        with pytest.raises(ConfigError):
            ledger.reserve(account="members", reference="b", events=[(name, AUDIT)], cap_epsilon=100, delta=DELTA)


def test_composition_is_over_mechanisms_campaigns_and_releases_by_both_accountants(ledger: Ledger) -> None:
    """What the ledger states is the epsilon of all events of all campaigns in one list, the larger of PLD and PRV."""
    reserve(ledger, "spring")
    ledger.reserve(account="members", reference="summer", events=[("vote", AUDIT), ("mean", GaussianEvent(9.0, 1.0, 2))], cap_epsilon=99, delta=DELTA)
    twin = epsilon_of([TRAIN, AUDIT, AUDIT, GaussianEvent(9.0, 1.0, 1), GaussianEvent(9.0, 1.0, 1)], delta=DELTA)
    assert ledger.composed("members", DELTA) == twin
    assert twin.epsilon >= max(twin.pld, twin.prv) > ONE


def test_repeating_spends_nothing(ledger: Ledger) -> None:
    """The same reservation and commit again change nothing, even with the budget full; other events are refused."""
    first = reserve(ledger, "spring", cap=ONE)
    assert reserve(ledger, "spring", cap=ONE) == first
    committed = ledger.commit("members", "spring")
    assert ledger.commit("members", "spring") == committed
    assert len(ledger.entries()) == 2
    with pytest.raises(LedgerError, match="other events"):
        ledger.reserve(account="members", reference="spring", events=NAMED[:1], cap_epsilon=100, delta=DELTA)


def test_a_used_reservation_is_not_used_twice(ledger: Ledger) -> None:
    """A job that comes again after its commit (its store was put back to an older state) does not run on the old reservation."""
    reserve(ledger, "spring")
    ledger.commit("members", "spring")
    with pytest.raises(LedgerError, match="has ended, by commit"):
        reserve(ledger, "spring")


SETTLED = {
    "some steps": [("dp-sgd", GaussianEvent(7.04, 0.25, 60)), NAMED[1]],
    "steps, and no audit": [("dp-sgd", GaussianEvent(7.04, 0.25, 60))],
    "nothing ran": [],
}


@pytest.mark.parametrize("left", SETTLED.values(), ids=SETTLED)
def test_settling_gives_back_what_did_not_run(ledger: Ledger, left) -> None:
    """The events of the settle are charged in place of the reservation's; the other campaign's stay; a repetition changes nothing."""
    reserve(ledger, "spring")
    reserve(ledger, "summer")
    settled = ledger.settle("members", "spring", left, evidence=PROOF)
    assert ledger.spent("members", DELTA) == epsilon_of([TRAIN, AUDIT, *(event for _, event in left)], delta=DELTA).epsilon < TWO
    assert ledger.settle("members", "spring", left, evidence=PROOF) == settled
    assert [e.evidence for e in ledger.entries()] == [None, None, PROOF]
    with pytest.raises(LedgerError):
        ledger.check_open("members", "spring")
    ledger.check_open("members", "summer")


def test_what_was_given_back_cannot_be_used(ledger: Ledger) -> None:
    """A settled reservation is neither repeated, committed, nor settled for something else."""
    reserve(ledger, "spring")
    ledger.settle("members", "spring", NAMED[1:], evidence=PROOF)
    for again in (
        lambda: reserve(ledger, "spring"),
        lambda: ledger.commit("members", "spring"),
        lambda: ledger.settle("members", "spring", [], evidence=PROOF),
    ):
        with pytest.raises(LedgerError, match="ended"):
            again()
    assert len(ledger.entries()) == 2


VIOLATIONS = {
    "more steps": [("dp-sgd", GaussianEvent(7.04, 0.25, 401)), NAMED[1]],
    "more of one, less of another": [("dp-sgd", GaussianEvent(7.04, 0.25, 1)), ("audit figures", GaussianEvent(4.0, 1.0, 2))],
    "in two parts that are more": [("dp-sgd", GaussianEvent(7.04, 0.25, 201))] * 2,
    "more noise": [("dp-sgd", GaussianEvent(8.0, 0.25, 400)), NAMED[1]],
    "smaller rate": [("dp-sgd", GaussianEvent(7.04, 0.2, 400)), NAMED[1]],
    "another mechanism": [("vote", GaussianEvent(7.04, 0.25, 10)), NAMED[1]],
    "a new event": [NAMED[1], ("mean", GaussianEvent(50.0, 1.0, 1))],
    "nothing less": NAMED,
    "nothing less, in another order": NAMED[::-1],
}


@pytest.mark.parametrize("left", VIOLATIONS.values(), ids=VIOLATIONS)
def test_settling_only_lowers_counts(ledger: Ledger, left) -> None:
    """Whatever is not the reservation with counts lowered is refused, and nothing is written."""
    reserve(ledger, "spring")
    with pytest.raises(LedgerError, match="only lower counts"):
        ledger.settle("members", "spring", left, evidence=PROOF)
    assert len(ledger.entries()) == 1


def test_settling_needs_an_open_reservation_and_a_proof(ledger: Ledger) -> None:
    """Nothing is given back that was not reserved in this account, was committed, or has no digest as evidence."""
    reserve(ledger, "spring")
    for account, reference in [("members", "summer"), ("holdout", "spring")]:
        with pytest.raises(LedgerError, match="reserved nothing"):
            ledger.settle(account, reference, [], evidence=PROOF)
    with pytest.raises(ConfigError):
        ledger.settle("members", "spring", [], evidence="trust me")
    ledger.commit("members", "spring")
    with pytest.raises(LedgerError, match="by commit"):
        ledger.settle("members", "spring", [], evidence=PROOF)


def test_withdrawn_consent_is_noted_once_and_without_a_patient(ledger: Ledger, tmp_path: Path) -> None:
    """One entry says that a release holds a withdrawn patient; a second patient of it adds none, so nobody is counted; nothing is spent."""
    first = ledger.withdraw("members", "cairo-spring")
    assert ledger.withdraw("members", "cairo-spring") == first
    assert [(e.kind, e.account, e.reference, e.events) for e in ledger.entries()] == [("withdraw", "members", "cairo-spring", ())]
    assert ledger.spent("members", DELTA) == 0


def test_a_commit_needs_its_reservation(ledger: Ledger) -> None:
    """Nothing can be committed that was not reserved in the same account."""
    reserve(ledger, "spring")
    for account, reference in [("members", "summer"), ("holdout", "spring")]:
        with pytest.raises(LedgerError, match="reserved nothing"):
            ledger.commit(account, reference)


@pytest.mark.parametrize(("account", "reference"), [("", "a"), ("members", ""), ("members", "a b"), ("Members", "a"), ("members", "a\nb")])
def test_names_are_names(ledger: Ledger, account: str, reference: str) -> None:
    """Free text cannot get into the ledger, nor a reservation without events."""
    with pytest.raises(ConfigError):
        ledger.note(account, reference)
    with pytest.raises(ConfigError):
        ledger.reserve(account="members", reference="a", events=[], cap_epsilon=1, delta=DELTA)
    assert ledger.charged("members") == ()
    assert ledger.entries() == ()


def test_an_entry_is_what_the_format_says(ledger: Ledger, tmp_path: Path) -> None:
    """Another program can check the chain: each hash is SHA-256 over the canonical JSON of the other fields."""
    reserve(ledger, "spring")
    ledger.note("members", "policy-2")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["seq"], line["kind"]) for line in lines] == [(1, "reserve"), (2, "note")]
    assert lines[0]["events"][0] == {"noise_multiplier": 7.04, "sample_rate": 0.25, "count": 400, "mechanism": "dp-sgd"}
    assert "evidence" not in lines[0]
    assert lines[1]["previous"] == lines[0]["hash"]
    for line in lines:
        assert sha256_bytes(canonical_json({key: value for key, value in line.items() if key != "hash"})) == line["hash"]
    assert json.loads((tmp_path / "ledger.jsonl.head").read_text()) == {"seq": 2, "hash": lines[1]["hash"]}


# Written by this project at commit d45d127, before mechanisms had names: a reservation and its commit.
OLD_LINES = (
    b'{"account":"members","events":[{"count":400,"noise_multiplier":7.04,"sample_rate":0.25},{"count":1,"noise_multiplier":4.0,"sample_rate":1.0}],'
    b'"hash":"7ba94e6b8166bec028a76d545b21501811dba357cb491777644b18808afa03d7","kind":"reserve",'
    b'"previous":"b175b2488c9a70ea357efe587611704a11e95ead86d6f0f546276bb677b83843","reference":"spring","seq":1,"time":"2026-01-01T00:00:00+00:00"}\n',
    b'{"account":"members","events":[],"hash":"bc0966a9a5589076db672f36b41dad64cbc9ef3db07b577f755658a145883250","kind":"commit",'
    b'"previous":"7ba94e6b8166bec028a76d545b21501811dba357cb491777644b18808afa03d7","reference":"spring","seq":2,"time":"2026-01-01T00:00:00+00:00"}\n',
)


def old_ledger(path: Path, *, lines: int) -> None:
    """Lay down the first lines of the old ledger, and its head."""
    path.write_bytes(b"".join(OLD_LINES[:lines]))
    path.with_name(f"{path.name}.head").write_bytes(canonical_json({"seq": lines, "hash": json.loads(OLD_LINES[lines - 1])["hash"]}))


def test_a_ledger_from_before_mechanisms_had_names_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    """Old lines verify byte for byte, count the same, and a job begun before goes on with its reservation."""
    old_ledger(tmp_path / "ledger.jsonl", lines=1)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    assert ledger.spent("members", DELTA) == ONE
    assert [event.mechanism for event in ledger.charged("members")] == ["gaussian"] * 2
    assert reserve(ledger, "spring") == ledger.head
    ledger.commit("members", "spring")
    assert (tmp_path / "ledger.jsonl").read_bytes().startswith(before)
    old_ledger(tmp_path / "ledger.jsonl", lines=2)
    reserve(ledger, "summer")
    assert ledger.spent("members", DELTA) == TWO


def test_a_clock_set_back_changes_nothing(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is that of seq: an entry with an earlier time than its predecessor is sound, and what was spent stays spent."""
    import busgen_privacy.ledger as module

    class Past(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1999, 1, 1, tzinfo=tz)

    reserve(ledger, "now", cap=ONE)
    monkeypatch.setattr(module, "datetime", Past)
    ledger.note("members", "then")
    assert [entry.time[:4] for entry in ledger.entries()][1] == "1999"
    assert ledger.spent("members", DELTA) == ONE
    with pytest.raises(BudgetExceededError):
        reserve(ledger, "once-more", cap=ONE)


def filled(folder: Path) -> Path:
    """A ledger of four entries, with both sidecars."""
    ledger = Ledger(folder / "ledger.jsonl", site="cairo")
    for name in "abcd":
        ledger.note("members", name)
    return folder / "ledger.jsonl"


def forged(line: bytes) -> bytes:
    """An edited entry with a hash that fits."""
    entry = json.loads(line) | {"account": "holdout"}
    del entry["hash"]
    return canonical_json(entry | {"hash": sha256_bytes(canonical_json(entry))}) + b"\n"


# What was done, and the first line that is wrong (of four).
EDITS = {
    "field edited": (lambda lines: [lines[0], lines[1].replace(b'"b"', b'"x"'), *lines[2:]], 2),
    "field edited and hashed again": (lambda lines: [lines[0], forged(lines[1]), *lines[2:]], 3),
    "last edited and hashed again": (lambda lines: [*lines[:3], forged(lines[3])], 4),
    "first removed": (lambda lines: lines[1:], 1),
    "middle removed": (lambda lines: [lines[0], *lines[2:]], 2),
    "last removed": (lambda lines: lines[:3], 4),
    "all removed": (lambda lines: [], 1),
    "two exchanged": (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2),
    "one repeated": (lambda lines: [*lines, lines[3]], 5),
    "blank line": (lambda lines: [*lines, b"\n"], 5),
    "blank added": (lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]], 1),
    "junk line": (lambda lines: [*lines, b"junk\n"], 5),
    "last line end removed": (lambda lines: [*lines[:3], lines[3][:-1]], 4),
    "last line torn after it was acknowledged": (lambda lines: [*lines[:3], lines[3][:40]], 4),
    "zeros in the middle": (lambda lines: [lines[0], bytes(len(lines[1]) - 1) + b"\n", *lines[2:]], 2),
    "a default written out": (lambda lines: [lines[0].replace(b'"hash"', b'"evidence":null,"hash"'), *lines[1:]], 1),
}


@pytest.mark.parametrize(("edit", "line"), EDITS.values(), ids=EDITS)
def test_an_edit_is_noticed(tmp_path: Path, edit, line: int) -> None:
    """Whatever is changed, moved, added or removed by hand, every method refuses to go on and names the first line that is wrong."""
    path = filled(tmp_path)
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    ledger = Ledger(path, site="cairo")
    for action in (ledger.verify, ledger.entries, lambda: ledger.note("members", "e"), lambda: ledger.head):
        with pytest.raises(LedgerError, match=f"line {line} "):
            action()


def chained(path: Path, *changes: dict[str, object]) -> None:
    """Lay down entries whose hashes, order and head are right, so that only what they say can be wrong."""
    previous, written = sha256_bytes(b"busgen ledger v1 of cairo"), b""
    for number, change in enumerate(changes, start=1):
        entry = {"account": "members", "events": [], "reference": "spring", "seq": number, "time": "2026-01-01T00:00:00+00:00", "previous": previous}
        entry |= change
        previous = sha256_bytes(canonical_json(entry))
        written += canonical_json(entry | {"hash": previous}) + b"\n"
    path.write_bytes(written)
    path.with_name(f"{path.name}.head").write_bytes(canonical_json({"seq": len(changes), "hash": previous}))


def steps(count: int, mechanism: str = "dp-sgd") -> list[dict[str, object]]:
    return [{"count": count, "noise_multiplier": 7.04, "sample_rate": 0.25, "mechanism": mechanism}]


RESERVE, COMMIT, SETTLE = {"kind": "reserve", "events": steps(400)}, {"kind": "commit"}, {"kind": "settle", "events": steps(60), "evidence": PROOF}
IMPOSSIBLE = {
    "settle without reservation": (SETTLE,),
    "settle for another reference": (RESERVE, SETTLE | {"reference": "summer"}),
    "settle from another account": (RESERVE, SETTLE | {"account": "holdout"}),
    "settle for more": (RESERVE, SETTLE | {"events": steps(401)}),
    "settle for the same": (RESERVE, SETTLE | {"events": steps(400)}),
    "settle for another mechanism": (RESERVE, SETTLE | {"events": steps(60, "vote")}),
    "settle after commit": (RESERVE, COMMIT, SETTLE),
    "settle twice": (RESERVE, SETTLE, SETTLE | {"events": steps(10)}),
    "settle without evidence": (RESERVE, {"kind": "settle", "events": steps(60)}),
    "evidence for a commit": (RESERVE, COMMIT | {"evidence": PROOF}),
    "commit after settle": (RESERVE, SETTLE, COMMIT),
    "commit without reservation": (COMMIT,),
    "commit that spends": (RESERVE, COMMIT | {"events": steps(1)}),
    "reserve twice": (RESERVE, RESERVE | {"events": steps(1)}),
    "reserve again after settle": (RESERVE, SETTLE, RESERVE),
    "reserve nothing": ({"kind": "reserve"},),
    "note that spends": ({"kind": "note", "events": steps(1)},),
    "withdrawal that spends": ({"kind": "withdraw", "events": steps(1)},),
    "nought steps": (RESERVE, SETTLE | {"events": steps(0)}),
}


@pytest.mark.parametrize("entries", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_entry_that_cannot_be_is_noticed(tmp_path: Path, entries) -> None:
    """A ledger written by hand with every hash right is refused where an entry contradicts those before it; its line is named."""
    path = tmp_path / "ledger.jsonl"
    chained(path, *entries)
    with pytest.raises(LedgerError, match=f"line {len(entries)} "):
        Ledger(path, site="cairo").verify()
    chained(path, RESERVE, SETTLE)  # the forger's tools do make a ledger that passes
    Ledger(path, site="cairo").verify()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Any single bit of the file, flipped, is refused (one bit of each byte of the first two lines is tried)."""
    path = filled(tmp_path)
    good = path.read_bytes()
    for at in range(2 * len(good) // 4):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(LedgerError):
            Ledger(path, site="cairo").verify()


def test_a_deleted_ledger_or_head_is_noticed(tmp_path: Path) -> None:
    """A node cannot start again with a fresh budget by deleting a file, nor with another site's ledger."""
    path = filled(tmp_path)
    with pytest.raises(LedgerError, match="another site"):
        Ledger(path, site="rio").verify()
    head = path.with_name("ledger.jsonl.head")
    for file, content in [(head, None), (head, b"{"), (head, b'{"seq":-1,"hash":"' + b"0" * 64 + b'"}'), (path, None)]:
        kept = file.read_bytes()
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(LedgerError):
            Ledger(path, site="cairo").verify()
        file.write_bytes(kept)
    Ledger(path, site="cairo").verify()


def test_a_line_torn_by_a_crash_is_set_aside(tmp_path: Path) -> None:
    """Wherever a crash tears the line being written, the acknowledged entries stay, the torn bytes are kept, work goes on."""
    path = filled(tmp_path)
    good, head = path.read_bytes(), path.with_name("ledger.jsonl.head").read_bytes()
    Ledger(path, site="cairo").note("members", "e")
    last = path.read_bytes()[len(good) :]
    for number, cut in enumerate(range(1, len(last), 40), start=1):
        path.write_bytes(good + last[:cut])
        path.with_name("ledger.jsonl.head").write_bytes(head)
        ledger = Ledger(path, site="cairo")
        assert len(ledger.entries()) == 4
        assert path.read_bytes() == good
        assert path.with_name(f"ledger.jsonl.torn-{number}").read_bytes() == last[:cut]
    ledger.note("members", "f")
    assert len(ledger.entries()) == 5


def test_a_crash_before_the_head_is_repaired(tmp_path: Path) -> None:
    """An entry that is whole but not yet in the head file counts, also when it is the very first."""
    for count in (0, 4):
        path = tmp_path / f"{count}.jsonl"
        ledger, head = Ledger(path, site="cairo"), path.with_name(f"{count}.jsonl.head")
        for number in range(count):
            ledger.note("members", f"n{number}")
        before = head.read_bytes() if count else None
        reserve(ledger, "spring")
        after = head.read_bytes()
        head.unlink() if before is None else head.write_bytes(before)
        assert ledger.spent("members", DELTA) == ONE
        assert head.read_bytes() == after


def test_threads_cannot_share_one_budget(ledger: Ledger) -> None:
    """Of several that reserve at once, only as many succeed as the cap holds."""

    def one(number: int) -> bool:
        try:
            return bool(reserve(ledger, f"job-{number}", cap=TWO))
        except BudgetExceededError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(one, range(6))) == 2
    assert ledger.spent("members", DELTA) == TWO


WRITER = """
import sys
from pathlib import Path
from busgen_privacy.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), site="cairo")
for number in range(int(sys.argv[3])):
    print(ledger.note("members", f"{sys.argv[2]}-{number}"), flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Another process that writes notes and prints each hash once it is acknowledged."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True)


def test_processes_take_turns(tmp_path: Path) -> None:
    """Two processes that write at once leave one chain with every entry of both."""
    path = tmp_path / "ledger.jsonl"
    processes = [writer(path, name, 25) for name in "ab"]
    printed = [hash_ for process in processes for hash_ in process.communicate(timeout=60)[0].split()]
    assert sorted(printed) == sorted(entry.hash for entry in Ledger(path, site="cairo").entries())
    assert len(printed) == 50


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """A process killed while it writes loses nothing that it had told of, and the ledger goes on."""
    path = tmp_path / "ledger.jsonl"
    with writer(path, "a", 100_000) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline().strip() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        printed += process.stdout.read().split()  # communicate() would pass over what readline() had read ahead
    ledger = Ledger(path, site="cairo")
    hashes = [entry.hash for entry in ledger.entries()]
    assert hashes[: len(printed)] == printed
    assert len(hashes) - len(printed) <= 1
    ledger.note("members", "on")


FULL_DISK = """
import resource, sys
from pathlib import Path
from busgen_core.errors import StorageFullError
from busgen_privacy.ledger import Ledger
path, room = Path(sys.argv[1]), int(sys.argv[2])
ledger = Ledger(path, site="cairo")
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
try:
    ledger.note("members", "summer")
    print("written")
except StorageFullError:
    print("full")
print(len(ledger.entries()), ledger.head)
"""


@pytest.mark.parametrize("room", [0, 1, 150, 10_000])
def test_a_full_disk_while_appending(ledger: Ledger, tmp_path: Path, room: int) -> None:
    """However much of a line still fits, it is refused by name, the ledger stays readable (there and in the next process), and
    never counts less than before; with room again the next entry is written.
    """
    reserve(ledger, "spring")
    path, head = tmp_path / "ledger.jsonl", ledger.head
    said = subprocess.run([sys.executable, "-c", FULL_DISK, path, str(room)], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    whole = room == 10_000
    assert said == (["written", "2", ledger.head] if whole else ["full", "1", head])
    assert ledger.spent("members", DELTA) >= ONE
    assert len(ledger.entries()) == 1 + whole
    reserve(ledger, "autumn")
    assert len(ledger.entries()) == 2 + whole


def test_a_disk_that_stays_full_hides_nothing(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a torn line that there is no room to set aside, or a head that cannot follow, what was spent is still read, and nothing is appended."""
    import busgen_privacy.ledger_file as module

    reserve(ledger, "spring")
    path, head, real = tmp_path / "ledger.jsonl", ledger.head, module._write

    def full(target: Path, data: bytes, flags: int) -> None:
        target.touch()  # a name costs no room
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for(*names: str) -> None:
        monkeypatch.setattr(
            module, "_write", lambda target, data, flags: (full if any(n in target.name for n in names) else real)(target, data, flags)
        )

    with path.open("ab") as stream:
        stream.write(b'{"torn')
    for names in (("",), ("torn",)):
        full_for(*names)
        for _ in range(2):
            assert (ledger.spent("members", DELTA), ledger.head) == (ONE, head)
            with pytest.raises(StorageFullError):
                ledger.note("members", "x")
    assert not list(tmp_path.glob("*.torn-*"))
    full_for("head")
    with pytest.raises(StorageFullError):
        reserve(ledger, "summer")
    assert ledger.spent("members", DELTA) == TWO  # it reached the file, so it counts
    monkeypatch.setattr(module, "_write", real)
    reserve(ledger, "summer")
    assert len(ledger.entries()) == 2
    assert path.with_name("ledger.jsonl.torn-1").read_bytes() == b'{"torn'


def test_an_unwritable_ledger_is_our_error(tmp_path: Path) -> None:
    """A folder where a file should be ends in LedgerError, not in a traceback of the system."""
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "ledger.jsonl", site="cairo").note("members", "a")


def test_importing_the_ledger_is_quick() -> None:
    """The ledger and the gate import neither torch nor the accountants: Flower's short processes use them."""
    code = "import sys, busgen_privacy.ledger, busgen_privacy.gate; assert not {'torch', 'opacus', 'dp_accounting', 'diffusers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
