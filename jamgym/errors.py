"""Errors that say what came, what is valid, the nearest match and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JamgymError(Exception):
    """Base class of every error that jamgym raises on purpose."""


class ConfigError(JamgymError, ValueError):
    """A setting has an unknown key, a wrong type or an impossible value."""


class UnknownNameError(JamgymError, KeyError):
    """A name is not in a registry."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which hides the line breaks of a message.
        return str(self.args[0]) if self.args else ""


class PluginError(JamgymError, ImportError):
    """A plug-in could not be imported; only its own use is broken."""


class LookaheadError(ConfigError):
    """A setting needs input from the future and look-ahead was not allowed."""


class AudioError(JamgymError, ValueError):
    """An audio file or array is broken, empty or of the wrong shape or rate."""


class CorpusError(JamgymError, ValueError):
    """A corpus has nothing usable in it, or a song cannot be paired."""


class ActionError(JamgymError, ValueError):
    """An action has a wrong shape, dtype or value."""


class RewardError(JamgymError, ValueError):
    """A reward model raised, or returned something that is not one finite score per window."""


class CheckpointError(JamgymError, ValueError):
    """A checkpoint is damaged or belongs to another codec, version or architecture."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the entry of `known` that is closest to `name`, or None if none is close.

    >>> nearest("coherense", ["coherence", "judge"])
    'coherence'
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """Build the message for a name that is not known.

    >>> unknown_name_message("reward", "coherense", ["coherence", "judge"])
    "Unknown reward 'coherense'. Did you mean 'coherence'? Known: coherence, judge."
    """
    known = sorted(known)
    close = nearest(name, known)
    hint = f" Did you mean {close!r}?" if close else ""
    listing = ", ".join(known) if known else "none"
    return f"Unknown {kind} {name!r}.{hint} Known: {listing}."
