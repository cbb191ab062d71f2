"""Dense rewards: played codes in, decoded audio kept, windows scored when they end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jamgym.codec import Audio, Codec, Codes
from jamgym.concealment import conceal
from jamgym.episode import Episode
from jamgym.errors import ConfigError, RewardError
from jamgym.reward import RewardModel, WindowPlan, Windows, check_scores

#: Windows given to a reward model at once; bounds its memory.
MAX_BATCH = 64


def plan_windows(reward: RewardModel, codec: Codec, frames: int) -> WindowPlan:
    """Return the windows that `reward` scores an episode of `frames` frames on."""
    rate = codec.sample_rate / codec.hop_samples
    window, hop, shortest = (
        max(1, round(seconds * rate))
        for seconds in (reward.window_seconds, reward.hop_seconds, reward.min_window_seconds)
    )
    return WindowPlan.make(frames, window, hop, shortest)


def window_batch(
    reward: RewardModel,
    codec: Codec,
    episodes: Sequence[Episode],
    played: Sequence[Audio],
    starts: Sequence[int],
    ends: Sequence[int],
) -> Windows:
    """Cut one window [starts[j], ends[j]) in frames out of each episode; all must have one length."""
    hop, rate = codec.hop_samples, codec.sample_rate
    parts = [slice(a * hop, b * hop) for a, b in zip(starts, ends, strict=True)]
    needs = reward.needs
    return Windows(
        heard=np.stack([episode.heard[part] for episode, part in zip(episodes, parts, strict=True)]),
        played=np.stack([audio[part] for audio, part in zip(played, parts, strict=True)]),
        sample_rate=rate,
        target=np.stack([episode.target[part] for episode, part in zip(episodes, parts, strict=True)])
        if "target" in needs
        else None,
        truth=tuple(
            None if episode.truth is None else episode.truth.crop(part.start / rate, part.stop / rate)
            for episode, part in zip(episodes, parts, strict=True)
        )
        if "truth" in needs
        else None,
    )


def score_windows(
    reward: RewardModel,
    codec: Codec,
    episodes: Sequence[Episode],
    played: Sequence[Audio],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    parts: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Score windows of any lengths, one per entry of `episodes`, in batches of equal length.

    Args:
        reward: The reward model.
        codec: Gives the sample rate and the samples per frame.
        episodes: W episodes, one per window.
        played: W arrays `(S,)` of played audio.
        starts: `(W,)` first frame of each window.
        ends: `(W,)` frame after its last.
        parts: `(W, C)`, filled with the scores of the C components of a mixture.

    Returns:
        `(W,)` float32 scores.

    Raises:
        RewardError: The reward raised, or returned a wrong shape or a score that is not finite; names reward, song
            and window. What a reward raised is the error's cause.
    """
    scores = np.zeros(len(starts), dtype=np.float32)
    lengths = ends - starts
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        for first in range(0, len(same), MAX_BATCH):
            batch = same[first : first + MAX_BATCH].tolist()
            windows = window_batch(
                reward,
                codec,
                [episodes[j] for j in batch],
                [played[j] for j in batch],
                starts[batch].tolist(),
                ends[batch].tolist(),
            )
            # The names are only worth building once something is wrong.
            try:
                raw = reward.score(windows)
            except Exception as error:
                raise RewardError(
                    f"Reward {reward.name!r} raised {type(error).__name__} ({error}) for "
                    f"{_name_windows(episodes, starts, ends, batch)}."
                ) from error
            try:
                scores[batch] = check_scores(reward.name, raw, len(batch), "a batch")
            except RewardError:
                check_scores(reward.name, raw, len(batch), _name_windows(episodes, starts, ends, batch))
                raise
            if parts is not None:
                parts[batch] = reward.last_scores  # type: ignore[attr-defined]
    return scores


def _name_windows(
    episodes: Sequence[Episode], starts: NDArray[np.int64], ends: NDArray[np.int64], batch: Sequence[int]
) -> str:
    return "; ".join(
        f"song {episodes[j].song_id!r} target {episodes[j].target_name!r} window of frames {starts[j]}-{ends[j]}"
        for j in batch
    )


