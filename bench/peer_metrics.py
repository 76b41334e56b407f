"""What three tools for tables say of one release: run by the peers' own Python (``bench.audit_peers`` makes it), not by ours.

``python peer_metrics.py FIGURES.npz FOUND.json``. In: ``released``, ``members``, ``holdout`` float [n, d], an image a row, their ``*_labels``,
and ``draws``. Out: a list of figures, one for each metric and draw (of slow metrics the first draw alone). For each draw members and holdout
are cut at random to the same number of rows: mostlyai-qa does so itself, SDMetrics' share of nearer rows and Anonymeter's control mean
nothing otherwise.

When a metric raises an alarm, in the tool's own words where it has any:

*   mostlyai-qa: the share of released rows nearer to a training than to a holdout row "should not be significantly larger than 50 %", and we
    expect "about as many identical matches" with both. *Significantly* is a sign test at 5 %, ours. Its NNDR ratio is "ideally close to 1",
    without a bound. Its report refuses fewer than 90 training rows, so the functions beneath it are called.
*   SDMetrics: scores from 0 to 1 without a bound. The sign test stands in for one where training and holdout rows are compared.
*   Anonymeter: a risk with a 95 % interval, left to the data controller. An interval above 0 is read as an alarm: rows of members are attacked
    with more success than those of people never seen. Where its attack does no better than guessing it says that its results "cannot be
    trusted"; that is passed on as ``trusted``.
"""

import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from anonymeter.evaluators import InferenceEvaluator, LinkabilityEvaluator, SinglingOutEvaluator
from mostlyai.qa import _distances
from mostlyai.qa._sampling import prepare_data_for_embeddings
from scipy.stats import binomtest
from sdmetrics.single_table import DCRBaselineProtection, DCROverfittingProtection, NewRowSynthesis

LEVEL = 0.05
SAMPLE = 60  # released rows that are held against every real one
QUERIES, ATTEMPTS = 500, 20_000  # of Anonymeter's singling out: its default, and where it gives up
SECRET = "pathology"

Figure = dict[str, object]


def surely_more(first: int, second: int) -> bool:
    """Whether the first count is surely the larger one: sign test, one-sided."""
    return first + second > 0 and bool(binomtest(first, first + second, alternative="greater").pvalue < LEVEL)


def figure(peer: str, metric: str, value: float, *, alarm: bool | None, holdout: float | None = None, trusted: bool = True) -> Figure:
    """One figure; ``alarm`` is None where nothing says what would be one, ``holdout`` the same metric against people never seen."""
    return {"peer": peer, "metric": metric, "value": float(value), "alarm": alarm, "holdout": holdout, "trusted": trusted}


def mostly(released: pd.DataFrame, members: pd.DataFrame, holdout: pd.DataFrame) -> Iterator[Figure]:
    """mostlyai-qa's distances, in its own encoding and in the embedding as it is."""
    count = len(members)
    plain = [table.sample(count).to_numpy() if len(table) > count else table.to_numpy() for table in (released, members, holdout)]
    encoded = prepare_data_for_embeddings(syn_tgt_data=released, trn_tgt_data=members, hol_tgt_data=holdout)
    for how, (syn, trn, hol) in (("its encoding", encoded), ("the embedding", plain)):
        found = _distances.calculate_distances(syn_embeds=syn, trn_embeds=trn, hol_embeds=hol)
        near, far = found["dcr_syn_trn"], found["dcr_syn_hol"]
        share = _distances.calculate_dcr_share(near, far)
        yield figure("mostlyai-qa", f"DCR share, {how}", share, alarm=surely_more(int((near < far).sum()), int((near > far).sum())))
        same = [_distances.calculate_ims(distances) for distances in (near, far)]
        copies = [round(share * len(near)) for share in same]
        yield figure("mostlyai-qa", f"identical matches, {how}", same[0], alarm=surely_more(*copies), holdout=float(same[1]))
        ratio = _distances.calculate_nndr_ratio(found["nndr_syn_trn"], found["nndr_syn_hol"])
        yield figure("mostlyai-qa", f"NNDR ratio, {how}", ratio, alarm=None)


