import enum
import sys
import types

import numpy as np
import pytest
import torch

from jamgym.checkpoint import save_tensors
from jamgym.errors import CheckpointError, ConfigError, RewardError
from jamgym.registry import rewards
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.cocola import CocolaReward, load_cocola
from jamgym_rewards.cocola_network import CocolaNetwork

from .cocola_numbers import NUMBERS, fill

RATE = 16_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights as Lightning stores them: with an enum of the authors' package among the hyper-parameters."""
    names = ("contrastive_model", "contrastive_model.constants")
    modules = [types.ModuleType(name) for name in names]
    sys.modules.update(zip(names, modules, strict=True))
    kind = enum.Enum("ModelInputType", {"DOUBLE": "double_channel_harmonic_percussive"}, module=names[1])
    modules[1].ModelInputType = kind
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("cocola") / "epoch=1-step=2.ckpt"
    content = {
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": CocolaNetwork().state_dict(),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_k_models": {}}},
        "hparams_name": "kwargs",
        "hyper_parameters": {"learning_rate": 0.001, "input_type": kind.DOUBLE},
    }
    torch.save(content, path)
    for name in names:
        del sys.modules[name]
    return path


@pytest.fixture(scope="module")
def golden_checkpoint(tmp_path_factory):
    """Weights under which embeddings differ from clip to clip."""
    path = tmp_path_factory.mktemp("golden") / "cocola.safetensors"
    save_tensors(path, fill(CocolaNetwork()).state_dict())
    return path


def windows(heard, played, rate=RATE):
    return Windows(np.atleast_2d(heard), np.atleast_2d(played), rate)


def both():
    heard, played = NUMBERS["clips"]()
    return heard, played


class TestCocolaConformance(RewardConformance):
    @pytest.fixture(autouse=True)
    def _weights(self, checkpoint):
        self.checkpoint = checkpoint

    def make(self):
        return CocolaReward(self.checkpoint)


def test_a_lightning_checkpoint_loads_as_it_is(checkpoint, tmp_path):
    torch.manual_seed(3)
    own = CocolaNetwork().state_dict()
    network = load_cocola(checkpoint)
    assert not network.training
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
    save_tensors(tmp_path / "same.safetensors", own)
    same = load_cocola(tmp_path / "same.safetensors").state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in same.items())
    assert "contrastive_model" not in sys.modules


def test_heard_is_the_context_and_played_the_stem(golden_checkpoint):
    from jamgym_rewards.cocola_features import CocolaFeatures

    heard, played = both()
    reward = CocolaReward(golden_checkpoint, gates=None)
    network = load_cocola(golden_checkpoint)
    x, y = (CocolaFeatures()(torch.from_numpy(side[None])) for side in (heard, played))
    with torch.no_grad():
        expected, swapped = network(x, y).item(), network(y, x).item()
    assert reward.score(windows(heard, played))[0] == pytest.approx(expected, rel=1e-5)
    assert reward.raw(windows(heard, played))[0] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - swapped) > 0.1
    assert reward.score(windows(played, heard))[0] == pytest.approx(swapped, rel=1e-5)


def test_modes_differ_and_are_part_of_the_version(golden_checkpoint):
    heard, played = both()
    models = [CocolaReward(golden_checkpoint, mode=mode) for mode in ("both", "harmonic", "percussive")]
    raws = [model.raw(windows(heard, played))[0] for model in models]
    assert len({round(raw, 2) for raw in raws}) == 3
    assert len({model.version for model in models}) == 3


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e-4])
def test_silence_and_whispers_never_pay(checkpoint, level):
    heard, played = both()
    for seed in range(3):  # whatever the sign that weights give to silence
        reward = CocolaReward(checkpoint)
        torch.manual_seed(seed)
        reward._network = CocolaNetwork().eval()
        score = reward.score(windows(heard, played * level))[0]
        assert score == pytest.approx(min(reward.raw(windows(heard, played * level))[0], 0.0), abs=1e-4)
        assert score <= 0.0
    calibrated = CocolaReward(checkpoint, calibrate=True, random=-1e3, truth=-1e2)
    assert calibrated.score(windows(heard, played * level))[0] == pytest.approx(-0.5)


