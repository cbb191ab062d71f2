import numpy as np
import pytest

from jamgym.corpus import Truth
from jamgym.errors import RewardError
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.chroma import chroma
from jamgym_rewards.note_in_chord import NoteInChordReward

RATE = 16000


def note(midi, seconds=2.0, level=0.3):
    hz = 440.0 * 2 ** ((midi - 69) / 12)
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def chords(*sets, seconds=2.0):
    members = np.zeros((len(sets), 12), dtype=bool)
    for row, classes in enumerate(sets):
        members[row, list(classes)] = True
    return Truth(
        beats=np.arange(0.0, seconds * len(sets), 0.5),
        downbeats=np.zeros(1),
        chord_times=np.arange(len(sets) + 1) * seconds,
        chord_roots=np.array([next(iter(s), 0) for s in sets]),
        chord_pitch_classes=members,
        tempo_bpm=120.0,
    )


def score(audio, *truths):
    audio = np.atleast_2d(audio)
    return NoteInChordReward().score(Windows(np.zeros_like(audio), audio, RATE, truth=truths))


class TestNoteInChordConformance(RewardConformance):
    def make(self):
        return NoteInChordReward()


@pytest.mark.parametrize("midi", range(34, 92, 3))
def test_chroma_puts_a_note_on_its_pitch_class(midi):
    energy, times = chroma(note(midi)[None], RATE)
    assert energy.shape == (1, len(times), 12)
    total = energy[0].sum(axis=0)
    assert total[midi % 12] / total.sum() > 0.97


def test_notes_inside_and_outside():
    c_major = chords({0, 4, 7})
    assert score(note(60), c_major)[0] > 0.98
    assert score(note(61), c_major)[0] < 0.02
    half = score(note(60) + note(66), c_major)[0]
    assert 0.45 < half < 0.75  # equal levels; the higher octave position weighs a little less


def test_the_chord_of_each_moment_counts():
    played = np.concatenate([note(60), note(62)])
    assert score(played, chords({0, 4, 7}, {2, 5, 9}))[0] > 0.95
    assert score(played, chords({2, 5, 9}, {0, 4, 7}))[0] < 0.05
    assert 0.4 < score(played, chords({0, 4, 7}, {0, 4, 7}))[0] < 0.6


def test_rows_have_their_own_truth():
    scores = score(np.stack([note(60), note(60)]), chords({0, 4, 7}), chords({1, 5, 8}))
    assert scores[0] > 0.98 and scores[1] < 0.02


def test_noise_scores_a_quarter_and_silence_nothing():
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * RATE).astype(np.float32)
    twelve = [score(noise, chords({r, (r + 4) % 12, (r + 7) % 12}, seconds=4.0))[0] for r in range(12)]
    assert np.mean(twelve) == pytest.approx(0.25, abs=0.01)
    assert score(np.zeros(RATE, np.float32), chords({0}))[0] == 0.0
    assert score(note(60, level=1e-4), chords({0}))[0] == 0.0


def test_level_does_not_matter_above_the_gate():
    assert score(note(60, level=0.01), chords({0}))[0] == pytest.approx(score(note(60), chords({0}))[0], abs=1e-3)


def test_rests_do_not_count_and_missing_truth_is_an_error():
    played = np.concatenate([note(60), note(61)])
    assert score(played, chords({0, 4, 7}, set()))[0] > 0.95
    with pytest.raises(RewardError, match="no sounding chord in window 0"):
        score(note(60), chords(set()))
    with pytest.raises(RewardError, match="has no truth.*band"):
        score(note(60), None)
    with pytest.raises(RewardError, match="has no truth"):
        NoteInChordReward().score(Windows(note(60)[None], note(60)[None], RATE))
