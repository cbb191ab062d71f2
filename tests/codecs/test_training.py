import numpy as np
import pytest
import torch

from jamgym.checkpoint import load_tensors
from jamgym.codecs.spectral import SpectralCodec
from jamgym.codecs.spectral_network import SpectralConfig
from jamgym.codecs.training import (
    ClipPool,
    CodecTrainingConfig,
    RealFFT,
    learning_rate,
    magnitudes,
    spectral_loss,
    train_codec,
)
from jamgym.errors import ConfigError
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


def test_real_fft_has_the_gradient_of_rfft():
    torch.manual_seed(0)
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: torch.view_as_real(RealFFT.apply(y)), (x,))
    weight = torch.randn(3, 9, dtype=torch.complex128)
    ours, theirs = (
        torch.autograd.grad((torch.view_as_real(f(x) * weight)).square().sum(), x)[0]
        for f in (RealFFT.apply, torch.fft.rfft)
    )
    assert torch.allclose(ours, theirs)


def test_magnitudes_are_those_of_the_windowed_frames():
    audio = torch.randn(2, 2000)
    found = magnitudes(audio, 512, 160)
    expected = torch.fft.rfft(audio[:, 160:672] * torch.hann_window(512)).abs() / 512**0.5
    assert torch.allclose(found[:, 1], expected, atol=1e-3)


def test_loss_is_zero_for_equal_and_grows_with_the_error():
    torch.manual_seed(0)
    audio = torch.randn(2, 8000) * 0.1
    noise = torch.randn(2, 8000)
    values = [float(spectral_loss(audio + scale * noise, audio)) for scale in (0.0, 0.01, 0.1)]
    assert values[0] < 1e-6 and values[0] < values[1] < values[2]


@pytest.mark.parametrize("silent", ["both", "decoded", "audio"])
def test_loss_and_gradient_are_finite_in_silence(silent):
    torch.manual_seed(0)
    decoded = (torch.zeros(1, 8000) if silent != "audio" else torch.randn(1, 8000)).requires_grad_()
    audio = torch.zeros(1, 8000) if silent != "decoded" else torch.randn(1, 8000)
    loss = spectral_loss(decoded, audio)
    # The square root of the distance has no gradient at zero distance exactly, which no decoder meets.
    if silent == "both":
        assert float(loss.detach()) < 1e-6
        return
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(decoded.grad).all()


def test_clips_are_reproducible_stems_and_mixes_below_full_scale():
    pool = ClipPool(ToyCorpus(songs=2, seconds=2.0), "train", 2)
    one, two = (pool.draw(np.random.default_rng(1), 32, 6400) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (32, 6400)
    assert one.abs().max() <= 0.99 + 1e-4 and (one.abs().amax(1) > 0).float().mean() > 0.8
    assert not torch.equal(one, pool.draw(np.random.default_rng(2), 32, 6400))


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


def test_bad_settings(tmp_path):
    with pytest.raises(ConfigError, match="at least 8"):
        run_training(tmp_path / "a", clip_frames=4)
    run_training(tmp_path / "b", steps=1)
    with pytest.raises(ConfigError, match="architecture"):
        run_training(
            tmp_path / "c",
            init_from=str(tmp_path / "b" / "codec.safetensors"),
            architecture=SpectralConfig(channels=16, fine_channels=8),
        )
