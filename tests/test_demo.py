"""The demo's words: what it says has to follow from the intervals."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jamgym import registry
from jamgym.commands import demo
from jamgym.commands.demo import DemoConfig
from jamgym.commands.parsing import parse
from jamgym.config import config_from_mapping, read_yaml
from jamgym.errors import CheckpointError, ConfigError
from jamgym.files import plain
from jamgym.run import Run
from jamgym.specs import create_from_spec
from jamgym_agents.checkpoint import load_decoder, save_decoder
from jamgym_agents.ppo.settings import FinetuneConfig
from jamgym_agents.sampling import Sampling


def _row(measure, low, high, a="ppo", b="mle"):
    return {"a": a, "b": b, "measure": measure, "estimate": (low + high) / 2, "low": low, "high": high, "songs": 128}


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


@pytest.mark.parametrize("high, said", [(-0.01, True), (0.01, False), (None, False)])
def test_verdict_tells_which_penalties_grew(high, said):
    rows = [_row("coherence", 0.1, 0.3), _row("judge", 0.1, 0.3)]
    rows += [{**_row(name, -0.3, 0.0), "high": high} for name in ("silence", "flicker")]
    text = demo.verdict(rows)
    assert (
        ("It rests more than before: its penalty silence is 0.150 [0.010, 0.300] larger" in text)
        == ("flickers more" in text)
        == said
    )


def test_verdict_leaves_out_what_nobody_hears():
    rows = [_row(name, 0.1, 0.3) for name in ("coherence", "judge")] + [_row("flicker", -0.003, -0.001)]
    assert "flickers" not in demo.verdict(rows)


def test_verdict_uses_ppo_against_mle_only():
    rows = [_row("coherence", 0.5, 0.6, b="random_stem"), _row("coherence", -0.3, -0.2), _row("judge", -0.1, 0.1)]
    assert "less coherent" in demo.verdict(rows)


def test_verdict_without_the_rewards_says_so():
    assert "not scored" in demo.verdict([_row("beat", 0.1, 0.2)])


def test_verdict_on_one_song_says_that_there_is_no_interval():
    one = [{**_row(measure, 0.1, 0.1), "low": None, "high": None} for measure in ("coherence", "judge")]
    assert "One held-out song gives no interval" in demo.verdict(one)


def test_verdict_on_few_songs_claims_nothing():
    def said(songs):
        return demo.verdict([{**_row(measure, 0.1, 0.2), "songs": songs} for measure in ("coherence", "judge")])

    assert said(7) == "Nothing is said about PPO: too few songs to tell (7; at least 8)."
    assert "more coherent" in said(8)


def test_closing_lines_say_where_to_listen_and_look():
    lines = demo.closing_lines(
        [_row("coherence", 0.1, 0.2), _row("judge", 0.0, 0.1)], {"rollouts": 7.0}, Path("runs/x")
    )
    text = "\n".join(lines)
    assert "7 rollouts" in text
    assert "runs/x/audio" in text
    assert "tensorboard" in text and "--logdir runs/x" in text


@pytest.mark.parametrize("played", [True, False])
def test_closing_lines_say_where_the_shipped_policy_is_from_if_it_was_played(played):
    rows = [_row("coherence", 0.1, 0.2), _row("judge", 0.0, 0.1)]
    rows += [_row("judge", 0.0, 0.1, a="ppo_shipped")] if played else []
    text = "\n".join(demo.closing_lines(rows, {"rollouts": 7.0}, Path("runs/x")))
    assert ("configs/finetune/long.yaml" in text) == ("checkpoint: ppo" in text) == played


def test_demo_targets_are_pitched_instrument_classes():
    from jamgym.corpus import INSTRUMENTS

    assert set(demo.PITCHED) <= set(INSTRUMENTS)
    assert "drums" not in demo.PITCHED


def test_the_demos_training_is_the_config_that_is_named_after_it():
    path = Path(__file__).parent.parent / "configs/finetune/demo.yaml"
    assert config_from_mapping(FinetuneConfig, read_yaml(path)) == DemoConfig().finetune


def test_demo_config_is_plain_data():
    json.dumps(asdict(DemoConfig()))


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of every setting that is not itself a dataclass."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, plain(value)


def _parsed(*argv: str) -> DemoConfig:
    return parse("jamgym demo", "", (), DemoConfig, argv).config


def _nested(path: str, value: Any) -> dict[str, Any]:
    """Return `value` as it stands in YAML under the dotted `path`."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_an_option_given_at_its_default_changes_nothing():
    default = DemoConfig()
    leaves = dict(_leaves(default))
    assert leaves["finetune.max_minutes"] == 5.0 and "evaluation.grid.t_f" in leaves
    for path, value in leaves.items():
        assert config_from_mapping(DemoConfig, _nested(path, value)) == default, path
    # The command line is slower, so it gets some of them alone, and then all at once.
    for path in ("finetune.rollouts", "finetune.max_minutes", "finetune.latency", "evaluation.episodes", "seed"):
        assert _parsed(f"--{path}", _text(leaves[path])) == default, path
    assert _parsed(*(word for path, value in leaves.items() for word in (f"--{path}", _text(value)))) == default


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("finetune.rollouts", 31),
        ("finetune.max_minutes", 2.5),
        ("finetune.max_songs", None),
        ("finetune.instruments", ["piano"]),
        ("finetune.reward", "note_in_chord"),
        ("finetune.latency", ["none", {"name": "constant", "seconds": 0.05}]),
        ("finetune.sampling.temperature", 0.9),
        ("evaluation.episodes", 12),
        ("evaluation.instruments", None),
        ("evaluation.grid.label", "seeds"),
        ("seed", 4),
    ],
)
def test_a_changed_option_changes_only_itself(path, value, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(_nested(path, value)))
    for argv in ([f"--{path}", _text(value)], ["--config", str(file)]):
        assert dict(_leaves(_parsed(*argv))) == {**dict(_leaves(DemoConfig())), path: value}


