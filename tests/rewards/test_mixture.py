import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from jamgym import AccompanimentEnv, AccompanimentVectorEnv, EpisodeSource
from jamgym.corpus import Truth
from jamgym.errors import ConfigError, RewardError, UnknownNameError
from jamgym.reward import Windows
from jamgym.scoring import score_windows
from jamgym.testing import RewardConformance, ToyCodec, ToyCorpus, ToyReward
from jamgym.wrappers.sb3 import JamgymSB3VecEnv
from jamgym_rewards.mixture import WARM_UP, MixtureReward, RunningMoments, last_part

RATE = 16000
SOURCE = EpisodeSource(ToyCorpus(songs=3, seconds=5.0), ToyCodec(), frames=53)


class Says(ToyReward):
    """Scores each window with the hundredth sample that was played, times `factor`."""

    name = "says"

    def __init__(self, factor=1.0, **settings):
        super().__init__(**{"window_seconds": 1.0, "hop_seconds": 0.4, "min_window_seconds": 0.4, **settings})
        self.factor = factor
        self.seen = []

    def score(self, windows):
        self.seen.append(windows)
        return windows.played[:, 99] * np.float32(self.factor)


def windows(values, seconds=1.0):
    played = np.repeat(np.asarray(values, dtype=np.float32)[:, None], int(seconds * RATE), axis=1)
    return Windows(np.zeros_like(played), played, RATE)


class TestMixtureConformance(RewardConformance):
    def make(self):
        return MixtureReward(["harmony", {"name": "silence", "allowance": 0.1}, "note_in_chord"], [1.0, 0.5, 2.0])


class TestMixtureOfEverythingConformance(RewardConformance):
    def make(self):
        names = ["coherence", "harmony", "silence", "repetition", "copying", "level", "beat_audio", "beat"]
        return MixtureReward(names, total_clip=[-2.0, 2.0])


def test_weights_and_clips_by_hand():
    mixture = MixtureReward([Says(1.0), Says(-2.0)], weights=[3.0, 0.5])
    assert mixture.score(windows([0.5, -1.0])).tolist() == [1.0, -2.0]
    assert mixture.last_scores.tolist() == [[0.5, -1.0], [-1.0, 2.0]]
    clipped = MixtureReward([Says(1.0), Says(-2.0)], weights=[3.0, 0.5], clips=[[-0.25, 0.25], None])
    assert clipped.score(windows([0.5, -1.0])).tolist() == [0.25, 0.25]
    total = MixtureReward([Says(1.0), Says(-2.0)], weights=[3.0, 0.5], total_clip=[-1.5, 0.75])
    assert total.score(windows([0.5, -1.0])).tolist() == [0.75, -1.5]
    assert total.last_scores.tolist() == [[0.5, -1.0], [-1.0, 2.0]]


def test_attributes_follow_from_the_components():
    mixture = MixtureReward(["harmony", "beat", {"name": "silence", "window_seconds": 2.0}, "silence"], [1, 2, 3, 0])
    assert mixture.components == ("harmony", "beat", "silence", "silence_2")
    assert (mixture.window_seconds, mixture.hop_seconds, mixture.min_window_seconds) == (12.0, 1.0, 4.0)
    assert mixture.needs == {"truth"} and mixture.causal and mixture.range == (-4.0, 3.0)
    assert MixtureReward(["harmony", "silence"], [-1, 1], hop_seconds=3.0).hop_seconds == 3.0
    assert MixtureReward(["harmony", "silence"], [-1, 1]).range == (-2.0, 1.0)
    assert MixtureReward(["harmony", "silence"], clips=[[0, 0.5], None], total_clip=[-0.5, 9]).range == (-0.5, 0.5)
    versions = {MixtureReward(["harmony", "silence"], weights).version for weights in (None, [1, 1], [1, 2])}
    assert len(versions) == 2
    assert not MixtureReward(["harmony"], normalise=True).causal


