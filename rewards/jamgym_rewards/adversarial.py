"""The reward `adversarial`: does what was played sound like the truth to a discriminator that learns along?

Convention: -log(1 - D), where D is the discriminator's probability that a window is the true stem and not the
agent's playing, given what is heard: log 2 = 0.69 where it cannot tell, 0 where it is sure of the agent, at most
`ceiling`; silence, a whisper or a single burst 0. Needs: nothing beyond audio to score; to learn, the true stems of
the episodes. Windows: 4 s every second, at least 2 s. Not causal: a score depends on the rollouts before.

Source: GAPT (arXiv 2511.17879), whose discriminator sees symbols, and the output alone; this one hears audio, and
what was played beside what was heard. It starts untrained, learns from the first rollout and from every fifth one,
later only when the mean reward of three rollouts passes 1. It keeps an agent from playing the one phrase that a
fixed reward likes best; alone it says little about coherence, so put it into a `mixture` with a reward that does.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import nn

from jamgym.checkpoint import load_state
from jamgym.codec import Audio, Codec
from jamgym.errors import CheckpointError
from jamgym.record import EpisodeRecord
from jamgym.reward_learning import rollout_windows, truth_as_played
from jamgym_rewards.discriminator import (
    DiscriminatorLearning,
    Examples,
    UpdateSchedule,
    WindowFeatures,
    check_finite,
    keep_some,
    minibatches,
    update,
)
from jamgym_rewards.features import pack
from jamgym_rewards.gating import GateSettings
from jamgym_rewards.joint import JointConfig, JointNetwork
from jamgym_rewards.learned import SCORING_VERSION, LearnedReward

#: Windows whose gate is less open than this teach nothing: the gate has judged them already.
_LEAST_OPEN = 0.5


class AdversarialReward(LearnedReward):
    """-log(1 - D) of a discriminator D that learns during fine-tuning; a `jamgym.reward.LearningReward`.

    Args:
        schedule: When it learns.
        learning: How it learns.
        learns: False freezes it.
        checkpoint: Checkpoint of a fine-tuning run, whose discriminator is the start; None starts untrained.
        channels: Width of the network.
        ceiling: Highest score.
        gates: Gate settings; None switches the gates off.
        window_seconds: Length of a window.
        hop_seconds: Time between windows.
        min_window_seconds: Shortest window.
        seed: Of the untrained weights.

    Attributes:
        rollouts: Rollouts seen so far.
        updates: Rollouts learned from so far.
        recent: Mean reward of the last `schedule.mean_over` rollouts.

    Example:
        >>> import numpy as np
        >>> from jamgym.reward import Windows
        >>> noise = np.random.default_rng(0).normal(0, 0.1, (1, 64000)).astype(np.float32)
        >>> reward = AdversarialReward()
        >>> reward.score(Windows(noise, np.zeros_like(noise), 16000)).tolist()
        [0.0]
        >>> bool(abs(reward.score(Windows(noise, noise, 16000))[0] - np.log(2)) < 0.3)  # untrained: cannot tell
        True
    """

    name = "adversarial"
    causal = False
    floor = 0.0
    range = (0.0, 5.0)
    convention = "-log(1 - D)"

    def __init__(
        self,
        schedule: UpdateSchedule = UpdateSchedule(),  # noqa: B008 - frozen
        learning: DiscriminatorLearning = DiscriminatorLearning(),  # noqa: B008 - frozen
        learns: bool = True,
        checkpoint: str | Path | None = None,
        channels: int = 48,
        ceiling: float = 5.0,
        gates: GateSettings | None = GateSettings(),  # noqa: B008 - frozen
        window_seconds: float = 4.0,
        hop_seconds: float = 1.0,
        min_window_seconds: float = 2.0,
        seed: int = 0,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = JointNetwork(replace(_SIZES, channels=channels, width=channels))
        super().__init__(gates=gates, network=network)
        self.discriminator = network
        self.schedule, self.learning, self.learns = schedule, learning, learns
        self.range = (0.0, ceiling)
        self.window_seconds, self.hop_seconds, self.min_window_seconds = window_seconds, hop_seconds, min_window_seconds
        self.rollouts, self.updates = 0, 0
        self.recent: tuple[float, ...] = ()
        self._replay: WindowFeatures | None = None
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=learning.learning_rate, betas=(0.5, 0.99), weight_decay=learning.weight_decay
        )
        if checkpoint is not None:
            self.load_state(_find_state(Path(checkpoint)))

    @classmethod
    def build(cls) -> nn.Module:
        """Return an untrained network of the default width."""
        return JointNetwork(_SIZES)

    @classmethod
    def squash(cls, output: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return -log(1 - D) of logits, without overflow.

        >>> AdversarialReward.squash(np.array([0.0, -800.0, 800.0])).round(2).tolist()
        [0.69, 0.0, 800.0]
        """
        return np.logaddexp(0.0, output)

    @property
    def version(self) -> str:
        """Scoring version and hash of the present weights."""
        digest = hashlib.sha256()
        for tensor in self.discriminator.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return f"{SCORING_VERSION}-{digest.hexdigest()[:8]}"

    # ------------------------------------------------------------------ learning

    def learn(self, records: Sequence[EpisodeRecord], codec: Codec, rng: Generator) -> dict[str, float]:
        """Count a rollout, and learn from it if the schedule says so.

        Real is what was heard with the true stem as the same speaker would have played it
        (`jamgym.reward_learning.truth_as_played`), fake is what was heard with what was played.

        Args:
            records: Finished episodes with their audio.
            codec: What decoded them.
            rng: Draws minibatches, dropout and replay.

        Returns:
            "mean_reward" of the rollout's windows, "updates" so far, and of an update the means of what
            `discriminator.update` returns.

        Raises:
            RewardError: An update is not finite.
        """
        if not self.learns:
            return {}
        rewards: list[NDArray[np.float32]] = []
        played = self._features(records, codec, [_played(record) for record in records], rewards)
        figures = {"mean_reward": float(np.concatenate(rewards).mean())}
        recent = (*self.recent, figures["mean_reward"])[-self.schedule.mean_over :]
        if self.schedule.due(self.rollouts + 1, recent):
            truth = self._features(records, codec, [truth_as_played(record, codec) for record in records])
            figures |= self._update(truth, played, rng)
        self.rollouts, self.recent = self.rollouts + 1, recent
        return {**figures, "updates": float(self.updates)}

    def _features(
        self,
        records: Sequence[EpisodeRecord],
        codec: Codec,
        audio: Sequence[Audio],
        scores: list[NDArray[np.float32]] | None = None,
    ) -> dict[int, WindowFeatures]:
        """Return by their length the windows that an open gate lets through; `scores` takes those of all windows."""
        found: dict[int, list[WindowFeatures]] = {}
        for windows in rollout_windows(self, codec, records, audio):  # type: ignore[arg-type]  # version is computed
            heard, played = self._audio(windows)
            sides, opened = self._cut(heard, played), self._opened(heard, played)
            if scores is not None:
                scores.append(self._scores(self._outputs(*sides), opened))
            kept = opened >= _LEAST_OPEN
            packed = WindowFeatures(*(pack(side[torch.from_numpy(kept)]) for side in sides))
            found.setdefault(windows.played.shape[1], []).append(packed)
        return {length: WindowFeatures.join(parts) for length, parts in found.items()}

    def _update(
        self, truth: Mapping[int, WindowFeatures], played: Mapping[int, WindowFeatures], rng: Generator
    ) -> dict[str, float]:
        groups = [Examples(truth[length], fakes) for length, fakes in sorted(played.items())]
        longest = groups[-1]
        if self._replay is not None and self._replay.played.shape[1:] == longest.fake.played.shape[1:]:
            groups[-1] = replace(longest, fake=WindowFeatures.join([longest.fake, self._replay]))
        before = self._copy()
        found: list[dict[str, float]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))  # dropout
            self.discriminator.train()
            try:
                for _ in range(self.learning.passes):
                    for batch in minibatches(groups, self.learning.batch, rng):
                        found.append(update(self.discriminator, self._optimizer, batch, self.learning))
                check_finite(self.discriminator)
            except BaseException:
                self._restore(before)
                raise
            finally:
                self.discriminator.eval()
        if not found:  # silence on one of the sides
            return {}
        self._replay = keep_some(self._replay, longest.fake, self.learning.replay, rng)
        self.updates += 1
        return {name: float(np.mean([figures[name] for figures in found])) for name in found[0]}

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return a copy of weights, optimizer, counters, recent rewards and replayed windows."""
        replay = self._replay
        return {
            "kind": self.name,
            "channels": self.discriminator.config.channels,
            "rollouts": self.rollouts,
            "updates": self.updates,
            "recent": list(self.recent),
            "replay": None if replay is None else {"heard": replay.heard.copy(), "played": replay.played.copy()},
            **self._copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on, bit for bit, from what `state` returned.

        Raises:
            CheckpointError: It is the state of another reward or of another width.
        """
        own = (self.name, self.discriminator.config.channels)
        found = (state.get("kind"), state.get("channels"))
        if found != own:
            raise CheckpointError(
                f"The state of a reward {found[0]!r} with channels={found[1]} does not fit reward {own[0]!r} with "
                f"channels={own[1]}. Give the reward the settings that it was trained with."
            )
        self._restore(state)
        self.rollouts, self.updates = int(state["rollouts"]), int(state["updates"])
        self.recent = tuple(float(reward) for reward in state["recent"])
        replay = state["replay"]
        self._replay = None if replay is None else WindowFeatures(replay["heard"], replay["played"])

    def _copy(self) -> dict[str, Any]:
        return {
            "network": copy.deepcopy(self.discriminator.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.discriminator.load_state_dict(state["network"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


#: Far smaller than the shipped networks: it learns from few windows and must not learn them by heart.
_SIZES = JointConfig(channels=48, width=48)


def _played(record: EpisodeRecord) -> Audio:
    assert record.played_audio is not None  # there is a reward, so the audio was kept
    return record.played_audio


def _find_state(path: Path) -> Mapping[str, Any]:
    """Return the discriminator's state in a checkpoint of `jamgym finetune`, also of one inside a mixture."""
    kept = load_state(path).get("reward") or {}
    for state in (kept, *(kept.get("rewards") or ())):
        if state and state.get("kind") == AdversarialReward.name:
            return state
    raise CheckpointError(f"{path} holds no discriminator; give the checkpoint of a run with reward 'adversarial'.")
