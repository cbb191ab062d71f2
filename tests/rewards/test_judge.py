import torch

from jamgym_rewards.coherence import CoherenceReward
from jamgym_rewards.features import Prepared
from jamgym_rewards.judge import JudgeReward


def random_features(seed: int, count: int = 2, frames: int = 100) -> Prepared:
    spec = JudgeReward.build().config.features
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, spec.pitch_bins + spec.bands, frames, generator=generator)
    return Prepared(values, torch.ones(count, frames))


def test_the_judge_is_another_architecture_with_other_features():
    coherence, judge = CoherenceReward.build(), JudgeReward.build()
    assert type(coherence) is not type(judge)
    assert coherence.config.features != judge.config.features
    assert sum(p.numel() for p in coherence.parameters()) < 2_000_000


def test_transposing_both_sides_by_an_octave_circle_changes_nothing():
    judge = JudgeReward.build().eval()
    spec = judge.config.features
    heard, played = random_features(0), random_features(1)

    def turned(side: Prepared) -> Prepared:
        pitch = side.values[:, : spec.pitch_bins].unflatten(1, (spec.octaves, 12)).roll(5, 2).flatten(1, 2)
        return Prepared(torch.cat([pitch, side.values[:, spec.pitch_bins :]], 1), side.weight)

    with torch.no_grad():
        base = judge(heard, played)
        torch.testing.assert_close(judge(turned(heard), turned(played)), base, atol=1e-4, rtol=0)
        assert (judge(heard, turned(played)) - base).abs().max() > 1e-5


def test_the_judge_sees_which_side_is_which():
    judge = JudgeReward.build().eval()
    heard, played = random_features(0), random_features(1)
    with torch.no_grad():
        assert (judge(heard, played) - judge(played, heard)).abs().max() > 1e-5
