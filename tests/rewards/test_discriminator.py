import numpy as np
import pytest
import torch

from jamgym.errors import ConfigError, RewardError
from jamgym_rewards.discriminator import (
    DiscriminatorLearning,
    Examples,
    UpdateSchedule,
    WindowFeatures,
    check_finite,
    keep_some,
    match_logits,
    minibatches,
    update,
)
from jamgym_rewards.joint import JointConfig, JointNetwork

SMALL = JointNetwork(JointConfig(channels=4, width=4))
ROWS = SMALL.config.features.pitch_bins + SMALL.config.features.bands


def tagged(tags, frames=12):
    """Windows that say who they are: `heard` holds the tag, `played` the tag and a half."""
    base = np.asarray(tags, dtype=np.uint8)[:, None, None] * 2
    return WindowFeatures(np.tile(base, (1, ROWS, frames)), np.tile(base + 1, (1, ROWS, frames)))


@pytest.mark.parametrize(
    ("schedule", "rewards", "due"),
    [
        # At first from the first rollout and from every fifth one, whatever the agent earns.
        (UpdateSchedule(every=5, early_rollouts=10), [9.0] * 10, [1, 5, 10]),
        (UpdateSchedule(every=5, early_rollouts=10), [0.0] * 20, [1, 5, 10]),
        (UpdateSchedule(every=2, early_rollouts=4), [0.0] * 8, [1, 2, 4]),
        # Later only where the mean of three passes 1.0: (3 + 0 + 0) / 3 does not.
        (UpdateSchedule(early_rollouts=0), [0.9, 1.0, 1.1, 1.1, 1.3, 0.4, 0.4, 3.0, 0.0, 0.0, 3.1], [4, 5, 8, 9, 11]),
        (UpdateSchedule(early_rollouts=0), [1.2, 0.0, 0.0, 3.0, 0.0], [1]),
        (UpdateSchedule(early_rollouts=0, mean_over=1, threshold=0.5), [0.5, 0.6, 0.4, 0.7], [2, 4]),
        # Rewards of the first phase count at the start of the second.
        (UpdateSchedule(every=100, early_rollouts=3), [0.0, 2.0, 2.0, 0.5, 0.0], [1, 4]),
    ],
)
def test_the_schedule_by_table(schedule, rewards, due):
    assert [n for n in range(1, len(rewards) + 1) if schedule.due(n, rewards[:n])] == due


def test_impossible_settings_are_refused():
    for settings in ({"every": 0}, {"mean_over": 0}, {"early_rollouts": -1}):
        with pytest.raises(ConfigError):
            UpdateSchedule(**settings)
    for settings in ({"passes": 0}, {"batch": 0}, {"replay": -1}, {"label_smoothing": 0.5}, {"learning_rate": 0.0}):
        with pytest.raises(ConfigError):
            DiscriminatorLearning(**settings)


def test_minibatches_show_every_played_window_once_and_keep_pairs_together():
    groups = [
        Examples(tagged([1, 2]), tagged([10, 11, 12, 13, 14])),
        Examples(tagged([3, 4, 5, 6], frames=9), tagged([20, 21], frames=9)),
        Examples(tagged([], frames=7), tagged([30], frames=7)),
        Examples(tagged([7], frames=8), tagged([], frames=8)),
    ]
    found = list(minibatches(groups, 2, np.random.default_rng(0)))
    fakes = np.concatenate([batch.fake.heard[:, 0, 0] // 2 for batch in found])
    assert sorted(fakes.tolist()) == [10, 11, 12, 13, 14, 20, 21]
    for batch in found:
        assert len(batch.real) == len(batch.fake) <= 2
        assert batch.real.played.shape == batch.fake.played.shape, "one length"
        for side in (batch.real, batch.fake):
            assert (side.played == side.heard + 1).all(), "a pair was torn apart"
    reals = np.concatenate([b.real.heard[:, 0, 0] // 2 for b in found if b.real.played.shape[2] == 12]).tolist()
    assert len(reals) == 5 and {reals.count(1), reals.count(2)} == {2, 3}
    again = list(minibatches(groups, 2, np.random.default_rng(0)))
    assert all(np.array_equal(a.fake.heard, b.fake.heard) for a, b in zip(found, again, strict=True))


def test_replay_keeps_at_most_its_size_and_one_length():
    rng = np.random.default_rng(0)
    assert keep_some(tagged([1]), tagged([2]), 0, rng) is None
    kept = keep_some(None, tagged(range(10)), 4, rng)
    assert len(kept) == 4
    mixed = keep_some(kept, tagged(range(20, 24)), 6, rng)
    assert len(mixed) == 6 and (mixed.heard < 40).all(axis=(1, 2)).any() and (mixed.heard >= 40).any()
    assert keep_some(kept, tagged([5, 6], frames=9), 6, rng).heard.shape == (2, ROWS, 9)


def two_kinds(count=16, frames=24):
    """Truth repeats what is heard; what was played is noise."""
    rng = np.random.default_rng(0)
    heard = rng.integers(60, 200, (2 * count, ROWS, frames)).astype(np.uint8)
    noise = rng.integers(60, 200, (count, ROWS, frames)).astype(np.uint8)
    noise[:, : ROWS // 2] = 60
    return Examples(WindowFeatures(heard[:count], heard[:count]), WindowFeatures(heard[count:], noise))


def test_updates_raise_the_truth_and_lower_what_was_played():
    torch.manual_seed(0)
    network = JointNetwork(JointConfig(channels=8, width=8, dropout=0.0))
    settings = DiscriminatorLearning(learning_rate=3e-3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    examples = two_kinds()
    figures = [update(network, optimizer, examples, settings) for _ in range(25)]
    assert figures[-1]["loss"] < 0.5 * figures[0]["loss"] and figures[-1]["accuracy"] == 1.0
    assert figures[-1]["probability_real"] > 0.6 > 0.4 > figures[-1]["probability_fake"]
    with torch.no_grad():
        assert match_logits(network, examples.real).min() > match_logits(network, examples.fake).max()


def test_smoothing_holds_the_truth_back_and_gradients_are_clipped():
    outcomes = []
    for smoothing in (0.0, 0.2):
        torch.manual_seed(0)
        network = JointNetwork(JointConfig(channels=8, width=8, dropout=0.0))
        settings = DiscriminatorLearning(learning_rate=3e-3, label_smoothing=smoothing)
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
        outcomes.append([update(network, optimizer, two_kinds(), settings) for _ in range(60)][-1])
    assert outcomes[0]["probability_real"] > 0.93 and 0.7 < outcomes[1]["probability_real"] < 0.9
    network = JointNetwork(JointConfig(channels=8, width=8, dropout=0.0))
    tight = DiscriminatorLearning(max_grad_norm=1e-4)
    update(network, torch.optim.SGD(network.parameters(), lr=1.0), two_kinds(), tight)
    norm = torch.sqrt(sum(p.grad.square().sum() for p in network.parameters()))
    assert float(norm) <= 1.01e-4


def test_a_step_that_is_not_finite_is_not_taken():
    network = JointNetwork(JointConfig(channels=4, width=4))
    optimizer = torch.optim.AdamW(network.parameters())
    with torch.no_grad():
        network.outlet.bias.fill_(float("inf"))
    before = network.fuse.weight.clone()
    with pytest.raises(RewardError, match="'adversarial' is not finite: loss.*checkpoint, if any, is"):
        update(network, optimizer, two_kinds(4), DiscriminatorLearning())
    assert torch.equal(network.fuse.weight, before)
    with pytest.raises(RewardError, match="a weight"):
        check_finite(network)
