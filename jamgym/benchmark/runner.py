"""Plays fixed episodes with a policy, and scores what was played with any number of reward models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from jamgym.codec import Audio, Codec
from jamgym.concealment import render_played
from jamgym.episode import Episode
from jamgym.errors import ConfigError
from jamgym.policy import Policy
from jamgym.record import EpisodeRecord
from jamgym.reward import RewardModel
from jamgym.scoring import check_reward, plan_windows, score_windows
from jamgym.vector_env import AccompanimentVectorEnv

#: Records that are decoded at once.
DECODE_BATCH = 16

#: Measures of time that `score` adds to the reward models, all per episode.
TIMING_MEASURES = (
    "late_frames",
    "longest_gap_seconds",
    "underruns",
    "lateness_p50_seconds",
    "lateness_p95_seconds",
    "lateness_p99_seconds",
)

Progress = Callable[[int], None]


def play(
    policy: Policy,
    env: AccompanimentVectorEnv,
    episodes: Sequence[Episode],
    progress: Progress | None = None,
    seed: int = 0,
) -> list[EpisodeRecord]:
    """Play each of `episodes` exactly once.

    Rows are filled with episodes of one length; where there are too few, the last one is repeated and its
    copies are ignored. Episode j always gets the random streams of seed + j, so every policy meets the
    same latencies, whatever the number of rows.

    Args:
        policy: Plays; it is reset before each batch.
        env: Its rows are used; autoreset mode "Disabled" wastes no drawn songs.
        episodes: E episodes, each of T >= 1 frames.
        progress: Called with the number of episodes that were just finished.
        seed: Seed of the latencies.

    Returns:
        E records in the order of `episodes`.
    """
    if not episodes:
        raise ConfigError("There are no episodes to play; give at least one.")
    rows = np.ones(env.num_envs, dtype=np.bool_)
    records: list[EpisodeRecord | None] = [None] * len(episodes)
    for batch in _batches(episodes, env.num_envs):
        padded = batch + [batch[-1]] * (env.num_envs - len(batch))
        given = [episodes[index] for index in padded]
        observation, _ = env.reset(seed=[seed + index for index in padded], options={"episodes": given})
        policy.reset(rows, given)
        playing = rows
        while playing.any():
            codes = policy.act(observation)
            observation, _, terminated, truncated, _ = env.step(codes.reshape(env.num_envs, -1))
            over = terminated | truncated
            for row in np.flatnonzero(over & playing).tolist():
                if row < len(batch):
                    records[batch[row]] = env.final_record(row)
            playing = playing & ~over
            if playing.any() and over.any():
                # A jump or a stall has cost some rows calls. They begin anew, unheard, until the last one is done.
                if env.autoreset_mode is AutoresetMode.DISABLED:
                    observation, _ = env.reset(options={"reset_mask": over, "episodes": given})
                policy.reset(over, given)
        if progress is not None:
            progress(len(batch))
    done = [record for record in records if record is not None]
    assert len(done) == len(episodes)
    return done


def decode_played(records: Sequence[EpisodeRecord], codec: Codec) -> list[Audio]:
    """Return what each record played, `(S,)`; audio that the environment has kept is used as it is."""
    audio: list[Audio | None] = [record.played_audio for record in records]
    missing = [index for index, kept in enumerate(audio) if kept is None]
    for batch in _batches([records[index].episode for index in missing], DECODE_BATCH):
        chosen = [missing[index] for index in batch]
        codes, status = (np.stack([getattr(records[j], name) for j in chosen]) for name in ("played_codes", "status"))
        for index, samples in zip(chosen, render_played(codec, codes, status), strict=True):
            audio[index] = samples
    return [samples for samples in audio if samples is not None]


def missing_truth(metric: RewardModel, episodes: Sequence[Episode]) -> int:
    """Return how many of `episodes` lack a truth that `metric` needs."""
    return sum(episode.truth is None for episode in episodes) if "truth" in metric.needs else 0


def score_metric(
    metric: RewardModel, records: Sequence[EpisodeRecord], codec: Codec, audio: Sequence[Audio]
) -> NDArray[np.float64]:
    """Return the score `(episodes,)` of whole episodes: the mean over the windows, as in the environment.

    Raises:
        RewardError: A score is not finite, or a truth is missing; nothing is left out of the mean.
    """
    check_reward(metric)
    plans = [plan_windows(metric, codec, record.episode.frames) for record in records]
    owner = np.repeat(np.arange(len(records)), [len(plan) for plan in plans])
    scores = score_windows(
        metric,
        codec,
        [records[index].episode for index in owner.tolist()],
        [audio[index] for index in owner.tolist()],
        np.concatenate([plan.starts for plan in plans]),
        np.concatenate([plan.ends for plan in plans]),
    )
    return np.bincount(owner, weights=scores, minlength=len(records)) / np.bincount(owner, minlength=len(records))


def score_timing(records: Sequence[EpisodeRecord], codec: Codec) -> dict[str, NDArray[np.float64]]:
    """Return each of `TIMING_MEASURES` `(episodes,)`.

    `late_frames` is the share of frames that missed their deadline or whose call was skipped; lateness is per
    frame, 0 if on time, and counts the waiting for earlier calls; `underruns` are slots with nothing to play.
    """
    rate = codec.sample_rate
    lateness = np.stack([np.percentile(np.maximum(record.lateness, 0), [50, 95, 99]) / rate for record in records])
    return {
        "late_frames": np.array([float(np.mean(record.lateness != 0)) for record in records]),
        "longest_gap_seconds": np.array([record.log.longest_gap * codec.hop_samples / rate for record in records]),
        "underruns": np.array([float(record.log.underruns) for record in records]),
        "lateness_p50_seconds": lateness[:, 0],
        "lateness_p95_seconds": lateness[:, 1],
        "lateness_p99_seconds": lateness[:, 2],
    }


def score(
    records: Sequence[EpisodeRecord],
    metrics: Sequence[RewardModel],
    codec: Codec,
    audio: Sequence[Audio] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Score whole episodes with every metric, and measure their timing.

    Args:
        records: E played episodes.
        metrics: Reward models with distinct names.
        codec: Decodes what was played, once per record.
        audio: What each record played, if it has been decoded already.

    Returns:
        Metric name, or one of `TIMING_MEASURES`, to `(E,)` numbers.

    Raises:
        RewardError: A score is not finite, or a needed truth is missing.
        ConfigError: Two metrics have one name.
    """
    check_distinct(metrics)
    audio = decode_played(records, codec) if audio is None else audio
    scores = {metric.name: score_metric(metric, records, codec, audio) for metric in metrics}
    return {**scores, **score_timing(records, codec)}


def check_distinct(metrics: Sequence[RewardModel]) -> None:
    """Refuse metrics that a table could not tell apart.

    Raises:
        ConfigError: Two have one name.
    """
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ConfigError(f"Metrics must have distinct names; got {names}.")


def _batches(episodes: Sequence[Episode], size: int) -> Iterator[list[int]]:
    """Yield lists of at most `size` indices of episodes of one length."""
    lengths: dict[int, list[int]] = {}
    for index, episode in enumerate(episodes):
        lengths.setdefault(episode.frames, []).append(index)
    for same in lengths.values():
        for first in range(0, len(same), size):
            yield same[first : first + size]
