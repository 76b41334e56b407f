"""From an adapted generator to the images of a release: a pool is drawn in shards, then what is released is chosen from it."""

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from busgen_core.conditions import Condition
from busgen_core.files import write_whole
from busgen_core.foundation import Foundation
from busgen_core.generator import Generator
from busgen_core.images import encode_png
from busgen_core.labels import Pathology
from busgen_core.repository import SyntheticImage, arrays, read_parquet, write_parquet
from busgen_core.sampling import Request, draw
from busgen_core.styles import STYLES, restyle
from busgen_core.wire import Campaign
from busgen_privacy.dp.adaptation import Adapted
from busgen_privacy.dp.reference import Reference
from busgen_privacy.selection import choose, pool_weights

SHARD_IMAGES = 48  # images between two saves while sampling
SELECTED = "00000000.parquet"

Progress = Callable[[int, int], None]


def job_seed(folder: Path) -> int:
    """Seed of the job's sampling, from the operating system, kept in the job's folder."""
    file = folder / "seed.json"
    if not file.exists():
        write_whole(file, json.dumps({"seed": secrets.randbits(62)}).encode())
    return int(json.loads(file.read_text())["seed"])


def draw_pool(
    foundation: Foundation, network: Generator, campaign: Campaign, folder: Path, *, candidates: int, progress: Progress
) -> list[SyntheticImage]:
    """Draw ``candidates`` images for each one that the campaign asks for; a shard that is on disk is not drawn again."""
    seed = job_seed(folder)
    wanted = [p for p in Pathology for _ in range(candidates * campaign.images.get(p, 0))]
    order = np.random.default_rng(seed).permutation(len(wanted))
    for start in range(0, len(wanted), SHARD_IMAGES):
        target = folder / "pool" / f"{start:08d}.parquet"
        if not target.exists():
            indices = [int(i) for i in order[start : start + SHARD_IMAGES]]
            write_whole(target, write_parquet(draw_images(foundation, network, [wanted[i] for i in indices], indices, seed=seed)))
        progress(min(start + SHARD_IMAGES, len(wanted)), len(wanted))
    return _images(folder / "pool")


def select(
    pool: Sequence[SyntheticImage], adapted: Adapted, campaign: Campaign, reference: Callable[[], Reference], *, seed: int
) -> list[SyntheticImage]:
    """As many of a pool's images as the campaign asks for, each in its style: chosen by weight where the plan learned weights."""
    frames, labels = arrays(pool)
    classes = np.array([p.class_index for p in labels])
    rng = np.random.default_rng((seed, 2))
    counts = {p.class_index: campaign.images.get(p, 0) for p in Pathology}
    if adapted.means is None:
        weights = np.repeat(adapted.styles[:, None], len(pool), axis=1)
    else:
        weights = pool_weights(in_all_styles(frames, reference()), classes, adapted.styles, adapted.means, counts)
    chosen = []
    for index, count in counts.items():
        own = np.flatnonzero(classes == index)
        if count:
            rows, styles = choose(weights[:, own], count, rng)
            chosen += list(zip(own[rows].tolist(), styles.tolist(), strict=True))
    return [_restyled(pool[row], frames[row], style, number) for number, (row, style) in enumerate(sorted(chosen))]


def in_all_styles(frames: NDArray[np.uint8], reference: Reference) -> NDArray[np.float64]:
    """``phi`` of frames in every style, float64 [styles, n, numbers]."""
    return np.stack([reference.measure(restyle(frames, style)) for style in STYLES])


def _restyled(image: SyntheticImage, frame: NDArray[np.uint8], style: int, number: int) -> SyntheticImage:
    png = encode_png(restyle(frame[None], STYLES[style])[0])
    return SyntheticImage(sample_id=f"{number:08d}", png=png, pathology=image.pathology, box=image.box)


def draw_images(foundation: Foundation, network: Generator, labels: list[Pathology], indices: list[int], *, seed: int) -> list[SyntheticImage]:
    """Draw the images with these indices; image i depends on (seed, i) and its label alone."""
    wanted = []
    for label, number in zip(labels, indices, strict=True):
        box = foundation.boxes.draw(label, np.random.default_rng((seed, number)))
        own_seed = int(np.random.default_rng((seed, number, 1)).integers(2**62))
        wanted.append(Request(own_seed, Condition(pathology=label, box=box)))
    return [
        SyntheticImage(sample_id=f"{number:08d}", png=encode_png(drawn.image), pathology=label, box=drawn.condition.box)
        for number, label, drawn in zip(indices, labels, draw(foundation, wanted, network=network), strict=True)
    ]


def released_images(folder: Path) -> list[SyntheticImage]:
    """All chosen images of a job."""
    return _images(folder / "samples")


def not_chosen(folder: Path, released: Sequence[SyntheticImage], *, most: int) -> NDArray[np.uint8]:
    """Images of a job's pool that were not released in any style, as they were drawn, uint8 [at most most, px, px]: its first ones."""
    pool = _images(folder / "pool")
    if not pool or most <= 0:
        return arrays(released)[0][:0]
    frames, chosen = arrays(pool)[0], {frame.tobytes() for frame in arrays(released)[0]}
    taken = np.zeros(len(frames), bool)
    for style in STYLES:
        taken |= [frame.tobytes() in chosen for frame in restyle(frames, style)]
    return frames[~taken][:most]


def _images(folder: Path) -> list[SyntheticImage]:
    return [image for shard in sorted(folder.glob("*.parquet")) for image in read_parquet(shard.read_bytes())]
