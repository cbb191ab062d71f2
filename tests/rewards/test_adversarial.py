import math
import pickle

import numpy as np
import pytest
import torch

from jamgym import AccompanimentVectorEnv
from jamgym.checkpoint import save_state
from jamgym.errors import CheckpointError, ConfigError, RewardError
from jamgym.learning_conformance import same
from jamgym.registry import rewards
from jamgym.reward import Windows
from jamgym.reward_learning import rollout_windows, truth_as_played
from jamgym.testing import LearningRewardConformance, RewardConformance, ToyCodec, ToyCorpus, ToyReward
from jamgym_rewards.adversarial import AdversarialReward
from jamgym_rewards.discriminator import DiscriminatorLearning, UpdateSchedule
from jamgym_rewards.mixture import MixtureReward

RATE = 16_000
ALWAYS = UpdateSchedule(every=1)
SHORT = {"window_seconds": 0.8, "hop_seconds": 0.4, "min_window_seconds": 0.4, "channels": 8}


def short(**settings):
    return AdversarialReward(**{**SHORT, "schedule": ALWAYS, **settings})


def rollout(seed=0, codes=None, rows=4, frames=50):
    """Episodes of random tones at random levels, or of `codes(episode)`, without late frames."""
    env = AccompanimentVectorEnv(
        rows, corpus=ToyCorpus(songs=4, seconds=4.0), codec=ToyCodec(), reward=ToyReward(), k=5, t_f=0, frames=frames,
        allow_lookahead=True, autoreset_mode="Disabled",
    )  # fmt: skip
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for call in range(frames // 5):
        part = slice(call * 5, call * 5 + 5)
        if codes is None:
            actions = rng.integers(10, 16, (rows, 10))
        else:
            actions = np.stack([codes(episode)[part].reshape(-1) for episode in env.episodes])
        env.step(actions)
    return [env.final_record(row) for row in range(rows)]


class TestAdversarialConforms(RewardConformance):
    def make(self):
        return AdversarialReward()


class TestAdversarialLearns(LearningRewardConformance):
    def make(self):
        return short(learning=DiscriminatorLearning(replay=8))


class TestAMixtureWithItLearns(LearningRewardConformance):
    def make(self):
        return MixtureReward([short(), "level", short(seed=1)], weights=[1.0, 0.5, 0.1])


def test_the_score_is_minus_the_log_of_what_is_left():
    reward = short(gates=None)
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 3, RATE)).astype(np.float32)
    windows = Windows(audio[0], audio[1], RATE)
    for logit, expected in ((0.0, math.log(2)), (1.0, -math.log(1 - 1 / (1 + math.exp(-1.0)))), (900.0, 5.0)):
        with torch.no_grad():
            reward.discriminator.outlet.weight.zero_()
            reward.discriminator.outlet.bias.fill_(logit)
        assert reward.score(windows) == pytest.approx(expected, rel=1e-5)
    assert AdversarialReward(ceiling=2.0).range == (0.0, 2.0)


def test_silence_and_whispers_earn_nothing():
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 3, 2 * RATE)).astype(np.float32)
    reward = AdversarialReward()
    assert (reward.score(Windows(audio[0], audio[1], RATE)) > 0.3).all()
    for played in (0 * audio[1], np.float32(1e-3) * audio[1]):
        assert reward.score(Windows(audio[0], played, RATE)).tolist() == [0.0] * 3


def test_it_learns_to_tell_noise_from_the_truth():
    reward = short(learning=DiscriminatorLearning(passes=4, learning_rate=3e-3))
    figures = [reward.learn(rollout(seed), ToyCodec(), np.random.default_rng(seed)) for seed in range(4)]
    assert figures[-1]["accuracy"] > 0.9 and figures[-1]["loss"] < 0.5 * figures[0]["loss"]
    assert figures[-1]["updates"] == 4 and figures[-1]["mean_reward"] < 0.5 < figures[0]["mean_reward"]
    # A rollout that it has not seen: what was played earns less than the truth would have.
    fresh = rollout(9)
    audio = ([record.played_audio for record in fresh], [truth_as_played(record, ToyCodec()) for record in fresh])
    played, truth = (
        np.concatenate([reward.score(windows) for windows in rollout_windows(reward, ToyCodec(), fresh, side)])
        for side in audio
    )
    assert truth.mean() > played.mean() + 0.5 and (truth[:, None] > played[None]).mean() > 0.9


def test_playing_the_truth_cannot_be_told_apart():
    reward = short(learning=DiscriminatorLearning(passes=4, learning_rate=3e-3))
    for seed in range(3):
        records = rollout(seed, codes=lambda episode: episode.target_codes)
        assert np.array_equal(records[0].played_audio, truth_as_played(records[0], ToyCodec()))
        figures = reward.learn(records, ToyCodec(), np.random.default_rng(seed))
    assert abs(figures["probability_real"] - figures["probability_fake"]) < 0.1 and figures["loss"] > 0.6


