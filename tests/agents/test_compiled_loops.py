"""Each compiled loop computes what its model in torch computes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym_agents import sampling as plain
from jamgym_agents.compiled import arithmetic, arrays, attention, compiling, weights
from jamgym_agents.compiled import sampling as fast
from jamgym_agents.compiled.arrays import draws_of
from jamgym_agents.eight_bit import as_eight_bits
from jamgym_agents.kv_cache import HEARD, PLAYED
from jamgym_agents.sampling import Sampling
from jamgym_agents.streaming import StreamingDecoder

from .compiled_helpers import KINDS, needs_halves, rounded
from .helpers import tiny_decoder


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
@pytest.mark.parametrize("kind", KINDS)
def test_linear(rows, out, width, kind):
    module = rounded(torch.nn.Linear(width, out), kind)
    read = {np.float32: None, np.int16: weights._as_half_precision, np.int8: as_eight_bits}[kind]
    packed = None if read is None else {module.weight: read(module.weight)}
    x, found = torch.randn(rows, width), []
    for threads in (1, 2):
        y = np.full((rows, out), np.nan, np.float32)
        _with_threads(threads, lambda y=y: arithmetic.linear(arrays._linear(module, packed), x.numpy(), y))
        found.append(y)
    assert np.array_equal(*found)
    np.testing.assert_allclose(found[0], module(x).numpy(), atol=2e-6 * width**0.5)


@needs_halves
@given(number=st.floats(width=16, allow_nan=False), length=st.integers(1, 40), place=st.integers(0, 39))
def test_half_precision_comes_back_as_it_was(number, length, place):
    halves, ones = torch.zeros(length).half(), np.ones(length, np.float32)
    halves[place % length] = number
    assert arithmetic.dot(halves.view(torch.int16).numpy(), ones) == number


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


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=70), nan=st.booleans())
def test_maximum(values, nan):
    x = np.array(values + [math.nan] * nan, np.float32)
    assert arithmetic.maximum(x) == arithmetic.maximum(x[::-1].copy()) == max(values)


@given(values=st.lists(st.floats(-200, 40, width=32), min_size=1, max_size=40))
def test_softmax(values):
    x = np.array(values, np.float32)
    expected = torch.tensor(values).softmax(-1).numpy()
    attention.softmax(x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-7)
    x[0] = math.nan
    attention.softmax(x)
    assert np.isnan(x).all()


@pytest.mark.parametrize("slots", [1, 3, 4, 11, 40])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 3])
def test_attend(slots, size, frames):
    rows, groups, width = 2, 2, 16
    count = rows * frames
    queries, near = torch.randn(2, count, groups, size, width)
    keys, values = torch.randn(2, rows, groups, 50, width)
    chosen = torch.stack([torch.randperm(50)[:slots] for _ in range(count)])
    # Every frame has its own number of sinks, none among them, and of slots.
    ends = torch.tensor([max(1, slots - n) for n in range(count)])
    counts = torch.stack([torch.minimum(torch.arange(count) % 4, ends), ends], 1)
    expected = torch.empty_like(queries)
    for n in range(count):
        sinks, end = counts[n].tolist()
        k, v = keys[n // frames][:, chosen[n, :end]], values[n // frames][:, chosen[n, :end]]
        scores = queries[n] @ k.mT
        scores[..., :sinks] = near[n] @ k[:, :sinks].mT
        expected[n] = scores.softmax(-1) @ v
    found = []
    for threads in (1, 2):
        mixed = np.full(queries.shape, np.nan, np.float32)
        room = np.full((count * groups, size, slots), np.nan, np.float32)
        tensors = [part.numpy() for part in (queries, near, keys, values, chosen, counts)]
        _with_threads(threads, lambda room=room, mixed=mixed, t=tensors: attention.attend(*t, room, mixed))
        found.append(mixed)
    assert np.array_equal(*found)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=2e-6)


@settings(max_examples=200, deadline=None)
@given(
    stream=st.sampled_from([HEARD, PLAYED]),
    place=st.integers(0, 60),
    ahead=st.integers(-70, 9),
    window=st.one_of(st.none(), st.integers(3, 20)),
    sinks=st.integers(0, 5),
)
def test_the_list_of_slots_is_what_the_mask_lets_through(stream, place, ahead, window, sinks):
    window = window and max(window, sinks + 1)
    decoder = tiny_decoder(window=window, sinks=sinks)
    streaming = StreamingDecoder(decoder, capacity=1)
    state = streaming.initial_state(2)
    # The other row is at another time.
    state.heard += torch.tensor([0, max(place + ahead, 0) if stream == PLAYED else place])
    state.played += torch.tensor([0, place])
    extent = state.make_room(1, stream)
    positions = torch.tensor([[0], [place]])
    view = streaming._look(positions, state, stream, extent)
    seen = torch.arange(2 * state.capacity)[view.used][view.bias[1, 0, 0] == 0]
    look = arrays.look_of(decoder.config, positions, state, stream)
    slots = np.full(2 * state.capacity, -1)
    near, count = attention.list_slots(look, 1, place, state.capacity, slots)
    assert sorted(slots[:count]) == seen.tolist()
    assert set(slots[:near]) == {slot for slot in slots[:count] if slot < 2 * sinks}
