"""One whole round on the real hospitals, as ``make demo IMAGES=…`` runs it: its AUCs, attack AUCs and seconds.

The peers are the demo's baselines, trained and scored in the same run. One seed: the noise of privacy is never seeded.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "real_round.json"
IMAGES = Path(os.environ.get("BUSGEN_SHARED_DATA", ROOT.parent / "shared" / "data"))


def main() -> int:
    """Run the demo on real images and write its figures."""
    with TemporaryDirectory() as scratch:
        report_file = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "deploy.local.demo", "--images", str(IMAGES), "--folder", f"{scratch}/demo", "--report", str(report_file)]
        subprocess.run(command, cwd=ROOT, check=True)
        report = json.loads(report_file.read_text())
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows(report), indent=1) + "\n")
    return 0


def rows(report: dict[str, object]) -> list[dict[str, object]]:
    """The report as benchmark rows."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    common = {"seeds": 1, "seconds": report["wall_seconds"], "machine": f"{platform.machine()}, {os.cpu_count()} cores", "commit": commit}
    pool, found = report["pool"], []
    for name, score in pool["baselines"].items():  # type: ignore[index]
        found.append(
            {
                "name": f"AUC of the pool on all holdouts, beside: {name}",
                **{"value": pool["tstr_auc"], "low": pool["low"], "high": pool["high"], "unit": "AUC"},  # type: ignore[index]
                **{"peer": name, "peer_value": score["auc"], "goal": None, "met": None},
                **common,
            }
        )
    for site in report["sites"]:  # type: ignore[attr-defined]
        attack = {"value": site["attack_auc"], "low": None, "high": None, "unit": "AUC", "peer": "chance", "peer_value": 0.5}
        found.append({"name": f"strongest attack on {site['name']}", **attack, "goal": None, "met": None, **common})
        time = {"value": site["seconds"], "low": None, "high": None, "unit": "s", "peer": None, "peer_value": None}
        found.append({"name": f"job at {site['name']}, offer to receipt", **time, "goal": None, "met": None, **common})
    return found


if __name__ == "__main__":
    sys.exit(main())
