import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jamgym.checkpoint import load_state
from jamgym.config import config_from_mapping, read_yaml
from jamgym.errors import CheckpointError, ConfigError, CorpusError, JamgymError
from jamgym.run import Run
from jamgym.testing import ToyCodec
from jamgym_agents import pretraining
from jamgym_agents.checkpoint import load_decoder, save_decoder
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.mle import batch as mle_batch
from jamgym_agents.mle import losses as mle_losses
from jamgym_agents.mle.batch import draw_conditions, hidden_past, hidden_spans
from jamgym_agents.mle.learner import Learner, make_optimizers
from jamgym_agents.mle.settings import PretrainConfig, learning_rate
from jamgym_agents.pretraining import check_same_architecture, pretrain

from .helpers import PRETRAIN as CONFIG
from .helpers import TINY, tiny_decoder

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAMGYM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def make_run(folder, resume=False):
    return Run.create(folder, command="pretrain", config={}, seed=0, resume=resume, quiet=True)


def train(folder, resume=False, fail_at=None, monkeypatch=None, config=CONFIG):
    original = mle_batch.draw_conditions
    calls = []

    def failing(*args):
        calls.append(1)
        if fail_at is not None and len(calls) > fail_at:
            raise KeyboardInterrupt
        return original(*args)

    with (
        monkeypatch.context() as patch,
        make_run(folder, resume) as run,
    ):
        patch.setattr(mle_batch, "draw_conditions", failing)
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


