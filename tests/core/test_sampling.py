"""Sampling: each image stands on its own seed; folders of samples can be gone on with; boxes follow their fit."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from busgen_core import sampling
from busgen_core.boxes import fit_boxes
from busgen_core.cli import app
from busgen_core.conditions import Condition, Encoded, encode
from busgen_core.errors import ConfigError, LabelError, StateError, StorageFullError
from busgen_core.foundation import Foundation
from busgen_core.generator import SIGMA_DATA, Generator, Shape, build_network, build_scheduler
from busgen_core.images import decode_exact
from busgen_core.labels import Birads, Pathology
from busgen_core.official import OfficialSizes, OfficialUNet
from busgen_core.sampling import Request, SamplePlan, draw, plan_images, requests, sample, sample_folder
from busgen_core.shards import ShardStream
from tests.core.samples import TINY
from tests.shared import shared_data

BOX = (0.2, 0.2, 0.7, 0.6)
CORNERS = [(float(x), 0.3, float(x) + 0.2, 0.6) for x in np.random.default_rng(0).uniform(0.1, 0.6, 50)]


@pytest.fixture(scope="module")
def foundation() -> Foundation:
    """Untrained, with a device and a box density."""
    torch.manual_seed(0)
    density = fit_boxes({Pathology.BENIGN: CORNERS, Pathology.MALIGNANT: CORNERS})
    return Foundation(network=build_network(TINY, ["A"]).eval(), scheduler=build_scheduler(), boxes=density, digest="d" * 64)


def drawn(foundation: Foundation, conditions: list[Condition], seeds: list[int], **options: float) -> torch.Tensor:
    network = foundation.network
    encoded = encode(conditions, devices=network.devices, side=network.side)
    return sample(network, foundation.scheduler, encoded, seeds=seeds, **({"evaluations": 3} | options))  # type: ignore[arg-type]


def test_an_image_depends_on_its_seed_and_condition_alone(foundation: Foundation) -> None:
    """The same image comes back alone and inside a batch; another seed gives another image."""
    both = drawn(foundation, [Condition(pathology=Pathology.BENIGN, box=BOX), Condition()], [5, 6])
    alone = drawn(foundation, [Condition()], [6])
    assert both.shape == (2, 1, 32, 32)
    assert both.isfinite().all()
    assert torch.allclose(both[1], alone[0], atol=2e-2)  # bfloat16 kernels may differ with the batch size
    assert not torch.allclose(both[0], both[1], atol=0.1)


MASK = np.zeros((32, 32), bool)
MASK[8:20, 10:25] = True
CHANGES = {
    "pathology": Condition(pathology=Pathology.MALIGNANT),
    "BI-RADS": Condition(birads=Birads.FIVE),
    "device": Condition(device="A"),
    "box": Condition(box=BOX),
    "mask": Condition(mask=MASK),
}


@pytest.mark.parametrize("condition", CHANGES.values(), ids=CHANGES)
def test_every_condition_reaches_the_image(foundation: Foundation, condition: Condition) -> None:
    """Giving any one condition changes the image of the same seed."""
    asked, plain = drawn(foundation, [condition, Condition()], [7, 7])
    assert float((asked - plain).abs().max()) > 1e-3


def test_nulls_are_not_values() -> None:
    """Every table has a null of its own after its values; normal and "1" are not nulls; planes without a region are -1."""
    encoded = encode([Condition(), Condition(pathology=Pathology.NORMAL, birads=Birads.ONE, device="A")], devices=["A"], side=4)
    assert encoded.labels.tolist() == [[3, 8, 1], [0, 0, 0]]
    assert bool((encoded.planes == -1).all())


def test_a_mask_becomes_the_share_of_each_cell_it_covers() -> None:
    """Slow twin: the mean of the mask over each cell."""
    plane = encode([Condition(mask=MASK)], devices=(), side=16).planes[0, 1]
    for r in range(16):
        for c in range(16):
            assert float(plane[r, c]) == pytest.approx(MASK[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean())


class Gaussian(Generator):
    """The exact denoiser of images whose pixels are N(mean, spread^2), each on its own (Karras et al. 2022, appendix B.3)."""

    mean, spread = 0.2, 0.15

    def forward(self, scaled: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        sigma = (4 * c_noise.float()).exp()[:, None, None, None]
        total = (sigma**2 + SIGMA_DATA**2).sqrt()
        noisy = scaled * total
        denoised = (self.spread**2 * noisy + sigma**2 * self.mean) / (sigma**2 + self.spread**2)
        answer: torch.Tensor = (denoised - SIGMA_DATA**2 / total**2 * noisy) * total / (sigma * SIGMA_DATA)
        return answer


def test_the_sampler_recovers_a_known_distribution() -> None:
    """With the exact denoiser of a Gaussian, samples have its mean, and its standard deviation within 2 % (8 % with 12 evaluations)."""
    plain = build_network(TINY)
    nothing = encode([Condition()] * 64, devices=(), side=plain.side)
    for evaluations, error in ((60, 0.02), (12, 0.08)):
        images = sample(Gaussian(plain.unet, plain.labels), build_scheduler(), nothing, seeds=range(64), evaluations=evaluations)
        assert float(images.mean()) == pytest.approx(Gaussian.mean, abs=0.005)
        assert float(images.std()) == pytest.approx(Gaussian.spread, rel=error)


def test_guidance_is_the_formula(foundation: Foundation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow twin: (1 + w) F(conditions) - w F(nulls), two calls of the network."""
    network = foundation.network
    encoded = encode([Condition(pathology=Pathology.BENIGN, box=BOX)] * 2, devices=network.devices, side=network.side)
    nulls = encode([Condition()] * 2, devices=network.devices, side=network.side)
    scaled, level = torch.randn(2, 4, 16, 16), torch.tensor([0.3, 0.3])
    with torch.no_grad():
        twin = 2.5 * network(scaled, level, encoded.labels, encoded.planes) - 1.5 * network(scaled, level, nulls.labels, nulls.planes)
        fast = sampling._answer(network, scaled, level[0], sampling._with_nulls(encoded, network), 1.5)
    assert torch.allclose(fast, twin, atol=1e-5)
    asked = [Condition(pathology=Pathology.BENIGN)]
    assert not torch.allclose(drawn(foundation, asked, [1], guidance=2.0), drawn(foundation, asked, [1]), atol=1e-2)


