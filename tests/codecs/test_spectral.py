import numpy as np
import pytest
import torch

from jamgym.checkpoint import save_tensors
from jamgym.codecs.spectral import SpectralCodec
from jamgym.codecs.spectral_network import SpectralConfig, SpectralNetwork
from jamgym.errors import AudioError, CheckpointError, ConfigError
from jamgym.testing import CodecConformance

TINY = SpectralConfig(
    cardinality=64, latent_dim=8, channels=32, encoder_blocks=2, decoder_blocks=2, fine_channels=24, fine_blocks=2
)
HOP = TINY.hop


def make_network(seed=0, config=TINY):
    torch.manual_seed(seed)
    network = SpectralNetwork(config)
    with torch.no_grad():
        network.decoder.levels.bias.fill_(-3.0)
    return network


@pytest.fixture(scope="module")
def codec():
    return SpectralCodec.from_network(make_network())


def music(frames, rows=2, seed=0):
    rng = np.random.default_rng(seed)
    time = np.arange(frames * HOP) / 16000
    tones = np.stack([np.sin(2 * np.pi * rng.uniform(80, 900) * time) * (time * 3 % 1) for _ in range(rows)])
    return (0.3 * tones + 0.02 * rng.standard_normal(tones.shape)).astype(np.float32)


class TestUntrained(CodecConformance):
    codec = None

    def make(self):
        TestUntrained.codec = TestUntrained.codec or SpectralCodec.from_network(make_network())
        return TestUntrained.codec


class TestShipped(CodecConformance):
    """Fails, and has to, if the weights are not in the package."""

    codec = None

    def make(self):
        TestShipped.codec = TestShipped.codec or SpectralCodec()
        return TestShipped.codec

    def test_protocol_values(self):
        codec = self.make()
        assert (codec.sample_rate, codec.hop_samples, codec.num_codebooks, codec.cardinality) == (16000, 640, 4, 1024)
        assert codec.lookahead_samples == codec.decoder_lookahead_samples == 0

    def test_silence_stays_silent(self):
        codec = self.make()
        quiet = codec.decode(np.tile(codec.silence_codes, (1, 50, 1)))
        assert np.sqrt(np.mean(quiet[:, 10 * 640 :] ** 2)) < 3e-3


@pytest.mark.parametrize("frame", [1, 7, 19])
def test_causality_is_exact(codec, frame):
    audio = music(20)
    codes = codec.encode(audio)
    assert len(np.unique(codes[..., 0])) > 3
    changed = audio.copy()
    changed[:, frame * HOP :] = music(20, seed=5)[:, frame * HOP :]
    again = codec.encode(changed)
    assert np.array_equal(again[:, :frame], codes[:, :frame]) and not np.array_equal(again, codes)
    other = codes.copy()
    other[:, frame:] = (other[:, frame:] + 7) % codec.cardinality
    one, two = codec.decode(codes), codec.decode(other)
    assert np.array_equal(one[:, : frame * HOP], two[:, : frame * HOP])
    assert np.abs(one[:, frame * HOP : (frame + 1) * HOP] - two[:, frame * HOP : (frame + 1) * HOP]).max() > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_random_chunks_equal_offline(codec, seed):
    rng = np.random.default_rng(seed)
    audio = music(40, rows=3, seed=seed)
    codes = codec.encode(audio)
    whole = codec.decode(codes)
    encoder, decoder, made, sound, position = codec.encoder(3), codec.decoder(3), [], [], 0
    while position < 40:
        size = min(int(rng.integers(0, 9)), 40 - position)  # also empty chunks
        made.append(encoder.push(audio[:, position * HOP : (position + size) * HOP]))
        sound.append(decoder.push(codes[:, position : position + size]))
        position += size
    assert np.array_equal(np.concatenate(made, axis=1), codes)
    assert np.abs(np.concatenate(sound, axis=1) - whole).max() < 1e-4


def test_reset_is_per_row_in_both_directions(codec):
    audio = music(20, rows=3)
    codes = codec.encode(audio)
    mask = np.array([False, True, False])
    encoder, decoder = codec.encoder(3), codec.decoder(3)
    encoder.push(audio[:, : 8 * HOP])
    decoder.push(codes[:, :8])
    encoder.reset(mask)
    decoder.reset(mask)
    made, sound = encoder.push(audio[:, 8 * HOP :]), decoder.push(codes[:, 8:])
    assert np.array_equal(made[~mask], codes[~mask, 8:])
    assert np.array_equal(made[mask], codec.encode(audio[:, 8 * HOP :])[mask])
    assert np.abs(sound[~mask] - codec.decode(codes)[~mask, 8 * HOP :]).max() < 1e-4
    assert np.abs(sound[mask] - codec.decode(codes[:, 8:])[mask]).max() < 1e-4
    decoder.reset()
    assert np.abs(decoder.push(codes[:, 8:]) - codec.decode(codes[:, 8:])).max() < 1e-4


