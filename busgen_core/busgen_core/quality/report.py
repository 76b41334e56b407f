"""The result of a comparison, for programs (JSON) and for people (a table)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from busgen_core.errors import InputError

Better = Literal["lower", "higher", "zero"]


class Range(BaseModel):
    """A measure over random splits: mean, and 2.5 % and 97.5 % quantiles."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float
    low: float
    high: float


class MeasureResult(BaseModel):
    """One measure. Compare ``matched`` with ``floor``: both are taken at ``split_images`` images a side, ``value`` at all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    better: Better
    value: float  # all real against all fake images
    low: float  # 95 % interval of value
    high: float
    matched: Range  # half of the real images against as many fake ones
    floor: Range  # half of the real images against the other half
    worse_share: Annotated[float, Field(ge=0, le=1)]  # splits in which the fake images were worse than the other real half


class QualityReport(BaseModel):
    """Result of ``compare``; JSON through pydantic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    encoder: str
    features: int
    image_px: int
    real_images: int
    real_patients: int
    fake_images: int
    splits: int
    split_images: int  # images of each sample of a split
    seed: int
    measures: tuple[MeasureResult, ...]
    notes: tuple[str, ...] = ()  # what could not be measured, and why

    def measure(self, name: str) -> MeasureResult:
        """The measure of that name.

        Raises:
            InputError: there is none.
        """
        for result in self.measures:
            if result.name == name:
                return result
        raise InputError(f"the report has no measure {name!r}; it has {[m.name for m in self.measures]}")

    def table(self) -> str:
        """The report as text, one measure a line."""
        head = (
            f"{self.real_images} real images of {self.real_patients} patients, {self.fake_images} fake; {self.splits} splits of {self.split_images}"
        )
        titles = f"{'measure':<14} {'value (95 % interval)':<30} {'at split size':>13} {'floor (2.5 to 97.5 %)':>30} {'worse':>6}"
        return "\n".join([head, titles, *(_line(m) for m in self.measures), *self.notes])


def _line(m: MeasureResult) -> str:
    value, floor = f"{m.value:.4g} ({m.low:.4g} to {m.high:.4g})", f"{m.floor.mean:.4g} ({m.floor.low:.4g} to {m.floor.high:.4g})"
    return f"{m.name:<14} {value:<30} {m.matched.mean:>13.4g} {floor:>30} {m.worse_share:>6.2f}"
