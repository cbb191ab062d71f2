import numpy as np
import pytest

from jamgym.checkpoint import save_tensors
from jamgym.errors import CheckpointError, ConfigError, RewardError
from jamgym.registry import rewards
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.clap_probe import ClapProbe, ClapProbeReward, fit_logistic, other_partner

RATE = 16_000


class Spectrum:
    """Embeds audio as its energy in 24 semitone classes: which notes sound together can be read off linearly."""

    version = "spectrum"

    def embed(self, audio, sample_rate):
        magnitude = np.abs(np.fft.rfft(audio, axis=1))
        frequency = np.fft.rfftfreq(audio.shape[1], 1 / sample_rate)
        note = np.round(12 * np.log2(np.maximum(frequency, 1.0) / 110.0)).astype(int)
        energy = np.stack([magnitude[:, note == n].sum(axis=1) for n in range(24)], axis=1)
        products = np.concatenate([energy[:, :12] * np.roll(energy[:, 12:], shift, axis=1) for shift in (0, 5)], axis=1)
        return (products / (np.linalg.norm(products, axis=1, keepdims=True) + 1e-9)).astype(np.float32)

    def embed_text(self, texts):
        raise NotImplementedError


def songs(count, per_song, seed):
    """Windows of `count` songs: a low note heard, the same note an octave up played."""
    rng = np.random.default_rng(seed)
    time = np.arange(RATE) / RATE
    keys = np.repeat(rng.permutation(np.arange(count) % 12), per_song)

    def tones(notes):
        hertz = 110.0 * 2.0 ** (notes / 12)
        return (0.2 * np.sin(2 * np.pi * hertz[:, None] * time) + rng.normal(0, 1e-3, (len(notes), RATE))).astype(
            np.float32
        )

    return Windows(tones(keys), tones(keys + 12), RATE), np.repeat(np.arange(count), per_song), keys


@pytest.fixture(scope="module")
def probe():
    windows, groups, _ = songs(12, 3, 0)
    return ClapProbe.fit(Spectrum(), windows, groups)


class TestClapProbeConformance(RewardConformance):
    @pytest.fixture(autouse=True)
    def _fitted(self, probe):
        self.probe = probe

    def make(self):
        return ClapProbeReward(embedder=Spectrum(), probe=self.probe)


def test_the_probe_tells_true_pairs_from_wrong_ones(probe):
    windows, groups, keys = songs(12, 2, 7)
    reward = ClapProbeReward(embedder=Spectrum(), probe=probe)
    partner = other_partner(groups, seed=3)
    assert (keys != keys[partner]).all()
    true = reward.score(windows)
    wrong = reward.score(Windows(windows.heard, windows.played[partner], RATE))
    assert true.mean() > 0.8 and wrong.mean() < 0.35
    assert (true > wrong).mean() > 0.9


def test_partners_are_never_of_the_same_song():
    for groups in ([1, 2], ["a", "a", "b", "b"], [0, 0, 0, 1, 2, 2], np.repeat(np.arange(7), 3), [5, 1, 5, 2, 5, 3]):
        groups = np.asarray(groups)
        for seed in range(20):
            partner = other_partner(groups, seed)
            assert sorted(partner) == list(range(len(groups)))
            assert (groups[partner] != groups).all()
    assert len({tuple(other_partner(np.arange(9), seed)) for seed in range(5)}) > 1
    with pytest.raises(RewardError, match="3 of them of one song"):
        other_partner(["a", "a", "a", "b", "c"])
    with pytest.raises(RewardError, match="0 windows"):
        other_partner([])


def test_logistic_regression_by_hand():
    # Four points on a line, three of four right: the optimum solves these two equations.
    x, labels = np.array([[-1.0], [-1.0], [1.0], [1.0]]), np.array([0.0, 0.0, 1.0, 0.0])
    weights, bias = fit_logistic(x, labels, l2=0.1)
    p_low, p_high = (1 / (1 + np.exp(-(weights[0] * value + bias))) for value in (-1.0, 1.0))
    assert 2 * p_low + 2 * p_high == pytest.approx(1.0, abs=1e-4)  # slope along the bias
    assert (-2 * p_low + (2 * p_high - 1)) / 4 + 0.1 * weights[0] == pytest.approx(0.0, abs=1e-4)
    strong, _ = fit_logistic(x, labels, l2=10.0)
    assert 0.0 < strong[0] < weights[0]


def test_score_is_the_probability():
    probe = ClapProbe(np.array([2.0, -1.0]), 0.5, "spectrum")
    found = probe.score(np.array([[1.0, 0.0], [0.0, 1.0], [-1000.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(found, [1 / (1 + np.exp(-2.5)), 1 / (1 + np.exp(0.5)), 0.0], atol=1e-9)


def test_silence_gets_nothing(probe):
    windows, _, _ = songs(12, 1, 0)
    scores = ClapProbeReward(embedder=Spectrum(), probe=probe).score(Windows(windows.heard, 0 * windows.played, RATE))
    assert (scores == 0.0).all()


def test_saved_and_loaded(probe, tmp_path):
    probe.save(tmp_path / "probe.safetensors")
    again = ClapProbe.load(tmp_path / "probe.safetensors")
    assert np.array_equal(again.weights, probe.weights) and again.bias == probe.bias
    one = ClapProbeReward(embedder=Spectrum(), probe=tmp_path / "probe.safetensors")
    assert one.version == ClapProbeReward(embedder=Spectrum(), probe=probe).version
    shifted = ClapProbe(probe.weights, probe.bias + 1, probe.embedder_version)
    assert one.version != ClapProbeReward(embedder=Spectrum(), probe=shifted).version


def test_errors(probe, tmp_path):
    import torch

    with pytest.raises(ConfigError, match="needs the argument probe"):
        rewards.create("clap_probe")
    with pytest.raises(ConfigError, match="needs the argument checkpoint"):
        ClapProbeReward(probe=probe)
    with pytest.raises(CheckpointError, match=r"fitted on the embedder other.*is spectrum"):
        ClapProbeReward(embedder=Spectrum(), probe=ClapProbe(probe.weights, 0.0, "other"))
    save_tensors(tmp_path / "w.safetensors", {"weights": torch.ones(2)}, {"kind": "coherence"})
    with pytest.raises(CheckpointError, match="kind is 'coherence'"):
        ClapProbe.load(tmp_path / "w.safetensors")
    save_tensors(tmp_path / "v.safetensors", {"weights": torch.ones(2)}, {"kind": "clap_probe", "embedder": "x"})
    with pytest.raises(CheckpointError, match="is damaged"):
        ClapProbe.load(tmp_path / "v.safetensors")
    windows, groups, _ = songs(4, 1, 0)
    with pytest.raises(RewardError, match="4 windows but 3 groups"):
        ClapProbe.fit(Spectrum(), windows, groups[:3])
