import logging

import numpy as np
import pytest
import soundfile

from jamgym.corpora.stem_names import instrument_of
from jamgym.corpora.stems import StemsCorpus, split_songs
from jamgym.corpus import SPLITS, make_pair
from jamgym.errors import ConfigError, CorpusError
from jamgym.testing import CorpusConformance


def add(file, rate=16000, seconds=0.5, channels=1, level=0.3, hz=220.0):
    file.parent.mkdir(parents=True, exist_ok=True)
    audio = level * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)
    soundfile.write(file, np.repeat(audio[:, None], channels, axis=1), rate)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "songs"
    for song in range(6):
        rate, channels = [(44100, 2), (48000, 1), (16000, 1), (22050, 2), (8000, 1), (11025, 1)][song]
        add(root / f"song {song}" / "Bass.wav", rate, 0.5, channels)
        add(root / f"song {song}" / "vox.flac", rate, 0.3 + 0.1 * song, 3 - channels, hz=440.0)
        add(root / f"song {song}" / "keys_L.ogg", rate, 0.4)
    return root


class TestStemsConformance(CorpusConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, folder):
        self.folder = folder

    def make(self):
        return StemsCorpus(self.folder)


def test_any_rate_and_length(folder):
    corpus = StemsCorpus(folder)
    for split in SPLITS:
        for song_id in corpus.song_ids(split):
            song = corpus.load(song_id)
            number = int(song_id[-1])
            assert {stem.audio.dtype for stem in song.stems} == {np.dtype(np.float32)}
            expected = round(16000 * max(0.5, 0.3 + 0.1 * number))
            assert {len(stem.audio) for stem in song.stems} <= {expected - 1, expected, expected + 1}
            assert len({len(stem.audio) for stem in song.stems}) == 1
            assert [s.instrument for s in song.stems] == ["bass", "piano", "voice"]
            assert np.isclose(np.abs(song.stem("Bass").audio[1000:6000]).max(), 0.3, atol=0.02)
            assert np.abs(song.stem("keys_L").audio[6600:]).max() < 1e-3


def test_sums_are_not_normalised(tmp_path):
    for name in ("bass", "drums", "piano"):
        add(tmp_path / "a" / f"{name}.wav", level=0.9)
    pair = make_pair(StemsCorpus(tmp_path).load("a"), "piano")
    assert np.isclose(np.abs(pair.heard).max(), 1.8, atol=0.02)


def test_hidden_files_mixes_and_other_files_are_left_out(folder, caplog):
    add(folder / "song 0" / "mixture.wav")
    add(folder / "song 0" / ".hidden.wav")
    (folder / "song 0" / "._Bass.wav").write_bytes(b"junk of another system")
    (folder / "song 0" / "notes.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "__MACOSX").mkdir()
    with caplog.at_level(logging.WARNING):
        corpus = StemsCorpus(folder)
    assert "mixture.wav is a mix" in caplog.text
    assert [stem.name for stem in corpus.load("song 0").stems] == ["Bass", "keys_L", "vox"]


def test_stems_subfolder_and_groups(tmp_path):
    for name in ("S00", "S01"):
        add(tmp_path / "Track1" / "stems" / f"{name}.flac")
    add(tmp_path / "Track1" / "mix.flac")
    for song in ("x", "y"):
        for name in ("bass", "drums"):
            add(tmp_path / "train" / song / f"{name}.wav")
    corpus = StemsCorpus(tmp_path)
    assert sorted({s for split in SPLITS for s in corpus.song_ids(split)}) == ["Track1", "train/x", "train/y"]
    assert [stem.name for stem in corpus.load("Track1").stems] == ["S00", "S01"]


def test_instrument_mapping(folder, caplog):
    (folder / "instruments.yaml").write_text("keys_L: organ\nBass: synth\nkeyz_L: piano\n")
    with caplog.at_level(logging.WARNING):
        corpus = StemsCorpus(folder, instruments={"song 1/bass": "guitar"})
    assert [s.instrument for s in corpus.load("song 0").stems] == ["synth", "organ", "voice"]
    assert [s.instrument for s in corpus.load("song 1").stems] == ["guitar", "organ", "voice"]
    assert "did you mean 'keys_l'" in caplog.text
    with pytest.raises(CorpusError, match="Did you mean 'guitar'"):
        StemsCorpus(folder, instruments={"bass": "gitar"})
    (folder / "instruments.yaml").write_text("keys_L: organ\nBass: gitar\n")
    with pytest.raises(CorpusError, match=r"instruments\.yaml, 'Bass': Unknown .*'gitar'. Did you mean 'guitar'"):
        StemsCorpus(folder, instruments={"bass": "guitar"})


def test_one_stem_and_broken_files_are_all_listed(folder):
    add(folder / "alone" / "bass.wav")
    add(folder / "mixed" / "bass.wav")
    add(folder / "mixed" / "mix.wav")
    (folder / "song 2" / "keys_L.ogg").write_bytes(b"not audio at all")
    with pytest.raises(CorpusError) as caught:
        StemsCorpus(folder)
    text = str(caught.value)
    assert "3 problem(s)" in text
    for words in ("'alone' has one stem (bass.wav)", "'mixed' has one stem", "keys_L.ogg could not be read", "remove"):
        assert words in text


def test_a_stem_that_was_copied_in_part_is_listed(folder):
    path = folder / "song 2" / "Bass.wav"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CorpusError, match="1 problem.*\n- song 'song 2': .*Bass.wav is cut off"):
        StemsCorpus(folder)


