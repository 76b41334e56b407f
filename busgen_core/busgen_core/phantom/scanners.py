"""Scanner presets. The names are fictitious; the numbers span what breast presets of linear 5 to 18 MHz probes offer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from busgen_core.errors import ConfigError, LabelError


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """How a scanner shows tissue.

    Attributes:
        centre_mhz: Centre frequency of the echoes.
        cycles: Cycles of the pulse; more make it longer and coarser along the beam.
        f_number: Focal depth over aperture; a small one focuses sharply, over a short range.
        focus_cm: Depth of the transmit focus.
        depth_cm: Depth of the frame.
        width_cm: Width of the frame.
        gain_db: Added to what automatic gain sets, before log compression.
        dynamic_range_db: Span from black to white.
        gamma: Exponent of the gray map; above 1 is darker.
        s_curve: Share of a smooth S in the gray map, 0 to 1; more is harder.
        tgc_db_per_cm: Time gain compensation minus the mean tissue's loss; below 0 the depth stays dark.
        looks: Steering angles averaged before log compression (spatial compounding).
        persistence: Frames averaged, which quietens the electronic noise.
        noise_db: Electronic noise of one frame at the probe, against gland, before time gain compensation.
        sharpen: Share of unsharp masking after the gray map.
        reverberation_db: Level of the near field's repeated lines against gland.
    """

    centre_mhz: float
    cycles: float
    f_number: float
    focus_cm: float
    depth_cm: float
    width_cm: float
    gain_db: float
    dynamic_range_db: float
    gamma: float
    s_curve: float
    tgc_db_per_cm: float
    looks: int
    persistence: int
    noise_db: float
    sharpen: float
    reverberation_db: float

    def __post_init__(self) -> None:
        above_zero = ("centre_mhz", "cycles", "f_number", "focus_cm", "depth_cm", "width_cm", "dynamic_range_db", "gamma", "looks", "persistence")
        low = [f.name for f in fields(self) if f.name in above_zero and not getattr(self, f.name) > 0]
        if low or not (0 <= self.s_curve <= 1 and 0 <= self.sharpen <= 1):
            raise ConfigError(f"scanner: {low} must be above 0, s_curve and sharpen within [0, 1]")


SCANNERS: Mapping[str, Scanner] = MappingProxyType(
    {
        "phantom-a 5-12 MHz": Scanner(
            centre_mhz=9.0, cycles=2.0, f_number=2.4, focus_cm=1.6, depth_cm=4.0, width_cm=4.0, gain_db=0.0, dynamic_range_db=60.0, gamma=1.1,
            s_curve=0.2, tgc_db_per_cm=-1.2, looks=2, persistence=2, noise_db=-85.0, sharpen=0.2, reverberation_db=4.0,
        ),
        "phantom-b 7-14 MHz": Scanner(
            centre_mhz=11.0, cycles=1.6, f_number=2.0, focus_cm=1.3, depth_cm=3.5, width_cm=3.8, gain_db=3.0, dynamic_range_db=70.0, gamma=1.0,
            s_curve=0.0, tgc_db_per_cm=-1.6, looks=4, persistence=3, noise_db=-95.0, sharpen=0.3, reverberation_db=2.0,
        ),
        "phantom-c 6-10 MHz": Scanner(
            centre_mhz=7.5, cycles=2.6, f_number=3.2, focus_cm=2.0, depth_cm=4.5, width_cm=4.0, gain_db=7.0, dynamic_range_db=45.0, gamma=1.0,
            s_curve=0.5, tgc_db_per_cm=-2.5, looks=2, persistence=1, noise_db=-72.0, sharpen=0.1, reverberation_db=8.0,
        ),
        "phantom-d 8-18 MHz": Scanner(
            centre_mhz=13.0, cycles=1.5, f_number=1.8, focus_cm=1.1, depth_cm=3.0, width_cm=3.6, gain_db=-2.0, dynamic_range_db=62.0, gamma=1.4,
            s_curve=0.3, tgc_db_per_cm=-1.6, looks=3, persistence=4, noise_db=-95.0, sharpen=0.5, reverberation_db=3.0,
        ),
        "phantom-e 4-9 MHz": Scanner(
            centre_mhz=6.5, cycles=2.4, f_number=3.6, focus_cm=2.6, depth_cm=5.5, width_cm=4.6, gain_db=-4.0, dynamic_range_db=55.0, gamma=1.3,
            s_curve=0.1, tgc_db_per_cm=-1.0, looks=1, persistence=2, noise_db=-75.0, sharpen=0.0, reverberation_db=6.0,
        ),
        "phantom-f 5-14 MHz": Scanner(
            centre_mhz=10.0, cycles=2.0, f_number=2.2, focus_cm=1.8, depth_cm=4.5, width_cm=4.4, gain_db=-3.0, dynamic_range_db=70.0, gamma=1.6,
            s_curve=0.0, tgc_db_per_cm=-1.6, looks=3, persistence=3, noise_db=-90.0, sharpen=0.1, reverberation_db=0.0,
        ),
        "phantom-g 10-12 MHz": Scanner(
            centre_mhz=10.5, cycles=3.2, f_number=2.8, focus_cm=1.5, depth_cm=3.8, width_cm=3.8, gain_db=4.0, dynamic_range_db=48.0, gamma=0.9,
            s_curve=0.7, tgc_db_per_cm=-2.0, looks=2, persistence=1, noise_db=-78.0, sharpen=0.4, reverberation_db=7.0,
        ),
        "phantom-h automated 5-14 MHz": Scanner(
            centre_mhz=9.5, cycles=2.2, f_number=2.0, focus_cm=2.2, depth_cm=5.0, width_cm=5.0, gain_db=1.0, dynamic_range_db=66.0, gamma=1.2,
            s_curve=0.4, tgc_db_per_cm=-0.6, looks=4, persistence=1, noise_db=-88.0, sharpen=0.0, reverberation_db=1.0,
        ),
    }
)  # fmt: skip


def scanner_named(name: str) -> Scanner:
    """The preset of that name.

    Raises:
        LabelError: no preset is called so.

    >>> scanner_named("phantom-a 5-12 MHz").centre_mhz
    9.0
    """
    if name not in SCANNERS:
        raise LabelError(f"no scanner preset of that name; there are {list(SCANNERS)}")
    return SCANNERS[name]