def sdmetrics(released: pd.DataFrame, members: pd.DataFrame, holdout: pd.DataFrame) -> Iterator[Figure]:
    """SDMetrics' share of released rows that are nearer to a training row, as its score: 2 x (1 - share), at most 1."""
    told = DCROverfittingProtection.compute_breakdown(members, released, holdout, numerical(members), None)
    nearer = round(told["synthetic_data_percentages"]["closer_to_training"] * len(released))
    yield figure("SDMetrics", "DCR overfitting protection", told["score"], alarm=surely_more(nearer, len(released) - nearer))


def sdmetrics_slow(released: pd.DataFrame, members: pd.DataFrame, holdout: pd.DataFrame) -> Iterator[Figure]:
    """SDMetrics' distance against that of random rows, and its share of rows that match no real one within 1 % of every column.

    The latter of SAMPLE rows: one takes it a seventh of a second.
    """
    meta, few = numerical(members), released.sample(min(SAMPLE, len(released)))
    baseline = [DCRBaselineProtection.compute(side, released, meta, None) for side in (members, holdout)]
    yield figure("SDMetrics", "DCR baseline protection", baseline[0], alarm=None, holdout=float(baseline[1]))
    new = [NewRowSynthesis.compute_breakdown(side, few, meta) for side in (members, holdout)]
    matched = [one["num_matched_rows"] for one in new]
    yield figure("SDMetrics", "new rows", new[0]["score"], alarm=surely_more(*matched), holdout=float(new[1]["score"]))


def numerical(table: pd.DataFrame) -> dict[str, object]:
    """SDMetrics' metadata of a table of numbers."""
    return {"columns": {name: {"sdtype": "numerical"} for name in table}}


def anonymeter(released: pd.DataFrame, members: pd.DataFrame, holdout: pd.DataFrame, *, draw: int) -> Iterator[Figure]:
    """Anonymeter's three risks; the tables have the label beside the features. No device: neither releases nor warsaw's table name one."""
    sides = {"ori": members, "syn": released, "control": holdout}
    features = [name for name in members if name != SECRET]
    mixed = random.sample(features, len(features))
    halves = (mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :])
    attacks: dict[str, Callable[[], SinglingOutEvaluator | LinkabilityEvaluator | InferenceEvaluator]] = {
        "singling out, one column": lambda: SinglingOutEvaluator(**sides, n_attacks=QUERIES, seed=draw).evaluate(mode="univariate"),
        "singling out, three columns": lambda: SinglingOutEvaluator(**sides, n_attacks=QUERIES, max_attempts=ATTEMPTS, seed=draw).evaluate(
            mode="multivariate"
        ),
        "linkability of halves": lambda: LinkabilityEvaluator(**sides, aux_cols=halves, n_attacks=len(members)).evaluate(n_jobs=1),
        "inference of the label": lambda: InferenceEvaluator(**sides, aux_cols=features, secret=SECRET, n_attacks=len(members)).evaluate(n_jobs=1),
    }
    for name, attack in attacks.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            risk = attack().risk()
        trusted = not any("cannot be trusted" in str(one.message) for one in said)
        yield figure("Anonymeter", name, risk.value, alarm=bool(risk.ci[0] > 0), trusted=trusted)


def measured(tables: dict[str, pd.DataFrame], draw: int) -> Iterator[Figure]:
    """All figures of one draw of equal sides."""
    random.seed(draw)
    np.random.seed(draw)
    DCRBaselineProtection._seed = draw
    count = min(len(tables["members"]), len(tables["holdout"]))
    whole = tables["released"].reset_index(drop=True), *(tables[side].sample(count).reset_index(drop=True) for side in ("members", "holdout"))
    numbers = [table.drop(columns=SECRET) for table in whole]
    yield from mostly(*numbers)
    yield from sdmetrics(*numbers)
    if draw == 0:
        yield from sdmetrics_slow(*numbers)
    yield from anonymeter(*whole, draw=draw)


def main(given: Path, found: Path) -> None:
    """Measure and write."""
    warnings.simplefilter("ignore")
    logging.disable()
    with np.load(given) as figures:
        tables = {side: pd.DataFrame(figures[side].astype(float)).add_prefix("f") for side in ("released", "members", "holdout")}
        for side, table in tables.items():
            table[SECRET] = figures[f"{side}_labels"]
        draws = int(figures["draws"])
    found.write_text(json.dumps([one for draw in range(draws) for one in measured(tables, draw)], allow_nan=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
