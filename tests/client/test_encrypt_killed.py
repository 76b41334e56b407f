"""'cohort encrypt --rotate' killed at every step that it takes on the disk: whatever it was at, everything opens, and the next run finishes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from busgen_client.admission import NewImage
from busgen_client.cohort import CohortStore, open_cohort
from busgen_client.cohort_files import encrypt, verify
from busgen_client.console.code_secrets import CodeSecrets
from busgen_client.console.rows import AccountRow
from busgen_client.held import Held, HeldStore
from busgen_client.intake.spool import Spool
from busgen_client.papers import Paper, read_paper, write_paper
from busgen_client.settings import NodeSettings, load_settings
from busgen_core.labels import Pathology
from tests.client.node import lay_out

KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from busgen_client import cohort_files, consent
from busgen_client.cli import main

node, scratch = Path(sys.argv[1]), Path(sys.argv[2])
OF_FILES = {"replace", "unlink", "remove", "utime", "link"}

def is_step(call):
    if getattr(call, "__module__", "") == "posix":
        return call.__name__ in OF_FILES
    return getattr(call, "__qualname__", "") in ("BufferedWriter.write", "Connection.commit")

def where(frame):
    while frame:
        if "busgen" in frame.f_code.co_filename:
            yield f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back

def encrypt(folder, reached):
    def look(frame, event, call):
        if event == "c_call" and is_step(call):
            reached("/".join([call.__name__, *where(frame)]))
    sys.argv = ["busgen-node", "cohort", "encrypt", "--rotate", "--json", "--config", str(folder / "node.toml")]
    sys.setprofile(look)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            os._exit(1)
    finally:
        sys.setprofile(None)

def in_child(work):
    if (child := os.fork()) == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]

def find():
    steps = []
    encrypt(scratch / "whole", steps.append)
    (scratch / "steps.json").write_text(json.dumps(steps))

shutil.copytree(node, scratch / "whole")
if in_child(find):
    sys.exit("the run that is not killed failed")
steps = json.loads((scratch / "steps.json").read_text())
for place in sorted(set(steps), key=steps.index):
    folder, left = scratch / f"killed-{steps.index(place):03d}", [steps.index(place)]
    shutil.copytree(node, folder)
    def dying(_):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if in_child(lambda: encrypt(folder, dying)) != signal.SIGKILL:
        sys.exit(f"not killed at {place}")
"""


def everything(store: CohortStore) -> dict[str, object]:
    """All that the node stores, opened."""
    with Session(store.engine) as session:
        account = session.get(AccountRow, "ada")
    row = HeldStore(store).get("w")
    assert account is not None
    assert row is not None
    return {
        **{image.source_key: store.png(image.image_id) for image in store.rows()},
        "picture": HeldStore(store).frame(row, 0).tobytes(),
        "objects": [store.vault.read(file, role="spool", name=file.stem) for file in Spool(store, store.data).waiting()],
        "secret": CodeSecrets(store).of(account),
        "paper": read_paper(store.vault, store.data, "c1", Paper.REPORT),
    }


def filled(settings: NodeSettings) -> CohortStore:
    """A node with some of everything that is sealed, and an image from before sealing was switched on."""
    store = open_cohort(settings)
    for number, holder in enumerate((store, store, CohortStore(store.engine, store.data))):
        gray = np.random.default_rng(number).integers(0, 255, (24, 40), np.uint8)
        key = store.pseudonyms.patient_key(str(number))
        holder.add(NewImage(gray=gray, patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key=f"s{number}"))
    image = NewImage(gray=gray, patient_key=key, pathology=Pathology.BENIGN, box=None, device="", source_key="w")
    store.quarantine("w", code="device-unknown", reason="")
    HeldStore(store).put("w", Held(images=(image,)))
    spool = Spool(store, store.data)
    with spool.receiving():
        spool.put(b"an object", "2.25.1")
    with Session(store.engine) as session:
        account = AccountRow(name="ada", role="steward", password="")
        CodeSecrets(store).keep(account, "A" * 32)
        session.add(account)
        session.commit()
    write_paper(store.vault, store.data, "c1", Paper.REPORT, b"a report")
    return store


def test_a_rotation_killed_anywhere_loses_nothing_and_is_finished_by_the_next_run(tmp_path: Path) -> None:
    """SIGKILL before each place in the code that changes a file or commits: all opens; run again, it is finished and nothing lies about."""
    node, scratch = tmp_path / "node", tmp_path / "scratch"
    node.mkdir()
    scratch.mkdir()
    store = filled(lay_out(node))
    before = everything(store)
    store.engine.dispose()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(node), str(scratch)], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr[-2000:]) == (0, b"")
    killed = sorted(scratch.glob("killed-*"))
    assert len(killed) > 15
    for folder in killed:
        opens_and_goes_on(load_settings(folder / "node.toml"), before)


def opens_and_goes_on(settings: NodeSettings, before: dict[str, object]) -> None:
    """What a kill left: everything opens, at once and after the next run, which leaves one key and no half-written file."""
    store = open_cohort(settings)
    assert everything(store) == before
    encrypt(store, settings.data, progress=False)
    assert everything(store) == before
    assert verify(store, progress=False).found == ()
    assert len(json.loads((settings.data / "storage.json").read_text())["keys"]) == 1
    assert {file.name for file in settings.data.rglob("*.new")} <= {"storage.json.new"}
    store.engine.dispose()
