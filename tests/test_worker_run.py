import pytest

from jamgym import cli
from jamgym.worker_run import WorkerRun, launched_workers


@pytest.fixture
def second_of_two(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)


def test_torchrun_is_recognised(second_of_two, monkeypatch):
    assert launched_workers() == (1, 2)
    monkeypatch.delenv("MASTER_ADDR")
    assert launched_workers() == (0, 1)


def test_a_worker_writes_nothing(tmp_path):
    with WorkerRun(tmp_path / "shared", "pretrain", {"steps": 3}, seed=0) as run:
        run.log(1, {"loss": 0.5})
        run.truncate(0)
        run.add_audio(1, "mix", [0.0, 0.1], 16_000)
        run.write_audio("a.wav", [0.0, 0.1], 16_000)
        assert run.write_json("metrics.json", {}) == tmp_path / "shared/metrics.json"
        with run.progress(3, "nothing") as progress:
            progress.advance(1)
    assert not list(tmp_path.iterdir())


def test_several_processes_need_a_folder_that_they_share(second_of_two, capsys):
    assert cli.main(["pretrain"]) == 2
    assert "--out" in capsys.readouterr().err


def test_other_commands_refuse_several_processes(second_of_two, capsys):
    assert cli.main(["finetune", "--out", "r"]) == 2
    assert "finetune runs as one process" in capsys.readouterr().err