def test_averaged_weights_are_validated_and_saved_and_survive_a_kill(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=20, ema_decay=0.8, validate_every=50, validation_t_f=(0,))
    seen = []
    original = torch.optim.AdamW.step

    def step(self, *args):
        original(self, *args)
        seen.append({i: p.detach().clone() for i, p in enumerate(self.param_groups[0]["params"])})

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        whole = train(tmp_path / "whole", monkeypatch=monkeypatch, config=config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", fail_at=13, monkeypatch=monkeypatch, config=config)
    assert train(tmp_path / "cut", resume=True, monkeypatch=monkeypatch, config=config) == whole
    states = [load_state(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut")]
    for key, value in states[0]["average"].items():
        assert torch.equal(value, states[1]["average"][key])
    # The average by hand: the first step's weights, then 0.8 old + 0.2 new.
    by_hand = seen[0][0]
    for weights in seen[1:]:
        by_hand = 0.8 * by_hand + 0.2 * weights[0]
    name = next(name for name, p in tiny_decoder().named_parameters() if p.dim() >= 2)
    assert torch.allclose(states[0]["average"][f"module.{name}"], by_hand, atol=1e-6)
    saved = load_decoder(tmp_path / "whole/decoder.safetensors", ToyCodec())
    assert torch.allclose(saved.get_parameter(name), by_hand, atol=2e-4)
    assert (states[0]["decoder"][name] - by_hand).abs().max() > 1e-3
    plain = train(tmp_path / "plain", monkeypatch=monkeypatch, config=replace(config, ema_decay=0.0))
    assert plain != whole and "average" not in load_state(tmp_path / "plain/checkpoint.safetensors")


@pytest.mark.parametrize(("cells", "cell"), [((-25, 0), (-25, 5)), ((3, 0), (3, 5))])
def test_sound_from_the_first_validation_on(tmp_path, monkeypatch, cells, cell):
    made, shown = [], []

    def mix(decoder, codec, batch, t_f, k):
        made.append((t_f, k))
        return np.zeros(640, dtype=np.float32)

    monkeypatch.setattr(pretraining, "live_mix", mix)
    monkeypatch.setattr(pretraining, "FIRST_SOUND", 5)
    monkeypatch.setattr(Run, "add_audio", lambda self, step, tag, audio, rate: shown.append((step, tag, rate)))
    config = replace(CONFIG, steps=20, validation_t_f=cells)
    train(tmp_path / "run", monkeypatch=monkeypatch, config=config)
    assert shown == [(step, "validation/mix", 16_000) for step in (5, 10, 20)]
    assert made == [cell] * 3


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


def test_a_kill_before_the_first_checkpoint_leaves_no_line_twice(tmp_path, monkeypatch):
    config = replace(CONFIG, checkpoint_minutes=100.0)
    train(tmp_path / "whole", monkeypatch=monkeypatch, config=config)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", fail_at=15, monkeypatch=monkeypatch, config=config)
    assert not (tmp_path / "cut/checkpoint.safetensors").exists() and (tmp_path / "cut/metrics.jsonl").read_text()
    train(tmp_path / "cut", resume=True, monkeypatch=monkeypatch, config=config)
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole


def test_a_run_that_is_stopped_while_songs_are_encoded_goes_on_there(tmp_path, monkeypatch):
    monkeypatch.setenv("JAMGYM_CACHE", str(tmp_path / "cache"))
    config = replace(CONFIG, steps=1, validation_t_f=(0,))

    with pytest.raises(KeyboardInterrupt), make_run(tmp_path / "run") as run:
        run.stop_requested = True
        pretrain(config, run)
    assert len(list((tmp_path / "cache").glob("*.parts/*.safetensors"))) == 1
    train(tmp_path / "run", resume=True, monkeypatch=monkeypatch, config=config)
    assert (tmp_path / "run/decoder.safetensors").exists() and not list((tmp_path / "cache").glob("*.parts"))


def test_the_lookahead_loss_is_logged_and_trains_its_head(tmp_path, monkeypatch):
    foreseeing = replace(TINY, lookahead_frames=3)
    config = replace(CONFIG, steps=26, validate_every=50, validation_t_f=(0,), architecture=foreseeing)
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
    monkeypatch.setattr(mle_losses, "token_loss", lambda logits, codes: logits[..., 0] * float("nan"))
    with pytest.raises(JamgymError, match="norm nan"):
        train(tmp_path / "run", monkeypatch=monkeypatch)
    assert not (tmp_path / "run/decoder.safetensors").exists()


def drawn_t_f(**settings):
    config = PretrainConfig(batch=4_000, t_f_low=-50, t_f_high=25, frames=30, **settings)
    rng = np.random.default_rng(0)
    return draw_conditions(rng, config, 0)[0].numpy()


def test_t_f_is_drawn_evenly_or_by_its_share():
    t_f = drawn_t_f()
    assert np.abs(np.bincount(t_f + 50) / len(t_f) - 1 / 76).max() < 0.01
    t_f = drawn_t_f(ahead_share=0.8)
    assert np.mean(t_f >= 0) == pytest.approx(0.8, abs=0.03)
    assert (t_f.min(), t_f.max()) == (-50, 25) and t_f[t_f < 0].max() == -1 and t_f[t_f >= 0].min() == 0
    assert (drawn_t_f(ahead_share=1.0) >= 0).all() and (drawn_t_f(ahead_share=0.0) < 0).all()


def test_the_first_steps_hear_all_of_their_chunks_and_more():
    config = PretrainConfig(batch=4_000, steps=100, t_f_low=-50, t_f_high=25, ahead_first=0.3, k_choices=(1, 5, 25))
    for step in (0, 29):
        t_f, k = draw_conditions(np.random.default_rng(0), config, step)
        beyond = t_f - (k - 1)
        assert (beyond.min(), beyond.max()) == (13, 25) and set(k.tolist()) == {1, 5, 25}
    assert draw_conditions(np.random.default_rng(0), config, 30)[0].min() == -50
    whole = replace(config, ahead_first=0.0)
    for part in range(2):
        assert torch.equal(*(draw_conditions(np.random.default_rng(0), c, 30)[part] for c in (config, whole)))


def test_the_past_is_hidden_whole_in_its_share_of_sequences():
    config = PretrainConfig(batch=4_000, frames=30, history_dropout=0.0, past_dropout=0.4)
    hidden = hidden_past(np.random.default_rng(0), config).numpy()
    assert hidden.shape == (4_000, 29) and (hidden.all(1) == hidden.any(1)).all()
    assert hidden.all(1).mean() == pytest.approx(0.4, abs=0.03)
    spans = hidden_past(np.random.default_rng(0), replace(config, history_dropout=0.5)).numpy()
    assert hidden.sum() < spans.sum() and spans.any(1).mean() == pytest.approx(0.4 + 0.6 * 0.5, abs=0.03)


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
    with pytest.raises(ConfigError, match="ahead_first is 0.5, but t_f_high 0 is not ahead"):
        PretrainConfig(t_f_high=0, ahead_first=0.5)
    for name, value in {
        "k_choices": (0,),
        "accumulate": 3,
        "songs": 0,
        "validation_songs": 1,
        "frames": 1,
        "batch": -16,
        "weight_decay": -0.1,
        "validate_every": 0,
        "history_dropout": 5.0,
        "past_dropout": -0.1,
        "ahead_share": 1.5,
        "ahead_first": 1.5,
        "loss_share": -0.5,
        "optimizer": "sgd",
        "ema_decay": 1.0,
        "validation_t_f": (),
        "validation_k": (0,),
        "architecture": replace(TINY, lookahead_frames=-1),
    }.items():
        with pytest.raises(ConfigError, match="lookahead_frames" if name == "architecture" else name):
            PretrainConfig(**{name: value})


def test_a_corpus_of_another_rate_than_the_codec_is_never_encoded(tmp_path, monkeypatch):
    slow = {"name": "jamgym.toys:ToyCodec", "sample_rate": 8_000, "hop_samples": 320}
    seen = []
    original = pretraining.load_tokens
    monkeypatch.setattr(
        pretraining, "load_tokens", lambda corpus, *a, **k: seen.append(corpus) or original(corpus, *a, **k)
    )
    train(tmp_path / "run", monkeypatch=monkeypatch, config=replace(CONFIG, codec=slow, steps=1, validation_t_f=(0,)))
    assert [corpus.sample_rate for corpus in seen] == [8_000, 8_000]
    wrong = replace(CONFIG, codec=slow, corpus={"name": "jamgym.toys:ToyCorpus", "sample_rate": 16_000})
    with pytest.raises(CorpusError, match="Give the corpus sample_rate=8000"):
        train(tmp_path / "wrong", monkeypatch=monkeypatch, config=wrong)


def test_one_validation_song_is_refused_before_the_first_step(tmp_path, monkeypatch):
    config = replace(CONFIG, corpus={"name": "jamgym.toys:ToyCorpus", "songs": 1, "seconds": 2.0})
    with pytest.raises(ConfigError, match="at least two validation songs"):
        train(tmp_path / "run", fail_at=0, monkeypatch=monkeypatch, config=config)


def test_a_run_goes_on_with_its_own_network_and_no_other(tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    save_decoder(start, tiny_decoder(layers=3), ToyCodec().version, {})
    config = replace(CONFIG, steps=2, validation_t_f=(0,), init_from=str(start), architecture=DecoderConfig())
    train(tmp_path / "run", monkeypatch=monkeypatch, config=config)
    start.unlink()
    train(tmp_path / "run", resume=True, monkeypatch=monkeypatch, config=replace(config, steps=3))
    assert load_decoder(tmp_path / "run/decoder.safetensors", ToyCodec()).config.layers == 3
    with pytest.raises(ConfigError, match="checkpoint.safetensors has layers 3 where architecture says 2"):
        train(tmp_path / "run", resume=True, monkeypatch=monkeypatch, config=CONFIG)


def test_a_run_may_give_its_start_the_aligned_input(tmp_path, monkeypatch):
    start = tmp_path / "start.safetensors"
    save_decoder(start, tiny_decoder(), ToyCodec().version, {})
    wanted = replace(TINY, aligned_frames=2, aligned_past=3)
    config = replace(CONFIG, steps=0, validation_t_f=(0,), init_from=str(start), architecture=wanted)
    train(tmp_path / "run", monkeypatch=monkeypatch, config=config)
    before = load_decoder(start, ToyCodec())
    after = load_decoder(tmp_path / "run/decoder.safetensors", ToyCodec())
    assert (after.config.aligned_frames, after.config.aligned_past) == (2, 3)
    codes, at = torch.randint(0, 16, (1, 9, 2)), torch.tensor([5])
    arguments = codes, codes, torch.tensor([0]), at, at
    assert torch.allclose(before(*arguments).logits, after(*arguments).logits, atol=1e-5)
    train(tmp_path / "run", resume=True, monkeypatch=monkeypatch, config=replace(config, steps=1))


def test_cuda_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        train(tmp_path / "run", monkeypatch=monkeypatch, config=replace(CONFIG, device="cuda"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_settings_are_valid_and_say_how_large_their_network_is(path):
    config = config_from_mapping(PretrainConfig, read_yaml(path))
    with torch.device("meta"):
        decoder = AccompanimentDecoder(config.architecture)
    weights = sum(p.numel() for p in decoder.parameters())
    stated = re.search(r"([\d.]+) M weights", path.read_text())
    assert stated and float(stated[1]) == pytest.approx(weights / 1e6, abs=0.06)
    assert {"tiny", "small", "paper"} <= {path.stem for path in CONFIGS.glob("*.yaml")}


def test_an_average_may_start_in_the_middle_of_a_run():
    before = Learner.create(tiny_decoder(0), CONFIG)
    after = Learner.create(tiny_decoder(1), replace(CONFIG, ema_decay=0.9))
    assert after.restore(before.state(7)) == 7
    for name, value in before.decoder.state_dict().items():
        assert torch.equal(after.result.state_dict()[name], value)


def test_a_run_goes_on_with_another_decay_and_keeps_its_settings_with_the_checkpoint(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=4, validation_t_f=(0,))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", fail_at=2, monkeypatch=monkeypatch, config=config)
    learner = Learner.create(tiny_decoder(0), replace(config, weight_decay=0.75))
    learner.restore(load_state(tmp_path / "run/checkpoint.safetensors"))
    groups = [group for optimizer in learner.optimizers.values() for group in optimizer.param_groups]
    assert sorted({group["weight_decay"] for group in groups}) == [0.0, 0.75]
    # Steps 2 and 3 log nothing, but they write checkpoints.
    kept = []
    monkeypatch.setattr(Run, "keep_settings", lambda self: kept.append(self._settings_due))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", resume=True, fail_at=1, monkeypatch=monkeypatch, config=config)
    assert kept == [True]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_weight_has_one_optimizer_and_vectors_do_not_decay(optimizer):
    decoder = tiny_decoder(0)
    optimizers = make_optimizers(decoder, replace(CONFIG, optimizer=optimizer, weight_decay=0.25))
    groups = [group for each in optimizers.values() for group in each.param_groups]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in decoder.parameters())
    assert all(group["weight_decay"] == 0.25 * (p.dim() > 1) for group in groups for p in group["params"])
    assert set(optimizers) == {"adamw", optimizer}


def test_muon_turns_hidden_matrices_by_orthogonal_updates_as_large_as_those_of_adamw():
    decoder = tiny_decoder(0)
    learner = Learner.create(decoder, replace(CONFIG, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for p in decoder.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    learner.step(1e-3)
    moved = {name: before[name] - p.detach() for name, p in decoder.named_parameters()}
    for name in ("blocks.0.expand.weight", "blocks.1.out.weight", "depth.expand.1.weight", "depth.so_far.weight"):
        values = torch.linalg.svdvals(moved[name])
        assert values.max() / values.min() < 2.5  # Newton-Schulz leaves them near one value, not at it.
        assert moved[name].square().mean().sqrt() == pytest.approx(0.2e-3, rel=0.3)
    # A first step of AdamW has one size everywhere.
    for name in ("depth.head.0.weight", "embed_input.weight", "instrument.weight", "blocks.0.expand.bias"):
        assert torch.allclose(moved[name].abs(), torch.tensor(1e-3), rtol=1e-2)


def test_a_run_does_not_go_on_with_another_optimizer(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=2, validation_t_f=(0,))
    train(tmp_path / "run", monkeypatch=monkeypatch, config=config)
    with pytest.raises(CheckpointError, match="optimizer is 'muon' but 'adamw' is needed"):
        train(tmp_path / "run", resume=True, monkeypatch=monkeypatch, config=replace(config, optimizer="adamw"))


def test_another_architecture_than_that_of_init_from_is_refused():
    check_same_architecture("a", replace(TINY, window=None), DecoderConfig())
    check_same_architecture("a", replace(TINY, cardinality=16), replace(TINY, cardinality=1024))
    with pytest.raises(ConfigError, match="layers 2 where architecture says 3, lookahead_frames 0 where"):
        check_same_architecture("a", TINY, replace(TINY, layers=3, lookahead_frames=5))
    with pytest.raises(ConfigError, match="start a new run with init_from"):
        check_same_architecture("a", TINY, replace(TINY, aligned_frames=4), resumed=True)
