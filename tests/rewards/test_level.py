import numpy as np
import pytest

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.level import LevelReward, level_penalty

RATE = 16000
NOISE = np.random.default_rng(0).normal(0, 0.1, (1, RATE)).astype(np.float32)


class TestLevelConformance(RewardConformance):
    def make(self):
        return LevelReward()


def score(gain_db, heard=NOISE, **settings):
    played = (NOISE * 10 ** (gain_db / 20)).astype(np.float32)
    return float(LevelReward(**settings).score(Windows(heard, played, RATE))[0])


@pytest.mark.parametrize(
    ("gain_db", "penalty"),
    [(-100, -1.0), (-40, -1.0), (-24, -1.0), (-20, -0.5), (-16, 0.0), (-6, 0.0), (3, 0.0), (7, -0.5), (12, -1.0)],
)
def test_penalty_by_hand(gain_db, penalty):
    assert score(gain_db) == pytest.approx(penalty, abs=1e-3)


def test_zone_and_ramp_are_settings():
    assert score(-12, lowest_db=-10.0, ramp_db=4.0) == pytest.approx(-0.5, abs=1e-3)
    assert level_penalty(np.array([20.0]), highest_db=20.0)[0] == 0.0


def test_no_level_is_asked_for_beside_silence():
    assert score(0, heard=np.zeros_like(NOISE)) == 0.0 and score(-100, heard=np.zeros_like(NOISE)) == 0.0
    assert score(0, heard=NOISE * np.float32(0.05)) == -1.0  # -46 dBFS still is music


@pytest.mark.parametrize("settings", [{"lowest_db": 4.0}, {"ramp_db": 0.0}])
def test_impossible_zones_are_refused(settings):
    with pytest.raises(ConfigError, match="dead zone"):
        LevelReward(**settings)
