from dataclasses import replace

import numpy as np
import pytest
import torch

from jamgym.checkpoint import load_state, load_tensors, save_state
from jamgym.codecs import training
from jamgym.codecs.spectral import SpectralCodec
from jamgym.codecs.spectral_network import SpectralConfig
from jamgym.codecs.training import learning_rate, train_codec
from jamgym.codecs.training_settings import CodecTrainingConfig
from jamgym.errors import CheckpointError, ConfigError, CorpusError, JamgymError
from jamgym.run import Run, read_metrics
from jamgym.testing import ToyCorpus

CONFIG = dict(
    corpus={"name": "jamgym.testing:ToyCorpus", "songs": 2, "seconds": 2.0},
    songs=2,
    steps=4,
    batch=2,
    clip_frames=10,
    architecture=SpectralConfig(
        num_codebooks=2,
        cardinality=16,
        latent_dim=4,
        channels=16,
        encoder_blocks=1,
        decoder_blocks=1,
        fine_channels=8,
        fine_blocks=1,
    ),
)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 1000, 1e-3) for step in range(1001)]
    assert rates[0] < 1e-5 and 150 < int(np.argmax(rates)) < 250 and rates[-1] == pytest.approx(2e-5)


def run_training(folder, resume=False, stop_at=None, **changes):
    config = CodecTrainingConfig(**{**CONFIG, **changes})
    run = Run.create(folder, command="train-codec", config={}, seed=0, resume=resume, quiet=True)
    if stop_at is not None:
        logged = run.log

        class Stopping(type(run)):
            calls = 0

            @property
            def stop_requested(self):
                Stopping.calls += 1
                return Stopping.calls > 2 * (stop_at - 1)

            @stop_requested.setter
            def stop_requested(self, value):
                pass

        run.__class__ = Stopping
        assert logged
    return train_codec(config, run)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    figures = run_training(tmp_path / "whole")
    run_training(tmp_path / "parts", stop_at=2)
    first, _ = load_tensors(tmp_path / "parts" / "codec.safetensors")
    assert run_training(tmp_path / "parts", resume=True) == figures
    whole, parts = (load_tensors(tmp_path / name / "codec.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(not torch.equal(first[key], whole[key]) for key in whole), "the first part did not stop early"
    steps = [line["step"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert steps == sorted(set(steps)) == [0]
    assert 0.0 <= figures["used_codes_0"] <= 16 and np.isfinite(list(figures.values())).all()
    assert SpectralCodec(tmp_path / "parts" / "codec.safetensors").cardinality == 16


def test_the_shortest_clip_that_is_allowed_can_be_trained_on(tmp_path):
    assert np.isfinite(list(run_training(tmp_path, steps=1, clip_frames=7).values())).all()


def test_no_steps_measure_the_network_that_training_starts_from(tmp_path):
    run_training(tmp_path / "a", steps=0)
    start = str(tmp_path / "a" / "codec.safetensors")
    run_training(tmp_path / "b", steps=0, seed=1, init_from=start)
    first, second = (load_tensors(tmp_path / name / "codec.safetensors")[0] for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_corpus_at_another_sample_rate_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"at 8000 Hz but the architecture needs 16000 Hz.*sample_rate=16000"):
        run_training(tmp_path, corpus={**CONFIG["corpus"], "sample_rate": 8000})


@pytest.mark.parametrize(
    "diverged",
    [lambda levels, wanted: levels.sum() * float("nan"), lambda levels, wanted: (0.0 * levels).sum().sqrt()],
    ids=["loss", "gradient"],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimizer_steps(tmp_path, monkeypatch, diverged):
    steps = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(self))
    monkeypatch.setattr(training, "tone_loss", diverged)
    with pytest.raises(JamgymError, match=r"step 0 has norm nan .*checkpoint, if any, is .*lower learning_rate"):
        run_training(tmp_path)
    assert steps == [] and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_rate_that_is_far_too_high_writes_no_weights(tmp_path, steps):
    with pytest.raises(JamgymError, match="lower learning_rate"):
        run_training(tmp_path, learning_rate=1e30, steps=steps)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_kill_before_the_first_checkpoint_leaves_no_line_twice(tmp_path, monkeypatch):
    run_training(tmp_path / "whole")
    step, steps = torch.optim.AdamW.step, []

    def killed(self):
        steps.append(step(self))
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.AdamW, "step", killed)
        run_training(tmp_path / "cut")
    assert not (tmp_path / "cut/checkpoint.safetensors").exists() and (tmp_path / "cut/metrics.jsonl").read_text()
    run_training(tmp_path / "cut", resume=True)
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole


def test_a_run_resumes_when_the_file_it_started_from_has_moved(tmp_path):
    run_training(tmp_path / "start", steps=1, seed=3)
    start = tmp_path / "start" / "codec.safetensors"
    figures = run_training(tmp_path / "whole", init_from=str(start))
    run_training(tmp_path / "parts", stop_at=2, init_from=str(start))
    start.rename(tmp_path / "moved.safetensors")
    assert run_training(tmp_path / "parts", resume=True, init_from=str(start)) == figures


def test_another_architecture_is_refused_on_resume_even_where_the_weights_would_fit(tmp_path):
    run_training(tmp_path, steps=1)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    # Neither changes the shape of a weight.
    other = replace(CONFIG["architecture"], hop=320, sample_rate=24000)
    with pytest.raises(ConfigError, match="sample_rate 16000 where architecture says 24000, hop 640 where .* 320"):
        run_training(tmp_path, resume=True, architecture=other, clip_frames=20)
    with pytest.raises(ConfigError, match="channels 16 where architecture says 32"):
        run_training(tmp_path, resume=True, architecture=replace(CONFIG["architecture"], channels=32))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_checkpoint_that_does_not_say_its_architecture_resumes_if_its_weights_fit(tmp_path):
    figures = run_training(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    state = load_state(path)
    save_state(path, {key: state[key] for key in state if key != "architecture"}, {"kind": "train-codec"})
    assert run_training(tmp_path, resume=True) == figures
    save_state(path, {key: state[key] for key in state if key != "architecture"}, {"kind": "train-codec"})
    with pytest.raises(CheckpointError, match="does not fit the architecture"):
        run_training(tmp_path, resume=True, architecture=replace(CONFIG["architecture"], channels=32))


def test_init_from_with_another_architecture_is_refused(tmp_path):
    run_training(tmp_path / "b", steps=1)
    with pytest.raises(ConfigError, match=r"codec\.safetensors has .*latent_dim 4 where architecture says 96"):
        run_training(
            tmp_path / "c",
            init_from=str(tmp_path / "b" / "codec.safetensors"),
            architecture=SpectralConfig(channels=16, fine_channels=8),
        )


@pytest.mark.parametrize("loaded", [0, 1])
def test_ctrl_c_stops_while_songs_are_loaded(tmp_path, monkeypatch, loaded):
    found, load = [], ToyCorpus.load

    def stopping(self, song_id):
        found.append(song_id)
        run.stop_requested = len(found) > loaded  # as Ctrl-C does
        return load(self, song_id)

    monkeypatch.setattr(ToyCorpus, "load", stopping)
    corpus = {**CONFIG["corpus"], "songs": 30}
    run = Run.create(tmp_path / "r", command="train-codec", config={}, seed=0, quiet=True)
    with run, pytest.raises(KeyboardInterrupt):
        train_codec(CodecTrainingConfig(**{**CONFIG, "corpus": corpus, "songs": 8}), run)
    assert len(found) == loaded + 1 and not (tmp_path / "r/checkpoint.safetensors").exists()
