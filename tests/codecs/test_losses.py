import pytest
import torch

from jamgym.codecs.losses import RealFFT, magnitudes, spectral_loss, tone_loss


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


def test_tone_loss_counts_tones_that_should_sound_ten_times():
    wanted = torch.tensor([[0.1, 0.0]])
    missing, added = tone_loss(torch.tensor([[0.0, 0.0]]), wanted), tone_loss(torch.tensor([[0.1, 0.1]]), wanted)
    assert tone_loss(wanted, wanted) == 0.0
    assert missing == pytest.approx(10 * float(added), rel=1e-4)
