from dataclasses import replace

import pytest
import torch

from jamgym.codecs.losses import spectral_loss
from jamgym.codecs.spectral_network import SpectralConfig
from jamgym.codecs.training_settings import CodecTrainingConfig
from jamgym.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("songs", 0),
        ("steps", -1),
        ("batch", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("commitment", -0.1),
        ("tone_weight", -1.0),
        ("checkpoint_minutes", -1.0),
        ("seed", -1),
    ],
)
def test_values_without_meaning_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be at least"):
        CodecTrainingConfig(**{name: value})


@pytest.mark.parametrize(("hop", "least"), [(640, 7), (320, 13), (1280, 4)])
def test_a_clip_must_hold_the_longest_window_of_the_loss_whatever_the_hop(hop, least):
    architecture = replace(SpectralConfig(), hop=hop)
    with pytest.raises(ConfigError, match=f"{(least - 1) * hop} samples .* 4096 samples; give at least {least}"):
        CodecTrainingConfig(architecture=architecture, clip_frames=least - 1)
    samples = CodecTrainingConfig(architecture=architecture, clip_frames=least).clip_frames * hop
    assert torch.isfinite(spectral_loss(torch.zeros(1, samples), torch.ones(1, samples)))
    with pytest.raises(ConfigError, match="hop is 0"):
        CodecTrainingConfig(architecture=replace(architecture, hop=0))
