"""The instrument class that a stem's file name tells, by whole words."""

from __future__ import annotations

import re

#: Bumped whenever the same name may get another class.
STEM_NAMES_VERSION = "1"

#: Two-word names whose words would tell something else on their own.
_PHRASES: dict[tuple[str, str], str] = {
    ("steel", "drum"): "chromatic_percussion",
    ("steel", "drums"): "chromatic_percussion",
    ("english", "horn"): "reed",
    ("bass", "voice"): "voice",
    ("tubular", "bells"): "chromatic_percussion",
    ("music", "box"): "chromatic_percussion",
    ("pan", "flute"): "pipe",
    ("mouth", "organ"): "organ",
    ("drum", "bass"): "drums",
}

#: Words per class. Earlier classes win: "bass_clarinet" is a reed, "synth_bass" a bass, "string_bass" a bass.
_WORDS: tuple[tuple[str, str], ...] = (
    (
        "drums",
        "drum drums drumkit drumset kit kick snare hihat hat hats tom toms cymbal cymbals overhead overheads perc "
        "percussion beat beats clap claps shaker tambourine conga congas bongo bongos cajon cowbell timpani",
    ),
    (
        "voice",
        "voice voices vox vocal vocals voc vocs singer singing choir choirs chorus soprano alto tenor baritone rap",
    ),
    ("reed", "reed reeds sax saxes saxophone saxophones clarinet clarinets oboe oboes bassoon bassoons bagpipe"),
    (
        "brass",
        "brass trumpet trumpets trombone trombones tuba tubas horn horns cornet flugelhorn euphonium tpt tbn",
    ),
    ("pipe", "pipe pipes flute flutes piccolo recorder ocarina whistle shakuhachi"),
    (
        "chromatic_percussion",
        "vibraphone vibes marimba xylophone glockenspiel celesta bells bell chimes kalimba dulcimer",
    ),
    ("bass", "bass basses bassline contrabass doublebass subbass bs 808"),
    ("strings", "string strings violin violins viola violas cello cellos violoncello fiddle harp vln vla vlc"),
    ("organ", "organ organs hammond b3 accordion harmonica harmonium bandoneon"),
    (
        "guitar",
        "guitar guitars gtr gtrs gt git egtr agtr eguitar banjo ukulele uke mandolin lute sitar",
    ),
    (
        "piano",
        "piano pianos pno keys key keyboard keyboards rhodes wurlitzer wurli clav clavinet clavi harpsichord epiano",
    ),
    ("synth", "synth synths synthesizer synthesiser pad pads arp arps pluck moog"),
)
_CLASS_OF_WORD = {word: name for name, words in _WORDS for word in words.split()}
_RANK = {name: rank for rank, (name, _) in enumerate(_WORDS)}
#: Voice parts that are also sizes of instruments: "alto_sax" is a reed, "alto" alone a voice.
_VOICE_PARTS = frozenset({"soprano", "alto", "tenor", "baritone"})


def words_of(name: str) -> list[str]:
    """Split a file name into lower-case words.

    >>> words_of("02_BassGuitar-DI")
    ['02', 'bass', 'guitar', 'di']
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[A-Za-z]+[0-9]*|[0-9]+", spaced)]


def instrument_of(name: str) -> str:
    """Return the instrument class of a stem called `name`, or "other".

    Whole words count, never parts of words.

    >>> instrument_of("bassoon"), instrument_of("bass_guitar"), instrument_of("e-gtr 2"), instrument_of("take 7")
    ('reed', 'bass', 'guitar', 'other')
    """
    raw = words_of(name)
    words = [word if word in _CLASS_OF_WORD else re.sub(r"[0-9]+$", "", word) for word in raw]
    for pair in zip(words, words[1:], strict=False):
        if pair in _PHRASES:
            return _PHRASES[pair]
    found = [(word, _CLASS_OF_WORD[word]) for word in words if word in _CLASS_OF_WORD]
    sure = [name for word, name in found if word not in _VOICE_PARTS] or [name for _, name in found]
    return min(sure, key=_RANK.__getitem__, default="other")
