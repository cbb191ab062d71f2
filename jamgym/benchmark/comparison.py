"""Several policies on the same episodes: played, scored, and compared song by song."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jamgym.benchmark.runner import decode_played, missing_truth, play, score
from jamgym.benchmark.statistics import RESAMPLES, Interval, by_song, iqm_interval, mean_interval, paired_difference
from jamgym.codec import Audio
from jamgym.episode import Episode
from jamgym.errors import ConfigError, unknown_name_message
from jamgym.policy import Policy
from jamgym.record import EpisodeRecord
from jamgym.reward import RewardModel
from jamgym.vector_env import AccompanimentVectorEnv

if TYPE_CHECKING:
    from jamgym.run import Run

#: Policies that bound a table rather than compete in it; privileged ones are anchors too.
ANCHORS = frozenset({"silence", "random_codes", "random_stem", "truth"})


@dataclass(frozen=True)
class Comparison:
    """Scores of several policies on the same E episodes.

    Attributes:
        labels: Policies in the order of the table.
        metrics: Names of the reward models that could be scored.
        values: Label to measure (metric or timing) to `(E,)` numbers.
        song_ids: `(E,)` songs; intervals count songs, not episodes.
        anchors: Labels of the policies that only bound the table.
        omitted: Metric that could not be scored to a sentence that says why.
        omitted_policies: Policy that could not play to a sentence that says why.
        lookahead: Whether the setting needs input from the future.
        setting: What was played: t_f, k, latency and so on, as plain data.
        seed: Seed of latencies and resampling.
        resamples: Bootstrap samples.
        records: Label to the E played episodes.
        audio: Label to the played audio of the first episodes.
    """

    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Mapping[str, Mapping[str, NDArray[np.float64]]]
    song_ids: tuple[str, ...]
    anchors: frozenset[str] = frozenset()
    omitted: Mapping[str, str] = field(default_factory=dict)
    omitted_policies: Mapping[str, str] = field(default_factory=dict)
    lookahead: bool = False
    setting: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    resamples: int = RESAMPLES
    records: Mapping[str, Sequence[EpisodeRecord]] = field(default_factory=dict, repr=False)
    audio: Mapping[str, Sequence[Audio]] = field(default_factory=dict, repr=False)

    @property
    def agents(self) -> tuple[str, ...]:
        """Labels that are not anchors."""
        return tuple(label for label in self.labels if label not in self.anchors)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Why metrics and policies are left out."""
        return (*self.omitted.values(), *self.omitted_policies.values())

    @property
    def songs(self) -> int:
        """Number of distinct songs."""
        return len(set(self.song_ids))

    def per_song(self, label: str, measure: str) -> NDArray[np.float64]:
        """Return the mean of `measure` on each song, `(songs,)`."""
        if label not in self.values:
            raise ConfigError(unknown_name_message("policy label", label, self.values))
        if measure not in self.values[label]:
            raise ConfigError(unknown_name_message("measure", measure, self.values[label]))
        return by_song(self.values[label][measure], self.song_ids)

    def interval(self, label: str, measure: str) -> Interval:
        """Return the mean over songs with its 95 % interval."""
        return mean_interval(self.per_song(label, measure), resamples=self.resamples, seed=self.seed)

    def difference(self, a: str, b: str, measure: str) -> Interval:
        """Return the paired difference a - b over songs with its 95 % interval."""
        first, second = self.per_song(a, measure), self.per_song(b, measure)
        return paired_difference(first, second, resamples=self.resamples, seed=self.seed)

    def pairs(self) -> list[tuple[str, str]]:
        """Return which policies to compare: later agents with the first, and every agent with the random stem."""
        agents = self.agents
        found = [(label, agents[0]) for label in agents[1:]]
        if "random_stem" in self.labels:
            found += [(label, "random_stem") for label in agents]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return every number as plain data: per-episode values, intervals, differences, songs, seeds."""
        first = self.labels[0]
        episodes = [record.episode for record in self.records.get(first, ())]
        policies = {
            label: {
                measure: {
                    "values": values.tolist(),
                    "mean": self.interval(label, measure).to_json(),
                    "iqm": iqm_interval(
                        self.per_song(label, measure), resamples=self.resamples, seed=self.seed
                    ).to_json(),
                }
                for measure, values in self.values[label].items()
            }
            for label in self.labels
        }
        return {
            "setting": dict(self.setting),
            "lookahead_oracle": self.lookahead,
            "seed": self.seed,
            "resamples": self.resamples,
            "confidence": 0.95,
            "songs": list(self.song_ids),
            "episodes": [
                {"song": episode.song_id, "target": episode.target_name, "start_frame": episode.start_frame}
                for episode in episodes
            ],
            "anchors": sorted(self.anchors),
            "omitted_metrics": dict(self.omitted),
            "omitted_policies": dict(self.omitted_policies),
            "policies": policies,
            "paired_differences": [
                {"a": a, "b": b, "measure": measure, **self.difference(a, b, measure).to_json()}
                for a, b in self.pairs()
                for measure in self.metrics
            ],
        }


def compare(
    policies: Mapping[str, Policy],
    make_env: Callable[[], AccompanimentVectorEnv],
    episodes: Sequence[Episode],
    metrics: Sequence[RewardModel],
    run: Run | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    keep_audio: int = 0,
    omitted_policies: Mapping[str, str] | None = None,
) -> Comparison:
    """Play the same `episodes` with every policy and score what came out of the speaker.

    Args:
        policies: Label to policy, in the order of the table.
        make_env: Makes the vector environment for one policy; its own reward is not needed.
        episodes: Fixed episodes; every policy meets the same songs and the same latencies.
        metrics: Reward models. One that needs a truth that some episode lacks is left out as a whole.
        run: Shows progress; after a first Ctrl-C the policies that are done are compared.
        seed: Seed of latencies and resampling.
        resamples: Bootstrap samples.
        keep_audio: Number of episodes whose played audio is kept.
        omitted_policies: Policy that is not among `policies`, since it cannot play, to a sentence that says why.

    Raises:
        ConfigError: There are no policies or no episodes.
        RewardError: A metric returned something that is not one finite score per window.
    """
    if not policies:
        raise ConfigError("There are no policies to compare; give at least one.")
    usable, omitted = usable_metrics(metrics, episodes)
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    records: dict[str, list[EpisodeRecord]] = {}
    audio: dict[str, list[Audio]] = {}
    left_out = dict(omitted_policies or {})
    lookahead = False
    setting: dict[str, Any] = {}
    if run is None:
        from contextlib import nullcontext

        progress: Any = nullcontext(None)
    else:
        progress = run.progress(len(policies) * len(episodes), "evaluate")
    with progress as task:
        for label, policy in policies.items():
            if values and run is not None and run.stop_requested:
                left_out[label] = f"{label} was not played: the run was stopped."
                continue
            env = make_env()
            codec = env.codec

            def advance(count: int, label: str = label) -> None:
                if task is not None:
                    task.advance(count, policy=label)

            played = play(policy, env, episodes, advance, seed)
            decoded = decode_played(played, codec)
            values[label] = score(played, usable, codec, decoded)
            records[label] = played
            audio[label] = decoded[:keep_audio]
            timing = env.timing
            lookahead = not timing.playable_live
            setting = {
                "t_f": timing.t_f,
                "k": timing.k,
                "frames": timing.frames,
                "budget_seconds": timing.seconds(timing.budget),
                "latency": ", ".join(repr(model) for model in env.simulation.conditions.latency),
                **asdict(env.simulation.rule),
                "codec": codec.name,
                "corpus": env.source.corpus.name,
                "split": env.source.split,
            }
            env.close()
    return Comparison(
        labels=tuple(values),
        metrics=tuple(metric.name for metric in usable),
        values=values,
        song_ids=tuple(episode.song_id for episode in episodes),
        anchors=frozenset(label for label in values if policies[label].privileged or policies[label].name in ANCHORS),
        omitted=omitted,
        omitted_policies=left_out,
        lookahead=lookahead,
        setting=setting,
        seed=seed,
        resamples=resamples,
        records=records,
        audio=audio,
    )


def usable_metrics(
    metrics: Sequence[RewardModel], episodes: Sequence[Episode]
) -> tuple[list[RewardModel], dict[str, str]]:
    """Return the metrics that every episode can be scored with, and why the others cannot."""
    usable, omitted = [], {}
    for metric in metrics:
        missing = missing_truth(metric, episodes)
        if missing:
            omitted[metric.name] = (
                f"{metric.name} needs truth (known beats and chords), which {missing} of {len(episodes)} episodes of "
                "this corpus do not have; the column is left out."
            )
        else:
            usable.append(metric)
    return usable, omitted