class EpisodeScorer:
    """Decodes what N rows play, keeps the audio, and rewards each call with the windows that end in its slots.

    The reward of a call is the sum of the scores of the windows that end in the slots it decided, divided by
    the number of windows of the episode: the rewards of an episode sum to the mean of its window scores.
    Of a mixture (a reward with `components` and `last_scores`) the mean of each component is kept as well.

    Args:
        reward: The reward model.
        codec: Decodes the played codes, as one stream per row.
        rows: Number of rows N.
        frames: Room for so many frames a row.
        fade: Whether concealed frames are faded (`jamgym.concealment`).
    """

    def __init__(self, reward: RewardModel, codec: Codec, rows: int, frames: int, fade: bool = False) -> None:
        check_reward(reward)
        self.reward = reward
        self.codec = codec
        self.rows = rows
        self.fade = fade
        self._decoder = codec.decoder(rows)
        self._level = np.ones(rows, dtype=np.float32)
        self._plans: dict[int, tuple[WindowPlan, NDArray[np.int64]]] = {}
        self._episodes: list[Episode | None] = [None] * rows
        self._row_index = np.arange(rows)
        #: Names of a mixture's components, and `(N, C)` their mean scores over the windows so far and to come.
        self.components: tuple[str, ...] = tuple(
            getattr(reward, "components", ()) if hasattr(reward, "last_scores") else ()
        )
        self.means = np.zeros((rows, len(self.components)), dtype=np.float64)
        self._allocate(frames)

    def _allocate(self, frames: int) -> None:
        most = len(plan_windows(self.reward, self.codec, frames)) + 1
        self._audio = np.zeros((self.rows, frames, self.codec.hop_samples), dtype=np.float32)
        self._ended = np.zeros((self.rows, frames + 1), dtype=np.int64)
        self._starts = np.zeros((self.rows, most), dtype=np.int64)
        self._ends = np.zeros((self.rows, most), dtype=np.int64)
        self._windows = np.ones(self.rows, dtype=np.int64)

    def grow(self, frames: int) -> None:
        """Make room for `frames` frames a row; episodes under way are kept."""
        old = (self._audio, self._ended, self._starts, self._ends, self._windows)
        self._allocate(frames)
        self._audio[:, : old[0].shape[1]] = old[0]
        self._ended[:, : old[1].shape[1]] = old[1]
        self._ended[:, old[1].shape[1] :] = old[1][:, -1:]
        self._starts[:, : old[2].shape[1]] = old[2]
        self._ends[:, : old[3].shape[1]] = old[3]
        self._windows[:] = old[4]

    def start(self, rows: NDArray[np.int64], episodes: Sequence[Episode]) -> None:
        """Begin `episodes` in `rows`, both of one length."""
        mask = np.zeros(self.rows, dtype=np.bool_)
        mask[rows] = True
        self._decoder.reset(mask)
        self._level[rows] = 1.0
        self.means[rows] = 0.0
        for row, episode in zip(rows.tolist(), episodes, strict=True):
            plan, ended = self._plan(episode.frames)
            self._episodes[row] = episode
            self._windows[row] = len(plan)
            self._starts[row, : len(plan)] = plan.starts
            self._ends[row, : len(plan)] = plan.ends
            self._ended[row, : len(ended)] = ended
            self._ended[row, len(ended) :] = len(plan)

    def _plan(self, frames: int) -> tuple[WindowPlan, NDArray[np.int64]]:
        """Return the plan and `(frames + 1,)` how many windows have ended before each slot."""
        if frames not in self._plans:
            plan = plan_windows(self.reward, self.codec, frames)
            self._plans[frames] = (plan, np.searchsorted(plan.ends, np.arange(frames + 1), side="right"))
        return self._plans[frames]

    def advance(
        self, codes: Codes, status: NDArray[np.int8], before: NDArray[np.int64], after: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Play the slots [before, after) of every row and return their rewards.

        Args:
            codes: `(N, slots, Q)` everything that is played; only the named slots are read.
            status: `(N, slots)` of the slots.
            before: `(N,)` slots decided before.
            after: `(N,)` slots decided now.

        Returns:
            `(N,)` rewards.
        """
        count = after - before
        if (count == count[0]).all():
            if count[0] > 0:
                self._play(self._row_index, int(count[0]), codes, status, before)
        else:
            for frames in np.unique(count[count > 0]).tolist():
                self._play(np.flatnonzero(count == frames), frames, codes, status, before)
        done = self._ended[self._row_index, before]
        due = self._ended[self._row_index, after] - done
        if not due.any():
            return np.zeros(self.rows, dtype=np.float64)
        rows = np.repeat(self._row_index, due)
        # Number the due windows of each row from its first that is due.
        index = np.arange(len(rows)) - np.repeat(np.cumsum(due) - due, due) + done[rows]
        listed = rows.tolist()
        flat = self._audio.reshape(self.rows, -1)
        parts = np.zeros((len(rows), len(self.components))) if self.components else None
        scores = score_windows(
            self.reward,
            self.codec,
            [self._episodes[row] for row in listed],  # type: ignore[misc]
            [flat[row] for row in listed],
            self._starts[rows, index],
            self._ends[rows, index],
            parts,
        )
        if parts is not None:
            np.add.at(self.means, rows, parts / self._windows[rows, None])
        return np.bincount(rows, weights=scores, minlength=self.rows) / self._windows

    def _play(
        self, rows: NDArray[np.int64], frames: int, codes: Codes, status: NDArray[np.int8], before: NDArray[np.int64]
    ) -> None:
        """Decode the next `frames` slots of `rows`."""
        at = (rows[:, None], before[rows, None] + np.arange(frames))
        audio = self._decoder.push(codes[at], None if len(rows) == self.rows else rows)
        if self.fade:
            audio, self._level[rows] = conceal(audio, status[at], self._level[rows], self.codec.hop_samples)
        self._audio[at] = audio.reshape(len(rows), frames, -1)

    def audio(self, row: int, frames: int) -> Audio:
        """Return a copy of the first `frames` frames that `row` played, `(frames * hop_samples,)`."""
        return self._audio[row, :frames].reshape(-1).copy()


def check_reward(reward: RewardModel) -> None:
    """Raise `ConfigError` if `reward` lacks a part of the protocol or declares impossible windows."""
    missing = [name for name in (*RewardModel.__annotations__, "score") if not hasattr(reward, name)]
    if missing:
        raise ConfigError(
            f"{type(reward).__name__} is not a reward model: it has no {', '.join(missing)}. "
            "jamgym.reward.RewardModel describes the protocol."
        )
    for key in ("window_seconds", "min_window_seconds", "hop_seconds"):
        if not 0 < getattr(reward, key) < math.inf:
            raise ConfigError(
                f"{key} of reward {reward.name!r} is {getattr(reward, key)}; it must be above 0, and finite."
            )
    unknown = set(reward.needs) - {"target", "truth"}
    if unknown:
        raise ConfigError(f"Reward {reward.name!r} needs {sorted(unknown)}; valid are 'target' and 'truth'.")
