import numpy as np
import pytest
import soundfile

from jamgym.corpora.stems import StemsCorpus
from jamgym.corpus import Song, Stem, active
from jamgym.episode import EpisodeSource
from jamgym.errors import ConfigError, CorpusError
from jamgym.testing import ToyCodec, ToyCorpus


class ListCorpus:
    """Songs given as {id: {stem name: (instrument, audio)}}, the same in every split."""

    name, version, sample_rate = "list", "1", 16000

    def __init__(self, songs):
        self.songs = songs

    def song_ids(self, split):
        return list(self.songs)

    def load(self, song_id):
        stems = tuple(Stem(n, i, a.astype(np.float32)) for n, (i, a) in self.songs[song_id].items())
        return Song(song_id, self.sample_rate, stems)


def sound(frames, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, frames * 640)


def same(a, b):
    return a.song_id == b.song_id and a.start_frame == b.start_frame and np.array_equal(a.input_codes, b.input_codes)


def test_a_crop_is_a_slice_of_the_whole_song():
    source = EpisodeSource(ToyCorpus(songs=2, seconds=3.0), ToyCodec(), frames=22)
    song_id = source.song_ids[0]
    name = source.targets(song_id)[0]
    song = source.corpus.load(song_id)
    heard = np.sum([s.audio for s in song.stems if s.name != name], axis=0)
    episode = source.crop(song_id, name, 10)
    assert episode.frames == 22 and not episode.ends_song and episode.start_frame == 10
    assert np.allclose(episode.heard, heard[6400 : 32 * 640])
    assert np.array_equal(episode.target, song.stem(name).audio[6400 : 32 * 640])
    assert np.array_equal(episode.input_codes, source.codec.encode(heard[None, : 75 * 640])[0, 10:32])
    assert np.array_equal(episode.target_codes, source.codec.encode(song.stem(name).audio[None])[0, 10:32])
    expected = song.truth.beats[(song.truth.beats >= 0.4) & (song.truth.beats < 1.28)] - 0.4
    assert np.allclose(episode.truth.beats, expected)


def test_the_last_crop_ends_the_song():
    source = EpisodeSource(ToyCorpus(songs=1, seconds=3.0), ToyCodec(), frames=22)
    song_id = source.song_ids[0]
    name = source.targets(song_id)[0]
    assert source.crop(song_id, name, 53).ends_song and source.crop(song_id, name, 53).frames == 22
    assert not source.crop(song_id, name, 52).ends_song


def test_a_short_song_gives_a_short_episode():
    songs = {"a": {"x": ("bass", sound(7)[:-5]), "y": ("piano", sound(7, 1)[:-5])}}
    episode = EpisodeSource(ListCorpus(songs), ToyCodec(), frames=22).sample(np.random.default_rng(0))
    assert episode.frames == 6 and episode.ends_song
    assert len(episode.heard) == len(episode.target) == 6 * 640


def test_sampling_follows_the_seed_and_covers_the_songs():
    def make():
        return EpisodeSource(ToyCorpus(songs=4, seconds=3.0), ToyCodec(), frames=10)

    one, two = make(), make()
    a, b = np.random.default_rng(3), np.random.default_rng(3)
    drawn = [one.sample(a) for _ in range(40)]
    assert all(same(x, two.sample(b)) for x in drawn)
    assert {x.song_id for x in drawn} == set(one.song_ids)
    assert len({x.start_frame for x in drawn}) > 10


def test_only_active_crops_and_stems_are_drawn():
    quiet = np.zeros(40 * 640)
    half = np.concatenate([sound(20), np.zeros(20 * 640)])
    songs = {"a": {"x": ("bass", half), "y": ("piano", sound(40, 1)), "z": ("organ", quiet)}}
    source = EpisodeSource(ListCorpus(songs), ToyCodec(), frames=8)
    assert source.targets("a") == ("x", "y")
    rng = np.random.default_rng(0)
    for _ in range(30):
        episode = source.sample(rng)
        both = active(episode.heard, 16000) & active(episode.target, 16000)
        assert both.mean() >= 0.5 and episode.start_frame <= 16


def test_allowed_instruments():
    songs = {"a": {"x": ("bass", sound(20)), "y": ("piano", sound(20, 1))}}
    source = EpisodeSource(ListCorpus(songs), ToyCodec(), frames=8, instruments=["piano"])
    assert source.targets("a") == ("y",)
    with pytest.raises(CorpusError, match="Did you mean 'piano'"):
        EpisodeSource(ListCorpus(songs), ToyCodec(), instruments=["pianno"])


