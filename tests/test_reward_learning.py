import numpy as np
import pytest

from jamgym import AccompanimentEnv
from jamgym.errors import CheckpointError, RewardError
from jamgym.playback import ON_TIME
from jamgym.reward import LearningReward, RewardModel
from jamgym.reward_learning import (
    freeze,
    learn_from,
    learns,
    load_reward_state,
    reward_state,
    rollout_windows,
    truth_as_played,
)
from jamgym.testing import LearningRewardConformance, ToyCodec, ToyCorpus, ToyReward

LATE = {"name": "lognormal", "median_seconds": 0.15, "sigma": 0.5}


class Counts(ToyReward):
    """Learns the mean level of what is played and adds it to its scores."""

    range = (0.0, 2.0)

    def __init__(self, **settings):
        super().__init__(**settings)
        self.learns, self.total, self.seen = True, 0.0, 0
        self.windows = []

    def score(self, windows):
        self.windows.append(windows)
        return super().score(windows) + np.float32(self.total / max(self.seen, 1))

    def learn(self, records, codec, rng):
        if not self.learns:
            return {}
        self.total += sum(float(np.abs(record.played_audio).mean()) for record in records) + rng.random()
        self.seen += len(records)
        return {"level": self.total / self.seen}

    def state(self):
        return {"total": self.total, "seen": self.seen}

    def load_state(self, state):
        self.total, self.seen = float(state["total"]), int(state["seen"])


class TestTheSuiteOnASmallReward(LearningRewardConformance):
    def make(self):
        return Counts()


def play(reward, codes, frames=53, **settings):
    """Three episodes, each by itself, since a stall or a skip lets them end at different calls."""
    settings = {"t_f": -5, "k": 5, "latency": LATE, **settings}
    env = AccompanimentEnv(
        corpus=ToyCorpus(songs=3, seconds=4.0), codec=ToyCodec(), reward=reward, frames=frames, **settings
    )
    records = []
    for seed in range(3):
        env.reset(seed=seed)
        over = False
        while not over:
            emitted = np.zeros((5, 2), dtype=np.int64)
            part = codes(env.simulation.episodes[0])[int(env.simulation.call[0]) * 5 :][:5]
            emitted[: len(part)] = part
            _, _, terminated, truncated, _ = env.step(emitted.reshape(-1))
            over = terminated or truncated
        records.append(env.final_record())
    return records


@pytest.mark.parametrize(
    "settings",
    [
        {"late_policy": "silence"},
        {"late_policy": "silence", "salvage": "chunk"},
        {"late_policy": "repeat"},
        {"late_policy": "conceal"},
        {"late_policy": "stall"},
        {"late_policy": "repeat", "backlog": "skip"},
    ],
    ids=lambda s: "-".join(s.values()),
)
def test_an_agent_that_emits_the_truth_plays_the_truth_as_played(settings):
    records = play(ToyReward(), lambda episode: episode.target_codes, **settings)
    assert any((record.status != ON_TIME).any() for record in records), "nothing was late"
    for record in records:
        np.testing.assert_allclose(truth_as_played(record, ToyCodec()), record.played_audio, atol=1e-6)
    others = play(ToyReward(), lambda episode: episode.target_codes[::-1], **settings)
    for record, other in zip(records, others, strict=True):
        assert np.array_equal(truth_as_played(other, ToyCodec()), truth_as_played(record, ToyCodec()))
        assert not np.array_equal(truth_as_played(other, ToyCodec()), other.played_audio)


def test_the_windows_of_a_rollout_are_those_that_were_scored():
    reward = Counts()
    records = play(reward, lambda episode: episode.target_codes)
    scored = {bytes(row) for windows in reward.windows for row in np.concatenate([windows.heard, windows.played], 1)}
    cut = [*rollout_windows(reward, ToyCodec(), records, [record.played_audio for record in records])]
    rows = [row for windows in cut for row in np.concatenate([windows.heard, windows.played], 1)]
    assert {bytes(row) for row in rows} == scored and len(rows) == sum(len(w.played) for w in reward.windows)
    assert len({windows.played.shape[1] for windows in cut}) == len(cut) > 1


def test_other_rewards_are_left_alone():
    reward = ToyReward()
    assert isinstance(Counts(), LearningReward) and not isinstance(reward, LearningReward)
    assert isinstance(reward, RewardModel) and not learns(reward) and not learns(None)
    assert learn_from(reward, [], ToyCodec(), np.random.default_rng(0)) == {} == learn_from(
        None, [], ToyCodec(), np.random.default_rng(0)
    )  # fmt: skip
    freeze(reward)
    assert not hasattr(reward, "learns") and reward_state(reward) is None and reward_state(None) is None
    load_reward_state(reward, None)
    with pytest.raises(CheckpointError, match="'toy' keeps none"):
        load_reward_state(reward, {"total": 1.0})


def test_a_reward_that_fails_to_learn_is_named():
    class Broken(Counts):
        def learn(self, records, codec, rng):
            raise ZeroDivisionError("no windows")

    class Refuses(Counts):
        def learn(self, records, codec, rng):
            raise RewardError("not finite")

    with pytest.raises(RewardError, match="'toy' raised ZeroDivisionError while it learned: no windows"):
        learn_from(Broken(), [], ToyCodec(), np.random.default_rng(0))
    with pytest.raises(RewardError, match="^not finite$"):
        learn_from(Refuses(), [], ToyCodec(), np.random.default_rng(0))
    frozen = Broken()
    freeze(frozen)
    assert learn_from(frozen, [], ToyCodec(), np.random.default_rng(0)) == {}
