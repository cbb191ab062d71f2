import numpy as np
import pytest

from jamgym.corpora.composition import BEATS_PER_BAR, MAJOR, MINOR, ROLES, compose, compose_harmony
from jamgym.corpora.sample_bank import sample_bank

BANK = sample_bank()
RANGES = {name: BANK.key_range(name) for name in BANK.instruments}


def make(seed, seconds=26.0):
    return compose(np.random.default_rng(seed), seconds, RANGES, BANK.drum_keys)


@pytest.fixture(scope="module")
def songs():
    return [make(seed) for seed in range(40)]


def test_composing_is_a_pure_function_of_the_generator(songs):
    again = make(0)
    for a, b in zip(songs[0].parts, again.parts, strict=True):
        assert (a.name, a.instrument, a.level_db) == (b.name, b.instrument, b.level_db)
        assert np.array_equal(a.notes.start, b.notes.start) and np.array_equal(a.notes.key, b.notes.key)
    assert len({(song.truth.tempo_bpm, len(song.parts[0].notes.key)) for song in songs}) == len(songs)


def test_parts(songs):
    for song in songs:
        names = [part.name for part in song.parts]
        assert 3 <= len(names) <= 5 and len(set(names)) == len(names)
        assert len({part.instrument for part in song.parts}) == len(names), "two parts share an instrument"
        for part in song.parts:
            assert part.instrument in ROLES[part.name][1]
            assert len(part.notes.start) > 5 and (np.diff(part.notes.start) >= 0).all()
            assert part.notes.start.min() >= 0 and part.notes.start.max() < song.seconds
            assert part.notes.velocity.min() > 0 and part.notes.velocity.max() < 1.3
    assert {part.name for song in songs for part in song.parts} == set(ROLES)


def test_keys_are_playable(songs):
    """At most a few semitones outside of what was recorded, where transposed notes still sound natural."""
    for song in songs:
        for part in song.parts:
            if part.name != "drums":
                low, high = RANGES[part.instrument]
                assert low - 3 <= part.notes.key.min() and part.notes.key.max() <= high + 3, part.name
            else:
                assert set(part.notes.key.tolist()) <= set(BANK.drum_keys.values())


def test_bass_chords_and_pad_play_notes_of_the_chord(songs):
    for song in songs:
        for part in song.parts:
            if part.name in ("drums", "melody"):
                continue
            index = song.truth.chord_index(part.notes.start + 0.03)  # human timing may come a little early
            used = index >= 0
            inside = song.truth.chord_pitch_classes[index[used], part.notes.key[used] % 12]
            assert inside.mean() > 0.9, part.name


def test_truth(songs):
    for song in songs:
        truth = song.truth
        assert np.allclose(np.diff(truth.beats), 60.0 / truth.tempo_bpm)
        assert np.array_equal(truth.downbeats, truth.beats[::BEATS_PER_BAR])
        assert truth.chord_times[0] == truth.beats[0] and truth.chord_times[-1] == pytest.approx(song.seconds)
        assert (np.diff(truth.chord_times) > 0).all() and truth.chord_pitch_classes.sum(1).tolist() == [3] * len(
            truth.chord_roots
        )
        assert truth.chord_pitch_classes[np.arange(len(truth.chord_roots)), truth.chord_roots].all()


@pytest.mark.parametrize("seconds", [10.0, 26.0, 60.0])
def test_length_is_the_nearest_bar(seconds):
    song = make(3, seconds)
    bar = 4 * 60 / song.truth.tempo_bpm
    assert abs(song.seconds - seconds) < max(bar, 8 * bar - seconds) + 0.4


def test_chords_can_be_anticipated_from_the_loop():
    """Four bars ago predicts this beat's chord far better than the song's chords in another order do."""
    rng = np.random.default_rng(0)
    loop, shuffled = [], []
    for seed in range(60):
        harmony = compose_harmony(np.random.default_rng(seed), 16)
        chords = harmony.roots * 100 + harmony.thirds * 10 + harmony.fifths
        loop.append((chords[16:] == chords[:-16]).mean())
        order = rng.permutation(len(chords))
        shuffled.append((chords[order][16:] == chords[order][:-16]).mean())
    assert np.mean(loop) > 0.55 and np.mean(loop) > np.mean(shuffled) + 0.25
    assert np.mean(loop) < 0.98, "there are no surprises"


def test_keys_and_modes_vary_and_chords_mostly_fit_the_key():
    harmonies = [compose_harmony(np.random.default_rng(seed), 16) for seed in range(60)]
    assert len({int(h.key_root[0]) for h in harmonies}) == 12 and 5 < sum(h.minor for h in harmonies) < 55
    assert any(h.key_root[0] != h.key_root[-1] for h in harmonies), "no song lifts its key"
    fits = []
    for h in harmonies:
        scale = MINOR if h.minor else MAJOR
        fits.append(np.mean([(int(r) - int(k)) % 12 in scale for r, k in zip(h.roots, h.key_root, strict=True)]))
    assert np.mean(fits) > 0.95
