import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from jamgym import clocks
from jamgym.checkpoint import load_state, load_tensors
from jamgym.config import config_from_mapping
from jamgym.errors import CheckpointError, ConfigError, JamgymError, RewardError
from jamgym.run import Run
from jamgym.testing import ToyCodec, ToyReward
from jamgym_agents.checkpoint import load_decoder, save_decoder
from jamgym_agents.finetuning import RolloutCallback, finetune
from jamgym_agents.ppo.buffer import EpisodeBuffer
from jamgym_agents.ppo.sequence_ppo import SequencePPO
from jamgym_agents.ppo.settings import FinetuneConfig, actor_rate

from .helpers import finetune_config, tiny_decoder


class FailsLater(ToyReward):
    """Gives NaN, too few scores or an error after so many calls."""

    calls = 0

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def score(self, windows):
        FailsLater.calls += 1
        scores = super().score(windows)
        if FailsLater.calls <= 8:
            return scores
        if self.how == "raise":
            raise RuntimeError("out of order")
        return scores * np.nan if self.how == "nan" else scores[:-1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return finetune_config(tmp_path_factory.mktemp("start"), audio_every=2, kl_target=0.01)


def train(config, folder, resume=False, before=None):
    with Run.create(folder, command="finetune", config={}, seed=0, resume=resume, quiet=True) as run:
        if before is not None:
            before(run)
        return finetune(config, run)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(config, folder)


def assert_same_run(one, two):
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    assert json.loads((one / "metrics.json").read_text()) == json.loads((two / "metrics.json").read_text())
    states = [load_state(folder / "checkpoint.safetensors") for folder in (one, two)]
    for part in ("decoder", "critic", "reference"):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), (part, key)
    assert states[0]["kl_scale"] == states[1]["kl_scale"] and states[0]["num_timesteps"] == states[1]["num_timesteps"]
    weights = [load_tensors(folder / "decoder.safetensors")[0] for folder in (one, two)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_figures_and_files(config, whole):
    folder, figures = whole
    assert figures["rollouts"] == 5 and 0 < figures["score_first"] < 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert np.mean([line["rollout/score"] for line in lines]) == pytest.approx(figures["score_first"])
    assert all(0 < line["rollout/late_share"] < 1 for line in lines)
    assert lines[0]["train/actor_grad_norm"] == 0 and lines[-1]["train/actor_grad_norm"] > 0
    start, end = load_decoder(config.checkpoint, ToyCodec()), load_decoder(folder / "decoder.safetensors", ToyCodec())
    assert not torch.equal(start.depth.head[0].weight, end.depth.head[0].weight)


def stop_after(steps):
    """Press Ctrl-C, so to say, after `steps` calls of the environment."""

    def arm(run):
        class Stopping(type(run)):
            asked = 0

            @property
            def stop_requested(self):
                self.asked += 1
                return self.asked > steps

            @stop_requested.setter
            def stop_requested(self, value):
                pass

        run.__class__ = Stopping

    return arm


def test_a_stopped_run_goes_on_bit_for_bit(config, whole, tmp_path):
    figures = train(config, tmp_path / "run", before=stop_after(18))  # in the middle of the fourth rollout
    assert figures["rollouts"] == 3 and (tmp_path / "run/decoder.safetensors").exists()
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


def test_a_mixture_logs_each_component_and_its_statistics_survive_a_stop(config, tmp_path, monkeypatch):
    from jamgym_rewards import mixture

    monkeypatch.setattr(mixture, "WARM_UP", 8)
    toy = "jamgym.toys:ToyReward"
    parts = [toy, {"name": toy, "window_seconds": 0.4}]
    mixed = replace(config, reward={"name": "mixture", "rewards": parts, "weights": [1.0, -0.5], "normalise": True})
    train(mixed, tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert all(0 < line["rollout/reward/toy"] < 1 and 0 < line["rollout/reward/toy_2"] < 1 for line in lines)
    # The first windows pass unchanged; from then on a score is a standardised one.
    assert all(abs(line["rollout/score"] - line["rollout/reward/toy"]) > 1e-3 for line in lines)
    state = load_state(tmp_path / "whole/checkpoint.safetensors")["reward"]
    assert state["count"] == 5 * 4 * 3  # rollouts of 4 episodes of 3 windows
    train(mixed, tmp_path / "run", before=stop_after(18))
    assert load_state(tmp_path / "run/checkpoint.safetensors")["reward"]["count"] == 3 * 4 * 3
    train(mixed, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    plain = train(replace(config, reward={"name": "mixture", "rewards": [toy]}, rollouts=1), tmp_path / "plain")
    alone = train(replace(config, reward=toy, rollouts=1), tmp_path / "alone")
    assert plain["score_first"] == pytest.approx(alone["score_first"], abs=1e-6)


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))  # other numbers of threads round otherwise
from jamgym.config import config_from_mapping
from jamgym.run import Run
from jamgym_agents.finetuning import finetune
from jamgym_agents.ppo.settings import FinetuneConfig
from jamgym_agents.ppo.buffer import EpisodeBuffer
from jamgym_agents.ppo.sequence_ppo import SequencePPO
from jamgym_agents.ppo.sequence_ppo import SequencePPO
import json
train = SequencePPO.train
def killed(self):
    train(self)
    if self.rollouts == 3:
        os.kill(os.getpid(), signal.SIGKILL)
SequencePPO.train = killed
config = config_from_mapping(FinetuneConfig, json.loads(sys.argv[2]))
with Run.create(Path(sys.argv[1]), command="finetune", config={}, seed=0, quiet=True) as run:
    finetune(config, run)
"""


def test_a_killed_run_goes_on_bit_for_bit(config, whole, tmp_path):
    from dataclasses import asdict

    settings = json.dumps(asdict(config))
    arguments = [str(tmp_path / "run"), settings, str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert load_state(tmp_path / "run/checkpoint.safetensors")["rollouts"] == 2
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.parametrize(("how", "says"), [("nan", "nan"), ("shape", "shape"), ("raise", "RuntimeError")])
def test_a_reward_that_fails_leaves_the_checkpoint(config, tmp_path, how, says):
    FailsLater.calls = 0
    broken = replace(config, reward={"name": f"{__name__}:FailsLater", "how": how}, save_every=1)
    with pytest.raises(RewardError, match=f"'toy' .*{says}.* song 'train-.* window of frames"):
        train(broken, tmp_path / "run")
    state = load_state(tmp_path / "run/checkpoint.safetensors")
    assert state["rollouts"] >= 1 and all(torch.isfinite(value).all() for value in state["decoder"].values())
    train(config, tmp_path / "run", resume=True)


def test_weights_that_explode_leave_the_checkpoint(config, tmp_path):
    with pytest.raises(JamgymError, match="not finite"):
        train(replace(config, learning_rate=1e30, save_every=1, warm_up=1), tmp_path / "run")
    state = load_state(tmp_path / "run/checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in state["decoder"].values())


def test_a_measured_run_charges_the_policy_and_not_the_update(config, tmp_path, monkeypatch):
    class LateTime:
        """Real time, in which an update takes a thousand seconds more."""

        ahead = 0.0
        sleep = staticmethod(time.sleep)

        def perf_counter(self):
            return time.perf_counter() + self.ahead

    late, longest = LateTime(), []
    monkeypatch.setattr(clocks, "time", late)
    real, finish = SequencePPO.train, EpisodeBuffer.finish

    def train_slowly(self):
        real(self)
        late.ahead += 1000.0

    def look(self, records, last_values):
        longest.append(max(int(record.log.latency.max()) for record in records) / 16_000)
        return finish(self, records, last_values)

    monkeypatch.setattr(SequencePPO, "train", train_slowly)
    monkeypatch.setattr(EpisodeBuffer, "finish", look)
    train(replace(config, clock="measured", envs=1, episodes_per_batch=1, rollouts=3), tmp_path / "run")
    assert late.ahead == 3000.0 and len(longest) == 3 and 0 < max(longest) < 1000.0
    with pytest.raises(ConfigError, match="num_envs=1"):
        train(replace(config, clock="measured"), tmp_path / "other")


def test_time_limit_stops_with_a_checkpoint(config, tmp_path):
    started = time.monotonic()
    figures = train(replace(config, rollouts=10_000, max_minutes=0.01), tmp_path / "run")
    assert time.monotonic() - started < 60 and figures["rollouts"] < 10_000
    assert load_state(tmp_path / "run/checkpoint.safetensors")["rollouts"] == figures["rollouts"]


def test_unknown_keys_and_impossible_values():
    with pytest.raises(ConfigError, match="learning_rate"):
        config_from_mapping(FinetuneConfig, {"learning_rat": 1.0})
    with pytest.raises(ConfigError, match="temperature"):
        config_from_mapping(FinetuneConfig, {"sampling": {"temprature": 1.0}})
    with pytest.raises(ConfigError, match="nothing to learn"):
        config_from_mapping(FinetuneConfig, {"sampling": {"temperature": 0.0}})
    with pytest.raises(ConfigError, match="nothing to learn"):
        config_from_mapping(FinetuneConfig, {"sampling": {"top_k": 1}})
    with pytest.raises(ConfigError, match="evaluation only"):
        FinetuneConfig(reward={"name": "judge"})
    for judge in ("judge", {"name": "judge"}, "jamgym_rewards.judge:JudgeReward"):
        with pytest.raises(ConfigError, match="evaluation only"):
            FinetuneConfig(reward=judge)
        with pytest.raises(ConfigError, match="evaluation only"):
            FinetuneConfig(reward={"name": "mixture", "rewards": ["coherence", judge]})
    FinetuneConfig(reward={"name": "mixture", "rewards": ["coherence", {"name": "silence"}]})
    with pytest.raises(ConfigError, match="rollouts"):
        FinetuneConfig(rollouts=0)


@pytest.mark.parametrize(
    "reward", [{"name": 5}, {"name": "mixture", "rewards": 5}, {"name": "mixture", "rewards": [5]}]
)
def test_a_malformed_reward_is_left_to_whoever_makes_it(reward):
    assert FinetuneConfig(reward=reward).reward == reward


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kl_target", 0.0),
        ("learning_rate", -1e-4),
        ("critic_learning_rate", float("nan")),
        ("clip_range", 0.0),
        ("gamma", 2.0),
        ("kl_teacher", -0.5),
        ("teacher_guidance", -1.0),
        ("max_minutes", 0.0),
        ("max_songs", 0),
        ("warm_up", -1),
        ("seed", 2**32),
    ],
)
def test_numbers_without_meaning_are_refused(setting, value):
    with pytest.raises(ConfigError, match=setting):
        FinetuneConfig(**{setting: value})


def test_the_teachers_settings_reach_the_model(config, tmp_path, monkeypatch):
    seen, real = [], SequencePPO.train

    def watched(self):
        seen.append((self.kl_teacher, self.teacher_t_f, self.teacher_guidance, self.teacher_kl))
        real(self)

    monkeypatch.setattr(SequencePPO, "train", watched)
    teacher = {"kl_teacher": 0.1, "teacher_t_f": 7, "teacher_guidance": 2.0, "teacher_kl": "forward"}
    train(replace(config, rollouts=1, **teacher), tmp_path / "run")
    assert seen == [tuple(teacher.values())]


def test_the_rate_rises_from_the_first_rollout_in_which_the_actor_learns():
    config = FinetuneConfig(learning_rate=1.0, rollouts=10, warm_up=4, critic_warm_up=2)
    # stable-baselines3 asks after a rollout, so the third one, the actor's first, is asked for at 3 of 10.
    rates = [actor_rate(1 - done / 10, config) for done in range(1, 11)]
    fall = [0.1 + 0.9 * (1 - done / 10) for done in range(1, 11)]
    assert np.allclose(np.divide(rates, fall), [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert actor_rate(0.9, replace(config, warm_up=0, critic_warm_up=0)) == pytest.approx(0.91)


def test_the_logged_rate_is_that_of_the_rollout(config, tmp_path):
    config = replace(config, rollouts=4, warm_up=2, critic_warm_up=1, learning_rate=1e-3)
    train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]
    assert np.allclose(logged, [0.0, 0.5e-3 * 0.55, 1e-3 * 0.325, 1e-3 * 0.1])


def test_a_run_goes_on_without_its_start_and_with_a_new_rate_of_the_critic(tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    config = finetune_config(tmp_path / "start", rollouts=1)
    train(config, tmp_path / "run")
    (tmp_path / "start/start.safetensors").unlink()
    rates = []
    original = SequencePPO.train
    monkeypatch.setattr(
        SequencePPO,
        "train",
        lambda self: rates.append(self.policy.optimizer.param_groups[1]["lr"]) or original(self),
    )
    figures = train(replace(config, rollouts=2, critic_learning_rate=0.25), tmp_path / "run", resume=True)
    assert figures["rollouts"] == 2 and rates == [0.25]


def test_a_run_with_a_reference_of_another_size_goes_on_without_either_file(config, tmp_path):
    (tmp_path / "start").mkdir()
    other = tmp_path / "other.safetensors"
    save_decoder(other, tiny_decoder(seed=3, dim=16), ToyCodec().version, {})
    settings = {"reference": str(other), "kl_reference": 0.1}
    config = finetune_config(tmp_path / "start", **settings)
    train(config, tmp_path / "whole")
    assert all(
        json.loads(line)["train/kl_reference"] > 1e-2
        for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    )
    train(config, tmp_path / "run", before=stop_after(18))
    other.unlink()
    (tmp_path / "start/start.safetensors").unlink()
    for other_one in (None, "mle"):
        with pytest.raises(ConfigError, match="reference is .* but this run is held to .*other.safetensors"):
            train(replace(config, reference=other_one), tmp_path / "run", resume=True)
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_set_of_future_visibilities_is_scored_one_by_one(config, tmp_path):
    train(replace(config, t_f=(-10, -5), envs=8), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    both = [line for line in lines if "rollout/score_tf-10" in line]
    assert both and all(
        min(line["rollout/score_tf-10"], line["rollout/score_tf-5"])
        <= line["rollout/score"]
        <= max(line["rollout/score_tf-10"], line["rollout/score_tf-5"])
        for line in both
    )
    assert not any("score_tf" in name for line in map(json.loads, one_view_lines(config, tmp_path)) for name in line)


def one_view_lines(config, tmp_path):
    train(replace(config, rollouts=1), tmp_path / "one")
    return (tmp_path / "one/metrics.jsonl").read_text().splitlines()


def test_sets_are_read_from_yaml_and_a_set_without_meaning_is_refused(config, tmp_path):
    assert config_from_mapping(FinetuneConfig, {"t_f": [-50, -25]}).t_f == (-50, -25)
    assert config_from_mapping(FinetuneConfig, {"t_f": -12}).t_f == -12
    with pytest.raises(ConfigError, match="t_f is empty"):
        train(replace(config, t_f=()), tmp_path / "run")


def test_the_episodes_that_a_rollout_ends_with_are_those_of_the_next(config, tmp_path, monkeypatch):
    ended, begun = [], []
    original = RolloutCallback._on_rollout_start

    def look(self):
        if self._model.rollouts:
            ended.append([(e.song_id, e.target_name, e.start_frame) for e in self._model.env.get_attr("episodes")[0]])
        original(self)
        begun.append([(e.song_id, e.target_name, e.start_frame) for e in self._model.env.get_attr("episodes")[0]])

    monkeypatch.setattr(RolloutCallback, "_on_rollout_start", look)
    train(replace(config, rollouts=4), tmp_path / "run")
    assert ended == begun[1:] and len(set(map(tuple, begun))) == 4


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_kill_before_the_first_checkpoint_leaves_no_line_twice(config, whole, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def killing(self):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RolloutCallback, "_on_rollout_start", start_until(3, RolloutCallback._on_rollout_start, killing))
        train(replace(config, save_every=100), tmp_path / "run")
    assert steps_of(tmp_path / "run") == [1, 2, 3] and not (tmp_path / "run/checkpoint.safetensors").exists()
    train(replace(config, save_every=100), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


def start_until(rollouts, original, then):
    """Return `original` for the first rollouts, and `then` after them."""
    return lambda self: original(self) if self._model.rollouts < rollouts else then(self)


def test_a_run_that_goes_on_with_more_environments_keeps_its_schedule(config, tmp_path):
    first = replace(config, envs=2, warm_up=2)
    train(first, tmp_path / "run", before=stop_after(12))
    train(replace(first, envs=8), tmp_path / "run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    rates = [actor_rate(1 - line["step"] / 5, first) for line in lines]
    assert [line["train/learning_rate"] for line in lines] == pytest.approx(rates)


def test_weights_of_the_divergence_go_back_to_their_own_without_a_target(config, tmp_path):
    train(config, tmp_path / "run", before=stop_after(18))
    assert load_state(tmp_path / "run/checkpoint.safetensors")["kl_scale"] != 1
    train(replace(config, kl_target=None), tmp_path / "run", resume=True)
    assert load_state(tmp_path / "run/checkpoint.safetensors")["kl_scale"] == 1


def test_another_codec_is_refused(config, tmp_path):
    with pytest.raises(CheckpointError, match="codebooks"):
        train(replace(config, codec={"name": "jamgym.toys:ToyCodec", "cardinality": 8}), tmp_path / "run")
