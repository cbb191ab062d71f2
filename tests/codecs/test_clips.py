import numpy as np
import pytest
import torch

from jamgym.codecs.clips import ClipPool
from jamgym.errors import CorpusError
from jamgym.run import Run
from jamgym.testing import ToyCorpus


def test_clips_are_reproducible_stems_and_mixes_below_full_scale():
    pool = ClipPool(ToyCorpus(songs=2, seconds=2.0), "train", 2)
    one, two = (pool.draw(np.random.default_rng(1), 32, 6400) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (32, 6400)
    assert one.abs().max() <= 0.99 + 1e-4 and (one.abs().amax(1) > 0).float().mean() > 0.8
    assert not torch.equal(one, pool.draw(np.random.default_rng(2), 32, 6400))


def test_a_corpus_without_training_songs_is_refused(monkeypatch):
    corpus = ToyCorpus()
    monkeypatch.setattr(corpus, "song_ids", lambda split: [])
    with pytest.raises(CorpusError, match="no songs in split 'train'"):
        ClipPool(corpus, "train", 2)


def test_ctrl_c_while_songs_are_loaded_stops_before_the_next_song(tmp_path):
    class Counting(ToyCorpus):
        loaded = 0

        def load(self, song_id):
            Counting.loaded += 1
            run.stop_requested = True  # as Ctrl-C does
            return super().load(song_id)

    run = Run.create(tmp_path / "r", command="train-codec", config={}, seed=0, quiet=True)
    corpus = Counting(songs=6, seconds=2.0)
    with run, pytest.raises(KeyboardInterrupt):
        ClipPool(corpus, "train", 4, lambda ids: run.loading(ids, "loading"))
    assert Counting.loaded == 1
