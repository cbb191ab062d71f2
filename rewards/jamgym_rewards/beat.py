"""Beat: whether the beats that one hears in the played audio are those of the song.

Beats are tracked in the played stream alone by dynamic programming (Ellis, "Beat Tracking by Dynamic
Programming", 2007), then compared with the known beats by the F-measure with a tolerance of 70 ms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jamgym.errors import RewardError
from jamgym.reward import Windows
from jamgym_rewards.mel import WINDOW_SECONDS, mel_levels
from jamgym_rewards.rule import RuleReward

#: Played audio below this RMS, in dBFS, counts as silence.
SILENCE_DB = -60.0
#: An onset curve that never rises this many dB (mean over bands) above the last frame has no onsets.
LEAST_ONSET_DB = 0.5
TOLERANCE_SECONDS = 0.07
_TIGHTNESS = 100.0


def onset_strength(audio: NDArray[np.float32], sample_rate: int) -> tuple[NDArray[np.float64], float]:
    """Return the onset strength of mono clips `(N, S)` as `(N, T)` in dB, and the frames per second.

    It is the rise from frame to frame of the level of 40 mel bands (floor: 80 dB below full scale),
    averaged over the bands; frame t is centred at t / rate seconds.
    """
    level, rate = mel_levels(audio, sample_rate)
    rise = np.maximum(np.diff(level, axis=1, prepend=level[:, :1]), 0.0)
    # A sound cut off at the clip's end is a click there, not an onset.
    last = audio.shape[1] / sample_rate - WINDOW_SECONDS / 2.0
    rise[:, max(int(np.floor(last * rate + 1e-6)) + 1, 0) :] = 0.0
    return rise.mean(axis=-1), rate


def estimate_tempo(onsets: NDArray[np.float64], rate: float, centre_bpm: float = 120.0) -> float:
    """Return the tempo in beats per minute of one onset curve `(T,)`, between 40 and 240.

    The lag with the highest autocorrelation, weighed by a log-normal prior of one octave around `centre_bpm`.
    """
    curve = onsets - onsets.mean()
    spectrum = np.fft.rfft(curve, 2 * len(curve))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(curve)]
    first = max(int(np.ceil(rate * 60.0 / 240.0)), 1)
    last = min(int(rate * 60.0 / 40.0), len(curve) - 1)
    if last < first:
        return centre_bpm
    lags = np.arange(first, last + 1)
    prior = np.exp(-0.5 * np.log2(60.0 * rate / lags / centre_bpm) ** 2)
    return float(60.0 * rate / lags[int(np.argmax(correlation[lags] * prior))])


def track_beats(onsets: NDArray[np.float64], rate: float, tempo_bpm: float) -> NDArray[np.float64]:
    """Return the beat times in seconds of one onset curve `(T,)` that best keep `tempo_bpm`.

    Each beat scores its (smoothed) onset strength, less the squared log deviation of its distance from
    the beat before; the best chain is found by dynamic programming. Weak beats at both ends are dropped.
    """
    period = 60.0 * rate / tempo_bpm
    offsets = np.arange(-int(period), int(period) + 1)
    strength = np.convolve(onsets / (onsets.std() + 1e-12), np.exp(-0.5 * (offsets * 32.0 / period) ** 2), "full")
    local = strength[int(period) : int(period) + len(onsets)]
    back = np.arange(max(round(period / 2.0), 1), round(2.0 * period) + 1)
    cost = _TIGHTNESS * np.log(back / period) ** 2
    score = np.zeros(len(local))
    previous = np.full(len(local), -1)
    started = False
    for frame, value in enumerate(local):
        # Before the first real onset there is no chain to go on with.
        reach = int(np.searchsorted(back, frame, side="right"))
        if reach and started:
            candidates = score[frame - back[:reach]] - cost[:reach]
            best = int(np.argmax(candidates))
            score[frame] = value + candidates[best]
            previous[frame] = frame - back[best]
        else:
            score[frame] = value
        started = started or value >= 0.01 * local.max()
    peaks = np.flatnonzero((score[1:-1] > score[:-2]) & (score[1:-1] >= score[2:])) + 1
    if len(peaks) == 0:
        return np.zeros(0)
    good = peaks[score[peaks] * 2.0 > np.median(score[peaks])]
    chain = [int(good[-1]) if len(good) else int(peaks[-1])]
    while previous[chain[-1]] >= 0:
        chain.append(int(previous[chain[-1]]))
    beats = np.array(chain[::-1])
    loud = np.flatnonzero(local[beats] > 0.5 * np.sqrt(np.mean(local[beats] ** 2)))
    return beats[loud[0] : loud[-1] + 1] / rate if len(loud) else np.zeros(0)


def estimate_beats(audio: NDArray[np.float32], sample_rate: int) -> list[NDArray[np.float64]]:
    """Return the beat times in seconds of each mono clip of `(N, S)`; none for silence or a steady sound."""
    if audio.shape[1] == 0:
        return [np.zeros(0) for _ in audio]
    onsets, rate = onset_strength(audio, sample_rate)
    power = np.mean(np.square(audio, dtype=np.float64), axis=1)
    found = []
    for curve, level in zip(onsets, power, strict=True):
        if level <= 10.0 ** (SILENCE_DB / 10.0) or curve.max() < LEAST_ONSET_DB:
            found.append(np.zeros(0))
        else:
            found.append(track_beats(curve, rate, estimate_tempo(curve, rate)))
    return found


def beat_f_measure(audio: NDArray[np.float32], sample_rate: int, beats: NDArray[np.float64]) -> float:
    """Return the F-measure in [0, 1] of the beats heard in mono `audio` `(S,)` against `beats` in seconds.

    A beat is right within 70 ms. All of the clip counts: `mir_eval.beat.evaluate` would drop the first 5 s.
    It is 0 if no beat can be heard, and also if `beats` is empty.
    """
    return _f_measure(np.asarray(beats, dtype=np.float64), estimate_beats(np.atleast_2d(audio), sample_rate)[0])


class BeatReward(RuleReward):
    """Scores whether the played stream, heard alone, keeps the song's beat (see `beat_f_measure`).

    A tempo cannot be heard in a second of music, so a window is as long as a usual episode.
    """

    name = "beat"
    range = (0.0, 1.0)
    needs = frozenset({"truth"})

    def __init__(
        self, window_seconds: float = 12.0, hop_seconds: float = 12.0, min_window_seconds: float = 4.0
    ) -> None:
        super().__init__(window_seconds, hop_seconds, min_window_seconds)

    def score(self, windows: Windows) -> NDArray[np.float32]:
        """Return `(N,)` F-measures in [0, 1].

        Raises:
            RewardError: A window has no truth.
        """
        truths = windows.truth if windows.truth is not None else (None,) * len(windows.played)
        scores = np.zeros(len(windows.played), dtype=np.float32)
        estimates = estimate_beats(windows.played, windows.sample_rate)
        for row, (truth, estimate) in enumerate(zip(truths, estimates, strict=True)):
            if truth is None:
                raise RewardError(
                    f"beat needs known beats, but window {row} has no truth. Use a corpus with truth "
                    "(such as 'band'), or a reward that judges audio alone (such as 'coherence')."
                )
            scores[row] = _f_measure(truth.beats, estimate)
        return scores


def _f_measure(reference: NDArray[np.float64], estimate: NDArray[np.float64]) -> float:
    if len(reference) == 0 or len(estimate) == 0:
        return 0.0
    import mir_eval.beat

    return float(mir_eval.beat.f_measure(reference, estimate, f_measure_threshold=TOLERANCE_SECONDS))
