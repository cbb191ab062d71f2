import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, clocks
from jamgym.errors import ConfigError, JamgymError
from jamgym.latency_trace import write_trace
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward
from jamgym.wrappers.pause_clock import PauseClock
from jamgym.wrappers.sb3 import JamgymSB3VecEnv

RATE = 16_000


class FakeTime:
    """A `time` module in which only what a test says takes time; a sleep overruns a little, as real ones do."""

    def __init__(self):
        self.now = 100.0
        self.slept = []
        self.overrun = 0.0

    def perf_counter(self):
        self.now += 1e-6  # reading a clock takes time, so that spinning ends
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds + self.overrun


@pytest.fixture
def fake(monkeypatch):
    time = FakeTime()
    monkeypatch.setattr(clocks, "time", time)
    return time


def live(clock, **settings):
    settings = {"t_f": -5, "k": 5, "frames": 40, "reward": None, **settings}
    return AccompanimentEnv(clock=clock, corpus=ToyCorpus(songs=3), codec=ToyCodec(), **settings)


def play(env, fake, costs, seed=0):
    """Play one episode in which call i takes `costs[i]` seconds."""
    env.reset(seed=seed)
    for cost in costs:
        fake.now += cost
        _, _, ended, cut, _ = env.step(np.ones(env.action_space.shape, dtype=np.int64))
        if ended or cut:  # a stall ends an episode after fewer calls
            break
    assert ended or cut
    return env.event_log()


COSTS = [0.1, 0.5, 0.02, 0.0, 0.3, 0.25, 0.0, 0.01]


@pytest.mark.parametrize("clock", ["measured", "wall"])
@pytest.mark.parametrize("late_policy", ["silence", "repeat", "conceal", "stall"])
def test_a_real_run_replayed_in_simulation_gives_the_identical_log(clock, late_policy, fake, tmp_path):
    log = play(live(clock, late_policy=late_policy), fake, COSTS)
    assert log.late_frames > 0 and log.latency.max() > 0.4 * RATE
    write_trace(tmp_path / "trace.jsonl", log.latency, RATE, 5)
    replay = live(
        "simulated", late_policy=late_policy, latency={"name": "trace", "path": str(tmp_path / "trace.jsonl")}
    )
    again = play(replay, fake, [0.0] * len(log.call))
    for name, value in vars(log).items():
        assert np.array_equal(value, getattr(again, name)), name


def test_measured_charges_the_time_between_handing_out_and_the_next_call(fake):
    costs = [cost + 0.5 / RATE for cost in COSTS]  # half a tick too long
    log = play(live("measured"), fake, costs)
    assert log.latency / RATE == pytest.approx(costs, abs=1e-3)
    assert (log.latency >= np.array(costs) * RATE).all(), "a latency is never rounded down"
    assert not fake.slept


def test_the_environments_own_work_is_not_charged(fake):
    class Slow(ToyReward):
        def score(self, windows):
            fake.now += 5.0
            return super().score(windows)

    log = play(live("measured", reward=Slow()), fake, COSTS)
    assert log.latency / RATE == pytest.approx(COSTS, abs=1e-3)


def test_pausing_stops_the_charge_and_a_paused_clock_refuses_to_step(fake):
    env = live("measured")
    env.reset(seed=0)
    fake.now += 0.1
    env.pause()
    env.pause()
    fake.now += 60.0
    with pytest.raises(JamgymError, match="resume"):
        env.step(np.ones(10, dtype=int))
    env.resume()
    env.resume()
    fake.now += 0.2
    env.step(np.ones(10, dtype=int))
    assert env.event_log().latency[0] / RATE == pytest.approx(0.3, abs=1e-3)
    # An episode that begins while the clock stands still is not charged for it either.
    env.pause()
    fake.now += 5.0
    env.reset()
    fake.now += 30.0
    env.resume()
    fake.now += 0.05
    env.step(np.ones(10, dtype=int))
    assert env.event_log().latency[0] / RATE == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("overrun", [0.0, 0.001, 0.03])
def test_wall_hands_out_each_observation_when_its_input_is_there(fake, overrun):
    fake.overrun = overrun
    env = live("wall")
    env.reset(seed=0)
    zero = env.clock._zero
    for cost in COSTS:
        call = int(env.simulation.call[0])
        due = zero + env.timing.release(call) / RATE
        if call == 0 or env.event_log().finish[-1] <= env.timing.release(call):
            assert 0 <= fake.now - due <= overrun + 1e-4
        assert env.clock.jitter >= 0
        fake.now += cost
        env.step(np.ones(10, dtype=int))
    log = env.event_log()
    # A late wake-up counts as time that has passed, so errors never add up.
    assert (log.finish >= log.release).all() and log.release[7] == env.timing.release(7)
    assert len(fake.slept) == 3, "three calls are done before the next release"


