"""The invariants of time, over random clocks, latencies and playback rules, against a model written frame by frame."""

import dataclasses
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource
from jamgym.playback import CONCEALED, DELAYED, GAP, NEVER_EMITTED, ON_TIME, REPEATED
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward
from jamgym.wrappers.sb3 import JamgymSB3VecEnv

HOP = 640
SOURCE = EpisodeSource(ToyCorpus(songs=3, seconds=2.0), ToyCodec(), frames=50)
RULES = [
    {"late_policy": late, "salvage": salvage, "backlog": backlog}
    for late in ("silence", "repeat", "conceal")
    for salvage in ("frame", "chunk")
    for backlog in ("queue", "skip")
] + [{"late_policy": "stall"}]


class Trace:
    """Latencies as given, by call."""

    def __init__(self, ticks):
        self.ticks = np.asarray(ticks, dtype=np.int64)

    def draw(self, rng, calls, timing):
        return np.resize(self.ticks, calls)


@st.composite
def scenes(draw, rules=RULES):
    """Draw an episode's length, a clock, a rule and latencies that reach from nothing to several chunks."""
    return {
        "frames": draw(st.integers(1, 50)),
        "t_f": draw(st.integers(-12, 6)),
        "k": draw(st.integers(1, 9)),
        "capture_samples": draw(st.sampled_from([0, 100, 700])),
        "output_samples": draw(st.sampled_from([0, 60, 1300])),
        "rule": draw(st.sampled_from(rules)),
        "latency": draw(st.lists(st.integers(0, 9000), min_size=1, max_size=12)),
        "seed": draw(st.integers(0, 1000)),
    }


def make(scene, latency=None, **more):
    return AccompanimentEnv(
        source=SOURCE,
        reward=more.pop("reward", None),
        t_f=scene["t_f"],
        k=scene["k"],
        capture_samples=scene["capture_samples"],
        output_samples=scene["output_samples"],
        allow_lookahead=True,
        latency=Trace(scene["latency"] if latency is None else latency),
        **scene["rule"],
        **more,
    )


def episode_of(scene):
    whole = SOURCE.crop("train-0000", "bass", 0)
    frames = scene["frames"]
    return dataclasses.replace(
        whole,
        input_codes=whole.input_codes[:frames],
        target_codes=whole.target_codes[:frames],
        heard=whole.heard[: frames * HOP],
        target=whole.target[: frames * HOP],
    )


def play(env, episode, seed=0):
    """Return all observations, and the codes that were emitted for each call index."""
    observation, _ = env.reset(seed=0, options={"episode": episode})
    rng = np.random.default_rng(seed)
    # The codes of a call depend on its index alone, so that other latencies meet the same codes.
    codes = rng.integers(1, 16, (60, env.simulation.chunk * 2))
    seen, done = [observation], False
    while not done:
        call = env.simulation.call[0]
        observation, _, terminated, truncated, _ = env.step(codes[call])
        seen.append(observation)
        done = terminated or truncated
    return seen, codes


