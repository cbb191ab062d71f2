import numpy as np
import pytest

from jamgym.codecs.quality import chroma
from jamgym.corpora.band import BandCorpus
from jamgym.corpus import SPLITS
from jamgym.errors import ConfigError, CorpusError
from jamgym.testing import CorpusConformance

CORPUS = BandCorpus(songs=200, cache_songs=64)
IDS = [f"band-{index:06d}" for index in range(16)]


class TestConformance(CorpusConformance):
    def make(self):
        return BandCorpus(songs=40)


def same(a, b):
    return len(a.stems) == len(b.stems) and all(
        x.audio.shape == y.audio.shape and np.array_equal(x.audio, y.audio)
        for x, y in zip(a.stems, b.stems, strict=True)
    )


def test_other_ids_and_seeds_are_other_songs():
    first = CORPUS.load(IDS[0])
    assert same(first, BandCorpus(songs=10, cache_songs=0).load(IDS[0])), "the number of songs changes a song"
    assert not same(first, CORPUS.load(IDS[1]))
    other = BandCorpus(songs=200, seed=1)
    assert not same(first, other.load(IDS[0])) and other.version != CORPUS.version
    assert BandCorpus(songs=200, seconds=12.0).version != CORPUS.version


def test_splits_cover_everything_once():
    ids = [song_id for split in SPLITS for song_id in CORPUS.song_ids(split)]
    assert len(ids) == len(set(ids)) == 200
    assert [len(CORPUS.song_ids(split)) for split in SPLITS] == [160, 20, 20]
    assert all(BandCorpus(songs=10).song_ids(split) for split in SPLITS)


def test_levels_and_clipping():
    for song_id in IDS:
        song = CORPUS.load(song_id)
        assert 3 <= len(song.stems) <= 5
        for stem in song.stems:
            level = 20 * np.log10(np.sqrt(np.mean(np.square(stem.audio, dtype=np.float64))))
            assert -28 < level < -19, (song_id, stem.name)
            assert (np.abs(stem.audio) >= 1.0).mean() < 1e-4, (song_id, stem.name)
        mix = np.sum([stem.audio for stem in song.stems], axis=0)
        assert (np.abs(mix) > 1.0).mean() < 1e-2, song_id


def test_drum_hits_fall_on_the_beats():
    on, off = [], []
    for song_id in IDS:
        song = CORPUS.load(song_id)
        for stem in song.stems:
            if stem.instrument != "drums":
                continue
            levels = np.sqrt(np.mean(stem.audio[: len(stem.audio) // 160 * 160].reshape(-1, 160) ** 2, axis=1))
            rise = np.maximum(np.diff(levels), 0.0)
            beat = np.diff(song.truth.beats)[0]
            # The groove has something on every beat, and nothing between its eighths.
            for times, found in ((song.truth.beats, on), (song.truth.beats + 0.27 * beat, off)):
                index = np.round(times * 100).astype(int)
                found.append(np.mean([rise[max(i - 3, 0) : i + 4].max() for i in index if i + 4 < len(rise)]))
    assert len(on) > 5 and np.mean(on) > 4 * np.mean(off)


def test_chord_roots_dominate_the_bass():
    hits, wrong = [], []
    for song_id in IDS:
        song = CORPUS.load(song_id)
        for stem in song.stems:
            if stem.instrument != "bass":
                continue
            energy = chroma(stem.audio, 16000)
            index = song.truth.chord_index((np.arange(len(energy)) * 1024 + 2048) / 16000)
            used = (index >= 0) & (energy.sum(1) > 0.1 * energy.sum(1).max())
            roots = song.truth.chord_roots[index[used]]
            hits.append(np.mean(energy[used].argmax(1) == roots))
            wrong.append(np.mean(energy[used].argmax(1) == (roots + 1) % 12))
    assert len(hits) > 5 and np.mean(hits) > 0.55 and np.mean(wrong) < 0.1


def test_transposing_moves_the_named_stem_only():
    song = CORPUS.load(IDS[2])
    name = next(stem.name for stem in song.stems if stem.instrument != "drums")
    moved = CORPUS.load_transposed(IDS[2], {name: 3})
    for before, after in zip(song.stems, moved.stems, strict=True):
        assert np.array_equal(before.audio, after.audio) == (before.name != name)
    a, b = (chroma(s.stem(name).audio, 16000).sum(0) for s in (song, moved))
    shift = int(np.argmax([np.corrcoef(np.roll(a, turn), b)[0, 1] for turn in range(12)]))
    assert shift == 3
    assert same(CORPUS.load(IDS[2]), song), "the kept song was changed"
    assert np.array_equal(moved.truth.chord_roots, song.truth.chord_roots)


def test_drums_cannot_be_transposed():
    song_id = next(i for i in IDS if any(stem.instrument == "drums" for stem in CORPUS.load(i).stems))
    assert same(CORPUS.load_transposed(song_id, {"drums": 5}), CORPUS.load(song_id))


def test_errors():
    for song_id in ("band-000200", "band-5", "rock-000001", "band-", "band-²"):
        with pytest.raises(CorpusError, match="band-000199"):
            CORPUS.load(song_id)
    with pytest.raises(CorpusError, match="Did you mean 'train'"):
        CORPUS.song_ids("trian")
    with pytest.raises(CorpusError, match="stem of song"):
        CORPUS.load_transposed(IDS[0], {"triangle": 1})
    with pytest.raises(ConfigError, match="at least 10"):
        BandCorpus(songs=3)
    with pytest.raises(ConfigError, match="8 to 600"):
        BandCorpus(seconds=1.0)
    for key in ("seed", "cache_songs"):
        with pytest.raises(ConfigError, match=f"{key} is -1; it must be at least 0"):
            BandCorpus(**{key: -1})
    assert len(BandCorpus(cache_songs=0).load(IDS[0]).stems) >= 3
