"""Make `tests/rewards/golden/cocola.npz`: what librosa and efficientnet_pytorch compute.

Neither package is needed to use or to test jamgym; this ran once, in an environment of its own:

    pip install librosa torch efficientnet_pytorch
    python scripts/make_cocola_golden.py

Clips and weights come from integer arithmetic, so that they are the same numbers everywhere.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
#: Every fourth frame of the features is kept.
STRIDE = 4


def uniform(count: int, seed: int) -> NDArray[np.float64]:
    """Return `(count,)` reproducible numbers in [-1, 1)."""
    state = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def clips(seconds: float = 5.0) -> NDArray[np.float32]:
    """Return `(2, S)` audio: chords under hits, and noise that swells with a stretch of silence."""
    samples = round(seconds * RATE)
    time = np.arange(samples) / RATE
    chord = sum(np.sin(2 * np.pi * hertz * time) / (1 + index) for index, hertz in enumerate((110.0, 277.2, 659.3)))
    chord = chord * (0.15 + 0.1 * (np.floor(time * 2) % 2))
    since = time % 0.37
    hits = uniform(samples, 1) * np.exp(-since * 60.0)
    swell = uniform(samples, 2) * 0.2 * np.minimum(time / seconds, 1.0) + 0.1 * np.sin(2 * np.pi * 900 * time)
    swell[(time > 2.0) & (time < 3.0)] = 0.0
    return np.stack([0.5 * chord + 0.4 * hits, swell]).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return reproducible weights that keep activations of ordinary size."""
    values = uniform(int(np.prod(shape, dtype=np.int64)), zlib.crc32(name.encode())).reshape(shape)
    if name.endswith(("running_var", "bn0.weight", "bn1.weight", "bn2.weight", "layer_norm.weight")):
        return (1.0 + 0.5 * values).astype(np.float32)
    if len(shape) < 2:
        return (0.2 * values).astype(np.float32)
    return (values * np.sqrt(6.0 / np.prod(shape[1:]))).astype(np.float32)


def features(audio: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return librosa's features `(2, 64, 501)` and harmonic mask `(513, 501)` of `(S,)` audio."""
    import librosa

    spectrum = librosa.stft(audio, n_fft=1024, win_length=400, hop_length=160)
    mask = librosa.decompose.hpss(np.abs(spectrum), mask=True)[0]
    parts = librosa.decompose.hpss(spectrum)
    mels = [
        librosa.feature.melspectrogram(S=np.abs(part) ** 2, sr=RATE, fmin=60.0, fmax=7800.0, n_mels=64)
        for part in parts
    ]
    return np.stack([librosa.power_to_db(mel, ref=np.max) for mel in mels]).astype(np.float32), mask


def network_input() -> NDArray[np.float32]:
    """Return `(2, 2, 64, 101)` in [-6, 6): small, because random layers enlarge every difference."""
    noise = uniform(2 * 2 * 64 * 101, 3).reshape(2, 2, 64, 101)
    ramp = np.linspace(-1.0, 1.0, 101) * np.array([1.0, -1.0])[:, None, None, None]
    return (3.0 * noise + 3.0 * ramp).astype(np.float32)


def backbone(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return efficientnet_pytorch's averages `(N, 1280)` of `(N, 2, 64, T)`, with the weights of `weight`."""
    import torch
    from efficientnet_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-b0", include_top=False, in_channels=2).eval()
    state = {
        name: torch.from_numpy(weight(name, tuple(tensor.shape))) if tensor.dim() else tensor
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)
    with torch.no_grad():
        return network(torch.from_numpy(inputs)).flatten(1).numpy()


def main() -> None:
    """Compute and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/rewards/golden/cocola.npz"))
    arguments = parser.parse_args()
    found = [features(clip) for clip in clips()]
    whole = np.stack([pair[0] for pair in found])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        arguments.out,
        features=whole[..., ::STRIDE],
        mask=np.stack([pair[1] for pair in found])[:, ::8, ::8],
        averages=backbone(network_input()),
    )


if __name__ == "__main__":
    main()
