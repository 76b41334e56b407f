"""What a node writes for people: the hospital's report beside the release, and nothing of a patient in the release itself."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from busgen_client.audited import table_digest
from busgen_client.papers import Paper, read_paper
from busgen_client.protocol import job_folder
from busgen_client.release import build_unsigned
from busgen_client.storage import Vault
from busgen_core.transfer import folder_files
from busgen_privacy.audit import travelling
from busgen_privacy.dp.noise import SeededGaussian
from busgen_privacy.dp.plan import AdaptationPlan
from busgen_privacy.findings import Pair
from busgen_privacy.ledger import Ledger
from tests.client.node import campaign, lay_out
from tests.privacy.pages import carried, numbers
from tests.privacy.test_report import peculiar, real_people, written
from tests.releases import synthetic_images


def test_a_release_holds_no_pixel_and_no_exact_figure_of_a_patient(tmp_path: Path) -> None:
    """Claim: with real members as cohort the hospital's report shows their images, and no file of the release shows any, nor an exact figure."""
    members, _ = real_people()
    settings, plan = lay_out(tmp_path), AdaptationPlan(public_cohort=40, epsilon=3.0, delta=1e-5, audit_noise=4.0, mean_noise=3.0)
    images, more = synthetic_images(), members.images[:2, ::-1].copy()
    rows = (0, 1, 2, 3, len(images), len(images) + 1)  # the last two were drawn and not chosen
    closest = tuple(Pair(released=row, member=number, distance=0.01) for number, row in enumerate(rows))
    found = peculiar()
    copies = found.registered_copies.model_copy(update={"closest": closest})
    found = found.model_copy(update={"registered_copies": copies, "released": 6, "table_sha256": table_digest(images)})
    folder, vault = job_folder(settings.data, "c1"), Vault(settings.data, settings.storage)
    build_unsigned(
        folder,
        settings=settings,
        campaign=campaign(epsilon=3.0),
        plan=plan,
        images=images,
        more=more,
        audit=found,
        travels=travelling(found, settings.policy, SeededGaussian(2)),
        ledger=Ledger(settings.data / "ledger.jsonl", site=settings.site),
        members=members,
        vault=vault,
    )
    report = read_paper(vault, settings.data, "c1", Paper.REPORT).decode()
    shown = [np.array(Image.open(io.BytesIO(png))) for png in carried(report)]
    assert [picture.tobytes() for picture in shown[0::2]] == [image.tobytes() for image in members.images[:6]]
    assert [picture.tobytes() for picture in shown[1::2]][4:] == [image.tobytes() for image in more]
    assert f"{len(images) + 2} images: the released ones and 2 more of the pool" in report
    assert {"0.614", "283", "147"} <= written(found) & numbers(report)
    release = folder_files(folder / "release")
    assert not any(b"data:image" in file.read_bytes() for file in settings.data.rglob("*") if file.is_file())
    assert carried(release["audit.html"].decode()) == []
    assert written(found) & numbers(release["audit.html"].decode()) == set()
    assert not any(image.tobytes() in data for data in release.values() for image in members.images)
    assert json.loads(release["audit.json"])["released"] == 6