def test_a_component_gets_the_end_of_the_window_that_is_as_long_as_its_own():
    truth = Truth(
        np.arange(0.0, 4.0), np.zeros(1), np.array([0.0, 2.0, 4.0]), np.array([0, 7]), np.ones((2, 12), bool), 60.0
    )
    played = np.arange(4 * RATE, dtype=np.float32)[None]
    whole = Windows(played + 1, played, RATE, played + 2, (truth,))
    model = Says(window_seconds=1.5, needs=("target", "truth"))
    part = last_part(whole, model)
    first = int(2.5 * RATE)
    assert np.array_equal(part.played, played[:, first:]) and np.array_equal(part.heard, played[:, first:] + 1)
    assert np.array_equal(part.target, played[:, first:] + 2)
    assert part.truth[0].beats.tolist() == [0.5] and part.truth[0].chord_roots.tolist() == [7]
    model.needs = frozenset()
    assert last_part(whole, model).target is None and last_part(whole, model).truth is None
    mixture = MixtureReward([Says(window_seconds=4.0), Says(window_seconds=1.0)])
    assert mixture.score(Windows(played, played, RATE)).tolist() == [3 * RATE + 198]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rewards": []}, "rewards is"),
        ({"rewards": "harmony"}, "rewards is 'harmony'"),
        ({"rewards": ["harmony", "silence"], "weights": [1.0]}, "weights has 1 entries for 2 rewards"),
        ({"rewards": ["harmony"], "weights": [0.0]}, "one must not be 0"),
        ({"rewards": ["harmony"], "weights": [float("nan")]}, "finite"),
        ({"rewards": ["harmony"], "clips": [[1.0, 0.0]]}, "clips has"),
        ({"rewards": ["harmony"], "total_clip": 3.0}, "total_clip has 3.0"),
        ({"rewards": ["harmony"], "hop_seconds": 0.0}, "hop_seconds is 0.0; it must be above 0"),
        ({"rewards": ["harmony"], "hop_seconds": -1.0}, "hop_seconds is -1.0; it must be above 0"),
        ({"rewards": [{"name": "mixture", "rewards": ["harmony"]}]}, "mixture inside"),
        ({"rewards": [{"name": "silence", "allowence": 0.1}]}, "allowance"),
        ({"rewards": [object()]}, "not a reward model"),
    ],
)
def test_impossible_mixtures_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        MixtureReward(**settings)
    with pytest.raises(UnknownNameError, match="Did you mean 'harmony'"):
        MixtureReward(["harmonie"])


# ---------------------------------------------------------------------- normalisation


def test_running_moments_are_those_of_all_rows():
    rows = np.random.default_rng(0).normal(3.0, [2.0, 0.1], (50, 2))
    moments = RunningMoments(2)
    for part in (rows[:1], rows[1:20], rows[20:20], rows[20:]):
        moments.update(part)
    assert moments.count == 50
    assert moments.mean == pytest.approx(rows.mean(axis=0)) and moments.deviation == pytest.approx(rows.std(axis=0))


def test_normalisation_acts_after_the_warm_up_and_uses_earlier_windows_only():
    rng = np.random.default_rng(0)
    early = rng.normal(5.0, 3.0, WARM_UP).astype(np.float32)
    mixture = MixtureReward([Says(1.0), Says(100.0)], normalise=True)
    assert mixture.score(windows(early)) == pytest.approx(101 * early, rel=1e-5), "scores pass unchanged at first"
    scores = mixture.score(windows([5.0, 8.0]))
    assert scores == pytest.approx(2 * (np.array([5.0, 8.0]) - early.mean()) / early.std(), rel=1e-4)
    assert mixture.moments.count == WARM_UP + 2
    clipped = MixtureReward([Says(1.0)], clips=[[-1.0, 0.5]], normalise=True)
    clipped.score(windows(early))
    assert clipped.score(windows([-100.0, 100.0])).tolist() == [-1.0, 0.5], "clips hold after standardising"


def test_normalisation_is_off_by_default_and_when_measuring():
    early = np.random.default_rng(0).normal(5.0, 3.0, WARM_UP)
    for mixture in (MixtureReward([Says()]), MixtureReward([Says()], normalise=True)):
        mixture.score(windows(early))
        mixture.normalising = False
        before = mixture.moments.count
        assert mixture.score(windows([8.0])).tolist() == [8.0] and mixture.moments.count == before
    assert MixtureReward([Says()]).moments.count == 0


