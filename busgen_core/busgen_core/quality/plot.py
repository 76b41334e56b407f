"""A quality report as a picture: every measure beside its floor. Needs matplotlib, which comes with busgen-privacy."""

import io
from pathlib import Path

from busgen_core.errors import ConfigError, UnavailableError
from busgen_core.files import write_whole
from busgen_core.quality.report import QualityReport


def draw(report: QualityReport, file: Path) -> None:
    """Write the report as PNG or SVG, by the ending of ``file``: one panel a measure, fake (at split size) beside the real floor.

    Raises:
        ConfigError: another ending.
        UnavailableError: matplotlib is not installed.
    """
    if file.suffix not in (".png", ".svg"):
        raise ConfigError(f"{file.name}: a plot is written as .png or .svg")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnavailableError("matplotlib is not installed; 'pip install matplotlib', or print the report's table()") from None
    columns = 4
    rows = -(-len(report.measures) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.2 * rows), layout="constrained")
    for place, m in enumerate(report.measures, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for x, (level, colour) in enumerate(((m.floor, "0.6"), (m.matched, "tab:blue"))):
            axes.bar(x, level.mean, color=colour, width=0.6)
            axes.plot([x, x], [level.low, level.high], color="0.1")
        axes.set_xticks([0, 1], ["real floor", "fake"])
        axes.set_title(f"{m.name} ({m.better} is better)", fontsize=8)
        axes.tick_params(labelsize=7)
    out = io.BytesIO()
    figure.savefig(out, format=file.suffix[1:], dpi=120)
    write_whole(file, out.getvalue())
