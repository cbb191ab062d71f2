import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym.errors import ConfigError
from jamgym.files import RunError
from jamgym.latency import LatencyModel, make_latency
from jamgym.latency_trace import read_trace, write_trace
from jamgym.timing import Timing

TICKS = [197, 0, 3000, 1, 16]


def timing(k=5, rate=16_000):
    return Timing(t_f=-5, k=k, hop_samples=640, sample_rate=rate, frames=20)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "trace.jsonl"
    write_trace(path, TICKS, 16_000, 5)
    return path


def replay(path, calls=5, seed=0, at=None, **arguments):
    model = make_latency({"name": "trace", "path": str(path), **arguments})
    return model.draw(np.random.default_rng(seed), calls, at or timing())


def test_the_file_has_one_object_per_call(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["call"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0] == {"call": 0, "seconds": 197 / 16_000, "ticks": 197, "sample_rate": 16_000, "k": 5}
    assert [path.name for path in path.parent.iterdir()] == ["trace.jsonl"]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rate=st.integers(1, 768_000))
def test_replay_is_exact_at_the_recorded_rate(tmp_path_factory, data, rate):
    ticks = data.draw(st.lists(st.integers(0, 86_400 * rate), min_size=1, max_size=20))
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    write_trace(path, np.array(ticks), rate, 5)
    found = replay(path, len(ticks), at=timing(rate=rate))
    assert found.dtype == np.int64 and found.tolist() == ticks


def test_a_short_trace_wraps_around(path):
    assert replay(path, 12).tolist() == (TICKS * 3)[:12]
    assert replay(path, 2).tolist() == TICKS[:2]


def test_a_random_start_is_drawn_from_the_rng(path):
    found = {tuple(replay(path, 7, seed, start="random")) for seed in range(60)}
    assert found == {tuple((TICKS * 3)[first : first + 7]) for first in range(5)}
    assert np.array_equal(replay(path, 7, 3, start="random"), replay(path, 7, 3, start="random"))
    # The beginning takes nothing from the rng.
    assert np.array_equal(replay(path, 7, 3), replay(path, 7, 4))


def test_another_rate_is_converted(path):
    assert replay(path, at=timing(rate=48_000)).tolist() == [3 * ticks for ticks in TICKS]
    assert replay(path, at=timing(rate=8_000)).tolist() == [98, 0, 1500, 0, 8]  # 98.5 and 0.5 to the even one


def test_seconds_alone_are_enough(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"seconds": 0.0123}\n\n{"seconds": 1, "note": "by hand"}\n')
    assert replay(path, 2).tolist() == [197, 16_000]
    assert read_trace(path).k is None
    assert replay(path, 2, at=timing(k=1)).tolist() == [197, 16_000]


def test_another_chunk_size_is_refused(path):
    with pytest.raises(ConfigError, match="recorded with k=5 frames per call, but here k is 1"):
        replay(path, at=timing(k=1))


@pytest.mark.parametrize(
    ("k", "match"),
    [
        ([1, 5], r"trace\.jsonl was recorded with k=5 .*but here k is drawn from \[1, 5\]\. Give k=5 alone"),
        (1, r"trace\.jsonl was recorded with k=5 .*but here k is 1\. Take the trace of that k"),
    ],
)
def test_a_set_of_chunk_sizes_is_refused_when_the_environment_is_made(k, match, path, make_vec):
    latency = ["none", {"name": "trace", "path": str(path)}]
    with pytest.raises(ConfigError, match=match):
        make_vec(k=k, latency=latency)
    make_vec(k=[5, 5], latency=latency).reset(seed=0)


def test_a_trace_without_k_goes_with_a_set_of_chunk_sizes(tmp_path, make_vec, random_actions):
    (tmp_path / "t.jsonl").write_text('{"seconds": 0.0123}\n')
    env = make_vec(k=[1, 5], latency=["none", {"name": "trace", "path": str(tmp_path / "t.jsonl")}])
    env.reset(seed=0)
    for actions in random_actions(60, 3, 5):
        env.step(actions)


def test_the_model_is_small_in_tables_and_can_be_pickled(path):
    model = make_latency({"name": "trace", "path": str(path)})
    assert repr(model) == f"TraceLatency(path={str(path)!r}, start='beginning')"
    assert isinstance(model, LatencyModel)
    again = pickle.loads(pickle.dumps(model))
    assert again == model and again.draw(np.random.default_rng(0), 5, timing()).tolist() == TICKS


