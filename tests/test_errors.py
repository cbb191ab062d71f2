import pytest

from jamgym import errors


def test_every_error_is_a_jamgym_error_and_a_builtin_one():
    found = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.JamgymError)]
    assert len(found) > 8
    for kind in found:
        if kind is not errors.JamgymError:
            assert issubclass(kind, (ValueError, KeyError, ImportError, RuntimeError))
    assert issubclass(errors.LookaheadError, errors.ConfigError)


def test_nearest():
    assert errors.nearest("gitar", ["bass", "guitar"]) == "guitar"
    assert errors.nearest("zzz", ["bass", "guitar"]) is None
    assert errors.nearest("bass", []) is None


def test_message_shows_name_hint_and_sorted_known():
    text = errors.unknown_name_message("reward", "juge", ["judge", "coherence"])
    assert text == "Unknown reward 'juge'. Did you mean 'judge'? Known: coherence, judge."
    assert errors.unknown_name_message("reward", "zzz", []) == "Unknown reward 'zzz'. Known: none."


def test_unknown_name_error_reads_as_text():
    with pytest.raises(KeyError) as caught:
        raise errors.UnknownNameError("a\nb")
    assert str(caught.value) == "a\nb"
