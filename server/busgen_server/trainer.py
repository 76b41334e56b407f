"""The trainer: trains downstream models on admitted releases, and turns the sites' counts into results."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from busgen_core.digests import sha256_bytes
from busgen_core.downstream import train_classifier
from busgen_core.errors import InputError, StatementError
from busgen_core.labels import Pathology
from busgen_core.release import MANIFEST, Manifest
from busgen_core.repository import SyntheticImage, arrays, read_parquet
from busgen_core.scores import auc_from_counts, operating_point, quantile_edges
from busgen_core.wire import BinnedCounts
from busgen_privacy.statement import pooled_epsilon
from busgen_server.database import ModelRow, ReleaseRow, ResultRow, open_store
from busgen_server.settings import CONFIG_VARIABLE, HubSettings, load_settings
from busgen_server.store import POOL, HubStore
from busgen_server.tracking import track_model

log = logging.getLogger("busgen.trainer")
CHECK_SECONDS = 2.0
EPOCHS = 20
SCORE_BINS = 8
EDGE_SHARE = 0.15  # share of the synthetic images that places the edges of the score bins and is not trained on


class Trainer:
    """Works on campaigns in state "scoring"; everything it makes is in the store and on disk."""

    def __init__(self, settings: HubSettings) -> None:
        self.settings = settings
        self.store = HubStore(open_store(settings.data))

    def step(self) -> bool:
        """Do what is due for one campaign; False when nothing is."""
        for row in self.store.campaigns(state="scoring"):
            if self._train(row.campaign_id):
                return True
            if self._finish(row.campaign_id):
                return True
        return False

    def _train(self, campaign_id: str) -> bool:
        """Train one model that is still missing."""
        releases = self.store.releases(campaign_id=campaign_id, state="admitted")
        have = {m.name for m in self.store.models(campaign_id)}
        wanted: dict[str, list[ReleaseRow]] = {release.site: [release] for release in releases}
        if len(releases) > 1:
            wanted[POOL] = releases
        for name, sources in wanted.items():
            if name not in have:
                self._train_one(campaign_id, name, sources)
                return True
        return False

    def _train_one(self, campaign_id: str, name: str, releases: list[ReleaseRow]) -> None:
        started = time.monotonic()
        images, labels = lesion_arrays([image for release in releases for image in self._images(release)])
        aside = np.random.default_rng(0).random(len(images)) < EDGE_SHARE  # the bins' edges need images that were not learnt by heart
        classifier = train_classifier(images[~aside], [p for p, a in zip(labels, aside, strict=True) if not a], seed=0, epochs=EPOCHS)
        weights = classifier.to_bytes()
        model_id = f"{campaign_id}-{name}"[:63]
        file = self.settings.data / "models" / f"{model_id}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(weights)
        edges = quantile_edges(classifier.predict(images[aside]), bins=SCORE_BINS)
        self.store.upsert_model(
            ModelRow(
                model_id=model_id,
                campaign_id=campaign_id,
                name=name,
                trained_on=f"{int((~aside).sum())} synthetic images of {len(releases)} release(s){pool_promise(self.settings.data, releases)}",
                weights=file.relative_to(self.settings.data).as_posix(),
                sha256=sha256_bytes(weights),
                edges=[float(e) for e in edges],
            )
        )
        track_model(
            self.settings.data,
            name=model_id,
            parameters={"epochs": EPOCHS, "images": len(images), "releases": ",".join(r.release_id for r in releases)},
            metrics={"train_seconds": time.monotonic() - started},
            tracking_uri=self.settings.tracking_uri,
        )
        log.info("model.trained model=%s images=%d seconds=%.1f", model_id, len(images), time.monotonic() - started)

    def _images(self, release: ReleaseRow) -> list[SyntheticImage]:
        folder = self.settings.data / release.folder / "data"
        return [image for file in sorted(folder.glob("*.parquet")) for image in read_parquet(file.read_bytes())]

    def _finish(self, campaign_id: str) -> bool:
        """When every releasing site has answered for every model: results, and the campaign is done."""
        releasing = {r.site for r in self.store.releases(campaign_id=campaign_id, state="admitted")}
        results: list[ResultRow] = []
        for model in self.store.models(campaign_id):
            scores = {s.site: s for s in self.store.scores(model.model_id) if s.counts is not None or s.code not in ("", "pending", "weights-needed")}
            if not releasing <= scores.keys():
                return False
            counts = {site: BinnedCounts.model_validate(s.counts) for site, s in scores.items() if s.counts is not None}
            for site, found in [*((s, [c]) for s, c in counts.items()), (POOL, list(counts.values()))]:
                results += self._result(model, site, found)
        self.store.upsert_results(results)
        for result in results:
            metrics = {f"auc_{result.site}": result.auc}
            track_model(
                self.settings.data, name=str(result.details["model"]), parameters={}, metrics=metrics, tracking_uri=self.settings.tracking_uri
            )
        self.store.set_campaign_state(campaign_id, "done")
        log.info("campaign.done campaign=%s releases=%d", campaign_id, len(releasing))
        return True

    def _result(self, model: ModelRow, site: str, found: list[BinnedCounts]) -> list[ResultRow]:
        """One line of the result table; none where noise and hiding leave nothing to separate, which the journal then says."""
        try:
            auc, low, high = auc_from_counts(found)
            point = operating_point(found)
        except InputError as error:
            self.store.note("result.unusable", model=model.model_id, site=site, code=error.code)
            return []
        details: dict[str, object] = {"model": model.model_id, "sensitivity": list(point.sensitivity), "specificity": list(point.specificity)}
        return [ResultRow(campaign_id=model.campaign_id, name=model.name, site=site, auc=auc, low=low, high=high, details=details)]


def pool_promise(data: Path, releases: list[ReleaseRow]) -> str:
    """What is promised to a patient who is in all of these releases, as words to append; empty for fewer than two."""
    if len(releases) < 2:
        return ""
    manifests = [Manifest.from_bytes((data / release.folder / MANIFEST).read_bytes()) for release in releases]
    delta = max(manifest.privacy.delta for manifest in manifests)
    try:
        return f"; a patient who is in all of them: epsilon {pooled_epsilon(manifests, delta):.3g} at delta {delta:g}"
    except StatementError:
        return "; for a patient who is in all of them no epsilon can be stated"


def lesion_arrays(images: list[SyntheticImage]) -> tuple[NDArray[np.uint8], list[Pathology]]:
    """Benign and malignant images only: uint8 [n, 64, 64] and their labels."""
    lesions = [image for image in images if image.pathology is not Pathology.NORMAL]
    pixels, labels = arrays(lesions)
    return pixels, list(labels)


def main() -> None:
    """``python -m busgen_server.trainer``; the configuration's path is in the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    trainer = Trainer(load_settings(Path(os.environ[CONFIG_VARIABLE])))
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # the rest is the machine's: Flower, the dashboard, other nodes
    while True:
        if not trainer.step():
            time.sleep(CHECK_SECONDS)


if __name__ == "__main__":
    main()
