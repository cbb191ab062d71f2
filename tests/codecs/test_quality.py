import numpy as np
import pytest

from jamgym.codecs.quality import chroma, codec_quality, cosine
from jamgym.codecs.spectral import SpectralCodec
from jamgym.corpora.band import BandCorpus
from jamgym.errors import CorpusError
from jamgym.testing import ToyCodec, ToyCorpus


def tone(key, seconds=1.0):
    time = np.arange(round(16000 * seconds)) / 16000
    return (0.2 * np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * time)).astype(np.float32)


@pytest.mark.parametrize("key", [45, 57, 60, 69, 80, 90])
def test_chroma_finds_the_pitch_class(key):
    assert (chroma(tone(key), 16000).argmax(1) == key % 12).all()


def test_cosine():
    a, b = chroma(tone(60), 16000), chroma(tone(66), 16000)
    assert cosine(a, a) == pytest.approx(1.0) and cosine(a, b) < 0.2
    assert cosine(np.zeros((3, 12)), np.ones((3, 12))) == 0.0


class Identity(ToyCodec):
    """Decodes to exactly what it encoded."""

    def encode(self, audio):
        self.audio = audio
        return super().encode(audio)

    def decode(self, codes):
        return self.audio


def test_a_perfect_codec_scores_one_and_its_control_does_not():
    figures = codec_quality(Identity(), ToyCorpus(songs=2, seconds=3.0), songs=2)
    assert figures["chroma_cosine"] == pytest.approx(1.0) and figures["log_spectral_distance_db"] == pytest.approx(0.0)
    assert figures["chroma_cosine_transposed"] < 0.3


def test_songs_that_are_too_short():
    with pytest.raises(CorpusError, match="4096 samples"):
        codec_quality(ToyCodec(), ToyCorpus(songs=1, seconds=0.2))


def note_in_chord(audio, truth, size=4096, hop=1024):
    """Share of chroma energy on the notes of the sounding chord; 0.25 for no relation to it."""
    energy = chroma(audio, 16000, size, hop) ** 2
    index = truth.chord_index((np.arange(len(energy)) * hop + size / 2) / 16000)
    members = truth.chord_pitch_classes[index]
    used = (index >= 0) & (energy.sum(1) > 1e-3 * energy.sum(1).max())
    return float((energy[used] * members[used]).sum() / energy[used].sum())


@pytest.mark.slow
def test_the_shipped_codec_keeps_the_harmony():
    corpus, codec = BandCorpus(songs=100), SpectralCodec()
    figures = codec_quality(codec, corpus, songs=6)
    assert figures["chroma_cosine"] > 0.7
    assert figures["chroma_cosine"] > figures["chroma_cosine_transposed"] + 0.3
    assert min(figures[f"used_codes_{q}"] for q in range(4)) > 100
    shares = []
    for song_id in corpus.song_ids("validation")[:10]:
        song = corpus.load(song_id)
        for stem in song.stems:
            if stem.instrument == "bass":
                audio = stem.audio[: 300 * 640]
                decoded = codec.decode(codec.encode(audio[None]))[0]
                shares.append((note_in_chord(audio, song.truth), note_in_chord(decoded, song.truth)))
    original, decoded = np.mean(shares, axis=0)
    error = np.std([share for _, share in shares], ddof=1) / np.sqrt(len(shares))
    assert len(shares) >= 8 and original > 0.6
    assert decoded - 2 * error > 0.25, "the decoded basses have no relation to the chord"
