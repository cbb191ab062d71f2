"""Two processes train as one does; whichever is asked to stop, both stop, save and go on together."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
import yaml

from jamgym.errors import ConfigError
from jamgym.files import plain
from jamgym.run import Run, read_metrics
from jamgym_agents.mle.distributed import Workers, choose_device
from jamgym_agents.pretraining import pretrain

from .helpers import TINY
from .test_pretraining import CONFIG

# Without dropout, whose masks are each process's own.
TOGETHER = replace(
    CONFIG,
    steps=75,
    checkpoint_minutes=5.0,
    device="cpu",
    accumulate=2,
    ema_decay=0.9,
    validate_every=40,
    validation_t_f=(-5,),
    architecture=replace(TINY, dropout=0.0, lookahead_frames=3),
)
CPU = torch.device("cpu")


def launch(folder, *options):
    """Start two processes as torchrun does: they find each other in a store that outlives them both."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "jamgym.cli", "pretrain", "--out", str(folder), *options]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    return processes, store


def finish(launched):
    processes, _ = launched
    texts = [process.communicate(timeout=180)[0] for process in processes]
    return [process.returncode for process in processes], "\n".join(texts)


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_and_resume_together(tmp_path, monkeypatch):
    monkeypatch.setenv("JAMGYM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(plain(asdict(TOGETHER))))
    both, store = launch(tmp_path / "two", "--config", str(tmp_path / "c.yaml"))
    log = tmp_path / "two/metrics.jsonl"
    limit = time.monotonic() + 120
    while not log.exists() and time.monotonic() < limit and both[0].poll() is None:
        time.sleep(0.02)
    both[1].send_signal(signal.SIGINT)
    codes, text = finish((both, store))
    assert codes == [130, 130] and "torchrun --nproc-per-node 2 -m jamgym.cli pretrain" in text, text
    assert json.loads((tmp_path / "two/run.json").read_text())["status"] == "stopped"
    assert 0 < read_metrics(log)[-1]["step"] < 75 and (tmp_path / "two/checkpoint.safetensors").exists()

    codes, text = finish(launch(tmp_path / "two", "--resume"))
    assert codes == [0, 0], text
    assert text.count("Run folder") == 1 and len(list((tmp_path / "cache").iterdir())) == 2
    with Run.create(tmp_path / "one", command="pretrain", config={}, seed=0, quiet=True) as run:
        pretrain(TOGETHER, run)
    alone, together = read_metrics(tmp_path / "one/metrics.jsonl"), read_metrics(log)
    assert [line["step"] for line in alone] == [line["step"] for line in together] == [1, 26, 40, 51, 75]
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=2e-4)


def test_every_row_belongs_to_one_piece():
    rows = [list(range(24))[part] for rank in range(3) for part in Workers(CPU, rank, 3).pieces(24, 2)]
    assert sum(rows, []) == list(range(24)) and {len(part) for part in rows} == {4}
    for batch in (2, 16):
        with pytest.raises(ConfigError, match="multiple of 6"):
            Workers(CPU, 0, 3).pieces(batch, 2)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == torch.device("cuda", 1) and choose_device("cpu", 1) == CPU
    with pytest.raises(ConfigError, match="nproc-per-node 2"):
        choose_device("auto", 2)