def test_the_schedule_decides_and_the_mean_reward_is_that_of_the_scores():
    reward = short(schedule=UpdateSchedule(every=3, early_rollouts=3, threshold=0.4))
    seen, weights = [], []
    for turn in range(5):
        records = rollout(turn)
        audio = [record.played_audio for record in records]
        scores = np.concatenate([reward.score(w) for w in rollout_windows(reward, ToyCodec(), records, audio)])
        figures = reward.learn(records, ToyCodec(), np.random.default_rng(turn))
        assert figures["mean_reward"] == pytest.approx(scores.mean(), abs=1e-5)
        weights.append(reward.version)
        seen.append("loss" in figures)
        if turn == 3:
            reward.recent = (0.0,) * 3
    assert seen == [True, False, True, True, False]
    assert weights[0] == weights[1] != weights[2] != weights[3] == weights[4]
    assert reward.updates == 3 and reward.rollouts == 5


def test_windows_that_the_gate_has_judged_teach_nothing():
    reward = short()
    silent = rollout(0, codes=lambda episode: 0 * episode.target_codes)
    before = reward.version
    figures = reward.learn(silent, ToyCodec(), np.random.default_rng(0))
    assert figures == {"mean_reward": 0.0, "updates": 0.0} and reward.version == before


def test_an_update_that_explodes_leaves_it_as_it_was():
    reward = short(learning=DiscriminatorLearning(learning_rate=1e30))
    before = reward.state()
    with pytest.raises(RewardError, match="'adversarial' is not finite"):
        reward.learn(rollout(), ToyCodec(), np.random.default_rng(0))
    assert same(reward.state(), before) and not reward.discriminator.training


def test_neither_making_nor_learning_touches_the_global_stream_of_numbers():
    state = torch.get_rng_state()
    first, second = short(), short()
    figures = first.learn(rollout(), ToyCodec(), np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)  # dropout does not come from there
        assert second.learn(rollout(), ToyCodec(), np.random.default_rng(0)) == figures
    assert same(second.state(), first.state())
    assert AdversarialReward(seed=1).version != AdversarialReward().version == AdversarialReward().version


def test_a_frozen_one_does_not_learn_when_asked_directly():
    reward = short(learns=False)
    before = reward.state()
    assert reward.learn(rollout(), ToyCodec(), np.random.default_rng(0)) == {} and same(reward.state(), before)


def test_replayed_windows_are_kept_and_survive():
    reward = short(learning=DiscriminatorLearning(replay=5))
    for turn in range(2):
        reward.learn(rollout(turn), ToyCodec(), np.random.default_rng(turn))
    replay = reward.state()["replay"]
    assert replay["heard"].shape[0] == replay["played"].shape[0] == 5
    twin = pickle.loads(pickle.dumps(reward))
    figures = [each.learn(rollout(3), ToyCodec(), np.random.default_rng(3)) for each in (reward, twin)]
    assert figures[0] == figures[1] and same(reward.state(), twin.state())


def test_it_starts_from_the_checkpoint_of_a_run(tmp_path):
    reward = short()
    reward.learn(rollout(), ToyCodec(), np.random.default_rng(0))
    alone, mixed, other = (tmp_path / f"{name}.safetensors" for name in ("alone", "mixed", "other"))
    save_state(alone, {"reward": reward.state()})
    save_state(mixed, {"reward": MixtureReward(["level", reward]).state()})
    save_state(other, {"reward": MixtureReward(["level"]).state()})
    for path in (alone, mixed):
        spec = {"name": "adversarial", "checkpoint": str(path), "learns": False, **SHORT}
        assert rewards.create(**{"name": spec.pop("name"), **spec}).version == reward.version
    with pytest.raises(CheckpointError, match="no discriminator"):
        short(checkpoint=other)
    with pytest.raises(CheckpointError, match="channels=8 does not fit .*channels=16"):
        short(checkpoint=alone, channels=16)


def test_settings_come_from_yaml_like_specs():
    from jamgym.specs import create_from_spec

    spec = {"name": "adversarial", "schedule": {"every": 2}, "learning": {"label_smoothing": 0.1}}
    made = create_from_spec(rewards, spec)
    assert made.schedule.every == 2 and made.learning.label_smoothing == 0.1
    with pytest.raises(ConfigError, match="label_smoothing"):
        create_from_spec(rewards, {"name": "adversarial", "learning": {"label_smoothin": 0.1}})


def test_a_mixture_tells_whose_figures_they_are_and_freezes_all():
    mixture = MixtureReward([short(), "level"])
    figures = mixture.learn(rollout(), ToyCodec(), np.random.default_rng(0))
    assert set(figures) >= {"adversarial/loss", "adversarial/accuracy", "adversarial/mean_reward"}
    assert mixture.learns and not mixture.causal
    mixture.learns = False
    assert not mixture.models[0].learns and mixture.learn(rollout(), ToyCodec(), np.random.default_rng(0)) == {}
    assert not MixtureReward(["level"]).learns
