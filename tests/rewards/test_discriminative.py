import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym_agents.ppo.settings import FinetuneConfig
from jamgym_rewards.discriminative import DiscriminativeReward
from jamgym_rewards.features import FeatureSpec, prepare
from jamgym_rewards.joint import JointConfig, JointNetwork
from jamgym_rewards.judge import JudgeReward
from jamgym_rewards.learned import Calibration, save_weights, sigmoid
from jamgym_rewards.losses import binary_loss, joint_loss
from jamgym_rewards.negatives import KINDS, PairBatch

SPEC = FeatureSpec()
RATE = 16_000


def decibels(count, versions=None, frames=51, seed=0):
    shape = (count, SPEC.pitch_bins + SPEC.bands, frames) if versions is None else (
        count, versions, SPEC.pitch_bins + SPEC.bands, frames)  # fmt: skip
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 60.0 - 70.0


def test_binary_cross_entropy_by_hand():
    matches, mismatches = torch.tensor([2.0]), torch.tensor([-1.0, 0.0, 3.0])
    high = -math.log(1 / (1 + math.exp(-2.0)))
    low = np.mean([-math.log(1 - 1 / (1 + math.exp(-x))) for x in (-1.0, 0.0, 3.0)])
    assert float(binary_loss(matches, mismatches)) == pytest.approx(0.5 * (high + low), rel=1e-6)
    smooth = -0.9 * math.log(1 / (1 + math.exp(-2.0))) - 0.1 * math.log(1 - 1 / (1 + math.exp(-2.0)))
    assert float(binary_loss(matches, mismatches, 0.1)) == pytest.approx(0.5 * (smooth + low), rel=1e-6)


def test_the_loss_of_a_batch_is_that_of_its_pairs_one_by_one():
    torch.manual_seed(0)
    network = JointNetwork(JointConfig(channels=8, width=8)).eval()
    batch = PairBatch(decibels(3), decibels(3, 1 + len(KINDS), seed=1))
    loss, figures = joint_loss(network, batch)

    def logits(heard, played):
        with torch.no_grad():
            return network(prepare(heard, SPEC), prepare(played, SPEC))

    own = torch.stack([logits(batch.heard, batch.played[:, version]) for version in range(1 + len(KINDS))], dim=1)
    # Permuted pairs: the true stems of the other two songs.
    permuted = torch.stack([logits(batch.heard, batch.played[:, 0].roll(turn, 0)) for turn in (1, 2)], dim=1)
    expected = binary_loss(own[:, 0], torch.cat([own[:, 1:], permuted], dim=1))
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=0)
    assert figures["probability/truth"] == pytest.approx(float(own[:, 0].sigmoid().mean()), abs=1e-5)
    assert figures["probability/random_stem"] == pytest.approx(float(permuted.sigmoid().mean()), abs=1e-5)


def test_both_sides_meet_before_the_end():
    """The mixed second difference of a score that is a function of each side alone would vanish."""
    torch.manual_seed(0)
    network = JointNetwork(JointConfig(channels=8, width=8)).eval()
    a, c, b, d = (prepare(decibels(1, seed=seed), SPEC) for seed in range(4))
    with torch.no_grad():
        mixed = network(a, b) - network(a, d) - network(c, b) + network(c, d)
        assert abs(float(mixed)) > 1e-4
        assert not torch.equal(network(a, b), network(b, a)), "it knows which side is which"


@pytest.mark.parametrize("frames", [1, 2, 3, 50, 51, 52, 53])
def test_any_number_of_frames_fits(frames):
    network = JointNetwork(JointConfig(channels=4, width=4)).eval()
    side = prepare(decibels(2, frames=frames), SPEC)
    assert network(side, side).shape == (2,)


def test_raw_is_a_probability_and_the_score_an_affine_map_of_it():
    torch.manual_seed(0)
    reward = DiscriminativeReward(network=JointNetwork(JointConfig(channels=8, width=8)), gates=None)
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 4, 2 * RATE)).astype(np.float32)
    windows = Windows(audio[0], audio[1], RATE)
    raw = reward.raw(windows)
    assert ((raw > 0) & (raw < 1)).all()
    mapped = DiscriminativeReward(network=reward._network, calibration=Calibration(0.3, 0.8), gates=None)
    assert mapped.score(windows) == pytest.approx(np.clip((raw - 0.3) / 0.5, -1, 1.5), abs=1e-6)
    assert sigmoid(np.array([0.5])) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_weights_survive_a_file(tmp_path):
    torch.manual_seed(0)
    network = DiscriminativeReward.build()
    path = tmp_path / "discriminative.safetensors"
    save_weights(path, "discriminative", network, Calibration(0.1, 0.9))
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 2, 2 * RATE)).astype(np.float32)
    reward = DiscriminativeReward(weights=path)
    own = DiscriminativeReward(network=network, calibration=Calibration(0.1, 0.9))
    windows = Windows(audio[0], audio[1], RATE)
    np.testing.assert_allclose(reward.score(windows), own.score(windows), atol=5e-3)


def test_a_reward_without_shipped_weights_says_how_to_get_them():
    class Other(DiscriminativeReward):
        name = "other"

    audio = np.zeros((1, RATE), dtype=np.float32)
    with pytest.raises(ConfigError, match="ships no weights for reward 'other'.*train-coherence"):
        Other().score(Windows(audio, audio, RATE))


def test_it_may_be_trained_on_and_is_no_judge():
    FinetuneConfig(reward="discriminative")
    with pytest.raises(ConfigError, match="evaluation only"):
        FinetuneConfig(reward={"name": "mixture", "rewards": ["discriminative", "judge"]})
    mine, judges = DiscriminativeReward.build(), JudgeReward.build()
    assert type(mine) is not type(judges) and mine.config.features != judges.config.features
    assert replace(mine.config, channels=4).channels == 4
