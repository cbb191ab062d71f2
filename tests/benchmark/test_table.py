import numpy as np
import pytest

from jamgym.benchmark.comparison import Comparison
from jamgym.benchmark.evaluation import report
from jamgym.benchmark.plots import late_runs
from jamgym.benchmark.statistics import Interval
from jamgym.benchmark.table import describe_difference, format_interval, markdown, rows, sentences, title
from jamgym.errors import ConfigError


def comparison(**changes):
    rng = np.random.default_rng(0)
    base = rng.normal(0.3, 0.1, 40)
    late = np.zeros(40)
    values = {
        "random_stem": {"coherence": base - 0.3, "late_frames": late},
        "mle": {"coherence": base, "late_frames": late},
        "ppo": {"coherence": base + 0.12 + rng.normal(0, 0.02, 40), "late_frames": late + 0.25},
    }
    settings = dict(
        labels=("random_stem", "mle", "ppo"),
        metrics=("coherence",),
        values=values,
        song_ids=tuple(f"song-{index // 2}" for index in range(40)),
        anchors=frozenset({"random_stem"}),
        resamples=500,
    )
    return Comparison(**{**settings, **changes})


def test_rows_hold_every_policy_and_metric():
    header, body = rows(comparison())
    assert header == ["policy", "coherence", "late frames"]
    assert [cells[0] for cells in body] == ["random_stem (anchor)", "mle", "ppo"]
    assert body[2][2] == "25.0 % [25.0 %, 25.0 %]"
    assert body[1][1].startswith(f"{comparison().interval('mle', 'coherence').estimate:.3f} [")


def test_intervals_count_songs_not_episodes():
    assert comparison().interval("mle", "coherence").count == 20
    assert comparison().songs == 20


def test_markdown_has_differences_and_what_was_left_out():
    text = markdown(comparison(omitted={"beat": "beat needs truth; the column is left out."}))
    assert "| ppo - mle | 0.1" in text
    assert "| mle - random_stem | 0.300 [0.300, 0.300] |" in text
    assert "ppo's coherence is 0.1" in text and "above mle's" in text and "on 20 held-out songs." in text
    assert text.rstrip().endswith("the column is left out.")


def test_a_lookahead_setting_is_labelled():
    assert "LOOK-AHEAD ORACLE" in title(comparison(lookahead=True)) and "LOOK-AHEAD ORACLE" in markdown(
        comparison(lookahead=True)
    )
    assert "ORACLE" not in markdown(comparison())


def test_a_wide_report_puts_intervals_under_their_means_and_breaks_none():
    names = ("coherence", "judge", "note_in_chord", "beat", "silence", "flicker")
    scores = dict.fromkeys((*names, "late_frames"), np.linspace(-0.9, -0.1, 40))
    wide = report(comparison(labels=("mle", "ppo"), metrics=names, values={"mle": scores, "ppo": scores}))
    table = wide.split("mean over songs")[0]
    assert max(map(len, table.splitlines())) <= 150
    assert table.count("-0.500") == 2 * len(names) == table.count("[-0.") and "-0.500 [" not in table
    assert "-0.500 [" in report(comparison(labels=("mle", "ppo"), values={"mle": scores, "ppo": scores}))


@pytest.mark.parametrize("label", ["ppo [kl 0.2]", "ppo [/b]", "ppo [red]", ":fire: ppo"])
def test_names_are_shown_as_they_are(label):
    late = np.zeros(3)
    values = {name: {label: late, "late_frames": late} for name in ("mle", label)}
    made = Comparison(("mle", label), (label,), values, ("a", "b", "c"), setting=SETTING | {"corpus": label})
    found = report(made)
    assert f"{label} test, 3 songs" in found and f"│ {label} │" in found
    assert label in next(line for line in found.splitlines() if line.startswith("┃ policy"))


SETTING = {"corpus": "band", "split": "test", "t_f": -25, "k": 5}


def test_sentences_claim_no_more_than_the_interval():
    def say(estimate, low, high, count=64):
        return describe_difference("coherence", "PPO", "MLE", Interval(estimate, low, high, count))

    assert say(0.12, 0.05, 0.19) == "PPO's coherence is 0.12 above MLE's [0.05, 0.19] on 64 held-out songs."
    assert say(-0.12, -0.19, -0.05) == "PPO's coherence is 0.12 below MLE's [-0.19, -0.05] on 64 held-out songs."
    assert "cannot be told apart" in say(0.12, -0.01, 0.25)
    assert "[0.001, 0.190]" in say(0.12, 0.001, 0.19)
    assert "one song" in say(0.12, -np.inf, np.inf, 1) and "above" not in say(0.12, -np.inf, np.inf, 1)


def test_few_songs_are_said_to_be_too_few_in_tables_and_sentences():
    words = "too few songs to tell (7; at least 8)"
    few = comparison(song_ids=tuple(f"song-{index % 7}" for index in range(40)))
    for text in (markdown(few), report(few)):
        assert words in text and "above" not in text and "below" not in text and "told apart" not in text
        assert "ppo's coherence differs from mle's by 0.1" in text
    table = report(few).split("ppo's")[0]
    assert words in table
    assert all("too few" not in text for text in (markdown(comparison()), report(comparison())))


def test_sentences_compare_the_named_pair():
    found = sentences(comparison(), [("mle", "ppo")])
    assert len(found) == 1 and found[0].startswith("mle's coherence is 0.1") and "below ppo's" in found[0]


def test_one_song_shows_no_interval():
    assert format_interval(Interval(0.5, -np.inf, np.inf, 1)) == "0.500 (one song)"


def test_unknown_names_are_explained():
    with pytest.raises(ConfigError, match="Did you mean 'ppo'"):
        comparison().interval("pp", "coherence")
    with pytest.raises(ConfigError, match="Did you mean 'coherence'"):
        comparison().difference("ppo", "mle", "coherense")


def test_late_runs():
    assert late_runs(np.array([2, 2, 1, 1, 3, 2, 1], dtype=np.int8)) == [(0, 2, 2), (4, 5, 3), (5, 6, 2)]
    assert late_runs(np.ones(4, dtype=np.int8)) == []
