import numpy as np
import pytest

from jamgym.corpus import Truth
from jamgym.errors import RewardError
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.beat import BeatReward, beat_f_measure, estimate_beats, estimate_tempo, onset_strength

RATE = 16000


def clicks(times, seconds=12.0, rate=RATE):
    audio = np.zeros(int(seconds * rate), np.float32)
    rng = np.random.default_rng(0)
    for time in times:
        burst = (0.4 * rng.normal(size=rate // 50) * np.exp(-np.arange(rate // 50) / (rate / 200))).astype(np.float32)
        start = int(time * rate)
        audio[start : start + len(burst)] += burst[: len(audio) - start]
    return audio


def truth(beats):
    return Truth(np.asarray(beats), np.zeros(0), np.array([0.0, 12.0]), np.zeros(1, int), np.ones((1, 12), bool), 120.0)


class TestBeatConformance(RewardConformance):
    def make(self):
        return BeatReward()


@pytest.mark.parametrize("bpm", [84, 100, 120, 137, 150])
@pytest.mark.parametrize("rate", [16000, 24000])
def test_clicks_are_found(bpm, rate):
    beats = np.arange(0.3, 11.9, 60.0 / bpm)
    audio = clicks(beats, rate=rate)
    assert beat_f_measure(audio, rate, beats) > 0.95
    assert beat_f_measure(audio, rate, beats + 30.0 / bpm) < 0.1
    onsets, frame_rate = onset_strength(audio[None], rate)
    assert estimate_tempo(onsets[0], frame_rate) == pytest.approx(bpm, rel=0.02)
    found = estimate_beats(audio[None], rate)[0]
    offset = [x - beats[np.argmin(np.abs(beats - x))] for x in found]
    assert abs(np.mean(offset)) < 0.02


def test_the_first_five_seconds_count():
    beats = np.arange(0.3, 11.9, 0.5)
    assert beat_f_measure(clicks(beats[beats > 5.0]), RATE, beats) < 0.85


def test_silence_and_steady_sounds_have_no_beats_and_score_zero():
    beats = np.arange(0.3, 11.9, 0.5)
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(12 * RATE) / RATE)).astype(np.float32)
    for audio in (np.zeros(12 * RATE, np.float32), tone, 1e-4 * clicks(beats), np.zeros(1, np.float32)):
        assert len(estimate_beats(audio[None], RATE)[0]) == 0
        assert beat_f_measure(audio, RATE, beats) == 0.0
    assert beat_f_measure(clicks(beats), RATE, np.zeros(0)) == 0.0


def test_reward_scores_rows_and_needs_truth():
    beats = np.arange(0.3, 11.9, 0.5)
    played = np.stack([clicks(beats), np.zeros(12 * RATE, np.float32), clicks(beats)])
    truths = (truth(beats), truth(beats), truth(beats + 0.25))
    scores = BeatReward().score(Windows(played, played, RATE, truth=truths))
    assert scores.dtype == np.float32 and scores[0] > 0.95 and scores[1] == 0.0 and scores[2] < 0.1
    for missing in (None, (None, None, None)):
        with pytest.raises(RewardError, match="no truth.*band"):
            BeatReward().score(Windows(played, played, RATE, truth=missing))
