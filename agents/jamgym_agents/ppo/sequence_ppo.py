"""Sequence PPO on stable-baselines3: whole episodes, ratios per token, values and advantages per chunk.

What differs from `stable_baselines3.PPO`, and why:

- A rollout is one whole episode per environment, and a minibatch holds whole episodes, so one
  teacher-forced pass gives all log-probabilities.
- Ratios are clipped per token: the joint ratio of a chunk of k * Q tokens leaves any clip range at once.
- Advantages are whitened once per rollout over the chunks that exist, not per minibatch.
- The value of a truncated episode's end comes from its terminal observation.
- Each episode is recomputed through the mask of its own t_f, so one run may draw t_f from a set.
- A frozen reference, seen through the same mask (KL to the start, say) or through a wider one (KL to the
  look-ahead teacher), keeps the policy musical; both are exact over the vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from jamgym.errors import ConfigError, JamgymError, unknown_name_message
from jamgym_agents.decoder import AccompanimentDecoder
from jamgym_agents.ppo import losses
from jamgym_agents.ppo.buffer import EpisodeBatch, EpisodeBuffer
from jamgym_agents.ppo.environment import check_fits, check_settings, rollout_shape
from jamgym_agents.ppo.policy import DecoderActorCritic
from jamgym_agents.ppo.teacher_forcing import episode_log_probs, with_log_probs
from jamgym_agents.sampling import Sampling


def _processor(device: torch.device | str) -> str:
    """Return "cpu", also for "auto", which would take a GPU; refuse other devices."""
    if str(device) not in ("auto", "cpu"):
        raise ConfigError(f"device is {str(device)!r}; SequencePPO runs on the processor: leave it out.")
    return "cpu"


#: Arguments of `stable_baselines3.PPO` that are passed on.
_PASSED_ON = ("tensorboard_log", "verbose", "seed", "stats_window_size")


class SequencePPO(PPO):
    """Fine-tunes a decoder on an accompaniment environment.

    Args:
        env: A `JamgymSB3VecEnv` in observation mode "new". `set_env` and `load` take another one, of other t_f too.
        decoder: The start policy.
        learning_rate: Of the actor; a float or a schedule of the remaining progress.
        critic_learning_rate: Of the critic.
        episodes_per_batch: Episodes per minibatch.
        n_epochs: Passes over a rollout.
        gamma: Discount per chunk.
        gae_lambda: Trace decay per chunk.
        clip_range: Of the ratio per token.
        vf_coef: Weight of the value loss.
        ent_coef: Weight of the entropy bonus.
        kl_reference: Weight of KL(policy || reference).
        kl_teacher: Weight of the KL to the teacher.
        teacher_t_f: Future visibility of the teacher, which is the reference under a wider mask.
        teacher_guidance: Guidance of the teacher, whatever that of the sampling is.
        teacher_kl: "forward", KL(teacher || policy); "reverse", KL(policy || teacher); "both", their mean.
        kl_target: If given, the weights of both KL terms are adapted so that KL(policy || reference)
            stays near it (Ziegler et al. 2019).
        critic_warm_up: Rollouts in which only the critic learns.
        reward_scale: Multiplies rewards; an episode's rewards sum to its score, so each is small.
        sampling: One distribution for rollout, update and reference.
        bf16: Compute the update's matrix products in bfloat16; log-probabilities of the rollout are
            then recomputed in the same precision before the first step.
        max_grad_norm: Of the actor and of the critic, each for itself.
        reference: The frozen decoder that the KL terms hold on to, which may have another size; None takes the start.
        policy: Ignored; stable-baselines3's `load` passes it.
        device: "cpu" or "auto", which is the same; other devices are not supported yet.
        **kwargs: Of `stable_baselines3.PPO`: tensorboard_log, verbose, seed, stats_window_size.

    Raises:
        ConfigError: The environment's episodes cannot be recomputed; an argument of `stable_baselines3.PPO` that has
            no meaning here, or a device other than the processor; a sampling that leaves nothing to draw.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"DecoderPolicy": DecoderActorCritic}
    policy: DecoderActorCritic  # type: ignore[assignment]
    rollout_buffer: EpisodeBuffer

    def __init__(
        self,
        env: VecEnv,
        decoder: AccompanimentDecoder | None = None,
        learning_rate: Any = 5e-5,
        critic_learning_rate: float = 1e-3,
        episodes_per_batch: int = 8,
        n_epochs: int = 1,
        gamma: float = 0.98,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        vf_coef: float = 0.5,
        ent_coef: float = 0.0,
        kl_reference: float = 0.02,
        kl_teacher: float = 0.0,
        teacher_t_f: int = 25,
        teacher_guidance: float = 1.0,
        teacher_kl: losses.TeacherKL = "both",
        kl_target: float | None = None,
        critic_warm_up: int = 2,
        reward_scale: float = 10.0,
        sampling: Sampling | None = None,
        bf16: bool = False,
        max_grad_norm: float = 1.0,
        reference: AccompanimentDecoder | None = None,
        policy: Any = None,
        device: torch.device | str = "cpu",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        self.batch_generator = torch.Generator()
        for name in kwargs:
            if name not in _PASSED_ON:
                raise ConfigError(unknown_name_message("argument of SequencePPO", name, _PASSED_ON))
        if teacher_kl not in get_args(losses.TeacherKL):
            raise ConfigError(unknown_name_message("teacher_kl", teacher_kl, get_args(losses.TeacherKL)))
        device = _processor(device)
        if decoder is None:
            if _init_setup_model:
                raise ConfigError("SequencePPO needs a decoder to start from: give decoder=load_decoder(None, codec).")
            # `SequencePPO.load` makes an empty model first and fills it from the file.
            super().__init__(DecoderActorCritic, env, device=device, _init_setup_model=False)  # type: ignore[arg-type]
            return
        check_settings(env.get_attr("settings")[0])
        codec = env.get_attr("codec")[0]
        self.codec_version = codec.version
        self.k, calls = rollout_shape(env)
        self.teacher_t_f, self.teacher_guidance, self.teacher_kl = teacher_t_f, teacher_guidance, teacher_kl
        self.kl_reference, self.kl_teacher, self.kl_target = kl_reference, kl_teacher, kl_target
        self.kl_scale = 1.0
        self.critic_warm_up = critic_warm_up
        self.reward_scale = reward_scale
        self.sampling = sampling or Sampling()
        self.sampling.check_draws()
        self.bf16 = bf16
        self.episodes_per_batch = episodes_per_batch
        self.rollouts = 0
        self.reference = copy.deepcopy(decoder if reference is None else reference).eval().requires_grad_(False)
        super().__init__(
            DecoderActorCritic,  # type: ignore[arg-type]
            env,
            learning_rate=learning_rate,
            n_steps=calls,
            batch_size=calls * env.num_envs,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            normalize_advantage=False,  # they are whitened over the whole rollout
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            rollout_buffer_class=EpisodeBuffer,
            rollout_buffer_kwargs={"k": self.k, "codebooks": codec.num_codebooks},
            policy_kwargs={
                "decoder": decoder,
                "k": self.k,
                "sampling": self.sampling,
                "critic_learning_rate": critic_learning_rate,
                "seed": kwargs.get("seed") or 0,
            },
            device=device,
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        # Streams of their own, so that neither depends on what else draws numbers. A loaded model goes on with others.
        self.batch_generator.manual_seed((self.seed or 0) + 1 + self.rollouts)
        if self.rollouts:
            self.policy.player.seed((self.seed or 0) + 1 + self.rollouts)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.env is not None:
            check_fits(self.env, self.k, self.n_steps, self.codec_version)
        return super()._setup_learn(*args, **kwargs)

    @classmethod
    def load(  # type: ignore[override]
        cls, path: Any, env: Any = None, device: torch.device | str = "cpu", **kwargs: Any
    ) -> SequencePPO:
        """Load a model from a file of `save`, as stable-baselines3 does, to the processor.

        The file is unpickled: load only your own.
        """
        return super().load(path, env, _processor(device), **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "batch_generator"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play one whole episode in every environment."""
        assert isinstance(rollout_buffer, EpisodeBuffer)
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        observation: Any = self._last_obs
        if observation is None or not (observation["frame"] == 0).all():
            observation = env.reset()
        self.policy.player.reset(np.ones(env.num_envs, dtype=bool))
        alive = np.ones(env.num_envs, dtype=bool)
        last_values = np.zeros(env.num_envs, dtype=np.float32)
        records: list[Any] = [None] * env.num_envs
        steps_before = self.num_timesteps
        for _ in range(n_rollout_steps):
            actions, values, log_probs = self.policy.act(observation)
            following, rewards, dones, infos = env.step(actions)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                # Dropped, not trained on; schedules go on from where they were.
                self.num_timesteps = steps_before
                self._last_obs = None  # the environment stands in the middle of an episode
                return False
            rollout_buffer.add_call(values.numpy(), log_probs.numpy(), rewards * self.reward_scale, alive)
            ended = np.flatnonzero(dones & alive)
            if len(ended):
                self._update_info_buffer([infos[row] for row in ended], dones[ended])
                last_values[ended] = self._terminal_values(dict(following), infos, ended)  # type: ignore[arg-type]
                for row in ended.tolist():
                    records[row] = env.env_method("final_record", indices=[row])[0]
                alive[ended] = False
            observation = following
            if not alive.any():
                break
        # A rollout counts whole, however short its episodes were, so that schedules run by rollouts.
        self.num_timesteps += (n_rollout_steps - rollout_buffer.pos) * env.num_envs
        rollout_buffer.finish(records, last_values)
        self._last_obs = observation
        self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _terminal_values(self, following: dict[str, np.ndarray], infos: list[dict], ended: np.ndarray) -> np.ndarray:
        """Return the values of the terminal observations of rows `ended`; 0 for terminated episodes."""
        terminal = {key: value.copy() for key, value in following.items()}
        for row in ended.tolist():
            for key in terminal:
                terminal[key][row] = infos[row]["terminal_observation"][key]
        values = self.policy.peek_values(terminal).numpy()[ended]
        truncated = np.array([infos[row]["TimeLimit.truncated"] for row in ended.tolist()])
        return np.where(truncated, values, 0.0).astype(np.float32)

    def _log_probs(
        self,
        decoder: AccompanimentDecoder,
        batch: EpisodeBatch,
        t_f: int | None = None,
        sampling: Sampling | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `episode_log_probs` of a decoder; t_f and sampling are those of the rollout where they are None."""
        ahead = batch.t_f if t_f is None else torch.full_like(batch.t_f, t_f)
        return episode_log_probs(decoder, batch, ahead, self.k, sampling or self.sampling, self.bf16)

    def train(self) -> None:
        """Update actor and critic on the last rollout."""
        self.policy.set_training_mode(False)  # dropout stays off: the ratio has to start at 1
        buffer, rate = self.rollout_buffer, self.lr_schedule(self._current_progress_remaining)
        self.policy.optimizer.param_groups[0]["lr"] = rate
        actor_learns = self.rollouts >= self.critic_warm_up
        clip = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        figures: dict[str, list[float]] = {}
        if self.bf16 and buffer.batch is not None:
            buffer.batch = with_log_probs(
                buffer.batch,
                lambda part: self._log_probs(self.policy.decoder, part)[0],
                self.episodes_per_batch,
            )
        for _ in range(self.n_epochs):
            for batch in buffer.episodes(self.episodes_per_batch, self.batch_generator):
                for name, value in self._update(batch, clip, actor_learns).items():
                    figures.setdefault(name, []).append(value)
        self.rollouts += 1
        self._n_updates += self.n_epochs
        means = {name: float(np.mean(values)) for name, values in figures.items()}
        if self.kl_target is not None and actor_learns:
            error = np.clip(means["kl_reference"] / self.kl_target - 1, -0.2, 0.2)
            self.kl_scale *= float(1 + 0.1 * error)
        valid = np.arange(buffer.buffer_size) < buffer.lengths[:, None]
        explained = np.nan_to_num(explained_variance(buffer.values[valid], buffer.returns[valid]))
        trained = float(buffer.batch.token_mask.float().mean()) if buffer.batch else 0.0
        shown = {"explained_variance": float(explained), "learning_rate": rate, "kl_scale": self.kl_scale}
        for name, value in (means | shown | {"rollouts": self.rollouts, "trained_tokens": trained}).items():
            self.logger.record(f"train/{name}", value)
        self.logger.dump(self.rollouts)

    def _update(self, batch: EpisodeBatch, clip: float, actor_learns: bool) -> dict[str, float]:
        frames, codebooks = batch.played.shape[1:]
        log_p, hidden = self._log_probs(self.policy.decoder, batch)
        chosen = log_p.gather(-1, batch.played.unsqueeze(-1)).squeeze(-1)
        mask = batch.token_mask.unsqueeze(-1).expand(-1, -1, codebooks)
        advantages = losses.chunks_to_tokens(batch.advantages, self.k, frames, codebooks)
        policy_loss, figures = losses.clipped_policy_loss(chosen, batch.log_probs, advantages, mask, clip)
        values = self.policy.critic(hidden[:, :: self.k])
        value_loss = losses.value_loss(values, batch.returns, batch.chunk_mask)
        spread = losses.masked_mean(losses.entropy(log_p), mask)
        loss = policy_loss - self.ent_coef * spread
        with torch.no_grad():
            reference, _ = self._log_probs(self.reference, batch)
        kl = losses.masked_mean(losses.exact_kl(log_p, reference), mask)
        loss = loss + self.kl_scale * self.kl_reference * kl
        figures["kl_reference"] = kl.detach()
        if self.kl_teacher > 0:
            sampling = replace(self.sampling, guidance=self.teacher_guidance)
            with torch.no_grad():
                teacher, _ = self._log_probs(self.reference, batch, self.teacher_t_f, sampling)
            kl_teacher = losses.masked_mean(losses.teacher_divergence(log_p, teacher, self.teacher_kl), mask)
            loss = loss + self.kl_scale * self.kl_teacher * kl_teacher
            figures["kl_teacher"] = kl_teacher.detach()
        total = self.vf_coef * value_loss
        if actor_learns:
            total = total + loss
        optimizer = self.policy.optimizer
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        actor_norm = torch.nn.utils.clip_grad_norm_(self.policy.decoder.parameters(), self.max_grad_norm)
        critic_norm = torch.nn.utils.clip_grad_norm_(self.policy.critic.parameters(), self.max_grad_norm)
        if not torch.isfinite(total.detach() + actor_norm + critic_norm):
            # Before the step: the weights, and so the next checkpoint, stay as they were.
            raise JamgymError(
                f"The update of rollout {self.rollouts + 1} is not finite: loss {float(total.detach())}, gradient "
                f"norms {float(actor_norm)} (actor) and {float(critic_norm)} (critic). The last checkpoint, if any, "
                "is intact; resume it, or start again, with a lower learning_rate or reward_scale, or with bf16 off."
            )
        optimizer.step()
        figures |= {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": spread.detach(),
            "actor_grad_norm": actor_norm,
        }
        return {name: float(value) for name, value in figures.items()}
