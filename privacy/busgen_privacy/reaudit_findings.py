"""What a hub finds in a release without any real patient, as it is kept and shown. Light: nothing here loads a network."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from busgen_core.labels import Pathology
from busgen_privacy.claims import Claim
from busgen_privacy.pixel_text import PixelText


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Telling(_Finding):
    """How well something is told from images; ``attributes.Told`` in JSON.

    Attributes:
        accuracy: Balanced accuracy, 0 to 1.
        chance_low: 2.5 % quantile under permuted labels.
        chance_high: 97.5 % quantile.
        chance: How often permuted labels give at least this.
    """

    accuracy: float = Field(ge=0, le=1)
    chance_low: float = Field(ge=0, le=1)
    chance_high: float = Field(ge=0, le=1)
    chance: float = Field(ge=0, le=1)


class Reaudit(_Finding):
    """Findings of the hub; they may be published.

    Attributes:
        images: Images of the release.
        labels: Images of each label.
        asked: Images of each label that the campaign asked for.
        near_inside: Images with a near duplicate in the release itself.
        near_others: For each other release, images with a near duplicate there.
        site: How well the release is told from the others; None: no other release.
        label: How well a public classifier names the released labels; None: no public images.
        label_public: The same classifier on public images, by patient.
        scanners: Shares of the images by the public scanner they look most like; None: unknown scanners.
        scanner_sure: Share that looks like one scanner with near certainty.
        kid: Kernel distance to the public images, with a 95 % interval; None: no public images.
        kid_low: Lower end.
        kid_high: Upper end.
        kid_public: The same distance between two halves of the public patients, what images of one kind give; None: too few patients.
        kid_public_low: Lower end.
        kid_public_high: Upper end.
        text: Text in the pixels; None: not looked for.
        seed: Of the sample that was read, of folds and permutations; drawn for this look alone, so that the next one reads other images.
        claims: What the release says of itself, each claim checked again; empty: only images were given.
        remarks: What someone should look at, in words.
        not_run: What was not looked at, and why.
    """

    version: Literal[3] = 3
    images: int = Field(ge=1)
    labels: Mapping[Pathology, int]
    asked: Mapping[Pathology, int]
    near_inside: int = Field(ge=0)
    near_others: Mapping[str, int]
    site: Telling | None
    label: Telling | None
    label_public: Telling | None
    scanners: Mapping[str, float] | None
    scanner_sure: float | None
    kid: float | None
    kid_low: float | None
    kid_high: float | None
    kid_public: float | None
    kid_public_low: float | None
    kid_public_high: float | None
    text: PixelText | None
    seed: int = Field(ge=0)
    claims: tuple[Claim, ...]
    remarks: tuple[str, ...]
    not_run: tuple[str, ...]
