"""Fine-tuning a pretrained decoder with sequence PPO: one program from environment to checkpoint.

Saved after every so many rollouts, atomically and without pickle: actor, critic, optimizer, the KL controller, and
whatever the reward has learned. Songs, latencies, sampling and minibatches of a rollout are seeded by its number, so a
resumed run meets the same ones and ends with the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from jamgym.errors import ConfigError
from jamgym.playback import ON_TIME
from jamgym.reward import RewardModel
from jamgym.reward_learning import learn_from, load_reward_state, reward_state
from jamgym.wrappers.pause_clock import PauseClock
from jamgym_agents.decoder import AccompanimentDecoder, DecoderConfig
from jamgym_agents.ppo.sequence_ppo import SequencePPO
from jamgym_agents.ppo.settings import FinetuneConfig, actor_rate

if TYPE_CHECKING:
    from jamgym.record import EpisodeRecord
    from jamgym.run import Run

_KIND = "finetune"


class _RunWriter(KVWriter):
    """Sends what stable-baselines3 logs to the run folder, with the rollout as the step."""

    def __init__(self, run: Run, model: SequencePPO) -> None:
        self._run, self._model = run, model

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        numbers = {key: float(value) for key, value in key_values.items() if isinstance(value, (int, float, np.number))}
        self._run.log(self._model.rollouts, {key: value for key, value in numbers.items() if np.isfinite(value)})

    def close(self) -> None:
        """Nothing to close: the run folder owns the files."""


class RolloutCallback(BaseCallback):
    """Reseeds each rollout, logs, shows progress, writes audio and checkpoints, and stops when asked to."""

    def __init__(self, config: FinetuneConfig, run: Run, save: Callable[[], None], progress: Any) -> None:
        super().__init__()
        self._config, self._run, self._save, self._progress = config, run, save, progress
        self._started = time.monotonic()
        self.scores: list[float] = []
        #: What the reward has learned and counted after the last whole rollout; a cut one does not count.
        self.reward_state: dict[str, Any] | None = None

    @property
    def _model(self) -> SequencePPO:
        assert isinstance(self.model, SequencePPO)
        return self.model

    def _on_rollout_start(self) -> None:
        if self._model.rollouts and self._model.rollouts % self._config.save_every == 0:
            self._save()
        reseed(self._model, self._config.seed)

    def _on_rollout_end(self) -> None:
        model, config, records = self._model, self._config, self.locals["records"]
        self.scores.append(float(np.mean([record.rewards.sum() for record in records])))
        self.logger.record("rollout/score", self.scores[-1])
        for t_f, score in scores_by_visibility(records).items():
            self.logger.record(f"rollout/score_tf{t_f}", score)
        self.logger.record("rollout/late_share", float(np.mean([(r.status != ON_TIME).mean() for r in records])))
        for name in records[0].components:
            mean = float(np.mean([record.components[name] for record in records]))
            self.logger.record(f"rollout/reward/{name}", mean)
        reward, codec = reward_of(self.training_env), self.training_env.get_attr("codec")[0]
        # It has scored this rollout; what it learns from it counts from the next one on.
        figures = learn_from(reward, records, codec, np.random.default_rng(streams(config.seed, model.rollouts)[3]))
        for name, value in figures.items():
            self.logger.record(f"reward/{name}", value)
        self.reward_state = reward_state(reward)
        self._progress.advance(1, score=self.scores[-1])
        if config.audio_every and model.rollouts % config.audio_every == 0 and records[0].played_audio is not None:
            mix = records[0].episode.heard + records[0].played_audio
            self._run.add_audio(model.rollouts, "mix", mix, codec.sample_rate)

    def _on_step(self) -> bool:
        minutes = (time.monotonic() - self._started) / 60
        over = self._config.max_minutes is not None and minutes > self._config.max_minutes
        # A rollout that is cut is played anew after a resume, so it is dropped, not trained on.
        return not (self._run.stop_requested or over)


def scores_by_visibility(records: Sequence[EpisodeRecord]) -> dict[int, float]:
    """Return the mean score of the episodes of each t_f; nothing if all have the same one."""
    scores: dict[int, list[float]] = {}
    for record in records:
        scores.setdefault(record.timing.t_f, []).append(float(record.rewards.sum()))
    return {} if len(scores) < 2 else {t_f: float(np.mean(scores[t_f])) for t_f in sorted(scores)}


def reseed(model: SequencePPO, seed: int) -> None:
    """Give songs, latencies, sampling and minibatch order the seed of the coming rollout."""
    songs, sampling, order = (number_of(child) for child in streams(seed, model.rollouts)[:3])
    if model.env is None:
        raise ConfigError("The model has no environment.")
    model.env.seed(songs % 2**31)
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model.policy.player.seed(sampling)
    model.batch_generator.manual_seed(order)
    # At its end, the rows begin episodes that are thrown away. As these are those of the next rollout, which are drawn
    # again then, no song is loaded and encoded for nothing.
    following = number_of(streams(seed, model.rollouts + 1)[0]) % 2**31
    simulation = model.env.get_attr("simulation")[0]
    for row in range(model.env.num_envs):
        simulation.seed(row, following + row)


def streams(seed: int, rollout: int) -> list[np.random.SeedSequence]:
    """Return the seeds of a rollout: songs, sampling, minibatches and the reward's learning."""
    return np.random.SeedSequence([seed, rollout]).spawn(4)


def number_of(stream: np.random.SeedSequence) -> int:
    """Return a seed as a number, for generators that are not numpy's."""
    return int(stream.generate_state(1)[0])