def test_wall_starts_before_the_music_and_pausing_moves_it(fake):
    env = live("wall")
    began = fake.now
    env.reset(seed=0)
    assert env.clock._zero - began == pytest.approx(5 * 640 / RATE, abs=1e-3)
    env.pause()
    fake.now += 50.0
    env.resume()
    fake.now += 0.05
    env.step(np.ones(10, dtype=int))
    assert env.event_log().latency[0] / RATE == pytest.approx(0.05, abs=1e-3)


def test_the_live_id_passes_the_checker_and_is_labelled_nondeterministic():
    spec = gymnasium.spec("jamgym/AccompanimentLive-v0")
    assert spec.nondeterministic and not gymnasium.spec("jamgym/Accompaniment-v0").nondeterministic
    kwargs = {
        "corpus": {"name": "jamgym.testing:ToyCorpus"},
        "codec": {"name": "jamgym.testing:ToyCodec"},
        "reward": None,
        "frames": 20,
    }
    env = gymnasium.make("jamgym/AccompanimentLive-v0", **kwargs)
    assert isinstance(env.unwrapped.clock, clocks.MeasuredClock)
    check_env(env.unwrapped, skip_render_check=True)
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again.unwrapped.clock, clocks.MeasuredClock)
    wall = gymnasium.make("jamgym/AccompanimentLive-v0", clock="wall", **kwargs)
    assert isinstance(wall.unwrapped.clock, clocks.WallClock)
    vector = gymnasium.make_vec("jamgym/AccompanimentLive-v0", num_envs=1, **kwargs)
    vector.reset(seed=0)
    vector.step(vector.action_space.sample())
    assert vector.event_log(0).latency[0] > 0


def test_real_time_takes_one_stream():
    for clock in ("measured", "wall"):
        with pytest.raises(ConfigError, match="num_envs=1"):
            AccompanimentVectorEnv(2, clock=clock, corpus=ToyCorpus(), codec=ToyCodec(), reward=None)
    with pytest.raises(ConfigError, match="Did you mean 'measured'"):
        live("mesured")


def test_pickling_a_measured_episode_counts_anew(fake):
    env = live("measured")
    env.reset(seed=0)
    fake.now += 1000.0
    twin = pickle.loads(pickle.dumps(env))
    fake.now += 0.1
    twin.step(np.ones(10, dtype=int))
    assert twin.event_log().latency[0] / RATE == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("paused", [False, True])
def test_the_music_of_a_pickled_wall_episode_stands_still(fake, paused):
    env = live("wall")
    env.reset(seed=0)
    fake.now += 0.05
    if paused:
        env.pause()
        fake.now += 3.0
    kept = pickle.dumps(env)
    fake.now = 7.0  # on another machine, whose clock began elsewhere
    twin = pickle.loads(kept)
    if paused:
        fake.now += 2.0
        with pytest.raises(JamgymError, match="resume"):
            twin.step(np.ones(10, dtype=int))
        twin.resume()
    fake.now += 0.02
    twin.step(np.ones(10, dtype=int))
    assert twin.event_log().latency[0] / RATE == pytest.approx(0.07, abs=1e-3)
    # The next observation is handed out a chunk after the first one, less what has passed.
    assert fake.slept[-1] == pytest.approx(5 * 640 / RATE - 0.07 - clocks.SPIN_SECONDS, abs=1e-3)
    assert twin.clock.jitter < 1e-3


@pytest.mark.parametrize("adapter", ["native", "dummy"])
def test_learning_is_not_charged_with_the_callback_and_is_without(fake, adapter):
    class SlowLearner(PPO):
        def train(self):
            super().train()
            fake.now += 7.0

    def longest(callback):
        kwargs = {"corpus": ToyCorpus(), "codec": ToyCodec(), "reward": None, "t_f": -5, "frames": 40}
        if adapter == "native":
            env = JamgymSB3VecEnv(AccompanimentVectorEnv(1, clock="measured", **kwargs))
            inner = env.env
        else:
            inner = AccompanimentEnv(clock="measured", **kwargs)
            env = DummyVecEnv([lambda: inner])
        model = SlowLearner("MultiInputPolicy", env, n_steps=3, batch_size=3, n_epochs=1, device="cpu", seed=0)
        found = []
        model.learn(12, callback=callback)
        record = inner.final_record(0) if adapter == "native" else inner.final_record()
        found.append(record.log.latency.max())
        return max(found) / RATE

    assert longest(None) > 6.0
    assert longest(PauseClock()) < 1.0
