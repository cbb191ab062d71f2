import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from jamgym.benchmark.evaluation import EvaluationConfig, GridConfig, evaluate
from jamgym.benchmark.grid.cells import Player, _name
from jamgym.benchmark.grid.evaluate import _digest_of, make_players
from jamgym.commands.parsing import parse
from jamgym.errors import ConfigError, CorpusError, JamgymError, LookaheadError
from jamgym.files import RunError
from jamgym.run import Run
from jamgym.testing import ToyCodec, ToyCorpus
from jamgym_agents.baselines import TruthPolicy
from jamgym_agents.checkpoint import new_decoder, save_decoder
from jamgym_agents.decoder import DecoderConfig
from jamgym_agents.decoder_policy import DecoderPolicy

from ..helpers import Match

TOY = "jamgym.testing:"
PLAYED = []


class NeedsTruth(Match):
    name = "needs_truth"

    def __init__(self):
        super().__init__()
        self.needs = frozenset({"target", "truth"})


class NoTruthCorpus(ToyCorpus):
    def load(self, song_id):
        return replace(super().load(song_id), truth=None)


class Listener(TruthPolicy):
    """Plays right as often as t_f is great and k is small, and notes every episode it is given."""

    name = "listener"
    privileged = False

    def __init__(self, codec, k, t_f, source=None, seed=0, skill=0.0):
        super().__init__(codec=codec, k=k, source=source, seed=seed)
        self.share = np.clip(0.5 + skill + t_f / 20 - k / 50, 0.0, 1.0)
        self.cell = (t_f, k)

    def choose(self, episode):
        PLAYED.append(self.cell)
        codes = episode.target_codes.copy()
        wrong = self._rng(episode).random(len(codes)) >= self.share
        codes[wrong, 1] = (codes[wrong, 1] + 5) % 16
        return codes


class Trained(DecoderPolicy):
    """Has weights of its own, as the shipped decoder has."""

    seed_of_weights = 0

    def __init__(self, codec, k, seed=0, decoder=None):
        torch.manual_seed(self.seed_of_weights)
        super().__init__(codec, k, seed=seed, decoder=decoder or new_decoder(SMALL, codec).eval())


SMALL = DecoderConfig(latent_dim=8, dim=32, layers=1, heads=2, kv_heads=1, depth_dim=32)
CONFIG = EvaluationConfig(
    corpus={"name": TOY + "ToyCorpus", "songs": 4, "seconds": 3.0},
    codec=TOY + "ToyCodec",
    policies=("silence", "truth", {"name": f"{__name__}:Listener", "label": "ear"}),
    metrics=(f"{__name__}:Match",),
    grid=GridConfig(t_f=(5, -5), k=(10, 2)),
    frames=22,
    allow_lookahead=True,
    episodes=4,
    envs=4,
    resamples=300,
)


def save_tiny(path, seed):
    torch.manual_seed(seed)
    save_decoder(path, new_decoder(SMALL, ToyCodec()), "1", {})


@pytest.fixture
def make_run(tmp_path):
    def make(name="run", resume=False):
        return Run.create(tmp_path / name, command="evaluate", config={}, seed=0, resume=resume, quiet=True)

    PLAYED.clear()
    return make


