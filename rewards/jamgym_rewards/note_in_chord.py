"""Note in chord: how much of what was played lies on the notes of the sounding chord.

The measure is the note-in-chord ratio of ReaLchords (Wu et al. 2024), there counted over symbolic notes;
here the notes are weighed by the energy that they have in the played audio.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.corpus import Truth
from jamgym.errors import RewardError
from jamgym.reward import Windows
from jamgym_rewards.chroma import chroma
from jamgym_rewards.rule import RuleReward

#: Played audio below this RMS, in dBFS, counts as silence and scores 0.
SILENCE_DB = -60.0


def note_in_chord(
    audio: NDArray[np.float32], sample_rate: int, truths: tuple[Truth | None, ...]
) -> NDArray[np.float32]:
    """Return the share of chroma energy on the pitch classes of the sounding chord.

    Frames in which no chord sounds (before the first, after the last, and rests) do not count. Energy spread
    evenly over all pitch classes scores 3/12 = 0.25 for triads; real notes score less than 1 even when every
    one of them is a chord note, because their partials are not.

    Args:
        audio: Played audio `(N, S)`.
        sample_rate: Samples per second.
        truths: For each of the N clips its chords, with times from the clip's start.

    Returns:
        `(N,)` in [0, 1]; 0 for silence.

    Raises:
        RewardError: A clip has no truth, or no chord sounds anywhere in it.
    """
    energy, times = chroma(audio, sample_rate)
    members = np.zeros(energy.shape, dtype=bool)
    sounding = np.zeros(energy.shape[:2], dtype=bool)
    for row, truth in enumerate(truths):
        if truth is None:
            raise RewardError(
                f"note_in_chord needs known chords, but window {row} has no truth. Use a corpus with truth "
                "(such as 'band'), or a reward that judges audio alone (such as 'coherence')."
            )
        index = truth.chord_index(times)
        known = index >= 0
        members[row, known] = truth.chord_pitch_classes[index[known]]
        sounding[row] = members[row].any(axis=1)
        if not sounding[row].any():
            raise RewardError(
                f"note_in_chord found no sounding chord in window {row}: its truth has {len(truth.chord_roots)} "
                "chords, none of them with a note inside the window. Crop the truth to the window, or leave out "
                "passages without harmony."
            )
    energy = energy * sounding[..., None]
    total = energy.sum(axis=(1, 2))
    power = np.mean(np.square(audio, dtype=np.float64), axis=1)
    heard = (power > 10.0 ** (SILENCE_DB / 10.0)) & (total > 0.0)
    inside = (energy * members).sum(axis=(1, 2))
    return np.where(heard, inside / np.where(total > 0.0, total, 1.0), 0.0).astype(np.float32)


class NoteInChordReward(RuleReward):
    """Rewards playing notes of the chord that sounds, where the chords are known (see `note_in_chord`)."""

    name = "note_in_chord"
    range = (0.0, 1.0)
    needs = frozenset({"truth"})

    def __init__(self, window_seconds: float = 4.0, hop_seconds: float = 1.0, min_window_seconds: float = 1.0) -> None:
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` shares in [0, 1].

        Raises:
            RewardError: A window has no truth or no chord.
        """
        truths = windows.truth if windows.truth is not None else (None,) * len(windows.played)
        return note_in_chord(windows.played, windows.sample_rate, truths)
