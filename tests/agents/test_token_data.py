from dataclasses import replace

import numpy as np
import pytest
import torch

from jamgym.errors import ConfigError, CorpusError
from jamgym.testing import ToyCodec, ToyCorpus
from jamgym_agents.mle import token_cache
from jamgym_agents.mle.encoding import NO_CHORD, encode_song, encode_songs, frame_chroma
from jamgym_agents.mle.token_cache import load_tokens


class Counting(ToyCorpus):
    loads = 0

    def load(self, song_id):
        self.loads += 1
        return super().load(song_id)


def corpus():
    return Counting(songs=2, seconds=2.0)


def test_cache_is_used_again_and_keyed_by_versions(tmp_path):
    first, again = corpus(), corpus()
    one, two = (load_tokens(c, ToyCodec(), "train", folder=tmp_path) for c in (first, again))
    assert first.loads == 2 and again.loads == 0
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in vars(one))
    for what in ("corpus", "codec", "codec name", "songs"):
        other, codec = corpus(), ToyCodec()
        if what == "corpus":
            other.version = "2"
        elif what == "codec":
            codec.version = "2"
        elif what == "codec name":
            codec.name = "other"
        load_tokens(other, codec, "train", songs=1 if what == "songs" else None, folder=tmp_path)
        assert other.loads > 0, what


def test_pairs_hold_the_right_codes():
    song, codec = corpus().load("train-0000"), ToyCodec()
    for pair, stem in zip(encode_song(song, codec), song.stems, strict=True):
        mix = np.sum([s.audio for s in song.stems], axis=0) - stem.audio
        assert np.array_equal(pair["target"], codec.encode(stem.audio[None])[0])
        assert (pair["heard"] == codec.encode(mix[None])[0]).mean() > 0.95
        assert pair["root"].min() >= 0 and pair["root"].max() < NO_CHORD


def test_batches_are_crops_of_one_pair(tmp_path):
    tokens = load_tokens(corpus(), ToyCodec(), "train", folder=tmp_path)
    batch = tokens.batch(np.random.default_rng(0), 16, 20)
    assert batch.heard.shape == (16, 20, 2) and batch.chroma.max() <= 1.0 and batch.heard.dtype == torch.int64
    for row in range(16):
        found = False
        for pair in range(len(tokens)):
            part = tokens.target[tokens.offsets[pair] : tokens.offsets[pair + 1]]
            for start in range(len(part) - 19):
                if np.array_equal(part[start : start + 20], batch.target[row]):
                    found |= tokens.song[pair] == batch.song[row] and tokens.instrument[pair] == batch.instrument[row]
        assert found
    with pytest.raises(CorpusError, match="shorter"):
        tokens.batch(np.random.default_rng(0), 1, 1000)


def test_chroma_of_a_tone_and_of_silence():
    time = np.arange(16_000) / 16_000
    chroma = frame_chroma(np.sin(2 * np.pi * 440 * time).astype(np.float32), 16_000, 640)
    assert chroma.shape == (25, 12) and (chroma[5:20].argmax(1) == 9).all() and (chroma[5:20, 9] > 200).all()
    assert (frame_chroma(np.zeros(16_000, dtype=np.float32), 16_000, 640) == 0).all()


def test_several_processes_encode_the_same_in_the_same_order(tmp_path):
    songs = ToyCorpus(songs=6, seconds=2.0)
    one = load_tokens(songs, ToyCodec(), "train", folder=tmp_path / "one")
    two = load_tokens(songs, ToyCodec(), "train", folder=tmp_path / "two", processes=2)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in vars(one))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_was_encoded_before_a_stop_is_not_encoded_again(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(token_cache, "PART", 2)
    songs = Counting(songs=7, seconds=2.0)
    whole = load_tokens(ToyCorpus(songs=7, seconds=2.0), ToyCodec(), "train", folder=tmp_path / "whole")
    asked, shown = [], []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            load_tokens(
                songs,
                ToyCodec(),
                "train",
                folder=tmp_path / "cut",
                processes=processes,
                stop=lambda: asked.append(1) or len(asked) % 3 == 0,
            )
    again = load_tokens(
        songs, ToyCodec(), "train", folder=tmp_path / "cut", processes=processes, advance=lambda: shown.append(1)
    )
    assert all(np.array_equal(getattr(whole, name), getattr(again, name)) for name in vars(whole))
    assert len(shown) == 7 and (processes > 1 or songs.loads == 7)
    assert [path.suffix for path in (tmp_path / "cut").iterdir()] == [".safetensors"]


def test_songs_without_a_pair_are_left_out_and_songs_without_any_are_an_error(tmp_path, monkeypatch):
    class Mostly(ToyCorpus):
        loaded = staticmethod(lambda song_id: song_id.endswith("1"))

        def load(self, song_id):
            song = super().load(song_id)
            return song if self.loaded(song_id) else replace(song, stems=song.stems[:1])

    monkeypatch.setattr(token_cache, "PART", 1)
    tokens = load_tokens(Mostly(songs=3, seconds=2.0), ToyCodec(), "train", folder=tmp_path)
    assert len(tokens) > 0 and set(tokens.song.tolist()) == {1}
    Mostly.loaded = staticmethod(lambda song_id: False)
    with pytest.raises(CorpusError, match="two stems that sound"):
        load_tokens(Mostly(songs=3, seconds=2.0), ToyCodec(), "train", folder=tmp_path / "none")


def test_a_song_without_chords_has_none_and_one_shorter_than_a_frame_no_pairs():
    song = ToyCorpus(seconds=2.0).load("train-0000")
    none = {"chord_roots": np.zeros(0, int), "chord_pitch_classes": np.zeros((0, 12), bool)}
    bare = replace(song.truth, chord_times=np.zeros(1), **none)
    pairs = encode_song(replace(song, truth=bare), ToyCodec())
    assert pairs and all((pair["root"] == NO_CHORD).all() for pair in pairs)
    short = replace(song, stems=tuple(replace(stem, audio=stem.audio[-500:]) for stem in song.stems))
    assert encode_song(short, ToyCodec()) == []


def test_what_cannot_be_copied_is_encoded_in_one_process():
    codec = ToyCodec()
    codec.lock = lambda: None
    with pytest.raises(ConfigError, match="encode_processes: 1"):
        list(encode_songs(corpus(), codec, ["train-0000"], 2))
