import json

import numpy as np
import pytest

from jamgym.errors import ConfigError, UnknownNameError
from jamgym.latency import ConstantLatency, LatencyModel, LognormalLatency, NoLatency, make_latency
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


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
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
