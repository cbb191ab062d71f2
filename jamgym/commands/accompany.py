"""`jamgym accompany`: a policy plays along with an audio file, in the time that it would have live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jamgym.audio import read_audio, within_full_scale
from jamgym.benchmark.call_times import MARGIN, CallTimes, nearest_live, summarise
from jamgym.benchmark.evaluation import make_metrics
from jamgym.benchmark.plots import plot_episode
from jamgym.benchmark.profiling import call_seconds
from jamgym.benchmark.runner import decode_played, score
from jamgym.codec import Audio, Codec
from jamgym.corpus import INSTRUMENTS, Song, Split, Stem, active
from jamgym.episode import EpisodeSource
from jamgym.errors import AudioError, ConfigError, unknown_name_message
from jamgym.files import write_text
from jamgym.policy import Policy
from jamgym.ranges import check_between
from jamgym.registry import codecs, policies
from jamgym.reward import RewardModel
from jamgym.specs import Spec, create_from_spec
from jamgym.timing import Timing
from jamgym.vector_env import AccompanimentVectorEnv

if TYPE_CHECKING:
    from jamgym.run import Run

#: Level of the mixes of corpus `band`, with which the shipped decoders were trained.
USUAL_LEVEL_DB = -18.0
#: Valid values of the settings that are numbers, ends included.
RANGES = {"level_db": (-60.0, 0.0), "gain_db": (-60.0, 60.0), "start_seconds": (0.0, 1e6), "seconds": (0.0, 1e6)}


@dataclass(frozen=True)
class AccompanyConfig:
    """Settings of `jamgym accompany`.

    Attributes:
        audio: Audio file to play along with: WAV, FLAC, OGG, MP3 or AIFF, at any sample rate; may be given without its
            name. Required.
        instrument: Class of the instrument that is played.
        policy: Who plays. If nothing else is given, the shipped decoder that was fine-tuned with PPO, with guidance,
            which adds to what PPO has learned; in compiled loops, if the extra `fast` is installed.
        codec: Turns audio into codes.
        t_f: Future visibility in frames, signed. Nearer to 0 fits better, but may come too late on a slow machine.
        k: Frames per call.
        latency: How long calls take: a name, or a mapping with `name` and arguments.
        late_policy: What a late slot plays: silence, repeat, conceal or stall.
        allow_lookahead: Accept a t_f that cannot be played live.
        metrics: Rewards that score the result; such as need neither the stem that belongs there nor chords and beats.
        level_db: RMS level in dBFS, over what sounds, that the file is turned to before it is heard: agents know the
            level of the music they were trained with. None leaves it as it is.
        gain_db: How much louder than it was played the accompaniment is in the mix.
        start_seconds: Where in the file to begin.
        seconds: How much of it to play along with; None is all.
    """

    audio: str
    instrument: str = "piano"
    policy: str | dict[str, Any] = field(
        default_factory=lambda: {"name": "decoder", "checkpoint": "ppo", "guidance": 3.0, "compiled": "auto"}
    )
    codec: str | dict[str, Any] = "spectral"
    t_f: int = -12
    k: int = 5
    latency: str | dict[str, Any] = "none"
    late_policy: str = "silence"
    allow_lookahead: bool = False
    metrics: tuple[str | dict[str, Any], ...] = ("coherence",)
    level_db: float | None = USUAL_LEVEL_DB
    gain_db: float = 0.0
    start_seconds: float = 0.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.instrument not in INSTRUMENTS:
            raise ConfigError(unknown_name_message("instrument class", self.instrument, INSTRUMENTS))
        check_between(self, RANGES)


class OneSong:
    """A corpus of one song: what is heard, and silence where the answer is to be.

    Args:
        song_id: Its name.
        heard: `(S,)` audio.
        instrument: Class of the answer; also the name of its stem, beside the stem `heard`.
        sample_rate: Samples per second.
    """

    name = "file"
    version = "1"

    def __init__(self, song_id: str, heard: Audio, instrument: str, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        answer = Stem(instrument, instrument, np.zeros_like(heard))
        self._song = Song(song_id, sample_rate, (Stem("heard", "other", heard), answer))

    def song_ids(self, split: Split) -> tuple[str, ...]:
        """Return the song, whatever the split."""
        return (self._song.id,)

    def load(self, song_id: str) -> Song:
        """Return the song."""
        return self._song


def accompany(config: AccompanyConfig, run: Run) -> dict[str, float]:
    """Play, and write heard.wav, played.wav, mix.wav, played.png, metrics.json and report.txt into the run folder.

    Returns:
        Scores, the share of late frames, and the seconds that calls took.

    Raises:
        AudioError: The file cannot be read, is silent, or is shorter than what was asked for.
        LookaheadError: t_f cannot be played live and `allow_lookahead` is not set.
        ConfigError: A name or setting is wrong.
        CheckpointError: The decoder is missing, damaged or of another codec.
        KeyboardInterrupt: Somebody pressed Ctrl-C.
    """
    codec: Codec = create_from_spec(codecs, config.codec)
    metrics = audible_metrics(config.metrics)
    source = make_source(config, codec)
    env = make_env(config, source)
    with run.progress(1, "getting ready") as progress:
        policy = make_policy(config, codec, source, run.seed)
        progress.advance(1)
    episode = source.crop(source.song_ids[0], config.instrument, 0)
    times = []
    with run.progress(env.timing.num_calls, "playing along") as progress:
        for seconds in call_seconds(policy, env, episode, run.seed):
            if run.stop_requested:
                raise KeyboardInterrupt
            times.append(seconds)
            progress.advance(1)
    record = env.final_record(0)
    assert record is not None
    env.close()
    played = decode_played([record], codec)[0]
    whole = [metric for metric in metrics if len(played) >= metric.min_window_seconds * codec.sample_rate]
    found = {name: float(values[0]) for name, values in score([record], whole, codec, [played]).items()}
    scores, late = {metric.name: found[metric.name] for metric in whole}, found["late_frames"]
    mix = episode.heard + played * np.float32(10.0 ** (config.gain_db / 20.0))
    for name, audio in (("heard", episode.heard), ("played", played), ("mix", mix)):
        run.write_audio(f"{name}.wav", within_full_scale(audio), codec.sample_rate)
    plot_episode(record, codec, played, run.folder / "played.png", policy.name)
    calls = summarise(np.array(times), env.timing)
    figures = {
        **scores,
        "late_frames": late,
        "call_seconds_p50": calls.p50_seconds,
        "call_seconds_p99": calls.p99_seconds,
    }
    run.write_json("metrics.json", figures)
    lines = [
        f"{described(config.policy)} played {config.instrument} along with {config.audio}: "
        f"{len(played) / codec.sample_rate:.2f} s at t_f = {config.t_f}, k = {config.k}.",
        *about_time(calls, late, env.timing, config.late_policy, config.latency != "none"),
        *about_scores(scores, [metric.name for metric in metrics if metric.name not in scores]),
        f"Listen: {run.folder / 'mix.wav'} (beside it heard.wav and played.wav)",
        f"Look: {run.folder / 'played.png'}",
    ]
    write_text(run.folder / "report.txt", "\n".join(lines) + "\n")
    return figures


def audible_metrics(specs: Sequence[Spec]) -> list[RewardModel]:
    """Return the rewards, as measures that need nothing but what is heard and played.

    Raises:
        ConfigError: One of them needs what is not known of an audio file, or two have one name.
    """
    metrics = make_metrics(specs)
    for metric in metrics:
        missing = sorted({"target", "truth"} & set(metric.needs))
        if missing:
            raise ConfigError(
                f"Reward {metric.name!r} needs {' and '.join(missing)}, and of an audio file neither the stem that "
                "belongs there nor its chords and beats are known. `jamgym rewards` lists what each reward needs."
            )
    return metrics


def make_source(config: AccompanyConfig, codec: Codec) -> EpisodeSource:
    """Return the source of the one episode that there is: all that is heard."""
    audio = read_part(config, codec.sample_rate)
    frames = len(audio) // codec.hop_samples
    if frames == 0:
        raise AudioError(
            f"{config.audio} gives {len(audio) / codec.sample_rate:.3f} s, less than a frame of "
            f"{codec.hop_samples / codec.sample_rate:.3f} s. Give a longer file, or more seconds of it."
        )
    sounding = sounds(audio, codec.sample_rate)
    if not len(sounding):
        raise AudioError(
            f"{config.audio} is silent (below -60 dBFS) as far as it was to be heard, as one channel. Give another "
            "part (start_seconds, seconds), or make it louder; channels of opposite sign cancel each other."
        )
    heard = audio if config.level_db is None else audio * gain_to(sounding, config.level_db)
    corpus = OneSong(Path(config.audio).name, heard, config.instrument, codec.sample_rate)
    return EpisodeSource(corpus, codec, frames=frames)


def make_env(config: AccompanyConfig, source: EpisodeSource) -> AccompanimentVectorEnv:
    """Return the environment of one row, without a reward."""
    return AccompanimentVectorEnv(
        1,
        autoreset_mode="Disabled",
        source=source,
        reward=None,
        t_f=config.t_f,
        k=config.k,
        latency=config.latency,
        late_policy=config.late_policy,
        allow_lookahead=config.allow_lookahead,
    )


def make_policy(config: AccompanyConfig, codec: Codec, source: EpisodeSource, seed: int) -> Policy:
    """Return who plays.

    Raises:
        ConfigError: It plays what it knows of the song, and there is nothing to know.
    """
    known = {"codec": codec, "k": config.k, "t_f": config.t_f, "source": source, "seed": seed}
    policy: Policy = create_from_spec(policies, config.policy, known)
    if policy.privileged:
        raise ConfigError(
            f"Policy {policy.name!r} plays a stem of this song or of another one, and of an audio file there are none. "
            "Give one that listens, such as decoder."
        )
    return policy


def read_part(config: AccompanyConfig, sample_rate: int) -> Audio:
    """Return what is heard, `(S,)`, at `sample_rate`."""
    audio = read_audio(config.audio, sample_rate)
    first = round(config.start_seconds * sample_rate)
    if first >= len(audio):
        raise AudioError(
            f"{config.audio} lasts {len(audio) / sample_rate:.2f} s, and start_seconds is {config.start_seconds:g}. "
            "Begin earlier."
        )
    last = len(audio) if config.seconds is None else first + round(config.seconds * sample_rate)
    return audio[first:last]


def sounds(audio: Audio, sample_rate: int) -> Audio:
    """Return the 20 ms blocks of `audio` `(S,)` that are `active`, in one row; a rest at the end is no block."""
    block = sample_rate // 50
    blocks = audio[: len(audio) // block * block].reshape(-1, block)
    return blocks[active(audio, sample_rate)].ravel()


def gain_to(sounding: Audio, level_db: float) -> np.float32:
    """Return the factor that brings `sounding` `(S,)`, S > 0, to an RMS level in dBFS, but its peak to 1 at most."""
    level = float(np.sqrt(np.mean(np.square(sounding, dtype=np.float64))))
    return np.float32(min(10.0 ** (level_db / 20.0) / level, 1.0 / float(np.abs(sounding).max())))


def described(policy: str | Mapping[str, Any]) -> str:
    """Return a policy's name and arguments for people.

    >>> described({"name": "decoder", "checkpoint": "ppo", "guidance": 3.0})
    'decoder (checkpoint ppo, guidance 3.0)'
    """
    if isinstance(policy, str):
        return policy
    # Whether loops are compiled changes what a call takes, not who plays.
    arguments = ", ".join(f"{key} {value}" for key, value in policy.items() if key not in ("name", "compiled"))
    return f"{policy['name']} ({arguments})" if arguments else str(policy["name"])


def about_time(calls: CallTimes, late: float, timing: Timing, late_policy: str, delayed: bool = False) -> list[str]:
    """Return whether this machine keeps up with live play, and what came too late under the latency asked for."""
    chunk, budget = timing.seconds(timing.k * timing.hop_samples), timing.seconds(timing.budget)
    took = (
        f"A call, every {chunk:.2f} s, took {1000 * calls.p50_seconds:.0f} ms on this machine "
        f"(p99 {1000 * calls.p99_seconds:.0f} ms)"
    )
    if timing.budget <= 0:
        lines = [f"{took}. t_f = {timing.t_f} leaves no time for that: live, it cannot be played."]
    else:
        lines = [
            f"{took}; {calls.slow_calls:.1%} of them took longer than live play leaves ({min(chunk, budget):.2f} s)."
        ]
        nearest = nearest_live(calls.p99_seconds, timing)
        keeps_up = calls.slow_calls == 0 and MARGIN * calls.p99_seconds <= chunk
        if keeps_up and not delayed and nearest > timing.t_f:
            lines.append(
                f"It would keep up at --t_f {nearest} as well, with half of the time to spare: the less has to be "
                "guessed, the better it fits."
            )
    if late:
        lines.append(f"With the latency that was asked for, {late:.1%} of the frames were late ({late_policy}).")
    return lines


def about_scores(scores: Mapping[str, float], too_short: Sequence[str]) -> list[str]:
    """Return the scores, what coherence is to be compared with, and what could not be scored."""
    lines = []
    if scores:
        lines.append("Score: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()) + ".")
    if "coherence" in scores:
        lines[-1] += " On songs of `band`, coherence is 0 for a random stem and 1 for the true one, on average."
    if too_short:
        lines.append(f"Too short to be scored with {', '.join(too_short)}.")
    return lines
