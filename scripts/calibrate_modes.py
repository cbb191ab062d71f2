"""Measure the modes of `coherence` for weights that were trained before there were any, and write them into the file.

    python scripts/calibrate_modes.py rewards/jamgym_rewards/assets/coherence.safetensors

`jamgym train-coherence` does the same at the end of a training. The tensors stay as they are, and so do the scores of
mode "both"; the file's metadata and its card get calibration and figures of "harmonic" and "percussive".
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from jamgym import registry
from jamgym.checkpoint import load_tensors, save_tensors
from jamgym.config import config_from_mapping
from jamgym.files import atomic_path
from jamgym.run import Run
from jamgym.specs import create_from_spec
from jamgym_rewards.coherence import CoherenceReward
from jamgym_rewards.features import SAMPLE_RATE
from jamgym_rewards.training import as_notes, part_calibrations
from jamgym_rewards.training_settings import CoherenceTrainingConfig


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="file of `jamgym train-coherence`, with its card beside it")
    path = parser.parse_args().weights
    card_path = path.with_suffix(".json")
    card = json.loads(card_path.read_text(encoding="utf-8"))
    config = config_from_mapping(CoherenceTrainingConfig, card["config"])
    tensors, metadata = load_tensors(path)
    network = CoherenceReward.build()
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    corpus = create_from_spec(registry.corpora, config.corpus, {"sample_rate": SAMPLE_RATE})
    codec = None if config.codec is None else create_from_spec(registry.codecs, config.codec)
    with (
        tempfile.TemporaryDirectory() as folder,
        Run.create(Path(folder) / "run", command="calibrate-modes", config={}, seed=config.seed) as run,
    ):
        modes = part_calibrations(config, corpus, codec, network, run)
    save_tensors(path, tensors, {**metadata, **as_notes(modes)})
    card["modes"] = modes
    with atomic_path(card_path) as new:
        new.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
