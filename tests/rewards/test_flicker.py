import numpy as np
import pytest

from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.flicker import FlickerReward, flicker_index

RATE = 16000
CHORD = (220.0, 277.2, 329.6)


class TestFlickerConformance(RewardConformance):
    def make(self):
        return FlickerReward()


def tones(pitches, seconds):
    """Return one tone after the other, each so long, `(1, S)`."""
    time = np.arange(round(seconds * RATE)) / RATE
    notes = [sum(np.sin(2 * np.pi * n * pitch * time) / n for n in (1, 2, 3)) for pitch in pitches]
    return (0.1 * np.concatenate(notes)).astype(np.float32)[None]


def shreds(seed, seconds=4.0):
    """Return frames of 40 ms, each of another tone of a chord."""
    count = round(seconds / 0.04)
    return tones(np.random.default_rng(seed).choice(CHORD, count), 0.04)


def melody(seconds=4.0):
    return tones([CHORD[n % 3] for n in range(round(seconds / 0.4))], 0.4)


def noise(seconds=4.0):
    return (0.1 * np.random.default_rng(0).standard_normal((1, round(seconds * RATE)))).astype(np.float32)


def score(played, target, **settings):
    return float(FlickerReward(**settings).score(Windows(target, played, RATE, target=target))[0])


def test_shreds_of_a_chord_flicker_and_its_held_notes_do_not():
    assert score(shreds(0), melody()) == -1.0
    assert score(melody(), melody()) == score(melody(), tones([220.0], 4.0)) == 0.0


def test_sixteenths_cost_little_and_shreds_everything():
    quick = tones([CHORD[n % 3] for n in range(32)], 0.125)  # sixteenths at 120 beats a minute
    assert score(quick, tones([220.0], 4.0)) > -0.2 and score(shreds(0), quick) == -1.0


def test_what_flickers_by_nature_is_measured_by_the_target():
    assert score(noise(), noise()[:, ::-1]) == pytest.approx(0.0, abs=0.1) and score(noise(), melody()) < -0.4


def test_what_it_does_not_find():
    pairs = tones(np.random.default_rng(0).choice(CHORD, 50), 0.08)
    assert flicker_index(pairs, RATE)[0] < 0.01
    chopped = shreds(0).reshape(-1, 640).copy()
    chopped[::2] = 0.0
    assert flicker_index(chopped.reshape(1, -1), RATE)[0] == 0.0


@pytest.mark.parametrize("gain", [0.03, 1.0, 10.0])
def test_level_does_not_matter(gain):
    assert flicker_index(gain * shreds(0), RATE)[0] == pytest.approx(flicker_index(shreds(0), RATE)[0], rel=1e-4)


def test_silence_and_clips_of_less_than_three_frames_have_none():
    assert flicker_index(np.zeros((2, 4 * RATE), np.float32), RATE).tolist() == [0.0, 0.0]
    assert flicker_index(shreds(0)[:, : 3 * 640 - 1], RATE).tolist() == [0.0]


def test_rests_do_not_dilute_what_sounds():
    played = shreds(0, seconds=2.0)
    half = np.concatenate([played, np.zeros_like(played)], axis=1)
    assert flicker_index(half, RATE)[0] == pytest.approx(flicker_index(played, RATE)[0], rel=1e-6)


def test_it_does_not_depend_on_the_sample_rate():
    rates = (16_000, 32_000)
    audio = [np.sin(2 * np.pi * 220 * np.arange(rate) / rate)[None].astype(np.float32) for rate in rates]
    for clip, rate in zip(audio, rates, strict=True):
        clip[:, rate // 2 :] = 0.3 * np.sign(clip[:, rate // 2 :])
    found = [float(flicker_index(clip, rate)[0]) for clip, rate in zip(audio, rates, strict=True)]
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_the_penalty_rises_from_the_larger_of_allowed_and_the_target_to_full():
    played, target = shreds(0), melody()
    index, base = flicker_index(played, RATE)[0], flicker_index(target, RATE)[0]
    assert base < 0.1 < index
    assert score(played, target, allowed=0.1, full=2 * (index - 0.1)) == pytest.approx(-0.5, abs=1e-3)
    assert score(played, target, allowed=0.0, full=2 * (index - base)) == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("settings", [{"allowed": -0.1}, {"full": 0.0}, {"allowed": 2.0}, {"full": float("nan")}])
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match=r"allowed is .* and full"):
        FlickerReward(**settings)
