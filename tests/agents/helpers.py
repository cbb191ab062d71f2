"""Tiny decoders, environments and configurations for the agents' tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jamgym import AccompanimentVectorEnv
from jamgym.testing import ToyCodec, ToyCorpus, ToyReward
from jamgym.wrappers.sb3 import JamgymSB3VecEnv
from jamgym_agents.checkpoint import new_decoder, save_decoder
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.mle.settings import PretrainConfig
from jamgym_agents.ppo.sequence_ppo import SequencePPO
from jamgym_agents.ppo.settings import FinetuneConfig

TINY = DecoderConfig(latent_dim=8, dim=32, layers=2, heads=2, kv_heads=1, depth_dim=32, dropout=0.1)
PRETRAIN = PretrainConfig(
    corpus={"name": "jamgym.toys:ToyCorpus", "songs": 3, "seconds": 2.0},
    codec="jamgym.toys:ToyCodec",
    validation_songs=2,
    frames=30,
    steps=30,
    batch=4,
    learning_rate=3e-3,
    warm_up=3,
    t_f_low=-10,
    t_f_high=10,
    bf16=False,
    validate_every=10,
    checkpoint_minutes=0.0,
    architecture=TINY,
)


def tiny_decoder(seed: int = 0, sharpness: float = 4.0, **settings: Any) -> AccompanimentDecoder:
    """Return an untrained decoder whose heads and attention are loud enough that everything matters.

    `settings` replace those of `TINY`.
    """
    torch.manual_seed(seed)
    decoder = new_decoder(replace(TINY, **settings), ToyCodec()).eval()
    with torch.no_grad():
        for block in decoder.blocks:
            block.qkv.weight *= 3.0
        for head in decoder.depth.head:
            head.weight *= sharpness
        if decoder.aligned is not None:
            decoder.aligned.project.weight.normal_(std=0.5)
    return decoder


def vec_env(envs: int = 4, reward=None, seconds: float = 3.0, **settings) -> AccompanimentVectorEnv:
    settings = {"t_f": -5, "k": 5, "frames": 22, "codec": ToyCodec(), **settings}
    return AccompanimentVectorEnv(
        envs,
        corpus=ToyCorpus(songs=3, seconds=seconds),
        reward=ToyReward() if reward is None else reward,
        **settings,
    )


def make_ppo(env: AccompanimentVectorEnv, decoder: AccompanimentDecoder | None = None, **settings) -> SequencePPO:
    settings = {"critic_warm_up": 0, "episodes_per_batch": 2, "seed": 0, "learning_rate": 1e-3, **settings}
    return SequencePPO(JamgymSB3VecEnv(env), tiny_decoder() if decoder is None else decoder, **settings)


def learn(model: SequencePPO, rollouts: int = 1) -> SequencePPO:
    return model.learn(rollouts * model.n_steps * model.n_envs, log_interval=None)


def finetune_config(folder: Path, **settings: Any) -> FinetuneConfig:
    """Return five toy rollouts from a checkpoint that is written into `folder`; `settings` replace others."""
    path = folder / "start.safetensors"
    save_decoder(path, tiny_decoder(), ToyCodec().version, {})
    toy = FinetuneConfig(
        corpus={"name": "jamgym.toys:ToyCorpus", "songs": 3, "seconds": 3.0},
        codec="jamgym.toys:ToyCodec",
        reward="jamgym.toys:ToyReward",
        checkpoint=str(path),
        latency={"name": "lognormal", "median_seconds": 0.15, "sigma": 0.5},
        t_f=-5,
        k=5,
        frames=22,
        rollouts=5,
        envs=4,
        episodes_per_batch=2,
        critic_warm_up=1,
        save_every=2,
        audio_every=0,
        learning_rate=1e-3,
        bf16=False,
    )
    return replace(toy, **settings)
