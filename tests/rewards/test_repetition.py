import numpy as np
import pytest

from jamgym.corpora.band import BandCorpus
from jamgym.corpus import active, make_pair
from jamgym.errors import ConfigError
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.chroma import chroma
from jamgym_rewards.repetition import RepetitionReward, self_similarity

RATE = 16000


class TestRepetitionConformance(RewardConformance):
    def make(self):
        return RepetitionReward()


def melody(keys, seconds=0.25):
    time = np.arange(int(seconds * RATE)) / RATE
    notes = [0.2 * np.exp(-3 * time) * np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * time) for key in keys]
    return np.concatenate(notes).astype(np.float32)[None]


RNG = np.random.default_rng(0)
WALK = melody(RNG.integers(48, 84, 48))  # 12 s
LOOP = melody(np.tile(RNG.integers(48, 84, 8), 6))  # a bar of 2 s, six times
HELD = (0.1 * np.sin(2 * np.pi * 220 * np.arange(12 * RATE) / RATE)).astype(np.float32)[None]
SILENT = np.zeros_like(HELD)


def score(heard, played, **settings):
    return float(RepetitionReward(**settings).score(Windows(heard, played, RATE))[0])


def test_a_held_note_and_a_loop_are_penalised_and_a_melody_is_not():
    assert score(WALK, HELD) < -0.95 and score(WALK, LOOP) < -0.9
    assert score(WALK, WALK) == 0.0 and score(LOOP, WALK) == 0.0
    noise = RNG.normal(0, 0.1, WALK.shape).astype(np.float32)
    assert score(WALK, noise) == 0.0 and score(WALK, SILENT) == 0.0


def test_similarity_by_hand():
    audio = melody(RNG.integers(48, 84, 16))
    energy, times = chroma(audio, RATE)
    frames = np.sqrt(energy[0])
    frames -= frames.mean(axis=1, keepdims=True)
    found = []
    for lag in range(int(np.ceil(0.5 / times[1])), min(int(3.2 / times[1]), len(times) // 2) + 1):
        a, b = frames[:-lag], frames[lag:]
        found.append(2 * (a * b).sum() / ((a * a).sum() + (b * b).sum()))
    assert self_similarity(audio, RATE)[0] == pytest.approx(max(found), abs=1e-6)


def test_a_crescendo_and_a_long_period_are_no_literal_repetition():
    louder = (LOOP * np.geomspace(0.03, 1.0, LOOP.shape[1])).astype(np.float32)
    assert self_similarity(louder, RATE)[0] < self_similarity(LOOP, RATE)[0] - 0.1
    slow = melody(np.tile(RNG.integers(48, 84, 16), 3))  # 4 s: longer than a bar
    assert self_similarity(slow, RATE)[0] < 0.85 < self_similarity(slow, RATE, longest_seconds=4.5)[0]


def test_playing_may_repeat_as_much_as_what_is_heard():
    assert score(LOOP, LOOP) == 0.0 and score(HELD, LOOP) == 0.0
    assert score(LOOP, HELD) > score(WALK, HELD)


def test_short_and_silent_clips_do_not_repeat():
    assert self_similarity(SILENT, RATE)[0] == 0.0
    assert self_similarity(HELD[:, : RATE // 2], RATE)[0] == 0.0


def test_true_stems_are_hardly_penalised():
    corpus = BandCorpus()
    penalties = []
    for song_id in corpus.song_ids("validation")[:6]:
        song = corpus.load(song_id)
        for stem in song.stems:
            if active(stem.audio, RATE).mean() >= 0.5:
                pair = make_pair(song, stem.name)
                part = slice(5 * RATE, 17 * RATE)
                penalties.append(score(pair.heard[None, part], pair.target[None, part]))
    assert len(penalties) >= 20 and np.mean(penalties) > -0.1 and np.mean(np.array(penalties) == 0.0) > 0.8


def test_a_wrong_allowance_is_refused():
    with pytest.raises(ConfigError, match="allowed is 1.0"):
        RepetitionReward(allowed=1.0)
