import numpy as np
import pytest

from jamgym.benchmark.grid.report import report
from jamgym.benchmark.grid.results import GridResults


@pytest.mark.parametrize("name", ["ppo [kl 0.2]", "ppo [/b]", "ppo [red]"])
def test_names_are_shown_as_they_are(name):
    scores = np.random.default_rng(0).uniform(size=(1, 2, 2, 3))
    results = GridResults(
        t_f=(-5, 5),
        k=(2, 10),
        live=(True, False),
        metrics=("judge",),
        methods={name: {"judge": scores, "late_frames": 0.0 * scores}},
        anchors={},
        song_ids=("a", "b", "c"),
        setting={"corpus_name": name, "split": "test"},
        resamples=50,
    )
    lines = report(results).splitlines()
    assert lines[0] == f"{name} test, 3 songs, 2 t_f x 2 k"
    assert f"{name}: judge" in [line.strip() for line in lines]
    assert sum(name in line for line in lines) >= 4  # and in each sentence
