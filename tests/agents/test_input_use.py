import numpy as np
import pytest
import torch

from jamgym.errors import ConfigError
from jamgym.testing import ToyCodec, ToyCorpus
from jamgym_agents.mle.input_use import _other_song, half_interval, input_use, validate
from jamgym_agents.mle.token_cache import load_tokens

from .helpers import tiny_decoder


def test_another_song_is_never_the_own_one(tmp_path, monkeypatch):
    tokens = load_tokens(ToyCorpus(songs=3, seconds=2.0), ToyCodec(), "train", folder=tmp_path)
    batch = tokens.batch(np.random.default_rng(0), 12, 20)
    for row in range(12):
        assert batch.song[_other_song(batch.song, row)] != batch.song[row]
    heard = []
    decoder = tiny_decoder()
    original = decoder.trunk
    monkeypatch.setattr(decoder, "trunk", lambda *args: heard.append(args[0]) or original(*args))
    use = input_use(decoder, batch, 5, 5, rows=5)
    assert use["true"].shape == use["other"].shape == use["root"].shape == (12,)
    assert torch.equal(torch.cat(heard[0::2]), batch.heard)
    others = torch.cat(heard[1::2])
    for row in range(12):
        owners = {int(batch.song[i]) for i in range(12) if torch.equal(batch.heard[i], others[row])}
        assert owners and int(batch.song[row]) not in owners
    assert set(input_use(decoder, batch, 5, 5, other=False)) == {"true", "root"}


def test_sequences_of_one_song_are_refused(tmp_path):
    tokens = load_tokens(ToyCorpus(songs=1, seconds=2.0), ToyCodec(), "train", folder=tmp_path)
    batch = tokens.batch(np.random.default_rng(0), 4, 20)
    with pytest.raises(ConfigError, match="at least two validation songs"):
        input_use(tiny_decoder(), batch, 5, 5)


def test_the_interval_counts_songs_and_not_their_sequences():
    rng = np.random.default_rng(0)
    songs, few = np.repeat(np.arange(40), 5), rng.standard_normal(40)
    # Five sequences of a song that say the same are worth one.
    same = half_interval(few[songs], songs)
    assert same == pytest.approx(1.96 * few.std(ddof=1) / np.sqrt(40))
    assert half_interval(few, np.arange(40)) == pytest.approx(same)
    # As a bootstrap over songs of unequal length finds it.
    uneven = np.repeat(np.arange(40), rng.integers(1, 8, size=40))
    values = few[uneven] + 0.5 * rng.standard_normal(len(uneven))
    sums, sizes = np.bincount(uneven, weights=values), np.bincount(uneven)
    drawn = rng.integers(40, size=(4000, 40))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    assert half_interval(values, uneven) == pytest.approx(1.96 * means.std(), rel=0.1)


def test_every_cell_is_validated_under_its_own_name(tmp_path):
    tokens = load_tokens(ToyCorpus(songs=3, seconds=2.0), ToyCodec(), "train", folder=tmp_path)
    batch = tokens.batch(np.random.default_rng(0), 6, 20)
    decoder = tiny_decoder().train()
    figures = validate(decoder, batch, [(-5, 1), (3, 1), (-5, 10)])
    assert decoder.training and len(figures) == 18
    decoder.eval()
    for t_f, k in ((-5, 1), (3, 1), (-5, 10)):
        loss = input_use(decoder, batch, t_f, k)["true"].mean()
        assert figures[f"validation/loss_true_tf{t_f}_k{k}"] == pytest.approx(float(loss))
    assert len({figures[name] for name in figures if "loss_true" in name}) == 3