def test_an_argument_of_a_plugin_changes_only_itself():
    found = dict(_leaves(_parsed("--finetune.latency.sigma", "0.4")))
    latency = {"name": "lognormal", "median_seconds": 0.06, "sigma": 0.4}
    assert found == {**dict(_leaves(DemoConfig())), "finetune.latency": latency}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("corpus", {"name": "stems", "path": "songs"}),
        ("codec", "jamgym.toys:ToyCodec"),
        ("t_f", -10),
        ("k", 2),
        ("frames", 100),
        ("latency", "none"),
        ("late_policy", "repeat"),
        ("allow_lookahead", True),
    ],
)
def test_the_evaluation_takes_from_the_training_what_must_be_the_same(path, value):
    comparison = DemoConfig().evaluation
    with pytest.raises(ConfigError, match=f"evaluation.{path} is .* Give --finetune.{path}, which"):
        DemoConfig(evaluation=replace(comparison, **{path: value}))
    recipe = replace(DemoConfig().finetune, **{path: value})
    DemoConfig(finetune=recipe)
    DemoConfig(finetune=recipe, evaluation=replace(comparison, **{path: value}))


@pytest.mark.parametrize("accepted", [True, False])
def test_a_resumed_demo_keeps_its_settings_once_its_training_has_accepted_them(tmp_path, monkeypatch, accepted):
    def finetune(config, part):
        if accepted:
            part.log(0, {"x": 1.0})
        raise KeyboardInterrupt

    def play(minutes: float) -> None:
        config = DemoConfig(finetune=replace(DemoConfig().finetune, max_minutes=minutes))
        begun = (tmp_path / "r").exists()
        with Run.create(tmp_path / "r", command="demo", config=asdict(config), seed=0, resume=begun, quiet=True) as run:
            demo.run_demo(config, run)

    monkeypatch.setattr(demo, "finetune", finetune)
    for minutes in (1.0, 2.0):
        with pytest.raises(KeyboardInterrupt):
            play(minutes)
    for folder in (tmp_path / "r", tmp_path / "r" / "finetune"):
        kept = read_yaml(folder / "config.yaml")
        assert kept.get("finetune", kept)["max_minutes"] == (2.0 if accepted else 1.0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"checkpoints": ("missing.safetensors",)}, CheckpointError),
        ({"checkpoints": ("ppo",)}, ConfigError),
        ({"checkpoints": ("ppo_shipped/decoder.safetensors",)}, ConfigError),
        ({"metrics": ("judge", "judge")}, ConfigError),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_training(tmp_path, monkeypatch, changes, error):
    monkeypatch.setattr(demo, "finetune", lambda *_: pytest.fail("it was trained"))
    config = DemoConfig(evaluation=replace(DemoConfig().evaluation, **changes))
    with (
        Run.create(tmp_path / "r", command="demo", config=asdict(config), seed=0, quiet=True) as run,
        pytest.raises(error),
    ):
        demo.run_demo(config, run)


