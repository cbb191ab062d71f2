import copy

import numpy as np
import pytest
import torch

from jamgym_rewards.cocola_features import (
    CocolaFeatures,
    hertz_to_mel,
    mel_filters,
    mel_to_hertz,
    relative_decibels,
)
from jamgym_rewards.cocola_network import CocolaNetwork, EfficientNetB0
from jamgym_rewards.hpss import hpss_masks

from .cocola_numbers import NUMBERS, fill, golden


@pytest.fixture(scope="module")
def network():
    return fill(CocolaNetwork())


@pytest.fixture(scope="module")
def features():
    return CocolaFeatures()(torch.from_numpy(NUMBERS["clips"]()))


def test_features_are_those_of_librosa(features):
    assert features.shape == (2, 2, 64, 501)
    difference = np.abs(features.numpy()[..., :: NUMBERS["STRIDE"]] - golden()["features"])
    assert difference.max() < 0.01 and difference.mean() < 1e-4  # decibels


def test_masks_are_those_of_librosa():
    audio = torch.from_numpy(NUMBERS["clips"]())
    spectrum = torch.stft(audio, 1024, 160, 400, torch.hann_window(400), pad_mode="constant", return_complex=True)
    mask = hpss_masks(spectrum.abs())[0].numpy()[:, ::8, ::8]
    tones, noise = np.abs(mask - golden()["mask"])
    assert noise.max() < 1e-4
    # Between pure tones lie cells that the last bit of the spectrum decides.
    assert np.median(tones) < 1e-5 and tones.max() < 0.05


def test_averages_are_those_of_efficientnet_pytorch():
    network = fill(EfficientNetB0())
    with torch.no_grad():
        found = network(torch.from_numpy(NUMBERS["network_input"]())).numpy()
    expected = golden()["averages"]
    assert np.abs(expected[0] - expected[1]).mean() > 1.0  # the figures tell the two rows apart
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_names_and_size_are_those_of_the_public_weights():
    network = CocolaNetwork()
    state = network.state_dict()
    assert len(state) == 363
    assert sum(weight.numel() for weight in network.parameters()) == 4_926_300
    rest = {name for name in state if not name.startswith("encoder.encoder.model.0.")}
    projection = {"encoder.projection.weight", "encoder.projection.bias"}
    assert rest == projection | {"layer_norm.weight", "layer_norm.bias", "similarity.w"}
    for name, shape in {
        "encoder.encoder.model.0._conv_stem.weight": (32, 2, 3, 3),
        "encoder.encoder.model.0._blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
        "encoder.encoder.model.0._blocks.3._expand_conv.weight": (144, 24, 1, 1),
        "encoder.encoder.model.0._blocks.3._se_reduce.weight": (6, 144, 1, 1),
        "encoder.encoder.model.0._blocks.15._project_conv.weight": (320, 1152, 1, 1),
        "encoder.encoder.model.0._bn1.num_batches_tracked": (),
        "encoder.projection.weight": (512, 1280),
        "similarity.w": (512, 512),
    }.items():
        assert tuple(state[name].shape) == shape, name


def test_score_is_context_times_matrix_times_stem(network, features):
    # In double precision: rounding depends on batch and threads, and an untrained
    # network makes a percent of it.
    network, features = copy.deepcopy(network).double(), features.double()
    with torch.no_grad():
        x, y = network.embed(features)
        assert x.abs().max() <= 1.0 and (x - y).abs().mean() > 0.05
        projected = network.encoder.projection(network.encoder.encoder.model[0](features))
        expected = torch.tanh(network.layer_norm(projected))
        torch.testing.assert_close(torch.stack([x, y]), expected)
        by_hand = sum(x[i].item() * (network.similarity.w[i] @ y).item() for i in range(512))
        forward, backward = network(features[:1], features[1:]), network(features[1:], features[:1])
    assert forward.item() == pytest.approx(by_hand, rel=1e-6)
    assert abs(forward.item() - backward.item()) > 0.1  # the matrix is not symmetric


def test_modes_blank_the_other_channel(network, features):
    harmonic, percussive = features.clone(), features.clone()
    harmonic[:, 1], percussive[:, 0] = 0.0, 0.0
    before = features.clone()
    with torch.no_grad():
        torch.testing.assert_close(network.embed(features, "harmonic"), network.embed(harmonic))
        torch.testing.assert_close(network.embed(features, "percussive"), network.embed(percussive))
        assert (network.embed(features, "harmonic") - network.embed(features)).abs().max() > 0.01
    assert torch.equal(features, before)


def test_decibels_are_relative_to_each_channel_and_clip():
    power = torch.tensor([[[1.0, 0.1], [1e-3, 0.0]], [[2e-5, 2e-5], [2e-6, 2e-30]]])
    expected = [[[0.0, -10.0], [-30.0, -80.0]], [[0.0, 0.0], [-10.0, -10 * np.log10(2e5)]]]
    np.testing.assert_allclose(relative_decibels(power).numpy(), expected, atol=1e-4)
    assert (relative_decibels(torch.zeros(1, 2, 2)) == 0.0).all()  # silence is the maximum: why there are gates


def test_gain_changes_nothing(features):
    quiet = CocolaFeatures()(torch.from_numpy(NUMBERS["clips"]()) * 0.25)
    # Where both are above the silence of 1e-10.
    loud = features > -40.0
    assert (quiet - features)[loud].abs().max() < 0.01


def test_slaney_mels():
    hertz = np.array([0.0, 60.0, 999.0, 1000.0, 4000.0, 7800.0])
    np.testing.assert_allclose(mel_to_hertz(hertz_to_mel(hertz)), hertz, atol=1e-9)
    filters = mel_filters()
    assert filters.shape == (64, 513) and (filters >= 0).all() and (filters.sum(axis=1) > 0).all()
    assert (filters[:, : int(60 / 15.625) + 1] == 0).all()  # nothing below 60 Hz
    # Equal areas: the integral over frequency is one wherever a band is many bins wide.
    np.testing.assert_allclose(filters[40:].sum(axis=1) * 15.625, 1.0, atol=0.05)


@pytest.mark.parametrize("samples", [1, 160, 4000])
def test_short_audio_is_finite(samples):
    found = CocolaFeatures()(torch.full((1, samples), 0.1))
    assert found.shape == (1, 2, 64, 1 + samples // 160) and torch.isfinite(found).all()
