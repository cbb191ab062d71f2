"""Write a decoder with its matrices in eight bits, as the fine-tuned decoder is shipped: half the size.

    python scripts/ship_decoder.py runs/long/decoder.safetensors agents/jamgym_agents/assets/ppo.safetensors

Architecture, codec and training settings are kept. What was lost can be heard with `jamgym evaluate`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jamgym import registry
from jamgym.checkpoint import read_metadata
from jamgym.specs import create_from_spec
from jamgym_agents.checkpoint import load_decoder, save_decoder


def main() -> None:
    """Read one file and write the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a decoder.safetensors")
    parser.add_argument("destination", type=Path, help="the file to write")
    parser.add_argument("--codec", default="spectral", help="that the decoder was trained on (spectral)")
    args = parser.parse_args()
    codec = create_from_spec(registry.codecs, args.codec)
    training = json.loads(read_metadata(args.source)["training"])
    save_decoder(args.destination, load_decoder(args.source, codec), codec.version, training, eight_bit=True)


if __name__ == "__main__":
    main()
