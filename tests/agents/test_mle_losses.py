from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jamgym.testing import ToyCodec, ToyCorpus
from jamgym_agents.checkpoint import new_decoder
from jamgym_agents.mle.batch import draw_step, dropout_seed
from jamgym_agents.mle.distributed import Workers
from jamgym_agents.mle.losses import count_entries, losses
from jamgym_agents.mle.token_cache import load_tokens
from jamgym_agents.pretraining import gather_gradients

from .helpers import TINY
from .test_pretraining import CONFIG

CONFIG = replace(CONFIG, batch=8, device="cpu", architecture=replace(TINY, dropout=0.0, lookahead_frames=3))


@pytest.fixture
def inputs(tmp_path):
    tokens = load_tokens(ToyCorpus(songs=3, seconds=2.0), ToyCodec(), "train", folder=tmp_path)
    drawn = draw_step(tokens, CONFIG, 0)
    # Uneven parts, so that a mean of means would differ.
    drawn.tokens.chroma[:3] = 0
    drawn.t_f[:2] = 30
    return drawn


def gradients(inputs, accumulate, count):
    """Return losses and gradients summed over `count` processes, one after the other."""
    torch.manual_seed(0)
    decoder = new_decoder(CONFIG.architecture, ToyCodec())
    config = replace(CONFIG, accumulate=accumulate)
    total, sums = {}, {}
    for rank in range(count):
        shares = gather_gradients(decoder, decoder, inputs, config, Workers(torch.device("cpu"), rank, count))
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in shares.items()}
        # As data parallelism does: the mean over processes.
        total = {name: total.get(name, 0) + p.grad / count for name, p in decoder.named_parameters()}
    return sums, total


@pytest.mark.parametrize(("accumulate", "count"), [(4, 1), (1, 4), (2, 2)])
def test_parts_add_up_to_the_whole_step(inputs, accumulate, count):
    whole, gradient = gradients(inputs, 1, 1)
    parts, summed = gradients(inputs, accumulate, count)
    assert set(whole) == {"codebook_0", "codebook_1", "root", "input_root", "chroma", "lookahead"}
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, value in gradient.items():
        assert torch.allclose(summed[name], value, rtol=1e-4, atol=1e-6), name


def test_losses_are_means_over_what_counts(inputs):
    decoder = new_decoder(CONFIG.architecture, ToyCodec())
    tokens, scored = inputs.tokens, inputs.scored
    output = decoder(
        tokens.heard, tokens.target, tokens.instrument, inputs.t_f, inputs.k, inputs.hidden, scored, lookahead=True
    )
    found = losses(output, inputs, count_entries(inputs, 3))
    first = F.cross_entropy(output.logits[:, :, 0].flatten(0, 1), tokens.target[:, scored, 0].flatten())
    assert torch.allclose(found["codebook_0"], first)
    assert torch.allclose(found["root"], F.cross_entropy(output.root.flatten(0, 1), tokens.root.flatten()))
    assert torch.allclose(found["lookahead"], F.cross_entropy(output.lookahead.logits, output.lookahead.codes))
    sounds = tokens.chroma.sum(-1) > 0.5
    shares = tokens.chroma[sounds] / tokens.chroma[sounds].sum(-1, keepdim=True)
    assert torch.allclose(found["chroma"], F.cross_entropy(output.chroma[sounds], shares))


def test_nothing_to_expect_costs_nothing(inputs):
    everything = replace(inputs, t_f=torch.full_like(inputs.t_f, 40))
    decoder = new_decoder(CONFIG.architecture, ToyCodec())
    shares = gather_gradients(decoder, decoder, everything, CONFIG, Workers(torch.device("cpu")))
    assert float(shares["lookahead"]) == 0.0 and all(torch.isfinite(p.grad).all() for p in decoder.parameters())


def test_dropout_differs_by_step_and_process():
    seeds = [dropout_seed(0, step, rank) for step in range(3) for rank in range(3)]
    assert (
        len(set(seeds)) == 9
        and min(seeds) >= 0
        and seeds == [dropout_seed(0, step, rank) for step in range(3) for rank in range(3)]
    )
    assert np.iinfo(np.int64).max >= max(seeds)