WRONG = {
    "a seed too few": {"seeds": [1]},
    "no evaluations": {"seeds": [1, 2], "evaluations": 0},
    "guidance below 0": {"seeds": [1, 2], "guidance": -1.0},
}


@pytest.mark.parametrize("options", WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_refused(foundation: Foundation, options: dict[str, object]) -> None:
    """Arguments outside their ranges are named before anything is drawn."""
    network = foundation.network
    encoded = Encoded(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 2, network.side, network.side))
    with pytest.raises(ConfigError):
        sample(network, foundation.scheduler, encoded, **options)  # type: ignore[arg-type]


def test_a_plan_has_the_counts_asked_for_and_mixes_them() -> None:
    """Counts are exact, "normal" included, and no shard is of one class."""
    plan = SamplePlan(seed=1, counts={Pathology.NORMAL: 30, Pathology.MALIGNANT: 60})
    wanted = plan.pathologies
    assert wanted.count(Pathology.NORMAL) == 30
    assert wanted.count(Pathology.MALIGNANT) == 60
    assert len(set(wanted[:20])) == 2


def test_requests_carry_boxes_of_lesions_and_what_was_asked(foundation: Foundation) -> None:
    """Lesions get a box from the density and the BI-RADS category asked for; normal images have neither."""
    plan = SamplePlan(seed=1, counts={Pathology.NORMAL: 5, Pathology.BENIGN: 5}, birads=Birads.THREE, device="A")
    for request in requests(plan, foundation):
        lesion = request.condition.pathology is Pathology.BENIGN
        assert (request.condition.box is not None) == (request.condition.birads is Birads.THREE) == lesion
        assert request.condition.device == "A"
    assert len({r.seed for r in requests(plan, foundation)}) == 10