def test_state_survives_pickle_and_a_checkpoint():
    rng = np.random.default_rng(0)
    mixture = MixtureReward(["harmony", "level"], normalise=True)
    audio = rng.normal(0, 0.1, (WARM_UP + 1, RATE)).astype(np.float32)
    more = Windows(audio[:3], audio[::-1][:3].copy(), RATE)
    mixture.score(Windows(audio, audio[::-1].copy(), RATE))
    twin = pickle.loads(pickle.dumps(mixture))
    other = MixtureReward(["harmony", "level"], normalise=True)
    other.load_state(json.loads(json.dumps(mixture.state())))
    expected = mixture.score(more)
    assert np.array_equal(twin.score(more), expected) and np.array_equal(other.score(more), expected)
    with pytest.raises(ConfigError, match="state is of 2 rewards"):
        MixtureReward(["harmony"], normalise=True).load_state(mixture.state())


def test_evaluation_switches_normalisation_off(tmp_path, monkeypatch):
    from jamgym.benchmark import evaluation
    from jamgym.run import Run

    def compare(policies, make_env, episodes, metrics, *rest, **settings):
        assert isinstance(metrics[0], MixtureReward) and metrics[0].normalising is False
        raise InterruptedError

    monkeypatch.setattr(evaluation, "compare", compare)
    config = evaluation.EvaluationConfig(
        corpus={"name": "jamgym.toys:ToyCorpus", "songs": 3, "seconds": 3.0},
        codec="jamgym.toys:ToyCodec",
        policies=("silence",),
        metrics=({"name": "mixture", "rewards": ["harmony"], "normalise": True},),
        frames=22,
        episodes=1,
    )
    with Run.create(tmp_path / "run", command="evaluate", config={}, seed=0, quiet=True) as run:
        with pytest.raises(InterruptedError):
            evaluation.evaluate(config, run)


# ---------------------------------------------------------------------- in the environment


def mixture(**settings):
    return MixtureReward([ToyReward(), Says(), Says(-1.0, window_seconds=0.4)], [1.0, -2.0, 0.5], **settings)


def play(env, seed=0):
    env.reset(seed=seed)
    env.action_space.seed(seed)
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rewards.append(reward)
        over = terminated or truncated
    return rewards, info


def test_the_end_of_an_episode_tells_each_component_and_rewards_sum_to_the_score():
    env = AccompanimentEnv(source=SOURCE, reward=mixture(), t_f=-5, k=5)
    rewards, info = play(env)
    parts = {key: value for key, value in info.items() if key.startswith("reward/")}
    assert list(parts) == ["reward/toy", "reward/says", "reward/says_2"]
    assert all(type(value) is float and value for value in parts.values())
    assert json.loads(json.dumps(info)) == info
    weighed = parts["reward/toy"] - 2 * parts["reward/says"] + 0.5 * parts["reward/says_2"]
    assert sum(rewards) == pytest.approx(info["episode_score"]) == pytest.approx(weighed, abs=1e-6)
    assert env.final_record().components == {key[7:]: value for key, value in parts.items()}
    again = play(env)[1]
    assert again == info, "the means begin anew"
    assert "reward/toy" not in env.reset()[1]


def test_a_component_scores_as_it_would_alone():
    alone = []
    for reward in (ToyReward(), Says()):
        alone.append(play(AccompanimentEnv(source=SOURCE, reward=reward, t_f=-5, k=5))[1]["episode_score"])
    both = MixtureReward([ToyReward(), Says(window_seconds=ToyReward().window_seconds)])
    assert both.window_seconds == ToyReward().window_seconds
    both.hop_seconds, both.min_window_seconds = ToyReward().hop_seconds, ToyReward().min_window_seconds
    info = play(AccompanimentEnv(source=SOURCE, reward=both, t_f=-5, k=5))[1]
    assert info["reward/toy"] == pytest.approx(alone[0], abs=1e-7)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_the_vector_env_tells_it_with_masks(mode):
    lengths = [SOURCE.crop("train-0000", "bass", start) for start in (72, 90, 105)]  # 53, 35 and 20 frames
    env = AccompanimentVectorEnv(3, source=SOURCE, reward=mixture(), t_f=-5, k=5, autoreset_mode=mode)
    single = AccompanimentEnv(source=SOURCE, reward=mixture(), t_f=-5, k=5)
    env.reset(seed=0, options={"episodes": lengths})
    codes = np.random.default_rng(0).integers(0, 16, (11, 3, 10))
    ended = set()
    for step, actions in enumerate(codes):
        _, _, terminated, truncated, infos = env.step(actions)
        over = terminated | truncated
        found = infos.get("final_info", infos if over.any() else {})
        for row in np.flatnonzero(over).tolist():
            if row in ended:
                continue
            ended.add(row)
            single.reset(seed=row, options={"episode": lengths[row]})
            for earlier in codes[: step + 1]:
                info = single.step(earlier[row])[4]
            for name in ("toy", "says", "says_2"):
                assert np.array_equal(found[f"_reward/{name}"], over)
                assert found[f"reward/{name}"][row] == info[f"reward/{name}"]
        if over.any():
            assert all((found[f"reward/{name}"][~over] == 0).all() for name in ("toy", "says", "says_2"))
        if mode == "Disabled" and over.any() and not over.all():
            mask = over.copy()
            env.reset(seed=0, options={"reset_mask": mask})
    assert ended == {0, 1, 2}


