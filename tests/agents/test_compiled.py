"""Compiled loops play what torch's operations play."""

import copy
import math
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym.errors import ConfigError
from jamgym.testing import ToyCodec
from jamgym_agents import sampling as plain
from jamgym_agents.compiled import arithmetic, arrays, attention, compiling, decoding, make_stream, streaming, weights
from jamgym_agents.compiled import sampling as fast
from jamgym_agents.compiled.arrays import draws_of
from jamgym_agents.compiled.streaming import CompiledStreamingDecoder
from jamgym_agents.decoder_policy import DecoderPolicy
from jamgym_agents.eight_bit import as_eight_bits, from_eight_bits, to_eight_bits
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder

from .helpers import tiny_decoder, vec_env
from .test_streaming import FRAMES, play, teacher_forced

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


def heard_by(rows, seed=2, frames=FRAMES):
    return torch.randint(0, 16, (rows, frames, 2), generator=torch.Generator().manual_seed(seed))


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


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    temperature=st.one_of(st.just(1.0), st.just(0.0), st.floats(0.1, 5.0)),
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    number=st.floats(0, 1, exclude_max=True, width=32),
)
def test_transform_and_draw(logits, temperature, top_k, top_p, number):
    sampling = Sampling(temperature, top_k, top_p)
    expected = plain.transform(torch.tensor(logits), sampling)
    found = np.array(logits, np.float32)
    draws = draws_of(sampling, torch.zeros(1, 1, 1))
    fast.transform(found, draws)
    # Equally likely codes at an edge of top_p may change places, and so may those at its rounding.
    if top_p == 1 or len(set(logits)) == len(logits):
        apart = np.isneginf(found) != torch.isneginf(expected).numpy()
        assert apart.sum() <= 1
        if not apart.any():
            np.testing.assert_allclose(np.exp(found), expected.exp().numpy(), atol=2e-5)
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    code = fast.draw(found, number)
    assert found[code] > -np.inf
    ends = np.exp(found.astype(np.float64)).cumsum()
    wanted = number * ends[-1]
    assert wanted < ends[code] + 1e-5 and (code == 0 or wanted >= ends[code - 1] - 1e-5)


def test_rounding_up_to_the_total_draws_a_code_that_can_be():
    log_probs = np.array([-math.log(2), -math.log(2), -math.inf], np.float32)
    assert fast.draw(log_probs, np.nextafter(np.float32(1), np.float32(0))) == 1
    assert fast.draw(log_probs, 0.0) == 0


def test_what_is_not_finite_gives_some_code():
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.norm.weight[0] = torch.nan
    chunk = _first_chunk(CompiledStreamingDecoder(decoder))
    assert ((chunk.codes >= 0) & (chunk.codes < 16)).all() and chunk.log_probs.isnan().all()


@pytest.mark.parametrize(("name", "value"), [("last", 16), ("last", -1), ("instrument", 99)])
def test_what_no_table_has_is_refused(name, value):
    stream = CompiledStreamingDecoder(tiny_decoder())
    state = stream.initial_state(2)
    stream.generate(state, 2, Sampling())
    getattr(state, name)[1] = value
    with pytest.raises(IndexError, match=f"are between .*{value}"):
        stream.generate(state, 2, Sampling())


def _first_chunk(stream, k=4):
    state = stream.initial_state(2)
    stream.hear(state, heard_by(2)[:, :5], torch.tensor([5, 5]))
    return stream.generate(state, k, Sampling(), torch.Generator().manual_seed(3))


@pytest.mark.parametrize("assign", [False, True])
def test_it_plays_with_the_weights_as_they_are_now(assign):
    decoder, other = tiny_decoder(), tiny_decoder(seed=1)
    stream = CompiledStreamingDecoder(decoder)
    before = _first_chunk(stream)
    decoder.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    after, expected = _first_chunk(stream), _first_chunk(StreamingDecoder(other))
    assert torch.equal(after.codes, expected.codes) and not torch.equal(after.codes, before.codes)


def _with_threads(count, run):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        with compiling.torch_threads():
            run()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@pytest.mark.parametrize(("out", "width"), [(33, 32), (64, 17), (1, 5), (1024, 256), (513, 200)])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_linear(rows, out, width, eight_bits):
    module = torch.nn.Linear(width, out).requires_grad_(False)
    packed = {module.weight: as_eight_bits(_rounded(module).weight)} if eight_bits else None
    x, found = torch.randn(rows, width), []
    for threads in (1, 2):
        y = np.full((rows, out), np.nan, np.float32)
        _with_threads(threads, lambda y=y: arithmetic.linear(arrays._linear(module, packed), x.numpy(), y))
        found.append(y)
    assert np.array_equal(*found)
    np.testing.assert_allclose(found[0], module(x).numpy(), atol=2e-6 * width**0.5)


def _rounded(module):
    """Give `module` weights that a file has rounded to eight bits; they no longer learn."""
    module.load_state_dict(from_eight_bits(to_eight_bits(module.state_dict())))
    return module.requires_grad_(False)


@given(x=st.floats(-86, 88, width=32))
def test_exp(x):
    assert arithmetic.exp(np.float32(x)) == pytest.approx(math.exp(x), rel=4e-7)