def test_content_that_breaks_later_names_the_file(folder):
    soundfile.write(folder / "song 3" / "vox.flac", np.zeros(100), 16000)
    audio = np.zeros(100, np.float32)
    audio[5] = np.inf
    soundfile.write(folder / "song 3" / "Bass.wav", audio, 16000, subtype="FLOAT")
    with pytest.raises(CorpusError, match=r"'song 3'.*Bass.wav contains a NaN or infinite"):
        StemsCorpus(folder).load("song 3")


def test_empty_missing_and_flat_folders_show_the_layout(tmp_path):
    (tmp_path / "music").mkdir()
    for path, words in {
        tmp_path / "music": "no audio in it",
        tmp_path / "musik": "Did you mean",
    }.items():
        with pytest.raises(CorpusError, match=words) as caught:
            StemsCorpus(path)
        assert "first_song/" in str(caught.value)
    add(tmp_path / "music" / "bass.wav")
    with pytest.raises(CorpusError, match="1 audio file"):
        StemsCorpus(tmp_path / "music")
    with pytest.raises(CorpusError, match="is a file"):
        StemsCorpus(tmp_path / "music" / "bass.wav")


def test_two_files_for_one_stem(folder):
    add(folder / "song 0" / "Bass.flac")
    with pytest.raises(CorpusError, match=r"two files for the stem 'Bass'"):
        StemsCorpus(folder)


def test_unknown_song_and_split(folder):
    corpus = StemsCorpus(folder)
    with pytest.raises(CorpusError, match="Did you mean 'song 1'"):
        corpus.load("song-1")
    with pytest.raises(CorpusError, match="Did you mean 'train'"):
        corpus.song_ids("training")
    with pytest.raises(ConfigError, match="sum below 1"):
        StemsCorpus(folder, validation_share=0.6, test_share=0.5)


@pytest.mark.parametrize("count", [3, 4, 10, 200])
def test_splits_are_disjoint_complete_and_never_empty(count):
    ids = [f"s{i}" for i in range(count)]
    for seed in range(5):
        splits = split_songs(ids, 0.1, 0.2, seed)
        assert all(splits.values())
        assert sorted(sum(map(list, splits.values()), [])) == sorted(ids)
    if count == 200:
        assert 25 <= len(splits["test"]) <= 55 and 10 <= len(splits["validation"]) <= 32
        more = split_songs([*ids, "new"], 0.1, 0.2, 4)
        assert all(set(splits[s]) <= set(more[s]) for s in SPLITS)
        assert split_songs(ids, 0.1, 0.2, 1) != split_songs(ids, 0.1, 0.2, 2)


def test_two_songs_share_all_splits_with_a_warning(tmp_path, caplog):
    for song in ("a", "b"):
        for name in ("bass", "drums"):
            add(tmp_path / song / f"{name}.wav")
    with caplog.at_level(logging.WARNING):
        corpus = StemsCorpus(tmp_path)
    assert all(corpus.song_ids(split) == ("a", "b") for split in SPLITS)
    assert "meaningless" in caplog.text


def test_version_follows_the_files_and_settings(folder):
    first = StemsCorpus(folder).version
    assert StemsCorpus(folder).version == first
    assert StemsCorpus(folder, sample_rate=24000).version != first
    assert StemsCorpus(folder, instruments={"vox": "synth"}).version != first
    add(folder / "song 5" / "extra.wav")
    assert StemsCorpus(folder).version != first


def test_cache_is_bounded(folder):
    corpus = StemsCorpus(folder, cache_mb=0.3)
    songs = [corpus.load(f"song {i}") for i in range(6)]
    assert corpus.load("song 5") is songs[5]
    assert corpus.load("song 0") is not songs[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bassoon", "reed"),
        ("bass_guitar", "bass"),
        ("BassGuitar", "bass"),
        ("e-gtr", "guitar"),
        ("Lead Vox", "voice"),
        ("keys", "piano"),
        ("Kick Drum 2", "drums"),
        ("bass drum", "drums"),
        ("synth bass", "bass"),
        ("bass clarinet", "reed"),
        ("double-bass", "bass"),
        ("alto_sax", "reed"),
        ("alto", "voice"),
        ("steel drums", "chromatic_percussion"),
        ("french horn", "brass"),
        ("english horn", "reed"),
        ("strings", "strings"),
        ("string_bass", "bass"),
        ("guitar2", "guitar"),
        ("synth_pad", "synth"),
        ("organic", "other"),
        ("harpoon", "other"),
        ("S03", "other"),
        ("", "other"),
    ],
)
def test_instrument_of(name, expected):
    assert instrument_of(name) == expected