def test_saving_and_loading_changes_no_bit(codec, tmp_path):
    codec.save(tmp_path / "codec.safetensors", {"steps": 3})
    again = SpectralCodec(tmp_path / "codec.safetensors")
    audio = music(10)
    codes = codec.encode(audio)
    assert again.version == codec.version and np.array_equal(again.encode(audio), codes)
    assert np.array_equal(again.decode(codes), codec.decode(codes))
    assert np.array_equal(again.silence_codes, codec.silence_codes)


def test_version_follows_the_weights_that_make_codes(codec):
    assert SpectralCodec.from_network(make_network()).version == codec.version
    network = make_network()
    with torch.no_grad():
        network.decoder.levels.bias[0] += 0.5
    assert SpectralCodec.from_network(network).version == codec.version, "the same codes, another sound"
    for change in ("encoder.head.bias", "quantizer.codebooks"):
        network = make_network()
        with torch.no_grad():
            network.state_dict()[change][0] += 0.5
        assert SpectralCodec.from_network(network).version != codec.version


def test_codebook_vectors_add_up_to_the_latents(codec):
    codes = codec.encode(music(5))
    vectors = codec.codebook_vectors
    assert vectors.shape == (4, 64, codec.latent_dim)
    summed = sum(vectors[q][codes[..., q]] for q in range(4))
    assert np.allclose(summed, codec.network.quantizer.decode(torch.from_numpy(codes).long()), atol=1e-6)


def test_empty_clips(codec):
    assert codec.encode(np.zeros((2, 0), np.float32)).shape == (2, 0, 4)
    assert codec.decode(np.zeros((2, 0, 4), np.int16)).shape == (2, 0)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((1, HOP + 1), np.float32), "multiple of 640"),
        (np.zeros(HOP, np.float32), r"shape \(640,\)"),
        (np.full((1, HOP), np.nan, np.float32), "NaN"),
        (np.full((1, HOP), np.inf, np.float32), "infinite"),
    ],
)
def test_bad_audio(codec, audio, message):
    with pytest.raises(AudioError, match=message):
        codec.encode(audio)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((1, 2, 4), 64), "valid is 0 to 63"),
        (np.full((1, 2, 4), -1), "-1"),
        (np.zeros((1, 2, 3), int), "valid is"),
        (np.zeros((1, 2, 4)), "whole numbers"),
    ],
)
def test_bad_codes(codec, codes, message):
    with pytest.raises(AudioError, match=message):
        codec.decode(codes)


def test_a_stream_keeps_its_number_of_rows(codec):
    with pytest.raises(AudioError, match="valid is \\(3, S\\)"):
        codec.encoder(3).push(music(1))
    with pytest.raises(AudioError, match="valid is \\(3, T, 4\\)"):
        codec.decoder(3).push(np.zeros((2, 1, 4), np.int16))


def test_bad_files(codec, tmp_path):
    path = tmp_path / "codec.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        SpectralCodec(path)
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="damaged"):
        SpectralCodec(path)
    save_tensors(path, {"x": torch.zeros(1)}, {"kind": "decoder"})
    with pytest.raises(CheckpointError, match="'decoder', not 'codec/spectral'"):
        SpectralCodec(path)
    save_tensors(path, {"x": torch.zeros(1)}, {"kind": "codec/spectral"})
    with pytest.raises(CheckpointError, match="architecture"):
        SpectralCodec(path)
    codec.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        SpectralCodec(path)
    wide = SpectralCodec.from_network(make_network(config=SpectralConfig(cardinality=32, latent_dim=8, channels=16)))
    wide.save(path)
    from jamgym.checkpoint import load_tensors

    tensors, metadata = load_tensors(path)
    codec.save(path)
    _, narrow = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "architecture": narrow["architecture"]})
    with pytest.raises(CheckpointError, match="does not fit"):
        SpectralCodec(path)


def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match="cannot use device 'nowhere'.*'cpu'"):
        SpectralCodec(device="nowhere")
