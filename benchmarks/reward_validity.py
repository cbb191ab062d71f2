"""How well rewards tell the true stem from wrong ones, and what attacks on them earn.

    python benchmarks/reward_validity.py --songs 100 --rewards coherence harmony
    python benchmarks/reward_validity.py --rewards '{name: mixture, rewards: [coherence, silence]}' --out out.json
    python benchmarks/reward_validity.py --guards

For held-out songs of `band`, excerpts of 12 s: the score of a version is the mean over the windows that an episode
of that length is scored on. Printed are

- validity: the AUC, the share of pairs in which the truth scores higher than the wrong version (0.5 is chance), with
  95 % bootstrap intervals over songs; and the rank correlation, over truth and wrong versions, with the share of
  notes in the known chord and with the F-measure of the known beats.
- attacks: the mean score of each, and whether it lies above the lower quartile of the truth's scores (marked !).

With `--guards` the columns are the guarded reward, the same without each of its guards in turn, and `coherence` with
and without its gates: what a guard is good for is what gets through without it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reward_versions import ATTACKS, SECONDS, WRONG, Case, make_cases

from jamgym.benchmark.statistics import Interval, bootstrap, mean_interval
from jamgym.config import parse_yaml
from jamgym.corpora.band import BandCorpus
from jamgym.registry import codecs, rewards
from jamgym.reward import RewardModel, WindowPlan, Windows
from jamgym.specs import create_from_spec, spec_name
from jamgym_rewards.beat import beat_f_measure
from jamgym_rewards.note_in_chord import note_in_chord
from jamgym_rewards.validation import auc

Scores = NDArray[np.float64]

#: A learned reward, and what keeps an agent from its holes.
GUARDED = "coherence"
GUARDS = ("silence", "repetition", "copying", "level", "flicker")
DEFAULT = (
    GUARDED,
    "judge",
    "discriminative",
    "harmony",
    "beat_audio",
    *GUARDS,
    f"{{name: mixture, rewards: [{', '.join((GUARDED, *GUARDS))}]}}",
)
RULERS = ("note_in_chord", "beat_f")
VERSIONS = ("truth", *WRONG, *ATTACKS)
FRAMES_PER_SECOND = 25.0
#: Versions scored at once.
_BATCH = 16


def score_case(reward: RewardModel, case: Case) -> Scores:
    """Return the mean window score of each version, `(versions,)` in the order of `VERSIONS`; NaN for missing ones."""
    seconds = (reward.window_seconds, reward.hop_seconds, reward.min_window_seconds)
    window, hop, shortest = (max(1, round(FRAMES_PER_SECOND * s)) for s in seconds)
    plan = WindowPlan.make(round(SECONDS * FRAMES_PER_SECOND), window, hop, shortest)
    there = [name for name in VERSIONS if name in case.played]
    played = np.stack([case.played[name] for name in there])
    found = np.zeros((len(there), len(plan)))
    for index, (start, end) in enumerate(
        zip(plan.starts / FRAMES_PER_SECOND, plan.ends / FRAMES_PER_SECOND, strict=True)
    ):
        part = slice(round(start * case.sample_rate), round(end * case.sample_rate))
        for first in range(0, len(there), _BATCH):
            some = played[first : first + _BATCH, part]
            found[first : first + _BATCH, index] = reward.score(
                Windows(
                    heard=np.repeat(case.heard[None, part], len(some), axis=0),
                    played=some,
                    sample_rate=case.sample_rate,
                    target=np.repeat(case.played["truth"][None, part], len(some), axis=0),
                    truth=(case.truth.crop(start, end),) * len(some),
                )
            )
    means = dict(zip(there, found.mean(axis=1).tolist(), strict=True))
    return np.array([means.get(name, np.nan) for name in VERSIONS])


def rule(case: Case) -> dict[str, Scores]:
    """Return what the known chords and beats say of every version, `(versions,)` each."""
    found = {name: np.full(len(VERSIONS), np.nan) for name in RULERS}
    for index, name in enumerate(VERSIONS):
        if name in case.played:
            audio = case.played[name]
            found["note_in_chord"][index] = note_in_chord(audio[None], case.sample_rate, (case.truth,))[0]
            found["beat_f"][index] = beat_f_measure(audio, case.sample_rate, case.truth.beats)
    return found


def over_songs(statistic: Callable[[NDArray[np.int64]], float], songs: int, seed: int) -> Interval:
    """Return `statistic`, a function of song indices, with its bootstrap interval over songs."""

    def many(index: Scores) -> Scores:
        return np.asarray(np.apply_along_axis(lambda rows: statistic(rows.astype(np.int64)), -1, index))

    return bootstrap(np.arange(songs), many, resamples=500, seed=seed)


def auc_interval(truth: Scores, wrong: Scores, seed: int = 0) -> Interval:
    """Return the AUC of `truth` `(songs,)` against `wrong` `(songs, versions)`; songs that lack them are left out."""
    there = ~np.isnan(wrong).any(axis=1)
    if not there.any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    true, false = truth[there], wrong[there]
    return over_songs(lambda rows: auc(true[rows], false[rows].ravel()), len(true), seed)


def correlation_interval(scores: Scores, ruler: Scores, seed: int = 0) -> Interval:
    """Return Spearman's correlation over songs and versions `(songs, versions)`, resampling songs."""
    from scipy.stats import rankdata

    def measure(rows: NDArray[np.int64]) -> float:
        x, y = scores[rows].ravel(), ruler[rows].ravel()
        there = ~np.isnan(x)
        a, b = rankdata(x[there]), rankdata(y[there])
        return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0

    return over_songs(measure, len(scores), seed)


