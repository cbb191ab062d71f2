"""Conformance suite for rewards that learn during training (`jamgym.reward.LearningReward`).

Subclass it in a pytest file beside `jamgym.testing.RewardConformance`, and say how to make the reward.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jamgym.record import EpisodeRecord
from jamgym.reward import LearningReward, Windows
from jamgym.reward_learning import freeze, learn_from, load_reward_state, reward_state
from jamgym.toys import ToyCodec, ToyCorpus, ToyReward
from jamgym.vector_env import AccompanimentVectorEnv


class LearningRewardConformance:
    """Suite for `jamgym.reward.LearningReward`.

    Attributes:
        rollouts: Rollouts that `make`'s reward needs to have learned something.
        frames: Frames of 40 ms per episode.
    """

    rollouts = 2
    frames = 75

    def make(self) -> LearningReward:
        """Return the reward under test, at its start."""
        raise NotImplementedError

    def _rollout(self, seed: int) -> list[EpisodeRecord]:
        """Return three episodes of loud random codes, some of them late."""
        env = AccompanimentVectorEnv(
            3,
            corpus=ToyCorpus(songs=3, seconds=4.0),
            codec=ToyCodec(),
            reward=ToyReward(),
            t_f=-5,
            k=5,
            frames=self.frames,
            latency={"name": "lognormal", "median_seconds": 0.15, "sigma": 0.5},
            autoreset_mode="Disabled",
        )
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        over = np.zeros(3, dtype=np.bool_)
        while not over.all():
            _, _, terminated, truncated, _ = env.step(rng.integers(8, 16, (3, 10)))
            over = terminated | truncated
        return [record for row in range(3) if (record := env.final_record(row)) is not None]

    def _windows(self, reward: LearningReward) -> Windows:
        samples = round(reward.window_seconds * 16_000)
        heard, played = np.random.default_rng(7).normal(0.0, 0.1, (2, 3, samples)).astype(np.float32)
        return Windows(heard=heard, played=played, sample_rate=16_000)

    def _learn(self, reward: LearningReward, seeds: range) -> list[dict[str, float]]:
        return [learn_from(reward, self._rollout(seed), ToyCodec(), np.random.default_rng([seed, 1])) for seed in seeds]

    def test_is_a_learning_reward(self) -> None:
        """It has every part of the protocol, and learns until it is frozen."""
        reward = self.make()
        assert isinstance(reward, LearningReward) and reward.learns

    def test_learning_is_deterministic(self) -> None:
        """The same rollouts and seeds give the same figures and the same scores, which are not those of the start."""
        one, two = self.make(), self.make()
        start = np.asarray(one.score(self._windows(one)))
        first, second = (self._learn(reward, range(self.rollouts)) for reward in (one, two))
        assert first[-1] and first == second
        assert np.array_equal(one.score(self._windows(one)), two.score(self._windows(two)))
        assert not np.array_equal(one.score(self._windows(one)), start), "it learned nothing"

    def test_a_loaded_state_goes_on_bit_for_bit(self) -> None:
        """A state survives a checkpoint file, is a copy, and its owner's successor learns as the owner does."""
        from jamgym.checkpoint import load_state, save_state

        owner, heir = self.make(), self.make()
        self._learn(owner, range(self.rollouts))
        state = reward_state(owner)
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder) / "state.safetensors", {"reward": state})
            later = self._learn(owner, range(self.rollouts, 2 * self.rollouts))
            loaded = load_state(Path(folder) / "state.safetensors")["reward"]
        assert same(state, loaded), "learning changed a state that was taken before"
        load_reward_state(heir, loaded)
        assert same(reward_state(heir), state)
        assert self._learn(heir, range(self.rollouts, 2 * self.rollouts)) == later
        assert same(reward_state(heir), reward_state(owner))
        assert np.array_equal(heir.score(self._windows(heir)), owner.score(self._windows(owner)))

    def test_scoring_does_not_learn(self) -> None:
        """Scores change nothing, so that a rollout that is played again is scored alike."""
        reward = self.make()
        before = reward_state(reward)
        scores = np.asarray(reward.score(self._windows(reward)))
        assert np.array_equal(reward.score(self._windows(reward)), scores) and same(reward_state(reward), before)

    def test_a_frozen_one_stays_as_it_is(self) -> None:
        """After `freeze` nothing is learned or counted."""
        reward = self.make()
        before = reward_state(reward)
        freeze(reward)
        assert self._learn(reward, range(self.rollouts)) == [{}] * self.rollouts
        assert same(reward_state(reward), before)


def same(one: Any, two: Any) -> bool:
    """Return whether two nested states are equal, bit for bit.

    >>> same({"a": [1, np.zeros(2)]}, {"a": [1, np.zeros(2)]}), same({"a": 1}, {"a": 2})
    (True, False)
    """
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(value, two[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    if one is None or two is None:
        return one is two
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))
