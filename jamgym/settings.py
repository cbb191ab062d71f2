"""Settings of the environments, and how names in them become objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from jamgym.actions import ACTION_MODES
from jamgym.codec import Codec
from jamgym.conditions import Conditions
from jamgym.corpus import INSTRUMENTS, SPLITS, Corpus
from jamgym.episode import EpisodeSource
from jamgym.errors import ConfigError, nearest, unknown_name_message
from jamgym.latency import LatencyModel, make_latency
from jamgym.observation import OBSERVATION_MODES, Observer
from jamgym.playback import PlaybackRule
from jamgym.registry import Registry, codecs, corpora, rewards
from jamgym.reward import RewardModel
from jamgym.simulation import Simulation
from jamgym.specs import create_from_spec


@dataclass(frozen=True)
class EnvSettings:
    """Keyword arguments of `jamgym/Accompaniment-v0`. Names and mappings keep them JSON-native; objects work too.

    A mapping is ``{"name": ..., **arguments of the class}``.

    Args:
        corpus: Where songs come from.
        codec: Turns audio into codes.
        reward: Scores what is played; None gives rewards of 0 and decodes nothing.
        split: "train", "validation" or "test".
        t_f: Future visibility in frames, signed. The latency budget follows from it. A list is a set from which
            each episode draws its own, shown in the observation.
        k: Frames per call, or a set of them. Actions and played chunks are padded to the largest.
        frames: Frames per episode.
        latency: How long calls take: "none", {"name": "constant", "seconds": 0.05}, ... or a list of these.
        late_policy: What a late slot plays: "silence", "repeat" (the last frame), "conceal" (the last frame, fading
            out), or "stall": the player waits, and the rest plays later.
        salvage: "frame" plays the frames of a late chunk that are still in time, "chunk" drops all of it.
        backlog: "queue" makes every call, "skip" jumps to the newest one when the next would be late.
        action: "tokens" (codes) or "audio" (samples, which go through the codec).
        observation: "new" (frames heard since the last call) or "window" (the last `window` frames).
        window: Frames of observation "window".
        allow_lookahead: Accept a t_f that cannot be played live.
        capture_samples: Input buffer, charged to d_in.
        output_samples: Output buffer, charged to d_out.
        instruments: Classes that may be the target, or a single one; None allows all.
        max_songs: Use only the first so many songs of the split.
        cache_songs: Encoded pairs of a song and a target kept in memory; see `EpisodeSource`.
    """

    corpus: str | Mapping[str, Any] | Corpus = "band"
    codec: str | Mapping[str, Any] | Codec = "spectral"
    reward: str | Mapping[str, Any] | RewardModel | None = "coherence"
    split: str = "train"
    t_f: int | Sequence[int] = -25
    k: int | Sequence[int] = 5
    frames: int = 250
    latency: str | Mapping[str, Any] | LatencyModel | Sequence[str | Mapping[str, Any] | LatencyModel] = "none"
    late_policy: str = "silence"
    salvage: str = "frame"
    backlog: str = "queue"
    action: str = "tokens"
    observation: str = "new"
    window: int = 100
    allow_lookahead: bool = False
    capture_samples: int = 0
    output_samples: int = 0
    instruments: str | Sequence[str] | None = None
    max_songs: int | None = None
    cache_songs: int = 512

    def __post_init__(self) -> None:
        for name in ("frames", "window", "capture_samples", "output_samples", "cache_songs"):
            require_whole(name, getattr(self, name))
        for name in ("t_f", "k"):
            for value in as_set(getattr(self, name)):
                require_whole(name, value)
        if self.window < 1:
            raise ConfigError(f"window is {self.window} frames; it must be at least 1.")
        for name, known in (("observation", OBSERVATION_MODES), ("action", ACTION_MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(unknown_name_message(f"{name} mode", str(getattr(self, name)), known))
        self.rule  # noqa: B018  refuses unknown rules
        if self.split not in SPLITS:
            raise ConfigError(unknown_name_message("split", str(self.split), SPLITS))
        for name in self.classes or ():
            if name not in INSTRUMENTS:
                raise ConfigError(unknown_name_message("instrument class", str(name), INSTRUMENTS))
        if self.max_songs is not None:
            require_whole("max_songs", self.max_songs)
            if self.max_songs < 1:
                raise ConfigError(f"max_songs is {self.max_songs}; it must be at least 1, or None for all.")

    @property
    def rule(self) -> PlaybackRule:
        """What happens to late frames."""
        return PlaybackRule(self.late_policy, self.salvage, self.backlog)  # type: ignore[arg-type]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The instrument classes that may be the target; None for all."""
        if self.instruments is None:
            return None
        one = isinstance(self.instruments, str) or not isinstance(self.instruments, Iterable)
        return (self.instruments,) if one else tuple(self.instruments)  # type: ignore[return-value]

    @classmethod
    def of(cls, **settings: Any) -> EnvSettings:
        """Return the settings; an unknown key raises `ConfigError` with the nearest known one."""
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                hint = " An episode's length is `frames`." if key == "max_episode_steps" else ""
                raise ConfigError(unknown_name_message("environment setting", key, known) + hint)
        return cls(**settings)


