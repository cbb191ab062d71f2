"""Compiled loops play what torch's operations play."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym.testing import ToyCodec
from jamgym_agents.compiled import decoding, streaming
from jamgym_agents.compiled.streaming import CompiledStreamingDecoder
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder

from .compiled_helpers import first_chunk, heard_by
from .helpers import tiny_decoder, vec_env
from .test_streaming import play, teacher_forced

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=3),
    Sampling(top_p=0.6),
    Sampling(temperature=1.3, top_k=9, top_p=0.8),
    Sampling(temperature=0.0),
    Sampling(guidance=3.0, top_p=0.9),
    Sampling(guidance=0.0),
]


@settings(max_examples=60, deadline=None)
@given(
    t_f=st.integers(-25, 25),
    k=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(3, 30)),
    sinks=st.integers(0, 5),
    delays=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    late=st.sampled_from([0.0, 0.3]),
    capacity=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    aligned=st.integers(0, 4),
    aligned_past=st.integers(0, 9),
    sampling=st.sampled_from(SAMPLINGS),
    few=st.sampled_from([0, 4, 1000]),
)
def test_streaming_equals_teacher_forcing(
    t_f, k, window, sinks, delays, late, capacity, seed, aligned, aligned_past, sampling, few
):
    window = window and max(window, sinks + 1, aligned_past + 1)
    decoder = tiny_decoder(window=window, sinks=sinks, aligned_frames=aligned, aligned_past=aligned_past)
    heard = heard_by(len(delays), seed)
    delays = [delay - min(delays) for delay in delays]
    with mock.patch.object(streaming, "FEW_FRAMES", few):
        played, scores, whole, instrument = play(
            decoder, heard, t_f, k, delays, sampling, late, seed, capacity, CompiledStreamingDecoder
        )
    expected = teacher_forced(decoder, heard, played, instrument, t_f, k, sampling)
    assert torch.isfinite(scores[whole]).all()
    difference = (scores - expected).abs()[whole]
    assert difference.numel() == 0 or difference.max() < 1e-4


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_it_plays_what_the_other_one_plays(sampling, rows):
    decoder, heard = tiny_decoder(window=12, sinks=2, aligned_frames=2), heard_by(rows)
    args = decoder, heard, -3, 4, [row % 3 for row in range(rows)], sampling, 0.2
    ours, theirs = play(*args, make=CompiledStreamingDecoder), play(*args)
    assert torch.equal(ours[0], theirs[0])
    assert (ours[1] - theirs[1]).abs().max() < 1e-4
    assert sampling.greedy or len(ours[0].unique()) > 4, "the test tells nothing if all codes are the same"


def test_the_hidden_state_is_that_of_the_first_frame():
    decoder, chunks = tiny_decoder(), []
    for make in (StreamingDecoder, CompiledStreamingDecoder):
        stream = make(decoder)
        state = stream.initial_state(2, guided=True)
        stream.hear(state, heard_by(2)[:, :7], torch.tensor([7, 4]))
        chunks.append(stream.generate(state, 3, Sampling(guidance=2.0), torch.Generator().manual_seed(0)))
    assert chunks[0].hidden.shape == chunks[1].hidden.shape == (2, 32)
    assert (chunks[0].hidden - chunks[1].hidden).abs().max() < 1e-5


def test_a_chunk_keeps_its_codes_when_the_next_one_is_played():
    stream = CompiledStreamingDecoder(tiny_decoder())
    state = stream.initial_state(1)
    first = stream.generate(state, 3, Sampling(), torch.Generator().manual_seed(0))
    before = first.codes.clone(), state.last
    was = before[1].clone()
    stream.generate(state, 5, Sampling(), torch.Generator().manual_seed(1))
    assert torch.equal(first.codes, before[0]) and torch.equal(before[1], was)


def test_what_is_not_finite_gives_some_code():
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.norm.weight[0] = torch.nan
    chunk = first_chunk(CompiledStreamingDecoder(decoder))
    assert ((chunk.codes >= 0) & (chunk.codes < 16)).all() and chunk.log_probs.isnan().all()


def test_heard_codes_that_no_table_has_are_refused():
    stream = CompiledStreamingDecoder(tiny_decoder())
    with pytest.raises(IndexError, match="heard codes are between 1 and 16; valid are 0 to 15"):
        stream.hear(stream.initial_state(1), torch.tensor([[[1, 16]]]), torch.tensor([1]))


@pytest.mark.parametrize(("name", "value"), [("last", 16), ("last", -1), ("instrument", 99)])
def test_what_no_table_has_is_refused(name, value):
    stream = CompiledStreamingDecoder(tiny_decoder())
    state = stream.initial_state(2)
    stream.generate(state, 2, Sampling())
    getattr(state, name)[1] = value
    with pytest.raises(IndexError, match=f"are between .*{value}"):
        stream.generate(state, 2, Sampling())


def test_nothing_is_compiled_anew_when_the_music_plays():
    stream = CompiledStreamingDecoder(tiny_decoder(aligned_frames=2))
    counts = [len(part.signatures) for part in (decoding.decode, decoding.hear)]
    for sampling in (Sampling(), Sampling(temperature=1, top_k=np.int32(3)), Sampling(guidance=np.float32(2))):
        state = stream.initial_state(3, guided=sampling.guided)
        state.instrument, state.last = state.instrument.int(), state.last.int()
        stream.hear(state, heard_by(3)[:, :9], torch.tensor([9, 3, 0]))
        stream.generate(state, 3, sampling)
        stream.amend(state, heard_by(3)[:, :3], torch.tensor([3, 0, 1]), torch.tensor([3, 3, 3]))
        stream.generate(state, 2, sampling)
    assert [len(part.signatures) for part in (decoding.decode, decoding.hear)] == counts


def test_another_default_precision_changes_nothing():
    decoder = tiny_decoder(aligned_frames=2)
    before = first_chunk(CompiledStreamingDecoder(decoder))
    try:
        torch.set_default_dtype(torch.float64)
        after = [first_chunk(make(decoder)) for make in (CompiledStreamingDecoder, StreamingDecoder)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before.codes, after[0].codes) and torch.equal(before.log_probs, after[0].log_probs)
    assert after[1].log_probs.dtype == torch.float32


def test_getting_ready_draws_from_no_one_elses_numbers():
    decoder, before = tiny_decoder(), torch.get_rng_state()
    CompiledStreamingDecoder(decoder)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_policy_plays_whole_episodes_alike(guidance):
    decoder, found = tiny_decoder(), []
    latency = {"name": "lognormal", "median_seconds": 0.19, "sigma": 0.5}
    for compiled in (False, True):
        env = vec_env(3, latency=latency)
        policy = DecoderPolicy(ToyCodec(), k=5, seed=1, decoder=decoder, guidance=guidance, compiled=compiled)
        observation, _ = env.reset(seed=4)
        policy.reset(np.ones(3, dtype=bool))
        codes = []
        for _ in range(9):
            chunk = policy.step(observation)
            codes.append(chunk.codes)
            observation, *_ = env.step(chunk.codes.numpy().reshape(3, -1).astype(np.int64))
        found.append(torch.cat(codes, 1))
    assert torch.equal(found[0], found[1])