def test_a_grid_writes_everything(make_run):
    run = make_run()
    # As few songs as may claim a trend.
    config = replace(CONFIG, corpus={**CONFIG.corpus, "songs": 8}, episodes=8)
    figures = evaluate(config, run)
    assert figures["ear/match/spearman_t_f"] > 0.8 and figures["ear/match/spearman_k"] < 0.0
    found = json.loads((run.folder / "grid.json").read_text())
    assert (found["t_f"], found["k"], found["lookahead_oracles"]) == ([-5, 5], [2, 10], [5])
    assert set(found["anchors"]) == {"silence", "truth"} and set(found["methods"]) == {"ear"}
    cells = found["methods"]["ear"]["cells"]
    assert [(cell["t_f"], cell["k"]) for cell in cells] == [(-5, 2), (-5, 10), (5, 2), (5, 10)]
    values = cells[0]["values_by_seed"][0]["match"]
    assert len(values) == 8 and np.mean(values) == pytest.approx(cells[0]["means"]["match"]["estimate"])
    statistics = found["methods"]["ear"]["statistics"]["match"]
    assert statistics["spearman_with_t_f"]["mean_within_lines"]["estimate"] == 1.0
    assert statistics["extremes"]["paired_difference"]["estimate"] > 0.2
    table, report = ((run.folder / name).read_text() for name in ("table.md", "report.txt"))
    for text in (table, report):
        assert "+5 LOOK-AHEAD ORACLE" in text and "-5 LOOK" not in text
        assert "ear: match rises with t_f: Spearman" in text and "over 4 cells" in text
        assert "one training seed" in text and "Anchors (the same for every t_f and k): silence 0." in text
    assert (run.folder / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((run.folder / "cells").iterdir())) == 2 + 4
    assert len(PLAYED) == 4 * 8, "each cell is played once, by all songs"


def test_a_grid_of_few_songs_claims_nothing(make_run):
    run = make_run()
    evaluate(CONFIG, run)
    for name in ("table.md", "report.txt"):
        text = (run.folder / name).read_text()
        assert text.count("too few songs to tell (4; at least 8).") == 4  # a note, two trends, two corners
        assert not any(word in text for word in ("rises", "falls", "touch"))


def test_an_interrupted_grid_goes_on(make_run, monkeypatch):
    whole = make_run("whole")
    evaluate(CONFIG, whole)
    PLAYED.clear()
    run = make_run("run")
    written = run.write_json

    def stop_after_some(name, obj):
        run.stop_requested = len(PLAYED) == 8
        return written(name, obj)

    monkeypatch.setattr(run, "write_json", stop_after_some)
    assert evaluate(CONFIG, run) == {}
    assert not (run.folder / "grid.json").exists() and len(PLAYED) == 8
    begun = set(PLAYED)
    PLAYED.clear()
    evaluate(CONFIG, make_run("run", resume=True))
    assert len(PLAYED) == 8 and not begun & set(PLAYED)
    assert (run.folder / "grid.json").read_bytes() == (whole.folder / "grid.json").read_bytes()
    PLAYED.clear()
    evaluate(CONFIG, make_run("run", resume=True))
    assert PLAYED == []
    evaluate(replace(CONFIG, grid=GridConfig((5, -5), (10, 2, 4))), make_run("run", resume=True))
    assert set(PLAYED) == {(-5, 4), (5, 4)}, "a larger grid plays what is new"


def test_cells_of_another_setting_are_not_mixed(make_run, monkeypatch):
    evaluate(CONFIG, make_run())
    PLAYED.clear()
    again = make_run(resume=True)
    for change, name in ((dict(frames=20), "frames"), (dict(latency={"name": "constant", "seconds": 0.1}), "latency")):
        with pytest.raises(ConfigError, match=f"another setting of .*{name}"):
            evaluate(replace(CONFIG, **change), again)
    better = {"name": f"{__name__}:Listener", "label": "ear", "skill": 0.1}
    with pytest.raises(ConfigError, match="another setting of policy"):
        evaluate(replace(CONFIG, policies=("silence", better)), again)
    with pytest.raises(ConfigError, match="another setting of metric_settings"):
        evaluate(replace(CONFIG, metrics=({"name": f"{__name__}:Match", "bonus": 0.5},)), again)
    for kind in ("Codec", "Corpus"):
        monkeypatch.setattr(f"jamgym.toys.Toy{kind}.version", "2")
        with pytest.raises(ConfigError, match=f"another setting of {kind.lower()}_version"):
            evaluate(CONFIG, again)
        monkeypatch.undo()
    PLAYED.clear()
    (again.folder / "cells" / "truth.json").write_text("{}")
    with pytest.raises(JamgymError, match="damaged"):
        evaluate(CONFIG, again)
    assert PLAYED == []