def test_fixed_is_reproducible_and_prefers_distinct_songs():
    source = EpisodeSource(ToyCorpus(songs=4, seconds=3.0), ToyCodec(), frames=10)
    first, again = source.fixed(4, seed=1), source.fixed(4, seed=1)
    assert all(same(x, y) for x, y in zip(first, again, strict=True))
    assert len({x.song_id for x in first}) == 4
    assert len(source.fixed(6, seed=1)) == 6
    assert any(not same(x, y) for x, y in zip(first, source.fixed(4, seed=2), strict=True))


def rare(songs, voices):
    """Songs of bass and piano, in the last `voices` of which the bass is a voice."""
    classes = ["bass"] * (songs - voices) + ["voice"] * voices
    return {f"{n:03d}": {"x": (kind, sound(12)), "y": ("piano", sound(12, 1))} for n, kind in enumerate(classes)}


def test_a_class_that_few_songs_have_is_found():
    def drawn():
        source = EpisodeSource(ListCorpus(rare(100, 1)), ToyCodec(), frames=8, instruments=["voice"])
        rng = np.random.default_rng(0)
        return [source.sample(rng, tries=2) for _ in range(10)]

    one, two = drawn(), drawn()
    assert {episode.song_id for episode in one} == {"099"}
    assert all(same(x, y) for x, y in zip(one, two, strict=True))


def test_a_song_that_seldom_sounds_is_tried_more_than_once():
    part = np.concatenate([sound(26), np.zeros(9 * 640)])
    other = np.concatenate([np.zeros(9 * 640), sound(26, 1)])
    source = EpisodeSource(ListCorpus({"a": {"x": ("bass", part), "y": ("piano", other)}}), ToyCodec(), frames=8)
    assert all(source.sample(np.random.default_rng(seed), tries=0).frames == 8 for seed in range(10))


def test_fixed_gives_as_many_as_were_asked_for_where_few_songs_have_the_class(caplog):
    source = EpisodeSource(ListCorpus(rare(40, 2)), ToyCodec(), frames=8, instruments=["voice"])
    found = source.fixed(32, seed=0)
    assert len(found) == 32 and {episode.song_id for episode in found} == {"038", "039"}
    assert not caplog.records


def test_fixed_warns_where_there_are_fewer(caplog, monkeypatch):
    source = EpisodeSource(ToyCorpus(songs=4, seconds=3.0), ToyCodec(), frames=8)
    draw, left = source._draw, iter(range(3))
    monkeypatch.setattr(source, "_draw", lambda *which: None if next(left, None) is None else draw(*which))
    assert len(source.fixed(5, seed=0)) == 3
    assert "Split 'train' of corpus 'toy' gave 3 episode(s) instead of 5" in caplog.text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("songs", "instruments", "match"),
    [
        (rare(3, 0), ["voice"], r"no stem of class 'voice' in any of its 3 songs; classes there are: bass, piano\."),
        (rare(3, 0), ["drums", "voice"], "class 'drums' or 'voice'"),
        ({"a": {"x": ("bass", sound(1)[:160]), "y": ("piano", sound(1)[:160])}}, None, "longest song lasts 0.010 s"),
        ({"a": {"x": ("bass", np.zeros(6400)), "y": ("piano", np.zeros(6400))}}, None, "not silent"),
        ({"a": {"x": ("bass", sound(9))}}, None, "two stems or more"),
    ],
)
def test_no_episode_at_all_is_explained(songs, instruments, match):
    source = EpisodeSource(ListCorpus(songs), ToyCodec(), frames=8, instruments=instruments)
    for ask in (lambda: source.sample(np.random.default_rng(0)), lambda: source.fixed(2, seed=0)):
        with pytest.raises(CorpusError, match=f"Split 'train' of corpus 'list' has no usable episode: .*{match}"):
            ask()


def test_encoded_pairs_are_kept_within_bounds():
    source = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), ToyCodec(), frames=10, cache_songs=2)
    keys = [(song_id, source.targets(song_id)[0]) for song_id in source.song_ids]
    made = [source.encoded(*key) for key in keys]
    assert source.encoded(*keys[2]) is made[2]
    assert source.encoded(*keys[0]) is not made[0]


class CountingCodec(ToyCodec):
    encoded = 0

    def encode(self, audio):
        self.encoded += 1
        return super().encode(audio)


