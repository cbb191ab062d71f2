"""The demo's words: what it says has to follow from the intervals."""

import json
from pathlib import Path

import pytest

from jamgym.commands import demo


def _row(measure, low, high, a="ppo", b="mle"):
    return {"a": a, "b": b, "measure": measure, "estimate": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("coherence", "judge", "words"),
    [
        ((0.1, 0.2), (0.05, 0.1), ("more coherent", "judge agrees")),
        ((0.1, 0.2), (-0.1, 0.1), ("more coherent", "no sure change")),
        ((0.1, 0.2), (-0.2, -0.1), ("more coherent", "gamed")),
        ((-0.1, 0.2), (-0.1, 0.1), ("no sure change of coherence", "sees no sure change")),
        ((-0.2, -0.1), (-0.1, 0.1), ("less coherent",)),
    ],
)
def test_verdict_follows_from_the_intervals(coherence, judge, words):
    text = demo.verdict([_row("coherence", *coherence), _row("judge", *judge)])
    assert all(word in text for word in words), text


def test_verdict_uses_ppo_against_mle_only():
    rows = [_row("coherence", 0.5, 0.6, b="random_stem"), _row("coherence", -0.3, -0.2), _row("judge", -0.1, 0.1)]
    assert "less coherent" in demo.verdict(rows)


def test_verdict_without_the_rewards_says_so():
    assert "not scored" in demo.verdict([_row("beat", 0.1, 0.2)])


def test_closing_lines_say_where_to_listen_and_look():
    lines = demo.closing_lines(
        [_row("coherence", 0.1, 0.2), _row("judge", 0.0, 0.1)], {"rollouts": 7.0}, Path("runs/x")
    )
    text = "\n".join(lines)
    assert "7 rollouts" in text
    assert "runs/x/audio" in text
    assert "tensorboard" in text and "--logdir runs/x" in text


def test_demo_targets_are_pitched_instrument_classes():
    from jamgym.corpus import INSTRUMENTS

    assert set(demo.PITCHED) <= set(INSTRUMENTS)
    assert "drums" not in demo.PITCHED


def test_demo_config_is_plain_data():
    from dataclasses import asdict

    json.dumps(asdict(demo.DemoConfig()))
