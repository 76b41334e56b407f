"""Rows of benchmark results, and where they are written."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
SHARED = Path(os.environ.get("BUSGEN_SHARED_DATA", ROOT.parent / "shared" / "data"))


def row(
    name: str,
    value: float,
    unit: str,
    *,
    low: float | None = None,
    high: float | None = None,
    peer: str | None = None,
    peer_value: float | None = None,
    goal: str | None = None,
    met: bool | None = None,
    seeds: int = 1,
    seconds: float | None = None,
) -> dict[str, object]:
    """One row; ``low`` and ``high`` are a 95 % interval, or the range of the repeats where the name says so."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    measured = {"name": name, "value": value, "low": low, "high": high, "unit": unit, "peer": peer, "peer_value": peer_value}
    judged = {"goal": goal, "met": met, "seeds": seeds, "seconds": seconds}
    return measured | judged | {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "commit": commit}


def write(name: str, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write ``bench/results/NAME.json`` and print the rows."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(list(rows), indent=1) + "\n")
    for r in rows:
        interval = "" if r["low"] is None else f" ({r['low']:.4g} to {r['high']:.4g})"
        beside = "" if r["peer"] is None else f"   beside {r['peer']}: {r['peer_value']}"
        print(f"{r['name']}: {r['value']:.4g}{interval} {r['unit']}{beside}")
    return file
