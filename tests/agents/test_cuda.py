"""What must hold on a GPU too; skipped where torch finds none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jamgym.checkpoint import load_state
from jamgym.codecs.spectral import SpectralCodec
from jamgym.corpora.band import BandCorpus
from jamgym.run import Run
from jamgym_agents.pretraining import pretrain
from jamgym_agents.sampling import Sampling, transform
from jamgym_agents.streaming import StreamingDecoder

from .helpers import PRETRAIN, TINY, tiny_decoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

# Without dropout, which draws other masks on another device.
CONFIG = replace(PRETRAIN, steps=20, architecture=replace(TINY, dropout=0.0))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("JAMGYM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def train(folder, resume=False, **settings):
    with Run.create(folder, command="pretrain", config={}, seed=0, resume=resume, quiet=True) as run:
        return pretrain(replace(CONFIG, **settings), run)


def test_training_follows_the_processor_step_by_step(tmp_path):
    """The same weights, batches and rates; only rounding differs."""
    there = train(tmp_path / "cuda", device="cuda")
    here = train(tmp_path / "cpu", device="cpu")
    assert there.keys() == here.keys() and len(here) > 10
    for name, value in here.items():
        assert there[name] == pytest.approx(value, abs=0.02), name
    state = load_state(tmp_path / "cuda" / "checkpoint.safetensors")
    assert state["step"] == 20


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_bf16_average_accumulation_and_resume(tmp_path, optimizer):
    settings = {"device": "cuda", "bf16": True, "ema_decay": 0.9, "accumulate": 2, "optimizer": optimizer}
    first = train(tmp_path / "run", steps=10, **settings)
    longer = train(tmp_path / "run", resume=True, steps=40, **settings)
    assert longer["validation/loss_true_tf0_k5"] < first["validation/loss_true_tf0_k5"]


@pytest.mark.parametrize("window", [9, None])
def test_streaming_equals_teacher_forcing(window):
    decoder = tiny_decoder(window=window, sinks=2).cuda()
    torch.manual_seed(0)
    rows, frames, k, t_f = 3, 24, 4, -3
    heard = torch.randint(0, 16, (rows, frames, 2), device="cuda")
    instrument = torch.arange(rows, device="cuda")
    sampling = Sampling()
    stream = StreamingDecoder(decoder, 4)
    state = stream.initial_state(rows)
    state.reset(torch.ones(rows, dtype=torch.bool, device="cuda"), instrument)
    generator = torch.Generator("cuda").manual_seed(1)
    played, scores, before = [], [], 0
    for start in range(0, frames, k):
        visible = min(max(start + t_f, 0), frames)
        block = heard[:, before : max(visible, before + 1)]
        stream.hear(state, block, torch.full((rows,), visible - before, device="cuda"))
        before = visible
        chunk = stream.generate(state, k, sampling, generator)
        played.append(chunk.codes)
        scores.append(chunk.log_probs)
    codes = torch.cat(played, dim=1)
    with torch.no_grad():
        delays = torch.full((rows,), t_f, device="cuda")
        output = decoder(heard, codes, instrument, delays, torch.full((rows,), k, device="cuda"))
    expected = transform(output.logits, sampling).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(torch.cat(scores, dim=1), expected, atol=1e-4, rtol=0)


def test_the_codec_gives_the_same_codes_and_sound():
    song = BandCorpus(songs=20).load("band-000000")
    here, there = SpectralCodec(), SpectralCodec(device="cuda")
    assert here.version == there.version and np.array_equal(here.silence_codes, there.silence_codes)
    samples = len(song.stems[0].audio) // here.hop_samples * here.hop_samples
    audio = np.stack([stem.audio[:samples] for stem in song.stems])
    codes = here.encode(audio)
    assert (there.encode(audio) == codes).mean() > 0.999
    sound = here.decode(codes)
    assert np.abs(there.decode(codes) - sound).max() < 1e-2
    stream, half = there.decoder(len(codes)), codes.shape[1] // 2
    stream.push(codes[:, :half])
    stream.reset(np.ones(len(codes), bool))
    pieces = [stream.push(codes[:, :half]), stream.push(codes[:, half:])]
    assert np.abs(np.concatenate(pieces, axis=1) - sound).max() < 1e-2