def test_open_gates_leave_the_published_score(checkpoint):
    heard, played = both()
    reward = CocolaReward(checkpoint)
    assert reward.score(windows(heard, played))[0] == pytest.approx(reward.raw(windows(heard, played))[0], rel=1e-5)
    bare = CocolaReward(checkpoint, gates=None)
    silent = windows(heard, played * 0)
    assert bare.score(silent)[0] == pytest.approx(bare.raw(silent)[0], rel=1e-5)


def test_anchors_become_zero_and_one(checkpoint):
    heard, played = both()
    raw = CocolaReward(checkpoint).raw(windows(heard, played))[0]
    plain = windows(heard, played)
    assert CocolaReward(checkpoint, calibrate=True, random=raw, truth=raw + 5).score(plain)[0] == pytest.approx(
        0, abs=1e-4
    )
    assert CocolaReward(checkpoint, calibrate=True, random=raw - 5, truth=raw).score(plain)[0] == pytest.approx(
        1, abs=1e-4
    )
    far = CocolaReward(checkpoint, calibrate=True, random=raw - 9, truth=raw - 5)
    assert far.score(plain)[0] == 1.5 and far.range == (-1.0, 1.5)
    assert CocolaReward(checkpoint).range == (-np.inf, np.inf)


def test_other_sample_rates_are_resampled(golden_checkpoint):
    import soxr

    heard, played = both()
    up = [soxr.resample(side, RATE, 44_100) for side in (heard, played)]
    reward = CocolaReward(golden_checkpoint)
    samples = reward._features(torch.zeros(1, 80_000)).shape
    audio = windows(*up, rate=44_100)
    assert np.isfinite(reward.score(audio)).all()
    assert samples == (1, 2, 64, 501)
    doubled = windows(np.repeat(heard, 2), np.repeat(played, 2), rate=32_000)
    # The same sound at another rate: nearer to itself than to the same samples misread.
    right, misread = reward.raw(doubled)[0], reward.raw(windows(np.repeat(heard, 2), np.repeat(played, 2)))[0]
    here = reward.raw(windows(heard, played))[0]
    assert abs(right - here) < abs(misread - here)


@pytest.mark.parametrize("samples", [1, 1000, 20_000])
def test_short_windows_are_scored(checkpoint, samples):
    heard, played = both()
    scores = CocolaReward(checkpoint).raw(windows(heard[:samples], played[:samples]))
    assert scores.shape == (1,) and np.isfinite(scores).all()


def test_missing_or_wrong_arguments(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"needs the argument checkpoint.*gladia-research-group/cocola"):
        rewards.create("cocola")
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.ckpt.*Download"):
        CocolaReward(tmp_path / "nowhere.ckpt")
    with pytest.raises(ConfigError, match="Did you mean 'harmonic'"):
        CocolaReward(checkpoint, mode="harmonics")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two anchors"):
        CocolaReward(checkpoint, calibrate=True, random=3.0)
    with pytest.raises(ConfigError, match="random below truth"):
        CocolaReward(checkpoint, calibrate=True, random=3.0, truth=2.0)
    with pytest.raises(ConfigError, match="calibrate=True"):
        CocolaReward(checkpoint, truth=2.0)
    with pytest.raises(RewardError, match="one shape"):
        CocolaReward(checkpoint).score(windows(np.zeros((1, 10), np.float32), np.zeros((1, 9), np.float32)))


def test_other_architectures_are_refused(tmp_path):
    state = CocolaNetwork().state_dict()
    stem = "encoder.encoder.model.0._conv_stem.weight"
    torch.save({"state_dict": {**state, stem: state[stem][:, :1]}}, tmp_path / "mel.ckpt")
    with pytest.raises(CheckpointError, match=r"1 of another shape.*_conv_stem"):
        load_cocola(tmp_path / "mel.ckpt")
    fewer = {name: tensor for name, tensor in state.items() if name != "similarity.w"}
    torch.save({"state_dict": fewer}, tmp_path / "cosine.ckpt")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing.*similarity\.w"):
        load_cocola(tmp_path / "cosine.ckpt")
    save_tensors(tmp_path / "more.safetensors", {**state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 unknown.*'extra'"):
        load_cocola(tmp_path / "more.safetensors")


def test_version_follows_the_weights(checkpoint, golden_checkpoint):
    one, other = CocolaReward(checkpoint), CocolaReward(golden_checkpoint)
    assert one.version == CocolaReward(checkpoint).version != other.version