def test_exp_at_its_ends():
    assert [arithmetic.exp(np.float32(x)) for x in (-math.inf, -1000, -87.5, 0)] == [0, 0, 0, 1]
    assert math.isnan(arithmetic.exp(np.float32(math.nan)))


@given(values=st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=20))
def test_gelu(values):
    x = np.array([values], np.float32)
    expected = torch.nn.functional.gelu(torch.tensor(values, dtype=torch.float64)).numpy()
    arithmetic.gelu(x)
    np.testing.assert_allclose(x[0], expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("slots", [1, 3, 4, 11, 40])
def test_attend(slots):
    rows, heads, groups, sinks = 3, 4, 2, min(3, slots)
    queries, near = torch.randn(2, rows, heads, 16)
    keys, values = torch.randn(2, rows, groups, 50, 16)
    chosen = torch.stack([torch.randperm(50)[:slots] for _ in range(rows)])
    picked = chosen[:, None, :, None].expand(-1, groups, -1, 16)
    k, v = (part.gather(2, picked).repeat_interleave(heads // groups, 1) for part in (keys, values))
    scores = (queries.unsqueeze(2) * k).sum(-1)
    scores[:, :, :sinks] = (near.unsqueeze(2) * k[:, :, :sinks]).sum(-1)
    expected = (scores.softmax(-1).unsqueeze(-1) * v).sum(2).flatten(1)
    counts, found = np.tile([[sinks, slots]], (rows, 1)), []
    for threads in (1, 2):
        mixed, room = np.full((rows, heads * 16), np.nan, np.float32), np.full((rows * heads, slots), np.nan, np.float32)
        tensors = [part.numpy() for part in (queries, near, keys, values, chosen)]
        _with_threads(threads, lambda room=room, mixed=mixed, t=tensors: attention.attend(*t, counts, room, mixed))
        found.append(mixed)
    assert np.array_equal(*found)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=2e-6)


def test_getting_ready_draws_from_no_one_elses_numbers():
    decoder, before = tiny_decoder(), torch.get_rng_state()
    CompiledStreamingDecoder(decoder)
    assert torch.equal(torch.get_rng_state(), before)


def _python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_torch_keeps_its_number_of_threads():
    # In a process of its own: numba sets that of an OpenMP that both may share when its threads start.
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.agents.helpers import tiny_decoder\n"
        "from jamgym_agents.compiled.streaming import CompiledStreamingDecoder\n"
        "CompiledStreamingDecoder(tiny_decoder()); print(torch.get_num_threads())"
    )
    assert _python(code).split() == ["1"]


def test_numba_is_imported_only_where_it_is_asked_for():
    code = (
        "import sys; import jamgym_agents.decoder_policy, jamgym_agents.compiled\n"
        "from tests.agents.helpers import tiny_decoder\n"
        "jamgym_agents.compiled.make_stream(tiny_decoder()); print('numba' in sys.modules)"
    )
    assert _python(code).split() == ["False"]


@pytest.mark.slow
def test_without_a_pool_that_stays_awake_loops_are_not_shared(tmp_path):
    code = (
        "import sys; sys.modules['numba.np.ufunc.omppool'] = sys.modules['numba.np.ufunc.tbbpool'] = None\n"
        "from tests.agents.test_compiled import *\n"
        "from tests.agents.test_compiled import _first_chunk\n"
        "assert not compiling.PARALLEL\n"
        "a, b = (_first_chunk(make(tiny_decoder())) for make in (StreamingDecoder, CompiledStreamingDecoder))\n"
        "print(torch.equal(a.codes, b.codes))"
    )
    assert _python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["True"]


def test_where_nothing_can_be_kept_on_disk_loops_are_compiled_all_the_same(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options.get("cache", False))
        if asked[-1]:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return lambda function: function

    monkeypatch.setattr(compiling.numba, "njit", njit)
    assert compiling._compiled(parallel=False)(len) is len and asked == [True, False]


def test_another_precision_or_device_is_refused():
    for decoder, what in ((tiny_decoder().bfloat16(), "bfloat16"), (tiny_decoder().to("meta"), "meta")):
        with pytest.raises(ConfigError, match=f"{what}.*compiled to false"):
            make_stream(decoder, True)
        assert type(make_stream(decoder, "auto")) is StreamingDecoder


def test_without_numba_only_those_who_ask_for_it_are_refused(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("jamgym_agents.compiled.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    decoder = tiny_decoder()
    for compiled in ("auto", False):
        assert type(make_stream(decoder, compiled)) is StreamingDecoder
    with pytest.raises(ConfigError, match=r"pip install 'jamgym\[fast\]'"):
        make_stream(decoder, True)


def test_it_is_taken_where_it_can_be_had():
    decoder = tiny_decoder()
    assert type(make_stream(decoder, "auto")) is type(make_stream(decoder, True)) is CompiledStreamingDecoder
    assert type(make_stream(decoder)) is StreamingDecoder
    with pytest.raises(ConfigError, match="'fast'; give true, false, or auto"):
        make_stream(decoder, "fast")


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
