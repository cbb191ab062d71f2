"""Compiled loops read the weights as they are now, in half precision or eight bits where that loses nothing."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, prune

from jamgym.errors import ConfigError
from jamgym.registry import codecs
from jamgym_agents.compiled import make_stream, weights
from jamgym_agents.compiled.arrays import Linear
from jamgym_agents.compiled.streaming import CompiledStreamingDecoder
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder

from .compiled_helpers import KINDS, first_chunk, heard_by, needs_halves, rounded
from .helpers import tiny_decoder
from .test_streaming import play


def _replace_all(decoder):
    decoder.load_state_dict(tiny_decoder(seed=1).state_dict(), assign=True)


def _replace_one_weight(decoder):
    decoder.blocks[-1].reduce.weight = torch.nn.Parameter(torch.randn_like(decoder.blocks[-1].reduce.weight))


def _replace_memory(decoder):
    decoder.depth.head[0].weight.data = torch.randn_like(decoder.depth.head[0].weight)


def _replace_module(decoder):
    decoder.depth.head[1] = torch.nn.Linear(decoder.config.depth_dim, decoder.config.cardinality)


def _replace_some(decoder):
    other = {key: value for key, value in tiny_decoder(seed=1).state_dict().items() if key.startswith("depth.")}
    decoder.load_state_dict(other, assign=True, strict=False)


def _replace_vectors(decoder):
    decoder.vectors = torch.randn_like(decoder.vectors)


def _write(decoder):
    decoder.load_state_dict(tiny_decoder(seed=1).state_dict())


def _learn(decoder):
    decoder.requires_grad_(True)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.1)
    heard = heard_by(1)
    logits = decoder(heard, heard, torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.ones(1).long()).logits
    (-logits.log_softmax(-1)[..., 0].mean()).backward()
    optimizer.step()


CHANGES = [
    _replace_all,
    _replace_one_weight,
    _replace_memory,
    _replace_module,
    _replace_some,
    _replace_vectors,
    _write,
    _learn,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_it_plays_with_the_weights_as_they_are_now(change, kind):
    decoder = tiny_decoder() if kind == np.float32 else rounded(tiny_decoder(), kind)
    stream = CompiledStreamingDecoder(decoder)
    before = first_chunk(stream)
    change(decoder)
    after, expected = first_chunk(stream), first_chunk(StreamingDecoder(decoder))
    assert torch.equal(after.codes, expected.codes) and (after.log_probs - expected.log_probs).abs().max() < 1e-4
    assert not torch.allclose(after.log_probs, before.log_probs)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_is_replaced_twice_is_noticed_though_it_may_get_the_same_address(kind):
    decoder = rounded(tiny_decoder(), kind)
    watched, weight = weights.Weights(decoder), decoder.blocks[0].expand.weight
    for turn in range(20):
        before = watched.network
        weight.data = weight.data * 2
        weight.data = weight.data * (0.75 if turn % 2 else 0.25)
        assert watched.network is not before


def _kinds(network):
    return {value.dtype for value in _matrices(network)}


def _matrices(part):
    if isinstance(part, Linear):
        return [part.weight]
    return [matrix for one in part if isinstance(one, tuple) for matrix in _matrices(one)]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aligned", [0, 2])
def test_weights_that_a_file_rounded_are_read_as_it_stored_them(rows, kind, aligned):
    decoder = rounded(tiny_decoder(aligned_frames=aligned), kind)
    assert _kinds(CompiledStreamingDecoder(decoder)._weights.network) == {np.dtype(kind)}
    args = decoder, heard_by(rows), -3, 4, [row % 3 for row in range(rows)], Sampling(guidance=2.0), 0.2
    ours, theirs = play(*args, make=CompiledStreamingDecoder), play(*args)
    assert torch.equal(ours[0], theirs[0]) and (ours[1] - theirs[1]).abs().max() < 1e-4


def test_weights_that_learn_are_read_in_place():
    decoder = rounded(tiny_decoder()).requires_grad_(True)
    network = weights.Weights(decoder).network
    with torch.no_grad():
        decoder.blocks[0].qkv.weight[0, 0] += 1
    assert network.layers[0].qkv.weight[0, 0] == decoder.blocks[0].qkv.weight[0, 0]


@pytest.mark.parametrize(("checkpoint", "kind"), [pytest.param("mle", np.int16, marks=needs_halves), ("ppo", np.int8)])
def test_what_a_policy_loads_is_read_as_it_was_stored(checkpoint, kind):
    policy = DecoderPolicy(codecs.create("spectral"), k=1, checkpoint=checkpoint)
    assert _kinds(weights.Weights(policy.decoder).network) == {np.dtype(kind)}


def test_where_the_processor_knows_no_halves_they_are_read_in_place(monkeypatch):
    monkeypatch.setattr(weights, "converts_halves", lambda: False)
    assert _kinds(weights.Weights(rounded(tiny_decoder(), np.int16)).network) == {np.dtype(np.float32)}


@torch.no_grad()
def test_one_weight_that_was_not_rounded_is_not_lost():
    decoder = rounded(tiny_decoder(), np.int16)
    decoder.depth.head[-1].weight[-1, -1] = 1 + 2**-20
    assert _kinds(weights.Weights(decoder).network) == {np.dtype(np.float32)}


def _not_contiguous(decoder):
    decoder.norm.weight = torch.nn.Parameter(torch.ones(2 * decoder.config.dim)[::2])


def _pruned(decoder):
    prune.random_unstructured(decoder.blocks[0].qkv, "weight", 0.5)


def _parametrized(decoder):
    parametrizations.weight_norm(decoder.blocks[0].qkv)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (torch.nn.Module.bfloat16, "in torch.bfloat16"),
        (torch.nn.Module.double, "in torch.float64"),
        (lambda decoder: decoder.to("meta"), "is on meta"),
        (_not_contiguous, "norm.weight .* not contiguous"),
        (_pruned, "blocks.0.qkv is a Linear whose weight is computed"),
        (_parametrized, "blocks.0.qkv is a ParametrizedLinear whose weight is computed"),
    ],
)
def test_what_it_cannot_read_is_refused_at_first_and_later(change, what):
    decoder = tiny_decoder()
    stream = CompiledStreamingDecoder(decoder)
    change(decoder)
    for again in (lambda: stream._weights.network, lambda: make_stream(decoder, True)):
        with pytest.raises(ConfigError, match=f"{what}.*set compiled to false"):
            again()
    assert type(make_stream(decoder, "auto")) is StreamingDecoder


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_plays_with_its_own_weights(copied):
    stream = CompiledStreamingDecoder(tiny_decoder(), capacity=9)
    size = len(pickle.dumps(stream))
    twin = copied(stream)
    assert size < 1.1 * len(pickle.dumps(stream.decoder)) and twin.capacity == 9
    before = first_chunk(stream)
    _write(twin.decoder)
    after = first_chunk(twin)
    assert torch.equal(after.codes, first_chunk(StreamingDecoder(twin.decoder)).codes)
    assert torch.equal(first_chunk(stream).codes, before.codes) and not torch.equal(after.codes, before.codes)