def _played(config, tmp_path, monkeypatch):
    """Run the demo in `tmp_path / "r"` without training or playing; return the policies that it would compare."""
    found = []
    monkeypatch.setattr(demo, "finetune", lambda *_: {"rollouts": 1})
    monkeypatch.setattr(demo, "evaluate", lambda config, _: found.extend(config.policies) or {})
    with Run.create(tmp_path / "r", command="demo", config=asdict(config), seed=0, quiet=True) as run:
        (tmp_path / "r/report.txt").write_text("")
        (tmp_path / "r/metrics.json").write_text('{"paired_differences": []}')
        demo.run_demo(config, run)
    return found


def test_the_demo_compares_with_the_sampling_that_it_trains_with(tmp_path, monkeypatch):
    sampling = Sampling(temperature=0.9, guidance=2.0)
    config = DemoConfig(finetune=replace(DemoConfig().finetune, sampling=sampling))
    played = _played(config, tmp_path, monkeypatch)
    decoders = [policy for policy in played if isinstance(policy, dict)]
    assert [policy["label"] for policy in decoders] == ["mle", "ppo", "ppo_shipped"]
    assert all(policy["temperature"] == 0.9 and policy["guidance"] == 2.0 for policy in decoders)


def test_the_demo_of_another_decoder_has_no_shipped_policy_beside_it(tmp_path, monkeypatch):
    codec = create_from_spec(registry.codecs, "spectral")
    save_decoder(tmp_path / "mine.safetensors", load_decoder(None, codec), codec.version, {})
    config = DemoConfig(finetune=replace(DemoConfig().finetune, checkpoint=str(tmp_path / "mine.safetensors")))
    played = _played(config, tmp_path, monkeypatch)
    assert [policy["label"] for policy in played if isinstance(policy, dict)] == ["mle", "ppo"]


@pytest.mark.parametrize("songs", [10, 20])
def test_the_demo_leaves_the_random_stem_out_where_one_song_is_held_out(tmp_path, monkeypatch, songs):
    config = DemoConfig(finetune=replace(DemoConfig().finetune, corpus={"name": "band", "songs": songs}))
    played = _played(config, tmp_path, monkeypatch)
    assert ("random_stem" in played) == (songs == 20)
    said = "random_stem needs another song's stem" in (tmp_path / "r/report.txt").read_text()
    assert said == (songs == 10)


def test_the_demo_has_one_seed_and_its_own_policies():
    recipe, comparison = DemoConfig().finetune, DemoConfig().evaluation
    with pytest.raises(ConfigError, match="evaluation.seed is 3, but the demo has one seed, 1; give --seed"):
        DemoConfig(evaluation=replace(comparison, seed=3), seed=1)
    with pytest.raises(ConfigError, match="finetune.seed is 3, but the demo has one seed, 0; give --seed"):
        DemoConfig(finetune=replace(recipe, seed=3))
    DemoConfig(replace(recipe, seed=3), replace(comparison, seed=3), seed=3)
    with pytest.raises(ConfigError, match="policies are its own"):
        DemoConfig(evaluation=replace(comparison, policies=("silence", "decoder")))


def test_the_demo_refuses_a_set_of_future_visibilities():
    with pytest.raises(
        ConfigError, match=r"finetune.t_f is \[-50, -25\], but the demo .* one t_f. Use `jamgym finetune`"
    ):
        DemoConfig(finetune=replace(DemoConfig().finetune, t_f=(-50, -25)))