def test_what_the_foundation_does_not_know_is_a_named_error(foundation: Foundation) -> None:
    """An unknown device, an unknown label on the command line, and no images at all are refused."""
    with pytest.raises(LabelError, match="does not know this device"):
        requests(SamplePlan(seed=1, counts={Pathology.BENIGN: 1}, device="B"), foundation)
    with pytest.raises(LabelError, match="does not know this device"):
        draw(foundation, [Request(1, Condition(device="B"))], evaluations=1)
    with pytest.raises(ConfigError):
        SamplePlan(seed=1, counts={Pathology.BENIGN: 0})
    result = CliRunner().invoke(app, ["sample", "nowhere", "--count", "cyst=3"])
    assert isinstance(result.exception, LabelError)
    assert CliRunner().invoke(app, ["sample", "nowhere", "--count", "benign"]).exit_code == 2


def test_a_plan_in_memory_is_the_plan_in_a_folder(foundation: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images in the same order as the shards have them, batch by batch, with progress to the end; another network draws others."""
    monkeypatch.setattr(sampling, "AT_ONCE", 3)
    steps: list[tuple[int, int]] = []
    images = plan_images(foundation, PLAN, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 8), (6, 8), (8, 8)]
    sample_folder(foundation, PLAN, tmp_path / "s")
    kept = [png for file in sorted((tmp_path / "s").glob("*.parquet")) for png in pq.read_table(file)["image"].to_pylist()]
    assert np.array_equal(images, np.stack([decode_exact(png, size=32) for png in kept]))
    torch.manual_seed(1)
    assert not np.array_equal(plan_images(foundation, PLAN, network=build_network(TINY, ["A"]).eval()), images)


PLAN = SamplePlan(seed=4, counts={Pathology.BENIGN: 5, Pathology.NORMAL: 3}, evaluations=2, shard_images=3)


def test_a_folder_of_samples_can_be_read_and_every_image_made_again(foundation: Foundation, tmp_path: Path) -> None:
    """Shards hold images, labels, boxes and seeds; any image comes back from its own seed and condition, to 3 gray levels."""
    assert sample_folder(foundation, PLAN, tmp_path / "s") == 8
    found = ShardStream(tmp_path / "s", size=32, seed=0).read(0, 8)
    assert sorted(e.condition.pathology or "" for e in found) == ["benign"] * 5 + ["normal"] * 3
    for example in found:
        assert example.seed is not None
        again = draw(foundation, [Request(example.seed, example.condition)], evaluations=2)[0]
        assert np.abs(again.image.astype(int) - example.image.astype(int)).max() <= 3


def test_a_stopped_folder_goes_on_and_nothing_is_overwritten(foundation: Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the second shard: the named error; with room the rest is drawn, and the first shard is not touched."""
    plain, calls = sampling.write_whole, []

    def full(target: Path, data: bytes) -> None:
        calls.append(target.name)
        if target.name == "00001.parquet":
            raise StorageFullError("no room")
        plain(target, data)

    monkeypatch.setattr(sampling, "write_whole", full)
    with pytest.raises(StorageFullError):
        sample_folder(foundation, PLAN, tmp_path / "s")
    stamp = (tmp_path / "s" / "00000.parquet").stat().st_mtime_ns
    monkeypatch.setattr(sampling, "write_whole", plain)
    assert sample_folder(foundation, PLAN, tmp_path / "s") == 8
    assert (tmp_path / "s" / "00000.parquet").stat().st_mtime_ns == stamp
    sample_folder(foundation, PLAN, tmp_path / "whole")
    for shard in ("00000.parquet", "00001.parquet", "00002.parquet"):
        assert (tmp_path / "s" / shard).read_bytes() == (tmp_path / "whole" / shard).read_bytes()


def test_a_folder_of_something_else_is_left_alone(foundation: Foundation, tmp_path: Path) -> None:
    """Samples of another plan, or files of anybody's, are never mixed with or overwritten."""
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(StateError, match="not empty"):
        sample_folder(foundation, PLAN, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
    sample_folder(foundation, PLAN, tmp_path / "s")
    with pytest.raises(StateError, match="another plan"):
        sample_folder(foundation, SamplePlan(seed=5, counts=PLAN.counts, evaluations=2, shard_images=3), tmp_path / "s")


def test_boxes_follow_their_fit_and_stay_inside() -> None:
    """Boxes drawn from a fit lie in the frame; a class without lesions has none."""
    rng = np.random.default_rng(0)
    density = fit_boxes({Pathology.BENIGN: CORNERS})
    boxes = [density.draw(Pathology.BENIGN, rng) for _ in range(200)]
    assert all(b is not None and 0 <= b[0] < b[2] <= 1 and 0 <= b[1] < b[3] <= 1 for b in boxes)
    assert abs(np.mean([b[2] - b[0] for b in boxes if b]) - 0.2) < 0.02
    assert density.draw(Pathology.NORMAL, rng) is None


@pytest.mark.slow
def test_the_published_network_is_imported_and_sampled_from_the_command_line(tmp_path: Path) -> None:
    """import-busgen reads a torch file without running it; sample then writes its 160 px images to the same kind of shards."""
    torch.manual_seed(0)
    tiny = OfficialUNet(OfficialSizes(steps=20, width=32, channels=(32, 32), blocks=1, devices=20))
    torch.save(tiny.state_dict(), tmp_path / "weights.pt")
    run = CliRunner()
    bring = ["import-busgen", str(tmp_path / "weights.pt"), str(tmp_path / "busgen"), "--license", "made for a test"]
    assert run.invoke(app, bring, catch_exceptions=False).exit_code == 0
    asked = ["sample", str(tmp_path / "s"), "--foundation", str(tmp_path / "busgen"), "--count", "malignant=2", "--evaluations", "2"]
    assert run.invoke(app, asked, catch_exceptions=False).stdout.strip() == "2 images"
    found = ShardStream(tmp_path / "s", size=160, seed=0).read(0, 2)
    assert all(e.condition.pathology is Pathology.MALIGNANT and e.condition.box is not None for e in found)
    normal = run.invoke(app, ["sample", str(tmp_path / "n"), "--foundation", str(tmp_path / "busgen"), "--count", "normal=1", "--evaluations", "2"])
    assert isinstance(normal.exception, LabelError)


def test_samples_are_measured_from_the_command_line(foundation: Foundation, tmp_path: Path) -> None:
    """busgen-core quality prints every measure of sampled images beside its floor, and writes the picture."""
    torch.manual_seed(0)
    untrained = Foundation(network=build_network(Shape()).eval(), scheduler=build_scheduler(), boxes=foundation.boxes, digest="e" * 64)
    sample_folder(untrained, SamplePlan(seed=1, counts={Pathology.BENIGN: 24}, evaluations=1), tmp_path / "s")
    table = [line.split(",") for line in (shared_data() / "public" / "images.csv").read_text().splitlines()]
    places = [table[0].index(column) for column in ("file", "mask_file", "pathology", "group")]
    for place in ("images", "masks"):
        (tmp_path / "public" / place).parent.mkdir(exist_ok=True)
        (tmp_path / "public" / place).symlink_to(shared_data() / "public" / place)
    (tmp_path / "public" / "images.csv").write_text("\n".join(",".join(row[p] for p in places) for row in table[:61]))
    asked = ["quality", str(tmp_path / "public"), str(tmp_path / "s"), "--plot", str(tmp_path / "plot.png")]
    printed = CliRunner().invoke(app, asked, catch_exceptions=False).stdout
    assert "60 real images" in printed
    assert all(measure in printed for measure in ("kid", "coverage", "vendi", "floor"))
    assert (tmp_path / "plot.png").stat().st_size > 10_000