def reward_of(env: Any) -> RewardModel | None:
    """Return the reward model of `env`, or None if it has none."""
    return getattr(env.get_attr("simulation")[0].scorer, "reward", None)


def make_env(config: FinetuneConfig) -> Any:
    """Return the training environment as a stable-baselines3 `VecEnv`."""
    from jamgym.vector_env import AccompanimentVectorEnv
    from jamgym.wrappers.sb3 import JamgymSB3VecEnv

    names = ("corpus", "codec", "reward", "t_f", "k", "frames", "latency", "clock", "late_policy", "allow_lookahead")
    settings = {name: getattr(config, name) for name in (*names, "instruments", "max_songs")}
    return JamgymSB3VecEnv(AccompanimentVectorEnv(config.envs, split="train", **settings))


def make_model(config: FinetuneConfig, env: Any, state: Mapping[str, Any] | None = None) -> SequencePPO:
    """Return the PPO model at its start; for a run that goes on from `state`, one to put its weights into."""
    from jamgym_agents.checkpoint import load_decoder, new_decoder

    codec = env.get_attr("codec")[0]

    def loaded_or_new(path: str | None, part: str) -> AccompanimentDecoder:
        # A run goes on without the decoders that it started from, which may be gone by now. Old states need them.
        sizes = None if state is None else state.get(part)
        return load_decoder(path, codec) if sizes is None else new_decoder(DecoderConfig(**sizes), codec)

    if state is not None and state.get("reference_name") != config.reference:
        raise ConfigError(
            f"reference is {config.reference!r}, but this run is held to {state.get('reference_name')!r} (None is its "
            "start) and keeps that in its checkpoint. Leave it, or begin a new run with --checkpoint."
        )
    return SequencePPO(
        env,
        loaded_or_new(config.checkpoint, "architecture"),
        learning_rate=lambda remaining: actor_rate(remaining, config),
        critic_learning_rate=config.critic_learning_rate,
        episodes_per_batch=config.episodes_per_batch,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        kl_reference=config.kl_reference,
        kl_teacher=config.kl_teacher,
        teacher_t_f=config.teacher_t_f,
        teacher_guidance=config.teacher_guidance,
        teacher_kl=config.teacher_kl,
        kl_target=config.kl_target,
        critic_warm_up=config.critic_warm_up,
        reward_scale=config.reward_scale,
        sampling=config.sampling,
        bf16=config.bf16,
        reference=None if config.reference is None else loaded_or_new(config.reference, "reference_architecture"),
        seed=config.seed,
        stats_window_size=config.envs,
    )


def finetune(config: FinetuneConfig, run: Run) -> dict[str, float]:
    """Fine-tune, checkpoint, resume; writes `decoder.safetensors` into the run folder.

    Returns:
        Mean episode score of the first and of the last five rollouts, and how many there were.
    """
    from jamgym.checkpoint import load_state, save_state
    from jamgym_agents.checkpoint import save_decoder

    torch.manual_seed(config.seed)
    env = make_env(config)
    codec = env.get_attr("codec")[0]
    path = run.folder / "checkpoint.safetensors"
    expect = {"kind": _KIND, "codec": codec.version}
    state = load_state(path, expect=expect) if path.exists() else None
    model = make_model(config, env, state)
    scores: list[float] = []
    if state is not None:
        model.policy.decoder.load_state_dict(state["decoder"])
        model.policy.critic.load_state_dict(state["critic"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        model.policy.optimizer.param_groups[1]["lr"] = config.critic_learning_rate
        model.reference.load_state_dict(state["reference"])
        model.rollouts = int(state["rollouts"])
        # By today's sizes, which may be others, so that schedules go on by rollouts.
        model.num_timesteps = model.rollouts * model.n_steps * config.envs
        if config.kl_target is not None:
            model.kl_scale = float(state["kl_scale"])
        scores = [float(score) for score in state["scores"]]
        load_reward_state(reward_of(env), state.get("reward"))
    if run.resumed:
        run.truncate(model.rollouts)  # a run that was killed may have logged more than its checkpoint has, or has none

    def save() -> None:
        run.keep_settings()
        save_state(
            path,
            {
                "architecture": asdict(model.policy.decoder.config),
                "decoder": model.policy.decoder.state_dict(),
                "critic": model.policy.critic.state_dict(),
                "optimizer": model.policy.optimizer.state_dict(),
                "reference": model.reference.state_dict(),
                "reference_architecture": asdict(model.reference.config),
                "reference_name": config.reference,
                "rollouts": model.rollouts,
                "num_timesteps": model.num_timesteps,
                "kl_scale": model.kl_scale,
                "scores": scores[: model.rollouts],
                "reward": callback.reward_state,
            },
            expect,
        )

    with run.progress(config.rollouts, "finetune", done=model.rollouts) as progress:
        callback = RolloutCallback(config, run, save, progress)
        callback.scores, callback.reward_state = scores, reward_state(reward_of(env))
        model.set_logger(Logger(None, [_RunWriter(run, model)]))
        left = (config.rollouts - model.rollouts) * model.n_steps * config.envs
        if left > 0:
            model.learn(left, callback=[callback, PauseClock()], log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
    save()
    save_decoder(
        run.folder / "decoder.safetensors",
        model.policy.decoder,
        codec.version,
        {"config": asdict(config), "rollouts": model.rollouts},
    )
    scores = scores[: model.rollouts]
    figures = {
        "rollouts": float(model.rollouts),
        "score_first": float(np.mean(scores[:5])) if scores else 0.0,
        "score_last": float(np.mean(scores[-5:])) if scores else 0.0,
    }
    run.write_json("metrics.json", figures)
    return figures
