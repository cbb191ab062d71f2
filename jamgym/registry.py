"""One lazy registry per kind of plug-in: names are listed without importing what they name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from jamgym.errors import PluginError, UnknownNameError, unknown_name_message


class Registry:
    """Resolve a short name, a ``package.module:Class`` path or an entry point to an object.

    Args:
        kind: Word used in messages ("reward", "corpus", ...).
        group: Entry-point group that third-party packages register under.
        builtin: Names that jamgym itself provides, as ``module:attribute`` paths.

    Example:
        >>> from jamgym.registry import rewards
        >>> "coherence" in rewards.names()
        True
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._paths = dict(builtin)

    def register(self, name: str, path: str) -> None:
        """Add `name` for ``module:attribute``; a name that is taken is refused."""
        if name in self.names():
            raise ValueError(f"The {self.kind} name {name!r} is taken; choose another one.")
        self._paths[name] = path

    def paths(self) -> dict[str, str]:
        """Return every known name with its ``module:attribute`` path; imports nothing."""
        plugins = {entry.name: entry.value for entry in entry_points(group=self.group)}
        return {**plugins, **self._paths}

    def names(self) -> list[str]:
        """Return the sorted known names."""
        return sorted(self.paths())

    def resolve(self, name: str) -> Any:
        """Import and return the class or factory that `name` stands for.

        Raises:
            UnknownNameError: `name` is neither known nor of the form ``module:attribute``.
            PluginError: The module or the attribute could not be imported.
        """
        path = name if ":" in name else self.paths().get(name)
        if path is None:
            raise UnknownNameError(unknown_name_message(self.kind, name, self.names()))
        module_name, _, attribute = path.partition(":")
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"The {self.kind} {name!r} could not be imported from {path!r}: "
                f"{type(error).__name__}: {error}. Other {self.kind} names still work: "
                f"{', '.join(n for n in self.names() if n != name)}."
            ) from error
        return found

    def create(self, name: str, **kwargs: Any) -> Any:
        """Resolve `name` and call it with `kwargs`."""
        return self.resolve(name)(**kwargs)


codecs = Registry("codec", "jamgym.codecs", {"spectral": "jamgym.codecs.spectral:SpectralCodec"})
corpora = Registry(
    "corpus",
    "jamgym.corpora",
    {"band": "jamgym.corpora.band:BandCorpus", "stems": "jamgym.corpora.stems:StemsCorpus"},
)
rewards = Registry(
    "reward",
    "jamgym.rewards",
    {
        "coherence": "jamgym_rewards.coherence:CoherenceReward",
        "judge": "jamgym_rewards.judge:JudgeReward",
        "discriminative": "jamgym_rewards.discriminative:DiscriminativeReward",
        "adversarial": "jamgym_rewards.adversarial:AdversarialReward",
        "note_in_chord": "jamgym_rewards.note_in_chord:NoteInChordReward",
        "beat": "jamgym_rewards.beat:BeatReward",
        "beat_audio": "jamgym_rewards.beat_audio:BeatAudioReward",
        "harmony": "jamgym_rewards.harmony:HarmonyReward",
        "silence": "jamgym_rewards.silence:SilenceReward",
        "repetition": "jamgym_rewards.repetition:RepetitionReward",
        "copying": "jamgym_rewards.copying:CopyingReward",
        "flicker": "jamgym_rewards.flicker:FlickerReward",
        "level": "jamgym_rewards.level:LevelReward",
        "mixture": "jamgym_rewards.mixture:MixtureReward",
        "cocola": "jamgym_rewards.cocola:CocolaReward",
        "clap": "jamgym_rewards.clap:ClapReward",
        "clap_probe": "jamgym_rewards.clap_probe:ClapProbeReward",
    },
)
policies = Registry(
    "policy",
    "jamgym.policies",
    {
        "silence": "jamgym_agents.baselines:SilencePolicy",
        "random_codes": "jamgym_agents.baselines:RandomCodesPolicy",
        "random_stem": "jamgym_agents.baselines:RandomStemPolicy",
        "truth": "jamgym_agents.baselines:TruthPolicy",
        "decoder": "jamgym_agents.decoder_policy:DecoderPolicy",
    },
)
