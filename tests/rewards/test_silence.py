import numpy as np
import pytest

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.silence import SilenceReward, gap_blocks, silent_share

RATE = 16000


class TestSilenceConformance(RewardConformance):
    def make(self):
        return SilenceReward()


def sound(*parts):
    """Return noise where a part says so: (seconds, level)."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 1, int(s * RATE)) * level for s, level in parts]).astype(np.float32)[None]


FULL = sound((4.0, 0.1))


def score(heard, played, **settings):
    return float(SilenceReward(**settings).score(Windows(heard, played, RATE))[0])


def test_runs_longer_than_the_longest_rest():
    marks = np.array([[1, 1, 0, 1, 1, 1, 0, 1]], dtype=bool)
    assert gap_blocks(marks, 2)[0].tolist() == [False, False, False, True, True, True, False, False]
    assert gap_blocks(marks, 3).sum() == 0 and gap_blocks(marks, 0).sum() == 6


def test_penalty_by_hand():
    assert score(FULL, FULL) == 0.0
    assert score(FULL, np.zeros_like(FULL)) == -1.0
    # 1 s of 4 s silent: (0.25 - 0.04) / 0.96
    quarter = sound((1.5, 0.1), (1.0, 0.0), (1.5, 0.1))
    assert score(FULL, quarter) == pytest.approx(-0.21875)
    assert score(FULL, quarter, allowance=0.25) == 0.0 and score(FULL, quarter, allowance=0.0) == pytest.approx(-0.25)


def test_rests_of_half_a_second_are_free():
    pulses = sound(*[(0.1, 0.1), (0.5, 0.0)] * 7)[:, : FULL.shape[1]]
    assert score(FULL, pulses) == 0.0
    assert score(FULL, pulses, gap_seconds=0.4) < -0.6


def test_where_nothing_is_heard_nothing_has_to_be_played():
    heard = sound((2.0, 0.1), (2.0, 0.0))
    assert score(heard, sound((2.0, 0.1), (2.0, 0.0))) == 0.0
    assert silent_share(heard, sound((1.0, 0.1), (3.0, 0.0)), RATE)[0] == pytest.approx(0.5)
    assert score(np.zeros_like(FULL), np.zeros_like(FULL)) == 0.0


def test_the_threshold_is_minus_sixty():
    assert score(FULL, FULL * 0.011) == 0.0 and score(FULL, FULL * 0.009) == -1.0


def test_a_wrong_allowance_is_refused():
    with pytest.raises(ConfigError, match="allowance is 1.0"):
        SilenceReward(allowance=1.0)
