import json

import pytest
import torch

from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.errors import CheckpointError
from jamgym.testing import ToyCodec
from jamgym_agents.checkpoint import load_decoder, save_decoder

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