def make_component(registry: Registry, spec: Any) -> Any:
    """Return the object that `spec` stands for: a name, a mapping with "name" and arguments, or the object itself.

    Raises:
        UnknownNameError: No such name.
        ConfigError: The mapping has no name, or an argument is missing, not taken by the class or not of its type;
            or there is nothing at all.
    """
    if isinstance(spec, Mapping):
        if not isinstance(spec.get("name"), str):
            raise ConfigError(f"The {registry.kind} setting {dict(spec)!r} has no 'name'. Known: {registry.names()}.")
        spec = dict(spec)
    made = spec is not None and not isinstance(spec, (str, dict))
    return spec if made else create_from_spec(registry, spec)


def make_source(settings: EnvSettings) -> EpisodeSource:
    """Return the episode source that `settings` describe."""
    return EpisodeSource(
        make_component(corpora, settings.corpus),
        make_component(codecs, settings.codec),
        split=settings.split,  # type: ignore[arg-type]
        frames=settings.frames,
        instruments=settings.classes,
        cache_songs=settings.cache_songs,
        max_songs=settings.max_songs,
    )


def as_set(value: Any) -> tuple[Any, ...]:
    """Return a list or tuple as a tuple, and anything else as a set of one."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def make_simulation(rows: int, settings: EnvSettings, source: EpisodeSource | None = None) -> Simulation:
    """Build the array core of `rows` rows. A given `source` replaces corpus, codec, split and frames."""
    latency = [make_latency(spec) for spec in as_set(settings.latency)]
    source = make_source(settings) if source is None else source
    codec = source.codec
    # Audio goes through the encoder before it can be played, so the encoder's look-ahead is due earlier still.
    encoding = codec.lookahead_samples if settings.action == "audio" else 0
    conditions = Conditions.make(
        codec,
        as_set(settings.t_f),
        as_set(settings.k),
        latency,
        source.frames,
        capture_samples=settings.capture_samples,
        output_samples=settings.output_samples + encoding,
        allow_lookahead=settings.allow_lookahead,
    )
    return Simulation(
        rows,
        source,
        conditions,
        reward=None if settings.reward is None else make_component(rewards, settings.reward),
        rule=settings.rule,
        pad=Observer.pad(settings.observation, settings.window),
    )


def require_whole(name: str, value: Any) -> None:
    """Raise `ConfigError` unless `value` is a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number.")


def check_options(options: Mapping[str, Any] | None, known: Sequence[str]) -> Mapping[str, Any]:
    """Return the reset options, none as an empty mapping; an unknown key raises `ConfigError`."""
    options = {} if options is None else options
    for key in options:
        if key not in known:
            close = nearest(str(key), known)
            hint = f" Did you mean {close!r}?" if close else ""
            raise ConfigError(f"Unknown reset option {key!r}.{hint} Known: {', '.join(known)}.")
    return options