def test_a_network_that_comes_with_a_package_is_known_by_its_weights(make_run, monkeypatch):
    mine = replace(CONFIG, policies=({"name": f"{__name__}:Trained", "label": "mine"},), grid=GridConfig((-5,), (5,)))
    evaluate(mine, make_run())
    evaluate(mine, make_run(resume=True))
    monkeypatch.setattr(Trained, "seed_of_weights", 1)
    with pytest.raises(ConfigError, match="another setting of policy"):
        evaluate(mine, make_run(resume=True))


def test_cells_of_labels_that_look_alike_keep_their_names():
    """Cells of older runs are found by these names."""
    names = [_name(Player(label, 0, "truth"), -5, 2) for label in ("a_b", "a b", "a/b")]
    assert names == [f"cells/{name}-seed0-t_f-5-k2.json" for name in ("a_b", "a_b-5e229e", "a_b-f5effa")]


def test_networks_are_known_by_every_weight():
    network = torch.nn.Linear(2, 2).bfloat16()
    found = _digest_of(network)
    assert found == _digest_of(network) and len(found) == 16
    with torch.no_grad():
        network.bias[1] += 1
    assert _digest_of(network) != found
    assert _digest_of("no network") == _digest_of(None) == ""


def test_a_player_is_known_by_the_weights_in_its_file_or_by_those_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ppo").write_bytes(b"not the shipped one")
    (tmp_path / "mine.safetensors").write_bytes(b"weights")

    def identity(checkpoint, network):
        return Player("a", 0, {"name": "decoder", "checkpoint": checkpoint}, network=network).identity

    assert "checkpoint_sha256" not in identity("ppo", "hash")
    assert "checkpoint_sha256" in identity("mine.safetensors", "hash")
    assert "checkpoint_sha256" in identity("ppo", "")
    with pytest.raises(RunError, match="Could not read the checkpoint gone.safetensors"):
        identity("gone.safetensors", "hash")


def test_checkpoints_are_seeds_of_one_method(make_run, tmp_path):
    paths = []
    for seed in range(2):
        paths.append(str(tmp_path / f"{seed}" / "decoder.safetensors"))
        (tmp_path / f"{seed}").mkdir()
        save_tiny(paths[-1], seed)
    config = replace(CONFIG, policies=("truth",), checkpoints=tuple(paths), grid=GridConfig((-5, 5), (5,), "mle"))
    run = make_run()
    evaluate(config, run)
    found = json.loads((run.folder / "grid.json").read_text())
    method = found["methods"]["mle"]
    assert method["seeds"] == 2 and method["statistics"]["match"]["spearman_with_k"] is None
    first, second = (method["cells"][0]["values_by_seed"][seed]["match"] for seed in range(2))
    assert first != second
    assert "mle: 2 training seeds" in (run.folder / "table.md").read_text()
    save_tiny(paths[1], 7)
    with pytest.raises(ConfigError, match="another setting of policy"):
        evaluate(config, make_run(resume=True))


def test_a_metric_without_truth_is_left_out_whole(make_run):
    corpus = {"name": f"{__name__}:NoTruthCorpus", "songs": 4, "seconds": 3.0}
    run = make_run()
    evaluate(replace(CONFIG, corpus=corpus, metrics=(*CONFIG.metrics, f"{__name__}:NeedsTruth")), run)
    found = json.loads((run.folder / "grid.json").read_text())
    assert set(found["omitted_metrics"]) == {"needs_truth"}
    assert set(found["methods"]["ear"]["statistics"]) == {"match"}
    assert "needs_truth needs truth" in (run.folder / "report.txt").read_text()
    with pytest.raises(ConfigError, match="No metric can be scored"):
        evaluate(replace(CONFIG, corpus=corpus, metrics=(f"{__name__}:NeedsTruth",)), make_run("other"))


