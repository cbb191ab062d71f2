"""Rewards that change while an agent trains: how they are asked to learn, frozen, saved and resumed.

A trainer calls `learn_from` after every rollout, saves `reward_state` with its checkpoint and gives it back to
`load_reward_state`; a measurement calls `freeze` first. All of them accept any reward model, so a trainer need not
know which rewards learn. What a learning reward gets is whole episodes; `rollout_windows` cuts them as they were
scored, and `truth_as_played` gives the truth as the same speaker would have played it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from jamgym.codec import Audio, Codec
from jamgym.concealment import render_played
from jamgym.errors import CheckpointError, RewardError
from jamgym.record import EpisodeRecord
from jamgym.reward import RewardModel, Windows
from jamgym.scoring import MAX_BATCH, plan_windows, window_batch


def learns(reward: RewardModel | None) -> bool:
    """Return whether `reward` is a `LearningReward` that is not frozen."""
    return bool(getattr(reward, "learns", False))


def learn_from(
    reward: RewardModel | None, records: Sequence[EpisodeRecord], codec: Codec, rng: Generator
) -> dict[str, float]:
    """Let `reward` learn from a rollout that it has scored.

    Args:
        reward: Any reward model; one that does not learn is left alone.
        records: The rollout's finished episodes, with their audio.
        codec: What decoded them.
        rng: Draws whatever the reward draws; seed it by the rollout's number, so that a resumed run draws the same.

    Returns:
        Figures to log, finite or NaN; empty if nothing learns.

    Raises:
        RewardError: The reward could not learn; it is named.
    """
    if reward is None or not learns(reward):
        return {}
    try:
        figures: Mapping[str, float] = reward.learn(records, codec, rng)  # type: ignore[attr-defined]
        return {str(name): float(value) for name, value in figures.items()}
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"Reward {reward.name!r} raised {type(error).__name__} while it learned: {error}.") from error


def freeze(reward: RewardModel) -> None:
    """Make `reward` a fixed measure: it learns no more and keeps no running statistics."""
    for name in ("learns", "normalising"):
        if hasattr(reward, name):
            setattr(reward, name, False)


def reward_state(reward: RewardModel | None) -> dict[str, Any] | None:
    """Return what `reward` has learned or counted, for a checkpoint; None if it keeps nothing."""
    state = getattr(reward, "state", None)
    return state() if callable(state) else None


def load_reward_state(reward: RewardModel | None, state: Mapping[str, Any] | None) -> None:
    """Let `reward` go on from what `reward_state` returned; None changes nothing.

    Raises:
        CheckpointError: `reward` keeps no state.
    """
    if state is None:
        return
    load = getattr(reward, "load_state", None)
    if not callable(load):
        name = None if reward is None else reward.name
        raise CheckpointError(f"The checkpoint holds the state of a reward, but reward {name!r} keeps none.")
    load(state)


def truth_as_played(record: EpisodeRecord, codec: Codec) -> Audio:
    """Return `(S,)` float32: the true stem as it would have sounded in place of what was played.

    It goes through the codec and through the same slots: where a frame came late, the truth has the same gap,
    repetition or fade. So it differs from `record.played_audio` in its music alone.
    """
    source = record.log.source
    codes = np.where(
        (source >= 0)[:, None], record.episode.target_codes[np.maximum(source, 0)], codec.silence_codes
    ).astype(np.int16)
    return render_played(codec, codes[None], record.status[None])[0]


def rollout_windows(
    reward: RewardModel, codec: Codec, records: Sequence[EpisodeRecord], audio: Sequence[Audio]
) -> Iterator[Windows]:
    """Yield the windows of a rollout as `reward` scores them, in batches of one length.

    Args:
        reward: Gives length and hop of the windows.
        codec: Gives the sample rate and the samples per frame.
        records: N finished episodes.
        audio: N arrays `(S,)` that take the played side: what was played, or the truth.
    """
    plans = [plan_windows(reward, codec, record.episode.frames) for record in records]
    of = np.repeat(np.arange(len(plans)), [len(plan) for plan in plans])
    starts = np.concatenate([plan.starts for plan in plans])
    ends = np.concatenate([plan.ends for plan in plans])
    for length in np.unique(ends - starts):
        same = np.flatnonzero(ends - starts == length)
        for first in range(0, len(same), MAX_BATCH):
            batch = same[first : first + MAX_BATCH]
            rows = of[batch].tolist()
            yield window_batch(
                reward,
                codec,
                [records[row].episode for row in rows],
                [audio[row] for row in rows],
                starts[batch].tolist(),
                ends[batch].tolist(),
            )
