import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym.errors import ConfigError, UnknownNameError
from jamgym.latency import (
    MODELS,
    ConstantLatency,
    CostLatency,
    LatencyModel,
    LognormalLatency,
    MarkovLatency,
    NoLatency,
    make_latency,
)
from jamgym.timing import Timing

TIMING = Timing(t_f=-5, k=5, hop_samples=640, sample_rate=16_000, frames=20)


def draw(spec, seed=0, calls=2001):
    return make_latency(spec).draw(np.random.default_rng(seed), calls, TIMING)


def test_none_and_constant_are_exact():
    assert (draw("none") == 0).all()
    ticks = draw({"name": "constant", "seconds": 0.05})
    assert ticks.dtype == np.int64 and ticks.shape == (2001,) and (ticks == 800).all()


def test_lognormal_has_its_median_and_spread_and_follows_the_seed():
    spec = {"name": "lognormal", "median_seconds": 0.1, "sigma": 0.5}
    ticks = draw(spec)
    assert ticks.dtype == np.int64 and (ticks > 0).all()
    assert np.median(ticks) == pytest.approx(1600, rel=0.05)
    assert np.log(ticks).std() == pytest.approx(0.5, rel=0.06)
    assert np.array_equal(ticks, draw(spec)) and not np.array_equal(ticks, draw(spec, seed=1))


def test_specs_are_json_native_and_objects_pass_through():
    spec = json.loads(json.dumps({"name": "lognormal", "median_seconds": 0.1, "sigma": 0}))
    assert make_latency(spec) == LognormalLatency(0.1, 0)
    model = ConstantLatency(0.1)
    assert make_latency(model) is model
    assert all(isinstance(m, LatencyModel) for m in (model, NoLatency(), LognormalLatency(1, 1)))


seconds = st.floats(0, 1e300)
positive = st.floats(1e-6, 1e300)
spreads = st.floats(0, 1e300)
specs = st.one_of(
    st.just("none"),
    st.fixed_dictionaries({"name": st.just("constant"), "seconds": seconds}),
    st.fixed_dictionaries({"name": st.just("lognormal"), "median_seconds": positive, "sigma": spreads}),
    st.fixed_dictionaries(
        {"name": st.just("cost"), "base_seconds": seconds, "seconds_per_frame": seconds}, optional={"sigma": spreads}
    ),
    st.fixed_dictionaries(
        {
            "name": st.just("markov"),
            "median_seconds": st.floats(1e-6, 1.0),
            "spike_median_seconds": st.floats(1.0, 1e300),
            "enter_probability": st.floats(0, 1),
            "leave_probability": st.floats(1e-3, 1),
        },
        optional={"sigma": spreads, "spike_sigma": spreads},
    ),
)


@settings(max_examples=200, deadline=None)
@given(spec=specs, calls=st.integers(1, 60), seed=st.integers(0, 2**32), rate=st.sampled_from([8_000, 16_000, 48_000]))
def test_every_model_gives_ticks_and_follows_the_seed(spec, calls, seed, rate):
    timing = Timing(t_f=-5, k=5, hop_samples=640, sample_rate=rate, frames=20)
    model = make_latency(json.loads(json.dumps(spec)))
    assert isinstance(model, LatencyModel)
    ticks, again = (model.draw(np.random.default_rng(seed), calls, timing) for _ in range(2))
    assert ticks.dtype == np.int64 and ticks.shape == (calls,)
    assert (ticks >= 0).all() and (ticks <= 86_400 * rate).all()
    assert np.array_equal(ticks, again)


def spiky(enter, leave, **more):
    return MarkovLatency(0.01, 0.1, enter, leave, **more)


def run_lengths(spikes):
    """Return the lengths of the whole runs of spikes, without a first or last one that is cut."""
    edges = np.flatnonzero(np.diff(spikes.astype(int)))
    lengths = np.diff(edges)
    return lengths[0 if spikes[edges[0] + 1] else 1 :: 2]


@pytest.mark.parametrize(("enter", "leave"), [(0.02, 0.25), (0.5, 0.5), (0.9, 0.8), (0.3, 1.0), (1.0, 0.1)])
def test_markov_has_the_transitions_it_was_asked_for(enter, leave):
    spikes = spiky(enter, leave).spikes(np.random.default_rng(0), 200_000)
    before, after = spikes[:-1], spikes[1:]
    assert after[~before].mean() == pytest.approx(enter, abs=0.01)
    assert after[before].mean() == pytest.approx(1 - leave, abs=0.012)
    assert spikes.mean() == pytest.approx(enter / (enter + leave), abs=0.01)
    assert run_lengths(spikes).mean() == pytest.approx(1 / leave, rel=0.04)


def test_markov_equals_the_chain_walked_call_by_call():
    for enter, leave in ((0.1, 0.3), (0.8, 0.7), (1.0, 1.0)):
        found = spiky(enter, leave).spikes(np.random.default_rng(3), 500)
        chance = np.random.default_rng(3).random(500)
        state = bool(chance[0] < enter / (enter + leave))
        for call in range(500):
            if call:
                state = bool(chance[call] < (1 - leave if state else enter))
            assert found[call] == state, (enter, leave, call)


def test_markov_is_in_equilibrium_from_the_first_call_on():
    model = spiky(0.1, 0.3)
    found = np.stack([model.spikes(np.random.default_rng(seed), 4) for seed in range(4000)])
    np.testing.assert_allclose(found.mean(axis=0), 0.25, atol=0.03)


