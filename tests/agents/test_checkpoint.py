import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from jamgym import registry
from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.errors import CheckpointError
from jamgym.specs import create_from_spec
from jamgym.testing import ToyCodec
from jamgym_agents.checkpoint import SHIPPED, load_decoder, save_decoder
from jamgym_agents.eight_bit import from_eight_bits

from .helpers import tiny_decoder


def saved(tmp_path):
    path = tmp_path / "decoder.safetensors"
    decoder = tiny_decoder()
    save_decoder(path, decoder, "1", {"steps": 3})
    return path, decoder


def test_round_trip_in_half_precision(tmp_path):
    path, decoder = saved(tmp_path)
    loaded = load_decoder(path, ToyCodec())
    assert loaded.config == decoder.config and not loaded.training
    for key, value in decoder.state_dict().items():
        assert torch.equal(value.half().float(), loaded.state_dict()[key])
    assert json.loads(load_tensors(path)[1]["training"]) == {"steps": 3}


def test_another_codec_version(tmp_path):
    codec = ToyCodec()
    codec.version = "2"
    with pytest.raises(CheckpointError, match="version '1'.*version '2'"):
        load_decoder(saved(tmp_path)[0], codec)


def test_a_codec_of_other_sizes(tmp_path):
    with pytest.raises(CheckpointError, match="2 codebooks of 16"):
        load_decoder(saved(tmp_path)[0], ToyCodec(num_codebooks=3))


def test_not_a_decoder_and_damaged(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": "codec"})
    with pytest.raises(CheckpointError, match="'codec', not a decoder"):
        load_decoder(path, ToyCodec())
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError):
        load_decoder(path, ToyCodec())
    with pytest.raises(CheckpointError):
        load_decoder(tmp_path / "missing.safetensors", ToyCodec())


def test_weights_that_do_not_fit_their_architecture(tmp_path):
    path, _ = saved(tmp_path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, {key: value for key, value in tensors.items() if key != "start"}, metadata)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_decoder(path, ToyCodec())


def test_eight_bits_are_smaller_and_play_nearly_the_same(tmp_path):
    decoder = tiny_decoder()
    for name, eight_bit in (("half", False), ("eight", True)):
        save_decoder(tmp_path / name, decoder, "1", {}, eight_bit=eight_bit)
    loaded = load_decoder(tmp_path / "eight", ToyCodec())
    assert loaded.config == decoder.config
    assert (tmp_path / "eight").stat().st_size < 0.8 * (tmp_path / "half").stat().st_size
    for key, value in decoder.state_dict().items():
        step = value.abs().amax(-1, keepdim=True) / 127 if value.dim() == 2 else 1e-3
        assert ((loaded.state_dict()[key] - value).abs() <= 0.51 * step).all(), key


def test_eight_bits_without_their_scales(tmp_path):
    path = tmp_path / "decoder.safetensors"
    save_decoder(path, tiny_decoder(), "1", {}, eight_bit=True)
    tensors, metadata = load_tensors(path)
    save_tensors(path, {key: value for key, value in tensors.items() if key != "embed_input.weight.scale"}, metadata)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_decoder(path, ToyCodec())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_decoders_have_names_and_cards(name, monkeypatch, tmp_path):
    codec = create_from_spec(registry.codecs, "spectral")
    monkeypatch.chdir(tmp_path)
    decoder = load_decoder(name, codec)
    file = files("jamgym_agents") / "assets" / SHIPPED[name]
    card = json.loads(Path(str(file)).with_suffix(".json").read_text())
    assert card["weights"].startswith(SHIPPED[name]) and card["commands"]
    stored = from_eight_bits(load_tensors(Path(str(file)))[0])
    assert all(torch.equal(value, stored[key]) for key, value in decoder.state_dict().items())


def test_a_name_that_no_shipped_decoder_has(tmp_path):
    with pytest.raises(CheckpointError, match=r"Unknown decoder 'pp'. Did you mean 'ppo'\? Known: mle, ppo. Or give"):
        load_decoder("pp", ToyCodec())
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        load_decoder("./pp", ToyCodec())


def test_a_path_is_never_the_name_of_a_shipped_decoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_decoder(Path("ppo"), tiny_decoder(), "1", {})
    codec = ToyCodec()
    for path in ("./ppo", Path("ppo"), str(tmp_path / "ppo")):
        assert load_decoder(path, codec).config == tiny_decoder().config
    with pytest.raises(CheckpointError, match="the shipped decoder 'ppo' was trained on"):
        load_decoder("ppo", codec)


def test_all_weights_that_are_shipped_are_small():
    folders = [files(package) / "assets" for package in ("jamgym", "jamgym_agents", "jamgym_rewards")]
    size = sum(path.stat().st_size for folder in folders for path in Path(str(folder)).rglob("*") if path.is_file())
    assert size <= 40_000_000