@pytest.mark.parametrize("cache_songs, encoded", [(2, 3), (0, 9)])
def test_audio_that_was_dropped_is_loaded_and_not_encoded_again(cache_songs, encoded):
    codec = CountingCodec()
    source = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), codec, frames=10, cache_songs=cache_songs)
    keys = [(song_id, source.targets(song_id)[0]) for song_id in source.song_ids]
    rounds = [[source.encoded(*key) for key in keys] for _ in range(3)]
    assert codec.encoded == encoded
    for first, last in zip(rounds[0], rounds[-1], strict=True):
        assert first is not last
        for name in ("input_codes", "target_codes", "active_before"):
            np.testing.assert_array_equal(getattr(first, name), getattr(last, name))
        np.testing.assert_array_equal(first.pair.heard, last.pair.heard)


def test_codes_are_kept_within_bounds(monkeypatch):
    monkeypatch.setattr("jamgym.episode._CODES_PER_PAIR", 2)
    codec = CountingCodec()
    source = EpisodeSource(ToyCorpus(songs=3, seconds=3.0), codec, frames=10, cache_songs=1)
    keys = [(song_id, source.targets(song_id)[0]) for song_id in source.song_ids]
    for key in [*keys, keys[2], keys[1]]:
        source.encoded(*key)
    assert codec.encoded == 3
    source.encoded(*keys[0])
    assert codec.encoded == 4


def test_errors():
    loud, quiet = sound(20), np.zeros(20 * 640)
    with pytest.raises(ConfigError, match="sample_rate=24000"):
        EpisodeSource(ToyCorpus(), ToyCodec(sample_rate=24000))
    with pytest.raises(ConfigError, match="at least 1 frame"):
        EpisodeSource(ToyCorpus(), ToyCodec(), frames=0)
    with pytest.raises(CorpusError, match="no songs in split 'test'"):
        EpisodeSource(ListCorpus({}), ToyCodec(), split="test")
    silent = EpisodeSource(ListCorpus({"a": {"x": ("bass", quiet), "y": ("piano", loud)}}), ToyCodec(), frames=8)
    with pytest.raises(CorpusError, match="lower min_active"):
        silent.sample(np.random.default_rng(0))
    with pytest.raises(CorpusError, match="no usable episode"):
        silent.fixed(2, seed=0)
    tiny = {"a": {"x": ("bass", loud[:600]), "y": ("piano", loud[:600])}}
    with pytest.raises(CorpusError, match="shorter than one frame"):
        EpisodeSource(ListCorpus(tiny), ToyCodec(), frames=8).sample(np.random.default_rng(0))


def test_a_folder_of_someone_elses_files_gives_episodes(tmp_path):
    rng = np.random.default_rng(0)
    for song, (rate, channels) in enumerate([(44100, 2), (48000, 1), (22050, 2)]):
        (tmp_path / f"song{song}").mkdir()
        for name in ("Bass DI", "E-Gtr"):
            audio = rng.uniform(-0.4, 0.4, (rate, channels))
            soundfile.write(tmp_path / f"song{song}" / f"{name}.wav", audio, rate)
    for split in ("train", "validation", "test"):
        source = EpisodeSource(StemsCorpus(tmp_path), ToyCodec(), split=split, frames=20)
        episode = source.sample(rng)
        assert episode.frames == 20 and episode.truth is None and episode.instrument in (2, 6)


@pytest.mark.parametrize("hop", [640, 500])
def test_activity_from_sums_equals_activity_of_the_crop(hop):
    """640 samples are two blocks of 20 ms; 500 are not a whole number, so those crops are measured one by one."""
    rng = np.random.default_rng(0)
    gaps = [np.repeat(rng.random(100) < 0.7, 320) for _ in range(2)]
    songs = {"a": {n: (n, rng.uniform(-0.5, 0.5, 32000) * gap) for n, gap in zip(("bass", "piano"), gaps, strict=True)}}
    for least in (0.3, 0.5, 0.6):
        source = EpisodeSource(ListCorpus(songs), ToyCodec(hop_samples=hop), frames=9, min_active=least)
        made = source.encoded("a", "bass")
        starts = range(len(made.input_codes))
        fast = [source._is_active_at(made, start) for start in starts]
        assert fast == [source.is_active(source.crop("a", "bass", start)) for start in starts]
        assert 0 < sum(fast) < len(fast)