def report_of(scores: Scores, rulers: dict[str, Scores], seed: int = 0) -> dict[str, Any]:
    """Return the figures of one reward from its scores `(songs, versions)`."""
    column = {name: scores[:, index] for index, name in enumerate(VERSIONS)}
    truth = column["truth"]
    transposed = np.stack([column[name] for name in WRONG if name.startswith("transposed")], axis=1)
    kinds = {name: column[name][:, None] for name in WRONG} | {"transposed_all": transposed}
    musical = [VERSIONS.index(name) for name in ("truth", *WRONG)]
    quartile = float(np.quantile(truth, 0.25))
    return {
        "truth": asdict(mean_interval(truth, seed=seed)),
        "truth_lower_quartile": quartile,
        "random_stem": asdict(mean_interval(column["random_stem"], seed=seed)),
        "auc": {name: asdict(auc_interval(truth, wrong, seed)) for name, wrong in kinds.items()},
        "correlation": {
            name: asdict(correlation_interval(scores[:, musical], ruler[:, musical], seed))
            for name, ruler in rulers.items()
        },
        "attacks": {
            name: {
                **asdict(mean_interval(column[name], seed=seed)),
                "above_truth_lower_quartile": bool(column[name].mean() > quartile),
            }
            for name in ATTACKS
        },
    }


def tables(reports: dict[str, dict[str, Any]]) -> list[Any]:
    """Return the rich tables of validity and of attacks, a column per reward."""
    from rich.table import Table

    def table(title: str, rows: Sequence[tuple[str, Callable[[dict[str, Any]], str]]]) -> Table:
        made = Table("", *reports, title=title)
        for name, cell in rows:
            made.add_row(name, *(cell(report) for report in reports.values()))
        return made

    def shown(figure: dict[str, float]) -> str:
        return f"{figure['estimate']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"

    first = next(iter(reports.values()))
    valid = [(name, lambda report, name=name: shown(report["auc"][name])) for name in first["auc"]]
    ranks = [(f"ranks as {name}", lambda r, name=name: shown(r["correlation"][name])) for name in first["correlation"]]
    attacks = [
        (name, lambda r, name=name: f"{r['attacks'][name]['estimate']:.2f}" + " !" * _above(r, name))
        for name in ATTACKS
    ]
    bounds = [
        ("truth", lambda report: f"{report['truth']['estimate']:.2f}"),
        ("truth's lower quartile", lambda report: f"{report['truth_lower_quartile']:.2f}"),
        ("random stem", lambda report: f"{report['random_stem']['estimate']:.2f}"),
    ]
    return [table("AUC of the truth against", valid + ranks), table("Mean score of attacks", bounds + attacks)]


def _above(report: dict[str, Any], attack: str) -> bool:
    return bool(report["attacks"][attack]["above_truth_lower_quartile"])


def guard_columns() -> dict[str, Any]:
    """Return the specs of `--guards` by label."""
    columns: dict[str, Any] = {
        f"{GUARDED}, no gates": {"name": GUARDED, "gates": None},
        GUARDED: GUARDED,
        "all guards": {"name": "mixture", "rewards": [GUARDED, *GUARDS]},
    }
    for guard in GUARDS:
        others = [name for name in GUARDS if name != guard]
        columns[f"without {guard}"] = {"name": "mixture", "rewards": [GUARDED, *others]}
    return columns


def label_of(reward: RewardModel, spec: Any, taken: Sequence[str]) -> str:
    """Return a column's name: the spec's, a mixture with its components, and a number if it is taken."""
    parts = getattr(reward, "components", None)
    label = spec_name(spec) if parts is None else f"{spec_name(spec)} ({', '.join(parts)})"
    return label if label not in taken else f"{label} {len(taken) + 1}"


def main() -> None:
    """Parse the command line, score, print, write."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=100, help="held-out songs, 2 to 200")
    parser.add_argument("--rewards", nargs="+", help=f"names, or YAML mappings with `name` ({' '.join(DEFAULT)})")
    parser.add_argument("--guards", action="store_true", help="what each guard keeps out, in place of --rewards")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--codec", default=None, help="send all that is played through this codec first (slow)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="write everything as JSON")
    args = parser.parse_args()
    if not 2 <= args.songs <= 200:
        parser.error(f"--songs is {args.songs}; give 2 to 200")
    if args.guards and args.rewards:
        parser.error("--guards has columns of its own; leave --rewards out")
    models: dict[str, RewardModel] = {}
    if args.guards:
        models = {label: create_from_spec(rewards, spec) for label, spec in guard_columns().items()}
    else:
        for text in args.rewards or DEFAULT:
            spec = parse_yaml(text)
            model = create_from_spec(rewards, spec)
            models[label_of(model, spec, list(models))] = model

    console = Console(width=max(40 + 24 * len(models), 80))
    corpus = BandCorpus(cache_songs=args.songs)
    cases = make_cases(corpus, corpus.song_ids(args.split)[: args.songs], args.seed)
    if args.codec is not None:
        codec = create_from_spec(codecs, args.codec)
        for case in cases:
            for name, audio in case.played.items():
                case.played[name] = codec.decode(codec.encode(audio[None]))[0, : len(audio)]
    judged = [rule(case) for case in cases]
    rulers = {name: np.stack([one[name] for one in judged]) for name in RULERS}
    reports = {}
    for label, model in models.items():
        scores = np.stack([score_case(model, case) for case in cases])
        reports[label] = report_of(scores, rulers, args.seed)
    for table in tables(reports):
        console.print(table)
    if args.out is not None:
        settings = {"songs": args.songs, "split": args.split, "codec": args.codec, "seed": args.seed}
        instruments = [case.instrument for case in cases]
        text = json.dumps({"settings": settings, "instruments": instruments, "rewards": reports}, indent=2)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
