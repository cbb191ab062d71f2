"""The settings of fine-tuning, and the actor's learning rate that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jamgym.errors import ConfigError
from jamgym.playback import LatePolicy
from jamgym.ranges import check_above_zero, check_at_least, check_shares
from jamgym.registry import rewards
from jamgym_agents.ppo.losses import TeacherKL
from jamgym_agents.sampling import Sampling


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `jamgym finetune`.

    Attributes:
        corpus: Corpus name, or a mapping with `name` and its arguments.
        codec: Codec name, or a mapping with `name` and its arguments.
        reward: Reward name, or a mapping with `name` and its arguments; never the judge, nor a mixture with it.
        checkpoint: Decoder to start from: a file, or the name of a shipped one, "mle" or "ppo"; None takes "mle".
        reference: Decoder that stays frozen and that both KL terms hold on to, as `checkpoint`; None takes the start.
        t_f: Future visibility in frames, or a list from which each episode draws its own, for one policy for several
            latencies. What `latency` makes late is not trained: with 0 in the list, let it be "none".
        k: Frames per call.
        frames: Frames per episode.
        latency: Latency model, "none" or a mapping with `name` and its arguments, or a list of them from which each
            episode draws, for latency-robust training.
        clock: "simulated" draws latencies; "measured" charges this machine's real time, for one environment
            (`envs` 1), with the updates left out. A measured run cannot be repeated bit for bit.
        late_policy: What plays instead of a late frame: "silence", "repeat" or "conceal".
        allow_lookahead: Allow settings that cannot be played live; they are labelled.
        instruments: Target classes; None allows all.
        max_songs: Use only so many training songs; None uses all.
        rollouts: Rollouts, each of one episode per environment.
        envs: Environments played at once.
        episodes_per_batch: Episodes per minibatch.
        n_epochs: Passes over a rollout.
        learning_rate: Of the actor.
        critic_learning_rate: Of the critic.
        warm_up: Rollouts over which the actor's rate rises, from the first one in which it learns.
        gamma: Discount per chunk.
        gae_lambda: Trace decay per chunk.
        clip_range: Of the ratio per token.
        ent_coef: Weight of the entropy bonus.
        kl_reference: Weight of KL(policy || reference).
        kl_teacher: Weight of the KL to the look-ahead teacher.
        teacher_t_f: Future visibility of the teacher, which is the reference.
        teacher_guidance: Guidance of the teacher, so that the policy can learn to play as with guidance without it.
        teacher_kl: "forward": KL(teacher || policy), so that the policy covers what the teacher would play after any
            future that may come; "reverse": KL(policy || teacher), so that it keeps to what fits all of them; "both":
            the mean of the two.
        kl_target: Adapt the KL weights towards this KL per token; None keeps them.
        critic_warm_up: Rollouts in which only the critic learns.
        reward_scale: Multiplies rewards.
        sampling: Temperature, top-k, top-p and guidance of rollout, update and reference; play the decoder with the
            same ones.
        bf16: Compute the update's matrix products in bfloat16.
        save_every: Rollouts between checkpoints.
        audio_every: Rollouts between audio examples in TensorBoard; 0 writes none.
        max_minutes: Stop after so many minutes, with a checkpoint; None has no limit.
        seed: Seed of everything.
    """

    corpus: str | dict[str, Any] = "band"
    codec: str | dict[str, Any] = "spectral"
    reward: str | dict[str, Any] = "coherence"
    checkpoint: str | None = None
    reference: str | None = None
    t_f: int | tuple[int, ...] = -25
    k: int = 5
    frames: int = 250
    latency: str | dict[str, Any] | tuple[str | dict[str, Any], ...] = field(
        default_factory=lambda: {"name": "lognormal", "median_seconds": 0.06, "sigma": 0.3}
    )
    clock: Literal["simulated", "measured"] = "simulated"
    late_policy: LatePolicy = "silence"
    allow_lookahead: bool = False
    instruments: tuple[str, ...] | None = None
    max_songs: int | None = None
    rollouts: int = 200
    envs: int = 32
    episodes_per_batch: int = 8
    n_epochs: int = 1
    learning_rate: float = 2e-4
    critic_learning_rate: float = 1e-3
    warm_up: int = 2
    gamma: float = 0.98
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    kl_reference: float = 0.02
    kl_teacher: float = 0.0
    teacher_t_f: int = 25
    teacher_guidance: float = 1.0
    teacher_kl: TeacherKL = "both"
    kl_target: float | None = None
    critic_warm_up: int = 2
    reward_scale: float = 10.0
    sampling: Sampling = field(default_factory=Sampling)
    bf16: bool = True
    save_every: int = 5
    audio_every: int = 20
    max_minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        counts = ("rollouts", "envs", "episodes_per_batch", "n_epochs", "frames", "k", "save_every", "max_songs")
        weights = ("learning_rate", "critic_learning_rate", "ent_coef", "kl_reference", "kl_teacher")
        others = ("teacher_guidance", "warm_up", "critic_warm_up", "audio_every", "seed")
        check_at_least(self, dict.fromkeys(counts, 1))
        check_at_least(self, dict.fromkeys((*weights, *others), 0))
        check_above_zero(self, ("clip_range", "reward_scale", "kl_target", "max_minutes"))
        check_shares(self, ("gamma", "gae_lambda"))
        if self.seed >= 2**32:
            raise ConfigError(f"seed is {self.seed}; it must be below 2**32.")
        self.sampling.check_draws()
        if _names_judge(self.reward):
            raise ConfigError("The judge is for evaluation only. Train on another reward, for example 'coherence'.")


def _names_judge(reward: Any) -> bool:
    """Whether a reward spec, or a component of a mixture in it, is the judge, by name or by path."""
    if isinstance(reward, str):
        return reward in ("judge", rewards.paths().get("judge", "judge"))
    if not isinstance(reward, Mapping):
        return False  # whoever makes the reward says what is wrong with it
    parts = reward.get("rewards")
    return _names_judge(reward.get("name")) or (isinstance(parts, (list, tuple)) and any(map(_names_judge, parts)))


def actor_rate(remaining: float, config: FinetuneConfig) -> float:
    """Return the actor's rate of an update after which a share `remaining` of all rollouts is left.

    It rises over `warm_up` rollouts, the first of which is the first that the critic does not have alone, and falls
    to a tenth of the peak.
    """
    learning = (1.0 - remaining) * config.rollouts - config.critic_warm_up
    rise = 1.0 if config.warm_up == 0 else min(1.0, max(learning, 0.0) / config.warm_up)
    return config.learning_rate * rise * (0.1 + 0.9 * remaining)