def test_stable_baselines3_gets_floats():
    env = JamgymSB3VecEnv(AccompanimentVectorEnv(2, source=SOURCE, reward=mixture(), t_f=-5, k=5))
    env.reset()
    for _ in range(11):
        _, _, dones, infos = env.step(np.full((2, 10), 7))
    assert dones.all()
    for info in infos:
        assert all(type(info[f"reward/{name}"]) is float for name in ("toy", "says", "says_2"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checker_is_content():
    check_env(gymnasium.make("jamgym/Accompaniment-v0", source=SOURCE, reward=mixture()).unwrapped)


def test_audio_is_decoded_once_for_any_number_of_rewards(monkeypatch):
    counts = []
    for reward in (ToyReward(), MixtureReward([ToyReward() for _ in range(5)])):
        env = AccompanimentVectorEnv(2, source=SOURCE, reward=reward, t_f=-5, k=5)
        pushed = []
        decoder = env.simulation.scorer._decoder
        original = decoder.push
        monkeypatch.setattr(
            decoder, "push", lambda codes, *a, o=original, p=pushed: p.append(codes.size) or o(codes, *a)
        )
        env.reset(seed=0)
        for _ in range(11):
            env.step(np.full((2, 10), 7))
        counts.append(pushed)
    assert counts[0] == counts[1] and sum(counts[0]) == 2 * 53 * 2


def test_parts_belong_to_their_windows_whatever_the_lengths():
    reward = mixture()
    episode = SOURCE.crop("train-0000", "bass", 0)
    starts, ends = np.array([0, 5, 20, 0, 30]), np.array([25, 15, 45, 10, 40])  # 25 and 10 frames, mixed
    parts = np.full((5, 3), np.nan)
    whole = score_windows(reward, SOURCE.codec, [episode] * 5, [episode.target] * 5, starts, ends, parts)
    assert len(np.unique(parts[:, 0])) == 5
    for j in range(5):
        alone = np.zeros((1, 3))
        score = score_windows(
            reward, SOURCE.codec, [episode], [episode.target], starts[j : j + 1], ends[j : j + 1], alone
        )
        assert parts[j] == pytest.approx(alone[0], abs=1e-6) and whole[j] == pytest.approx(score[0], abs=1e-6)


def test_other_rewards_tell_no_components():
    odd = ToyReward()
    odd.components = 3  # somebody's own attribute
    info = play(AccompanimentEnv(source=SOURCE, reward=odd, t_f=-5, k=5))[1]
    assert not any(key.startswith("reward/") for key in info)


def test_a_broken_component_is_named_with_song_and_window():
    broken = MixtureReward([ToyReward(), Says(np.nan)])
    env = AccompanimentEnv(source=SOURCE, reward=broken, k=25)
    env.reset(options={"episode": SOURCE.crop("train-0001", "piano", 0)})
    with pytest.raises(RewardError, match=r"'mixture/says'.*nan.*song 'train-0001' target 'piano' window of frames 0-"):
        env.step(np.full(50, 7))


def test_a_mixture_is_made_from_yaml_like_specs():
    spec = {"name": "mixture", "rewards": ["harmony", {"name": "level", "ramp_db": 6.0}], "weights": [1, 0.5]}
    env = AccompanimentEnv(source=SOURCE, reward=spec, k=25)
    assert env.simulation.scorer.reward.models[1].ramp_db == 6.0
    info = play(env)[1]
    assert set(info) >= {"reward/harmony", "reward/level", "episode_score"}
