import importlib
import sys
import types

import numpy as np
import pytest
import torch

from jamgym.errors import CheckpointError, ConfigError, PluginError
from jamgym.registry import rewards
from jamgym.reward import Windows
from jamgym.testing import RewardConformance
from jamgym_rewards.clap import ClapReward
from jamgym_rewards.clap_embedding import ClapEmbedder, last_window, pooled, unit
from jamgym_rewards.gating import FLOOR
from jamgym_rewards.laion import LaionClapEmbedder

RATE = 16_000


def save_tiny(folder, fusion):
    """Write a random ClapModel of a few thousand weights, with extractor and tokenizer, and return its folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    audio = {
        "patch_size": 8,
        "patch_stride": [8, 8],
        "hidden_size": 32,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
    }
    audio |= {"patch_embeds_hidden_size": 16, "window_size": 4, "num_hidden_layers": 2, "initializer_factor": 20.0}
    audio |= {"enable_fusion": True, "fusion_type": "aff_2d"} if fusion else {}
    text = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 40}
    model = ClapModel(ClapConfig(projection_dim=16, text_config=text, audio_config=audio)).eval()
    with torch.no_grad():  # random weights of the usual size tell no two clips apart
        for parameter in model.audio_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc").save_pretrained(folder)
    words = {"<pad>": 1, "<unk>": 0, "jazz": 2, "piano": 3, "loud": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("clap"), fusion=False)


@pytest.fixture(scope="module")
def embedder(folder):
    return ClapEmbedder(folder)


def clips(rows, seconds=10.0, rate=RATE):
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    tones = [
        np.sin(2 * np.pi * 110 * 2.0**row * time) * (1 + np.sin(2 * np.pi * (row + 1) * time)) for row in range(rows)
    ]
    return (0.1 * np.stack(tones) + rng.normal(0, 0.01, (rows, len(time)))).astype(np.float32)


class TestClapConformance(RewardConformance):
    @pytest.fixture(autouse=True)
    def _model(self, embedder):
        self.embedder = embedder

    def make(self):
        return ClapReward(embedder=self.embedder)


def test_embeddings_are_those_of_transformers(embedder, folder):
    import soxr
    from transformers import ClapFeatureExtractor, ClapModel

    audio = clips(2)
    resampled = [soxr.resample(row, RATE, 48_000) for row in audio]
    inputs = ClapFeatureExtractor.from_pretrained(folder)(resampled, sampling_rate=48_000, return_tensors="pt")
    with torch.no_grad():
        expected = pooled(ClapModel.from_pretrained(folder).eval().get_audio_features(**inputs)).numpy()
    found = embedder.embed(audio, RATE)
    np.testing.assert_allclose(found, unit(expected), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert found[0] @ found[1] < 0.999  # the model tells them apart


def test_long_audio_is_cut_to_its_last_ten_seconds(embedder):
    audio = clips(1, seconds=14.0)
    assert last_window(audio, RATE).shape == (1, 480_000)
    np.testing.assert_allclose(embedder.embed(audio, RATE), embedder.embed(audio[:, -160_000:], RATE), atol=1e-6)
    assert np.abs(embedder.embed(audio, RATE) - embedder.embed(audio[:, :160_000], RATE)).max() > 1e-4


def test_fused_models_do_not_look_at_the_rest_of_the_batch(tmp_path):
    fused = ClapEmbedder(save_tiny(tmp_path, fusion=True))
    audio = clips(3, seconds=5.0)
    together = fused.embed(audio, RATE)
    for seed in range(3):
        np.random.seed(seed)  # the extractor draws from numpy's global generator
        np.testing.assert_allclose(fused.embed(audio, RATE), together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([fused.embed(row[None], RATE) for row in audio]), together, atol=1e-5)


def test_both_forms_of_output():
    tensor = torch.ones(2, 3)
    assert pooled(tensor) is tensor and pooled(types.SimpleNamespace(pooler_output=tensor)) is tensor


class Table:
    """Embeds audio by its mean level, so that cosines can be worked out by hand."""

    version = "table"

    def embed(self, audio, sample_rate):
        angle = np.abs(audio).mean(axis=1) * np.pi
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def embed_text(self, texts):
        return np.array([[0.0, 1.0]] * len(texts), dtype=np.float32)


def square(level):
    signs = np.sign(np.sin(2 * np.pi * 100 * (np.arange(RATE) + 0.5) / RATE))
    return (level * signs).astype(np.float32)[None]


def test_what_is_compared():
    pair = Windows(square(0.5), square(0.25), RATE)
    angles = {"played": 0.25, "mix": 0.75}
    for side, level in angles.items():
        beside_heard = ClapReward(embedder=Table(), side=side).score(pair)[0]
        assert beside_heard == pytest.approx(np.cos((level - 0.5) * np.pi), abs=1e-3)
        beside_text = ClapReward(embedder=Table(), side=side, text="loud").score(pair)[0]
        assert beside_text == pytest.approx(np.cos((level - 0.5) * np.pi), abs=1e-3)
    opposite = Windows(square(0.9), square(0.1), RATE)
    assert ClapReward(embedder=Table()).score(opposite)[0] == pytest.approx(np.cos(0.8 * np.pi), abs=1e-3)
    assert ClapReward(embedder=Table(), text="loud").score(opposite)[0] == pytest.approx(0.0, abs=1e-3)
    assert ClapReward(embedder=Table()).side == "played" and ClapReward(embedder=Table(), text="loud").side == "mix"


@pytest.mark.parametrize("side", ["played", "mix"])
def test_silence_never_pays(side):
    silent = Windows(square(0.3), 0 * square(1.0), RATE)
    assert ClapReward(embedder=Table(), side=side).score(silent)[0] == FLOOR
    assert ClapReward(embedder=Table(), side="mix", gates=None).score(silent)[0] == pytest.approx(1.0)


def test_text_goes_through_the_model(folder, embedder):
    texts = embedder.embed_text(["jazz piano", "loud"])
    assert texts.shape == (2, 16) and np.abs(texts[0] - texts[1]).max() > 1e-3
    np.testing.assert_allclose(embedder.embed_text(["loud"])[0], texts[1], atol=1e-5)  # padding changes nothing
    audio = clips(2)
    score = ClapReward(folder, text="loud", side="played", gates=None).score(Windows(audio, audio[::-1].copy(), RATE))
    np.testing.assert_allclose(score, embedder.embed(audio[::-1], RATE) @ texts[1], atol=1e-5)


@pytest.mark.parametrize("download", [False, True])
def test_nothing_is_downloaded_unless_asked_for(monkeypatch, download):
    import transformers

    asked = []

    def refuse(name, local_files_only):
        asked.append((name, local_files_only))
        raise OSError("not here")

    monkeypatch.setattr(transformers.ClapModel, "from_pretrained", refuse)
    with pytest.raises(CheckpointError, match="not here"):
        ClapReward("nobody/no-such-clap", download=download)
    assert asked == [("nobody/no-such-clap", not download)]


def test_weights_that_are_not_here(tmp_path):
    with pytest.raises(CheckpointError, match=r"'nobody/no-such-clap' cannot be loaded.*hf download.*download=True"):
        ClapReward("nobody/no-such-clap")
    with pytest.raises(CheckpointError, match="There is no folder .*missing"):
        ClapReward(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ClapReward(tmp_path / "empty")
    with pytest.raises(ConfigError, match="needs the argument checkpoint"):
        rewards.create("clap")
    with pytest.raises(ConfigError, match="Did you mean 'played'"):
        ClapReward(embedder=Table(), side="plaid")


def test_version_follows_the_weights(folder, embedder, tmp_path):
    from transformers import ClapModel

    assert ClapEmbedder(folder).version == embedder.version
    model = ClapModel.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale_a.add_(1.0)
    other = save_tiny(tmp_path, fusion=False)
    model.save_pretrained(other)
    assert ClapEmbedder(other).version != embedder.version
    assert ClapReward(embedder=embedder).version != ClapReward(embedder=embedder, side="mix").version


def test_laion_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="lukewys/laion_clap"):
        LaionClapEmbedder(tmp_path / "missing.pt")
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    monkeypatch.setitem(sys.modules, "laion_clap", None)
    with pytest.raises(PluginError, match=r"pip install 'jamgym\[laion-clap\]'.*ClapEmbedder"):
        LaionClapEmbedder(weights)


def test_laion_takes_the_place_of_an_embedder(tmp_path, monkeypatch):
    seen = {}

    class Module:
        def __init__(self, enable_fusion, device, amodel):
            seen["made"] = (enable_fusion, device, amodel)

        def load_ckpt(self, ckpt, verbose):
            seen["loaded"] = ckpt

        def get_audio_embedding_from_data(self, x, use_tensor):
            seen["audio"] = x.shape
            return 3.0 * Table().embed(x, 48_000)

    monkeypatch.setitem(sys.modules, "laion_clap", types.SimpleNamespace(CLAP_Module=Module))
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    laion = LaionClapEmbedder(weights, audio_model="HTSAT-base")
    score = ClapReward(embedder=laion).score(Windows(square(0.5), square(0.25), RATE))[0]
    assert score == pytest.approx(np.cos(0.25 * np.pi), abs=0.02)
    assert seen == {"made": (False, "cpu", "HTSAT-base"), "loaded": str(weights), "audio": (1, 48_000)}
    assert laion.version.startswith("laion-")


def test_importing_loads_neither_transformers_nor_laion():
    import subprocess

    code = (
        "import sys, jamgym_rewards.clap, jamgym_rewards.laion;"
        "assert not {'transformers', 'laion_clap'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert importlib.import_module("jamgym_rewards.clap")
