"""The ledger: budgets, crashes, edits, and several processes at once."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from busgen_core.digests import canonical_json, sha256_bytes
from busgen_core.errors import BudgetExceededError, ConfigError, LedgerError
from busgen_privacy.dp.accounting import GaussianEvent, epsilon_of
from busgen_privacy.ledger import Ledger

TRAIN, AUDIT = GaussianEvent(7.04, 0.25, 400), GaussianEvent(4.0, 1.0, 1)
DELTA = 1e-5
ONE = epsilon_of([TRAIN, AUDIT], delta=DELTA).epsilon
TWO = epsilon_of([TRAIN, AUDIT] * 2, delta=DELTA).epsilon


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger."""
    return Ledger(tmp_path / "ledger.jsonl", site="cairo")


def reserve(ledger: Ledger, reference: str, *, account: str = "members", cap: float = 100.0) -> str:
    """Reserve one campaign's events."""
    return ledger.reserve(account=account, reference=reference, events=[TRAIN, AUDIT], cap_epsilon=cap, delta=DELTA)


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


def test_repeating_spends_nothing(ledger: Ledger) -> None:
    """The same reservation and commit again change nothing, even with the budget full; other events are refused."""
    first = reserve(ledger, "spring", cap=ONE)
    committed = ledger.commit("members", "spring")
    assert reserve(ledger, "spring", cap=ONE) == first
    assert ledger.commit("members", "spring") == committed
    assert len(ledger.entries()) == 2
    with pytest.raises(LedgerError, match="other events"):
        ledger.reserve(account="members", reference="spring", events=[TRAIN], cap_epsilon=100, delta=DELTA)


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
    assert ledger.entries() == ()


def test_an_entry_is_what_the_format_says(ledger: Ledger, tmp_path: Path) -> None:
    """Another program can check the chain: each hash is SHA-256 over the canonical JSON of the other fields."""
    reserve(ledger, "spring")
    ledger.note("members", "policy-2")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["seq"], line["kind"]) for line in lines] == [(1, "reserve"), (2, "note")]
    assert lines[0]["events"][0] == {"noise_multiplier": 7.04, "sample_rate": 0.25, "count": 400}
    assert lines[1]["previous"] == lines[0]["hash"]
    for line in lines:
        assert sha256_bytes(canonical_json({key: value for key, value in line.items() if key != "hash"})) == line["hash"]
    assert json.loads((tmp_path / "ledger.jsonl.head").read_text()) == {"seq": 2, "hash": lines[1]["hash"]}


def test_a_clock_set_back_changes_nothing(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is that of seq: an entry with an earlier time than its predecessor is sound."""
    import busgen_privacy.ledger as module

    class Past(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1999, 1, 1, tzinfo=tz)

    ledger.note("members", "now")
    monkeypatch.setattr(module, "datetime", Past)
    ledger.note("members", "then")
    assert [entry.time[:4] for entry in ledger.entries()][1] == "1999"


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


EDITS = {
    "field edited": lambda lines: [lines[0], lines[1].replace(b'"b"', b'"x"'), *lines[2:]],
    "field edited and hashed again": lambda lines: [lines[0], forged(lines[1]), *lines[2:]],
    "last edited and hashed again": lambda lines: [*lines[:3], forged(lines[3])],
    "first removed": lambda lines: lines[1:],
    "middle removed": lambda lines: [lines[0], *lines[2:]],
    "last removed": lambda lines: lines[:3],
    "all removed": lambda lines: [],
    "two exchanged": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "one repeated": lambda lines: [*lines, lines[3]],
    "blank line": lambda lines: [*lines, b"\n"],
    "blank added": lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]],
    "junk line": lambda lines: [*lines, b"junk\n"],
    "last line end removed": lambda lines: [*lines[:3], lines[3][:-1]],
    "last line torn after it was acknowledged": lambda lines: [*lines[:3], lines[3][:40]],
    "zeros in the middle": lambda lines: [lines[0], bytes(len(lines[1]) - 1) + b"\n", *lines[2:]],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_is_noticed(tmp_path: Path, edit) -> None:
    """Whatever is changed, moved, added or removed by hand, every method refuses to go on."""
    path = filled(tmp_path)
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    ledger = Ledger(path, site="cairo")
    for action in (ledger.verify, ledger.entries, lambda: ledger.note("members", "e"), lambda: ledger.head):
        with pytest.raises(LedgerError):
            action()


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
    process = writer(path, "a", 100_000)
    assert process.stdout is not None
    printed = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    printed += process.communicate(timeout=60)[0].split()
    ledger = Ledger(path, site="cairo")
    hashes = [entry.hash for entry in ledger.entries()]
    assert hashes[: len(printed)] == printed
    assert len(hashes) - len(printed) <= 1
    ledger.note("members", "on")


def test_an_unwritable_ledger_is_our_error(tmp_path: Path) -> None:
    """A folder where a file should be ends in LedgerError, not in a traceback of the system."""
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "ledger.jsonl", site="cairo").note("members", "a")


def test_importing_the_ledger_is_quick() -> None:
    """The ledger and the gate import neither torch nor the accountants: Flower's short processes use them."""
    code = "import sys, busgen_privacy.ledger, busgen_privacy.gate; assert not {'torch', 'opacus', 'dp_accounting', 'diffusers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