def test_a_random_stem_that_nobody_asked_for_is_left_out_without_other_songs(make_run, monkeypatch):
    config = replace(CONFIG, policies=("random_stem", *CONFIG.policies), max_songs=1)
    with pytest.raises(CorpusError, match="'random_stem' found no stem in a song other than"):
        evaluate(config, make_run())
    assert PLAYED == []
    monkeypatch.setattr(EvaluationConfig, "policies", config.policies)
    run = make_run("other")
    evaluate(config, run)
    found = json.loads((run.folder / "grid.json").read_text())
    assert set(found["anchors"]) == {"silence", "truth"} and list(found["omitted_policies"]) == ["random_stem"]
    for name in ("report.txt", "table.md"):
        assert "random_stem needs another song's stem" in (run.folder / name).read_text()


def test_late_frames_have_a_table_and_anchors_are_never_late(make_run):
    run = make_run()
    evaluate(replace(CONFIG, latency={"name": "constant", "seconds": 0.3}), run)
    assert "## ear: late frames" in (run.folder / "table.md").read_text()
    found = json.loads((run.folder / "grid.json").read_text())
    assert found["anchors"]["truth"]["means"]["late_frames"]["estimate"] == 0.0
    assert found["methods"]["ear"]["cells"][0]["means"]["late_frames"]["estimate"] > 0.0


def test_wrong_settings_are_refused_before_anything_is_played(make_run):
    run = make_run()
    for t_f, k, message in (
        ((-5,), (), "grid.k is empty"),
        ((), (5,), "grid.t_f is empty"),
        ((-5, -5), (5,), "grid.t_f is .* once"),
        ((-5,), (0,), "at least 1 frame"),
    ):
        with pytest.raises(ConfigError, match=message):
            GridConfig(t_f, k)
    with pytest.raises(ConfigError, match="label is empty"):
        GridConfig((-5,), (5,), "")
    with pytest.raises(LookaheadError):
        evaluate(replace(CONFIG, allow_lookahead=False), run)
    with pytest.raises(ConfigError, match="needs an agent"):
        evaluate(replace(CONFIG, policies=("silence", "truth")), run)
    with pytest.raises(ConfigError, match="both labelled 'ear'"):
        evaluate(replace(CONFIG, checkpoints=("a.safetensors",), grid=GridConfig((-5,), (5,), "ear")), run)
    with pytest.raises(ConfigError, match="distinct names"):
        evaluate(replace(CONFIG, metrics=2 * CONFIG.metrics), run)
    with pytest.raises(ConfigError, match="named twice"):
        evaluate(replace(CONFIG, checkpoints=("a.safetensors", "a.safetensors")), run)
    with pytest.raises(JamgymError, match=r"a\.safetensors"):
        evaluate(replace(CONFIG, checkpoints=("a.safetensors",)), run)
    assert PLAYED == [] and not (run.folder / "cells").exists()


def test_anchors_are_told_from_methods():
    from jamgym.benchmark.evaluation import make_source

    players = make_players(CONFIG, make_source(CONFIG))
    assert {player.label: player.anchor for player in players} == {"silence": True, "truth": True, "ear": False}


def test_the_command_line_reads_a_grid():
    argv = ["--grid.t_f", "[-50,-25,0]", "--grid.k", "[1,5]", "--grid.label", "mle"]
    assert parse("jamgym evaluate", "", (), EvaluationConfig, argv).config.grid == GridConfig(
        (-50, -25, 0), (1, 5), "mle"
    )
    given = parse("jamgym evaluate", "", (), EvaluationConfig, ["--config", "configs/evaluate/grid.yaml"]).config
    assert len(given.grid.t_f) * len(given.grid.k) == 24 and given.episodes == 104
    smaller = parse("x", "", (), EvaluationConfig, ["--config", "configs/evaluate/grid.yaml", "--grid.k", "[2]"]).config
    assert smaller.grid == replace(given.grid, k=(2,))
    assert not EvaluationConfig().grid.given
    with pytest.raises(ConfigError, match=r"grid\.t_f"):
        parse("jamgym evaluate", "", (), EvaluationConfig, ["--grid.t_f", "[a]", "--grid.k", "[1]"])