def by_hand(scene):
    """Return calls (i, R, S, F) and slots (source, status, lateness) of `scene`, frame by frame."""
    frames, t_f, k, rule = scene["frames"], scene["t_f"], scene["k"], scene["rule"]
    d_in, d_out = scene["capture_samples"], scene["output_samples"]
    salvage, backlog = rule.get("salvage", "frame"), rule.get("backlog", "queue")
    fill_status = {"repeat": REPEATED, "conceal": CONCEALED}.get(rule["late_policy"])

    def release(i):
        return i * k * HOP + min(t_f * HOP + d_in, -d_out)

    def deadline(n):
        return n * HOP - d_out

    def fill(last):
        return (last, fill_status) if fill_status is not None and last >= 0 else (-1, GAP)

    calls, slots, last, slip, finish, i, latency_before = [], [], -1, 0, -(10**12), 0, 0
    while i * k + slip < frames:
        start = max(release(i), finish)
        finish = start + scene["latency"][i % len(scene["latency"])]
        calls.append((i, release(i), start, finish))
        chunk = range(i * k, min((i + 1) * k, frames))
        if rule["late_policy"] == "stall":
            waited = 0
            while len(slots) < frames and finish > deadline(i * k) + slip * HOP:
                waited, slip = waited + 1, slip + 1
                slots.append([-1, GAP, None])
            for slot in slots[len(slots) - waited :]:
                slot[2] = slip * HOP
            for n in chunk:
                if len(slots) < frames:
                    slots.append([n, DELAYED if slip else ON_TIME, slip * HOP])
        else:
            before = last
            for n in chunk:
                late = finish - deadline(i * k if salvage == "chunk" else n)
                if late <= 0:
                    slots.append([n, ON_TIME, 0])
                    last = n
                else:
                    slots.append([*fill(before), late])
        following, latency = i + 1, finish - start
        expected, latency_before = min(latency, latency_before), latency
        if backlog == "skip" and finish + expected > deadline(following * k):
            newest = max(m for m in range(-1, 200) if m < 0 or release(m) <= finish)
            coming = max(min(newest, -(-frames // k) - 1), following)
            for _ in range(following * k, min(coming * k, frames)):
                slots.append([*fill(last), NEVER_EMITTED])
            following = coming
        i = following
    return calls, slots


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_the_log_equals_the_model_frame_by_frame(scene):
    env = make(scene)
    play(env, episode_of(scene))
    log = env.event_log()
    calls, slots = by_hand(scene)
    assert list(zip(log.call, log.release, log.start, log.finish, strict=True)) == calls
    assert [list(slot) for slot in zip(log.source, log.status, log.lateness, strict=True)] == slots


@settings(max_examples=200, deadline=None)
@given(scenes())
def test_slots_are_all_played_once_and_on_time_ones_as_emitted(scene):
    env = make(scene)
    _, codes = play(env, episode_of(scene))
    log, played, k = env.event_log(), env.played_codes(), scene["k"]
    assert len(log.status) == len(played) == scene["frames"]
    emitted = codes.reshape(60, k, 2)
    as_emitted = np.isin(log.status, (ON_TIME, DELAYED))
    frame = log.source[as_emitted]
    assert np.array_equal(played[as_emitted], emitted[frame // k, frame % k])
    assert (np.diff(frame) > 0).all(), "a frame is played twice, or out of order"
    if scene["rule"]["late_policy"] != "stall":
        assert np.array_equal(frame, np.flatnonzero(as_emitted)), "a frame is played in another one's slot"
    assert (played[log.status == GAP] == 0).all()
    filled = np.isin(log.status, (REPEATED, CONCEALED))
    assert np.array_equal(played[filled], emitted[log.source[filled] // k, log.source[filled] % k])
    info = env._info()
    assert info["late_frames"] == log.late_frames and info["underruns"] == log.underruns
    assert info["skipped_frames"] == log.skipped_frames == np.count_nonzero(log.lateness == NEVER_EMITTED)
    # Calls that were made tile the frames that were emitted; the rest was skipped.
    if scene["rule"].get("backlog") != "skip" and scene["rule"]["late_policy"] != "stall":
        assert log.call.tolist() == list(range(-(-scene["frames"] // k)))


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(0, 60), st.sampled_from(["new", "window"]))
def test_no_future_frame_influences_an_observation(scene, call, mode):
    episode = episode_of(scene)
    env = make(scene, observation=mode, window=7)
    original, _ = play(env, episode)
    position = min(call, len(original) - 1)
    visible = env.timing.visible(int(original[position]["frame"][0]) // scene["k"])
    codes = episode.input_codes.copy()
    codes[visible:] = (codes[visible:] + 1) % 16
    mutated, _ = play(make(scene, observation=mode, window=7), dataclasses.replace(episode, input_codes=codes))
    for before, after in zip(original[: position + 1], mutated[: position + 1], strict=True):
        for key in before:
            assert before[key].tobytes() == after[key].tobytes(), key
    if mode == "new":
        heard = [step["heard"][: int(step["heard_count"][0])] for step in original]
        reach = env.timing.visible(int(original[-1]["frame"][0]) // scene["k"])
        assert np.array_equal(np.concatenate(heard), episode.input_codes[:reach]), "a frame was lost or heard twice"


@settings(max_examples=150, deadline=None)
@given(scenes(), st.integers(0, 9000))
def test_constant_cost_is_never_late_iff_it_fits(scene, cost):
    env = make(scene, latency=[cost])
    play(env, episode_of(scene))
    timing, log = env.timing, env.event_log()
    calls = -(-scene["frames"] // timing.k)
    # Beyond k*h a backlog grows by c - k*h a call; a short episode can end before it eats the budget.
    backlog = (calls - 1) * max(cost - timing.k * HOP, 0)
    never_late = (log.lateness == 0).all()
    assert never_late == (cost + backlog <= max(timing.budget, 0))
    if cost <= timing.budget and cost <= timing.k * HOP:
        assert never_late


@settings(max_examples=150, deadline=None)
@given(scenes([rule for rule in RULES if rule.get("backlog") != "skip"]), st.lists(st.integers(0, 3000), min_size=1))
def test_pathwise_larger_latency_gives_a_superset_of_late_frames(scene, more):
    late = []
    base = np.resize(scene["latency"], 60)
    for ticks in (base, base + np.resize(more, 60)):
        env = make(scene, latency=ticks)
        play(env, episode_of(scene))
        late.append(env.event_log().lateness)
    assert ((late[0] > 0) <= (late[1] > 0)).all()
    if scene["rule"]["late_policy"] != "stall":  # a stall in another place makes later slots less late
        assert (late[0] <= late[1]).all()


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_slack_pending_slip_and_skipped_are_what_the_log_says(scene):
    env = make(scene)
    seen, _ = play(env, episode_of(scene))
    log, timing = env.event_log(), env.timing
    for position in range(len(log.call)):
        shown = {key: value[0].item() for key, value in seen[position].items() if value.shape == (1,)}
        first = int(log.call[position]) * timing.k
        assert shown["frame"] == first and shown["t_f"] == timing.t_f and shown["k"] == timing.k
        slack = timing.deadline(first + shown["slip"]) - log.start[position]
        assert shown["slack"] == np.float32(slack / 16_000)
        # Pending: slots that are decided already and not yet due when the call starts.
        waiting = [slot for slot in range(first + shown["slip"]) if timing.deadline(slot) >= log.start[position]]
        assert shown["pending"] == len(waiting)
        previous = int(log.call[position - 1]) if position else -1
        assert shown["skipped"] == (int(log.call[position]) - previous - 1) * timing.k
        assert shown["latency"] == np.float32((log.latency[position - 1] if position else 0) / 16_000)
    if scene["rule"]["late_policy"] == "stall":
        assert int(seen[-1]["slip"][0]) == log.underruns == env._info()["slip"]


# ---------------------------------------------------------------------- backends


DRAWN = {
    "t_f": [-7, -2, 0],
    "k": [1, 4, 6],
    "latency": ["none", {"name": "lognormal", "median_seconds": 0.17, "sigma": 0.6}],
}
FIXED = {"t_f": -5, "k": 4, "latency": {"name": "lognormal", "median_seconds": 0.2, "sigma": 0.5}}


def settings_of(rule, conditions, **more):
    return dict(
        corpus=ToyCorpus(songs=3, seconds=1.4),
        codec=ToyCodec(),
        reward=ToyReward(),
        frames=22,
        **conditions,
        **rule,
        **more,
    )


def act(observation, chunk):
    """Return codes that are a function of what each row sees."""
    frame = observation["frame"].astype(int)
    heard = observation["heard"].reshape(len(frame), -1).sum(1)[:, None].astype(int)
    return (heard + 3 * frame + observation["played_status"].sum(1)[:, None] + np.arange(2 * chunk)) % 16


def transitions(kind, kwargs, seed, steps=40, rows=3):
    """Follow `rows` streams through backend `kind`; one list per row of (observation, reward, ended, cut, next)."""
    chunk = max(np.atleast_1d(kwargs["k"]).tolist())
    found = [[] for _ in range(rows)]
    if kind == "single":
        for row in range(rows):
            env = AccompanimentEnv(**kwargs)
            observation, _ = env.reset(seed=seed + row)
            for _ in range(steps):
                batch = {key: value[None] for key, value in observation.items()}
                after, reward, ended, cut, _ = env.step(act(batch, chunk)[0])
                found[row].append((observation, np.float32(reward), ended, cut, after))
                observation = env.reset()[0] if ended or cut else after
        return found
    if kind == "sb3":
        env = JamgymSB3VecEnv(AccompanimentVectorEnv(rows, **kwargs))
        env.seed(seed)
        observation = env.reset()
        for _ in range(steps):
            after, rewards, dones, infos = env.step(act(observation, chunk))
            for row in range(rows):
                shown = infos[row]["terminal_observation"] if dones[row] else {k: v[row] for k, v in after.items()}
                cut = bool(dones[row]) and infos[row]["TimeLimit.truncated"]
                ended = bool(dones[row]) and not cut
                before = {key: value[row] for key, value in observation.items()}
                found[row].append((before, rewards[row], ended, cut, shown))
            observation = after
        return found
    if kind == "sync":
        env = SyncVectorEnv([lambda: AccompanimentEnv(**kwargs)] * rows, autoreset_mode=AutoresetMode.SAME_STEP)
    else:
        env = AccompanimentVectorEnv(rows, **kwargs)
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        after, rewards, ended, cut, infos = env.step(act(observation, chunk))
        for row in range(rows):
            over = ended[row] or cut[row]
            shown = infos["final_obs"][row] if over else {key: value[row] for key, value in after.items()}
            before = {key: value[row] for key, value in observation.items()}
            found[row].append((before, np.float32(rewards[row]), bool(ended[row]), bool(cut[row]), shown))
        observation = after
    return found


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        assert len(a) == len(b)
        for (before_a, reward_a, *flags_a, after_a), (before_b, reward_b, *flags_b, after_b) in zip(a, b, strict=True):
            assert reward_a == reward_b and flags_a == flags_b
            for x, y in ((before_a, before_b), (after_a, after_b)):
                assert x.keys() == y.keys()
                for key in x:
                    assert x[key].dtype == y[key].dtype and x[key].tobytes() == y[key].tobytes(), key


@pytest.mark.parametrize("seed", [0, 11])
@pytest.mark.parametrize("conditions", [FIXED, DRAWN], ids=["fixed", "drawn"])
@pytest.mark.parametrize("rule", [RULES[0], RULES[7], RULES[9], RULES[12]], ids=lambda rule: "-".join(rule.values()))
def test_all_backends_give_the_same_transitions(rule, conditions, seed):
    kwargs = settings_of(rule, conditions)
    reference = transitions("single", kwargs, seed)
    assert any(step[2] or step[3] for row in reference for step in row), "no episode ended: the test shows too little"
    for kind in ("sync", "native", "sb3"):
        assert_same(reference, transitions(kind, kwargs, seed))
    assert reference[0][0][0]["heard"].tobytes() != b"" and len({float(s[1]) for row in reference for s in row}) > 3


@pytest.mark.parametrize("rule", [RULES[5], RULES[12]], ids=lambda rule: "-".join(rule.values()))
def test_autoreset_modes_give_the_same_transitions_under_every_rule(rule):
    kwargs = settings_of(rule, DRAWN)

    def run(mode):
        env = AccompanimentVectorEnv(3, autoreset_mode=mode, **kwargs)
        observation, _ = env.reset(seed=2)
        rows, over = [[] for _ in range(3)], np.zeros(3, dtype=bool)
        for _ in range(70):
            after, rewards, ended, cut, infos = env.step(act(observation, 6))
            for row in range(3):
                if mode == "NextStep" and over[row]:
                    continue  # this step only began the next episode
                shown = {key: value[row] for key, value in after.items()}
                if mode == "SameStep" and (ended[row] or cut[row]):
                    shown = infos["final_obs"][row]
                before = {key: value[row] for key, value in observation.items()}
                rows[row].append((before, rewards[row], bool(ended[row]), bool(cut[row]), shown))
            over = ended | cut
            observation = after
            if mode == "Disabled" and over.any():
                observation, _ = env.reset(options={"reset_mask": over})
        return [row[:40] for row in rows]

    reference = run("SameStep")
    assert all(any(step[2] or step[3] for step in row) for row in reference)
    for mode in ("NextStep", "Disabled"):
        assert_same(reference, run(mode))


@settings(max_examples=40, deadline=None)
@given(scenes(), st.integers(0, 12))
def test_pickling_mid_episode_goes_on_identically(scene, at):
    env = make(scene, reward=ToyReward())
    env.reset(seed=scene["seed"], options={"episode": episode_of(scene)})
    codes = np.random.default_rng(scene["seed"]).integers(1, 16, (60, scene["k"] * 2))
    done = False
    for step in range(60):
        if step == at:
            twin = pickle.loads(pickle.dumps(env))
        result = env.step(codes[step])
        if step >= at:
            other = twin.step(codes[step])
            assert result[1:] == other[1:]
            assert all(result[0][key].tobytes() == other[0][key].tobytes() for key in result[0])
        done = result[2] or result[3]
        if done:
            break
    assert done
    if step >= at:
        assert env.played_audio().tobytes() == twin.played_audio().tobytes()


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(1, 50))
def test_a_reset_forgets_everything(scene, frames):
    used, fresh = make(scene, reward=ToyReward()), make(scene, reward=ToyReward())
    play(used, episode_of({**scene, "frames": frames}), seed=7)
    for env in (used, fresh):
        env.simulation.seed(0, scene["seed"])
    one, two = (play(env, episode_of(scene), seed=3)[0] for env in (used, fresh))
    for before, after in zip(one, two, strict=True):
        assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert used._info() == fresh._info() and used.played_audio().tobytes() == fresh.played_audio().tobytes()
    assert all(np.array_equal(value, vars(fresh.event_log())[name]) for name, value in vars(used.event_log()).items())


def test_rewards_of_an_episode_sum_to_its_score_under_every_rule():
    for rule in RULES:
        for conditions in (FIXED, DRAWN):
            env = AccompanimentVectorEnv(4, autoreset_mode="Disabled", **settings_of(rule, conditions))
            observation, _ = env.reset(seed=3)
            over = np.zeros(4, dtype=bool)
            while not over.all():
                if over.any():
                    env.reset(options={"reset_mask": over})
                observation, _, ended, cut, infos = env.step(act(observation, env.simulation.chunk))
                over = ended | cut
                for row in np.flatnonzero(over).tolist():
                    record = env.final_record(row)
                    assert record.rewards.sum() == pytest.approx(infos["episode_score"][row])
                    assert len(record.status) == record.episode.frames and len(record.rewards) == len(record.log.call)
                if over.any():
                    break


def test_drawn_conditions_leave_songs_alone_and_are_all_met():
    def episodes(conditions):
        env = AccompanimentEnv(**{**settings_of(RULES[0], conditions), "reward": None})
        met, songs = set(), []
        for number in range(60):
            observation, _ = env.reset(seed=5 if number == 0 else None)
            met.add(tuple(int(observation[key][0]) for key in ("t_f", "k", "latency_model")))
            songs.append((env.episode.song_id, env.episode.target_name, env.episode.start_frame))
            assert env.timing.t_f == observation["t_f"][0] and env.timing.k == observation["k"][0]
        return met, songs

    met, songs = episodes(DRAWN)
    assert met == {(t_f, k, model) for t_f in DRAWN["t_f"] for k in DRAWN["k"] for model in (0, 1)}
    assert episodes(FIXED)[1] == songs


def test_every_drawn_episode_runs_on_its_own_clock():
    env = AccompanimentEnv(**{**settings_of(RULES[0], DRAWN), "reward": None})
    met = set()
    for number in range(30):
        env.reset(seed=9 if number == 0 else None)
        done = False
        while not done:
            _, _, ended, cut, _ = env.step(np.ones(env.action_space.shape, dtype=np.int64))
            done = ended or cut
        log = env.event_log()
        starts, finishes = env.timing.schedule(log.latency)
        assert np.array_equal(log.start, starts) and np.array_equal(log.finish, finishes)
        met.add((env.timing.t_f, env.timing.k))
    assert len(met) > 5


def test_sets_survive_the_spec_as_json():
    env = gymnasium.make(
        "jamgym/Accompaniment-v0",
        corpus={"name": "jamgym.testing:ToyCorpus"},
        codec={"name": "jamgym.testing:ToyCodec"},
        reward=None,
        frames=20,
        t_f=[-5, -2],
        k=[1, 5],
        latency=["none", {"name": "constant", "seconds": 0.05}],
        backlog="skip",
    )
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.settings == env.unwrapped.settings
    one, two = env.reset(seed=4)[0], again.reset(seed=4)[0]
    assert all(one[key].tobytes() == two[key].tobytes() for key in one)