GOOD = '{"seconds": 0.1, "k": 5}\n'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"Cannot read the latency trace .*t\.jsonl: No such file.*jamgym profile"),
        ("", r"t\.jsonl has no lines.*jamgym profile"),
        ("\n \n", "has no lines"),
        (GOOD + '{"seconds": 0.1', r"Line 2 of the latency trace .*t\.jsonl is .*expected one JSON object per line"),
        (GOOD + "\n3\n", "Line 3 .*expected one JSON object"),
        (GOOD + "\xff\n", "Line 2 .*expected one JSON object"),
        (GOOD + "[" * 100_000 + "\n", r"Line 2 .*\.\.\.; expected one JSON object"),
        (GOOD + '{"seconds": -0.1}\n', "Line 2 .*seconds=-0.1; expected a finite number.*Correct or delete"),
        (GOOD + '{"seconds": NaN}\n', "Line 2 .*seconds=nan"),
        (GOOD + '{"seconds": 1e999}\n', "Line 2 .*seconds=inf"),
        (GOOD + '{"seconds": 1e6}\n', "Line 2 .*to 86400"),
        (GOOD + '{"seconds": "0.1"}\n', "Line 2 .*seconds='0.1'"),
        (GOOD + '{"seconds": true}\n', "Line 2 .*seconds=True"),
        (GOOD + '{"secnods": 1}\n', "Line 2 .*neither.*'secnods' meant to be 'seconds'"),
        ('{"ticks": 3}\n', "Line 1 .*sample_rate=None"),
        ('{"ticks": -3, "sample_rate": 16000}\n', "Line 1 .*ticks=-3; expected a whole number >= 0"),
        ('{"ticks": 1.5, "sample_rate": 16000}\n', "Line 1 .*ticks=1.5"),
        ('{"ticks": 1, "sample_rate": 0}\n', "Line 1 .*sample_rate=0; expected a whole number >= 1"),
        ('{"ticks": 1' + "0" * 400 + ', "sample_rate": 1}\n', "Line 1 .*longer than a day"),
        ('{"seconds": 0.2, "ticks": 16, "sample_rate": 16000}\n', "Line 1 .*seconds=0.2, but 16 ticks are 0.001 s"),
        (GOOD + '{"seconds": 0.1, "k": 1}\n', "Line 2 .*k=1, but those before have k=5"),
        ('{"seconds": 0.1, "k": 0}\n', "Line 1 .*k=0"),
    ],
)
def test_broken_files_are_one_clear_error(text, match, tmp_path):
    path = tmp_path / "t.jsonl"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=match) as caught:
        make_latency({"name": "trace", "path": str(path)})
    assert len(str(caught.value)) < 600


def test_bad_arguments(path, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'random'"):
        make_latency({"name": "trace", "path": str(path), "start": "randm"})
    with pytest.raises(ConfigError, match="must be text"):
        make_latency({"name": "trace", "path": 3})
    with pytest.raises(ConfigError, match="Cannot read"):
        make_latency({"name": "trace", "path": str(tmp_path)})


@pytest.mark.parametrize("ticks", [[], [[1]], [1.5], [-1], [True], [86_400 * 16_000 + 1]])
def test_what_cannot_be_read_is_not_written(ticks, path):
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="ticks are"):
        write_trace(path, ticks, 16_000, 5)
    with pytest.raises(ConfigError, match="sample_rate is 0"):
        write_trace(path, [1], 0, 5)
    assert path.read_bytes() == before


def test_a_failing_write_leaves_the_old_file(path, monkeypatch):
    def full(*_):
        raise OSError("no space")

    before = path.read_bytes()
    monkeypatch.setattr("jamgym.latency_trace.json", SimpleNamespace(dumps=full))
    with pytest.raises(RunError, match="older version"):
        write_trace(path, [1, 2], 16_000, 5)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("start", ["beginning", "random"])
def test_a_recorded_episode_replays_to_the_same_event_log(start, make_vec, random_actions, tmp_path):
    def logs(latency):
        env = make_vec(2, k=5, latency=latency, late_policy="repeat", autoreset_mode="Disabled")
        env.reset(seed=4)
        for actions in random_actions(5, 2, 5):
            env.step(actions)
        return [env.event_log(row) for row in range(2)]

    recorded = logs({"name": "lognormal", "median_seconds": 0.2, "sigma": 0.8})
    path = tmp_path / "t.jsonl"
    write_trace(path, recorded[0].latency, 16_000, 5)
    replayed = logs({"name": "trace", "path": str(path), "start": start})
    if start == "random":
        doubled = np.tile(recorded[0].latency, 2)
        for log in replayed:
            assert any(np.array_equal(log.latency, doubled[first : first + 5]) for first in range(5))
        return
    assert recorded[0].late_frames > 0
    for name in ("release", "start", "finish", "latency", "source", "status", "lateness"):
        assert np.array_equal(getattr(replayed[0], name), getattr(recorded[0], name)), name
    assert np.array_equal(replayed[1].latency, recorded[0].latency)
