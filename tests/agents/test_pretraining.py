import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from jamgym.checkpoint import load_state
from jamgym.errors import ConfigError, JamgymError
from jamgym.run import Run
from jamgym_agents import pretraining_batch, pretraining_losses
from jamgym_agents.pretraining import PretrainConfig, learning_rate, pretrain
from jamgym_agents.pretraining_batch import hidden_spans

from .helpers import TINY

CONFIG = PretrainConfig(
    corpus={"name": "jamgym.toys:ToyCorpus", "songs": 3, "seconds": 2.0},
    codec="jamgym.toys:ToyCodec",
    validation_songs=2,
    frames=30,
    steps=30,
    batch=4,
    learning_rate=3e-3,
    warm_up=3,
    t_f_low=-10,
    t_f_high=10,
    bf16=False,
    validate_every=10,
    checkpoint_minutes=0.0,
    architecture=TINY,
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAMGYM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def train(folder, resume=False, fail_at=None, monkeypatch=None, config=CONFIG):
    original = pretraining_batch.draw_conditions
    calls = []

    def failing(*args):
        calls.append(1)
        if fail_at is not None and len(calls) > fail_at:
            raise KeyboardInterrupt
        return original(*args)

    with (
        monkeypatch.context() as patch,
        Run.create(folder, command="pretrain", config={}, seed=0, resume=resume, quiet=True) as run,
    ):
        patch.setattr(pretraining_batch, "draw_conditions", failing)
        return pretrain(config, run)


def test_resume_is_bit_exact_and_training_learns(tmp_path, monkeypatch):
    figures = train(tmp_path / "whole", monkeypatch=monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", fail_at=26, monkeypatch=monkeypatch)
    assert load_state(tmp_path / "cut/checkpoint.safetensors")["step"] == 26
    again = train(tmp_path / "cut", resume=True, monkeypatch=monkeypatch)
    assert figures == again
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]
    states = [load_state(tmp_path / name / "checkpoint.safetensors")["decoder"] for name in ("whole", "cut")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    lines = [json.loads(line) for line in texts[0].splitlines()]
    losses = [line["loss/codebook_0"] for line in lines if "loss/codebook_0" in line]
    assert losses[-1] < losses[0] - 0.3
    assert {"validation/input_gain_tf-25_k5", "validation/root_accuracy_tf25_k5"} <= set(figures)


def test_a_kill_between_log_and_checkpoint_leaves_no_line_twice(tmp_path, monkeypatch):
    train(tmp_path / "whole", monkeypatch=monkeypatch)
    for name, step in (("early", 25), ("cut", 26)):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / name, fail_at=step, monkeypatch=monkeypatch)
    # Step 25 is logged by now, but the checkpoint is the one from before it.
    shutil.copy(tmp_path / "early/checkpoint.safetensors", tmp_path / "cut/checkpoint.safetensors")
    train(tmp_path / "cut", resume=True, monkeypatch=monkeypatch)
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole


def test_the_lookahead_loss_is_logged_and_trains_its_head(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=26, architecture=replace(TINY, lookahead_frames=3))
    lines, heads = {}, {}
    for weight in (0.0, 1.0):
        weighted = replace(config, lookahead_weight=weight)
        train(tmp_path / str(weight), monkeypatch=monkeypatch, config=weighted)
        text = (tmp_path / str(weight) / "metrics.jsonl").read_text()
        logged = [json.loads(line) for line in text.splitlines()]
        lines[weight] = [line["loss/lookahead"] for line in logged if "loss/lookahead" in line]
        state = load_state(tmp_path / str(weight) / "checkpoint.safetensors")["decoder"]
        heads[weight] = state["lookahead.head.bias"]
    assert len(lines[1.0]) == 2 and lines[1.0][0] == lines[0.0][0] and lines[1.0][1] < lines[0.0][1]
    assert not torch.equal(heads[0.0], heads[1.0])


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining_losses, "token_loss", lambda logits, codes: logits[..., 0] * float("nan"))
    with pytest.raises(JamgymError, match="norm nan"):
        train(tmp_path / "run", monkeypatch=monkeypatch)
    assert not (tmp_path / "run/decoder.safetensors").exists()


def test_hidden_spans_follow_their_share():
    mask = hidden_spans(np.random.default_rng(0), 400, 100, 0.5)
    share = mask.any(1).float().mean()
    assert 0.4 < share < 0.6 and not hidden_spans(np.random.default_rng(0), 50, 100, 0.0).any()


def test_learning_rate_by_hand():
    config = PretrainConfig(steps=100, warm_up=10, learning_rate=1.0)
    assert learning_rate(0, config) == pytest.approx(0.1) and learning_rate(100, config) == pytest.approx(0.02)
    assert learning_rate(50, config) == pytest.approx(0.51)


def test_impossible_values():
    with pytest.raises(ConfigError, match="t_f_low"):
        PretrainConfig(t_f_low=3, t_f_high=2)
    with pytest.raises(ConfigError, match="k_choices"):
        PretrainConfig(k_choices=(0,))
