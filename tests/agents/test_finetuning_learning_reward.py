"""Fine-tuning with a reward that learns along: figures, checkpoints, resume, mixtures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jamgym.checkpoint import load_state
from jamgym.errors import RewardError
from jamgym.learning_conformance import same

from .helpers import finetune_config
from .test_finetuning import assert_same_run, stop_after, train

REWARD = {
    "name": "adversarial",
    "window_seconds": 0.8,
    "hop_seconds": 0.4,
    "min_window_seconds": 0.4,
    "channels": 8,
    "schedule": {"every": 2},
    "learning": {"replay": 6, "label_smoothing": 0.1},
}
MIXTURE = {"name": "mixture", "rewards": [REWARD, "jamgym.toys:ToyReward"], "weights": [1.0, 0.5], "normalise": True}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return finetune_config(tmp_path_factory.mktemp("start"), reward=REWARD)


def figures_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def reward_in(folder):
    return load_state(folder / "checkpoint.safetensors")["reward"]


@pytest.mark.parametrize(("reward", "prefix"), [(REWARD, ""), (MIXTURE, "adversarial/")], ids=["alone", "mixture"])
def test_it_learns_on_schedule_and_a_stopped_run_goes_on_bit_for_bit(config, tmp_path, reward, prefix):
    settings = replace(config, reward=reward)
    train(settings, tmp_path / "whole")
    lines = figures_of(tmp_path / "whole")
    updated = [f"reward/{prefix}loss" in line for line in lines]
    assert updated == [True, True, False, True, False], "the first rollout, and every second one"
    assert [line[f"reward/{prefix}updates"] for line in lines] == [1, 2, 2, 3, 3]
    for name in ("accuracy", "mean_reward"):
        assert all(np.isfinite(line[f"reward/{prefix}{name}"]) for line, due in zip(lines, updated, strict=True) if due)
    train(settings, tmp_path / "parts", before=stop_after(18))  # in the middle of the fourth rollout
    kept = reward_in(tmp_path / "parts")
    kept = kept["rewards"][0] if prefix else kept
    assert kept["rollouts"] == 3 and kept["updates"] == 2, "the rollout that was cut has taught nothing"
    train(settings, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert same(reward_in(tmp_path / "parts"), reward_in(tmp_path / "whole"))


def test_a_rollout_is_scored_before_it_is_learned_from(config, tmp_path):
    """So a discriminator that learns and one that does not give the first rollout the same rewards, and then others."""
    train(replace(config, rollouts=2), tmp_path / "learns")
    train(replace(config, rollouts=2, reward={**REWARD, "learns": False}), tmp_path / "frozen")
    learning, frozen = (
        [line["rollout/score"] for line in figures_of(tmp_path / name)] for name in ("learns", "frozen")
    )
    assert learning[0] == frozen[0] and learning[1] != frozen[1]
    assert not any("reward/loss" in line for line in figures_of(tmp_path / "frozen"))


def test_another_seed_learns_otherwise(config, tmp_path):
    losses = []
    for seed in (0, 1):
        train(replace(config, rollouts=1, seed=seed), tmp_path / str(seed))
        losses.append(figures_of(tmp_path / str(seed))[0]["reward/loss"])
    assert losses[0] != losses[1]


def test_an_update_that_explodes_ends_with_one_clear_error_and_the_last_checkpoint(config, tmp_path):
    broken = {**REWARD, "learning": {"learning_rate": 1e30}, "schedule": {"every": 3}}
    with pytest.raises(RewardError, match="'adversarial' is not finite.*lower learning_rate"):
        train(replace(config, reward=broken, save_every=1), tmp_path / "run")
    sane = {**REWARD, "schedule": {"every": 3}}
    steady = {**sane, "learning": {"learning_rate": 1e-4}}
    train(replace(config, reward=steady, save_every=1, rollouts=2), tmp_path / "other")
    assert all(np.isfinite(np.asarray(value)).all() for value in reward_in(tmp_path / "other")["network"].values())