def test_markov_times_belong_to_their_state():
    model = spiky(0.05, 0.2)
    spikes = model.spikes(np.random.default_rng(5), 2001)
    assert 0.1 < spikes.mean() < 0.3
    assert np.array_equal(model.draw(np.random.default_rng(5), 2001, TIMING), np.where(spikes, 1600, 160))
    ticks = spiky(0.05, 0.2, sigma=0.1, spike_sigma=0.5).draw(np.random.default_rng(5), 2001, TIMING)
    assert np.log(ticks[spikes]).std() == pytest.approx(0.5, rel=0.15)
    assert np.log(ticks[~spikes]).std() == pytest.approx(0.1, rel=0.15)
    assert np.median(ticks[spikes]) == pytest.approx(1600, rel=0.15)
    assert not spiky(0.0, 1.0).spikes(np.random.default_rng(0), 1000).any()


@pytest.mark.parametrize("k", [1, 5, 25])
def test_cost_grows_with_the_chunk(k):
    timing = Timing(t_f=-5, k=k, hop_samples=640, sample_rate=16_000, frames=20)
    spec = {"name": "cost", "base_seconds": 0.01, "seconds_per_frame": 0.002}
    assert (make_latency(spec).draw(np.random.default_rng(0), 7, timing) == 160 + 32 * k).all()
    ticks = make_latency({**spec, "sigma": 0.3}).draw(np.random.default_rng(0), 4001, timing)
    assert np.median(ticks) == pytest.approx(160 + 32 * k, rel=0.05)
    assert np.log(ticks).std() == pytest.approx(0.3, rel=0.06)


def test_cost_from_a_file(tmp_path):
    path = tmp_path / "cost.json"
    numbers = {"base_seconds": 0.01, "seconds_per_frame": 0.002, "sigma": 0.1}
    path.write_text(json.dumps({**numbers, "measured": {"policy": "decoder"}}))
    assert make_latency({"name": "cost", "path": str(path)}) == CostLatency(**numbers)
    path.write_text(json.dumps({"base_seconds": 0.01, "seconds_per_frame": 0.002}))
    assert make_latency({"name": "cost", "path": str(path)}) == CostLatency(0.01, 0.002, 0.0)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"Cannot read the cost model .*cost\.json: No such file.*jamgym profile"),
        ("{", r"cost\.json is not JSON"),
        ("[1]", r"cost\.json is a list"),
        ('{"base_seconds": 1}', r"cost\.json: .*needs seconds_per_frame"),
        ('{"base_seconds": 1, "seconds_per_frame": 0, "sigmaa": 1}', r"cost\.json: .*Did you mean 'sigma'"),
        ('{"base_seconds": NaN, "seconds_per_frame": 0}', r"cost\.json: base_seconds.*nan.*finite"),
    ],
)
def test_broken_cost_files(text, match, tmp_path):
    path = tmp_path / "cost.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        make_latency({"name": "cost", "path": str(path)})


MARKOV = {
    "name": "markov",
    "median_seconds": 0.01,
    "spike_median_seconds": 0.1,
    "enter_probability": 0.1,
    "leave_probability": 0.5,
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_arguments_without_default_are_asked_for(name):
    if name == "none":
        assert make_latency(name) == NoLatency()
    else:
        with pytest.raises(ConfigError, match=f"'{name}' needs"):
            make_latency(name)


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ({**MARKOV, "enter_probability": 1.5}, ConfigError, "enter_probability.*at most 1"),
        ({**MARKOV, "leave_probability": 2}, ConfigError, "leave_probability.*at most 1"),
        ({**MARKOV, "leave_probability": 0}, ConfigError, "leave_probability.*> 0"),
        ({**MARKOV, "enter_probability": -0.1}, ConfigError, "enter_probability.*>= 0"),
        ({**MARKOV, "median_seconds": 0}, ConfigError, "median_seconds.*> 0"),
        ({**MARKOV, "spike_median_seconds": 0.001}, ConfigError, "spike_median_seconds.*slower"),
        ({**MARKOV, "spike_sigma": None}, ConfigError, "spike_sigma.*None"),
        ({**MARKOV, "enter_probabilty": 0.1}, ConfigError, "Did you mean 'enter_probability'"),
        ({"name": "cost", "base_seconds": 0.1}, ConfigError, "needs seconds_per_frame"),
        ({"name": "cost", "path": "x", "sigma": 0.1}, ConfigError, "one or the other"),
        ({"name": "cost", "path": 3}, ConfigError, "must be text"),
        ({"name": "cost", "base_seconds": -1, "seconds_per_frame": 0}, ConfigError, "base_seconds.*>= 0"),
        ({"name": "constant", "seconds": 10**400}, ConfigError, "finite number"),
        ("constnat", UnknownNameError, "Did you mean 'constant'"),
        ({"name": "constant", "secnods": 1}, ConfigError, "Did you mean 'seconds'"),
        ({"name": "constant"}, ConfigError, "needs seconds"),
        ({"seconds": 1}, ConfigError, "no 'name'"),
        ({"name": "constant", "seconds": -1}, ConfigError, ">= 0"),
        ({"name": "constant", "seconds": float("nan")}, ConfigError, "finite"),
        ({"name": "constant", "seconds": "1"}, ConfigError, "finite number"),
        ({"name": "lognormal", "median_seconds": 0, "sigma": 1}, ConfigError, "> 0"),
        (3, ConfigError, "int"),
    ],
)
def test_bad_specs(spec, error, match):
    with pytest.raises(error, match=match):
        make_latency(spec)
