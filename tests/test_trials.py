"""Several seeds by one command, in one process or under torchrun, even if a process dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn

import archs
import combine_plots
import main
import utils
from conftest import ROOT, finished_rounds, needs_linux

FLAGS = (
    "--dataset=digits",
    "--prune_percent=20",
    "--prune_iterations=3",
    "--end_iter=5",
    "--gpu=cpu",
)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*.dat"))
    }


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """The bytes of the arrays of four runs, each started by its own command."""
    folder = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combine_plots, "draw_run", lambda _: None)
        for seed in range(3, 7):
            main.main(main.parse_args([*FLAGS, f"--output_dir={folder}", f"--seed={seed}"]))
    return files(folder)


@pytest.mark.parametrize(("seed", "trials", "seeds"), [(0, 1, [0]), (5, 3, [5, 6, 7])])
def test_trials_are_consecutive_seeds(seed, trials, seeds):
    args = main.parse_args([f"--seed={seed}", f"--trials={trials}"])
    assert [trial.seed for trial in utils.trials(args)] == seeds
    assert all(vars(trial) | {"seed": seed} == vars(args) for trial in utils.trials(args))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_trial_runs_in_exactly_one_process(processes, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    found = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        found += [
            trial.seed for trial in utils.trials(main.parse_args(["--seed=10", "--trials=5"]))
        ]
    assert sorted(found) == [10, 11, 12, 13, 14]


def test_processes_share_cores_and_take_turns_on_gpus(monkeypatch):
    monkeypatch.setattr(utils, "available_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "6")  # on two machines
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    gpus = []
    for place in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(place))
        gpus.append(utils.trials(main.parse_args(["--trials=6"]))[0].gpu)
        assert utils.trials(main.parse_args(["--gpu=cpu", "--trials=6"]))[0].gpu == "cpu"
        assert utils.pick_threads(None, utils.WORK_FOR_THREADS) == 2
    assert gpus == [0, 1, 0]


def test_a_torchrun_process_trains_on_its_own_gpu(small_args, monkeypatch):
    picked, waited = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("LOCAL_RANK", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(utils, "wait_for_processes", lambda: waited.append(True))
    monkeypatch.setattr(main, "pick_device", lambda gpu: picked.append(gpu) or torch.device("cpu"))
    main.main(small_args(prune_iterations=1, end_iter=1, trials=2, gpu=0))
    assert picked == [1]
    assert waited == [True]


@pytest.mark.parametrize(
    ("flags", "advice"),
    [({"trials": 1}, "2 processes for --trials=1"), ({"trials": 2}, "--overwrite")],
)
def test_unusable_torchrun_commands_are_refused(flags, advice, small_args, monkeypatch):
    args = small_args(**flags)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    args.overwrite = args.trials == 2
    with pytest.raises(utils.BadInput, match=advice):
        main.main(args)


def test_a_signal_at_the_end_of_a_trial_stops_all_trials(small_args, monkeypatch):
    figure = combine_plots.draw_round
    monkeypatch.setattr(
        combine_plots,
        "draw_round",
        lambda *args: (signal.raise_signal(signal.SIGTERM), figure(*args)),
    )
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    with pytest.raises(utils.Stopped, match="SIGTERM in round 0 of seed 0 after 20 iterations"):
        main.main(args)
    monkeypatch.undo()
    assert not utils.Files(small_args(seed=1)).dumps.exists()
    before = files(args.output_dir)
    main.main(small_args(prune_iterations=1, end_iter=1))
    assert files(args.output_dir) == before


def children(process):
    """Return the process numbers of a process's children."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in found.split()]


def torchrun(processes, *command, restarts=0):
    """Start a command under torchrun."""
    launcher = [
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, command)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@needs_linux
def test_torchrun_distributes_trials_and_restarts_killed_processes(tmp_path, one_by_one):
    process = torchrun(
        2, "main.py", *FLAGS, "--seed=3", "--trials=4", f"--output_dir={tmp_path}", restarts=2
    )
    saves = tmp_path / "saves/fc1/digits"
    deadline = time.monotonic() + 120
    while not all((saves / f"seed{seed}/0_model_lt.pth.tar").exists() for seed in (3, 4)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first = children(process)
    os.kill(first[1], signal.SIGKILL)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    assert len(first) == 2
    assert files(tmp_path) == one_by_one
    for seed in range(3, 7):
        assert f"round 2 of seed {seed}: test accuracy" in text
    assert "Traceback" not in text
    assert "SIGTERM in round" in text, "the other process was not stopped with a checkpoint"


FAILING = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import main, utils
measure = main.measure
def failing(args, *rest):
    if args.seed == 4:
        raise utils.Failure("not today, in seed 4")
    return measure(args, *rest)
main.measure = failing
with utils.one_line_errors("main.py"):
    main.main(main.parse_args())
"""


@needs_linux
def test_under_torchrun_a_failed_trial_waits_for_the_others(tmp_path, one_by_one):
    """Of two processes, one has a finished trial and one to train, the other fails at once."""
    output = tmp_path / "output"
    main.main(main.parse_args([*FLAGS, f"--output_dir={output}", "--seed=3"]))
    (tmp_path / "failing.py").write_text(FAILING)
    process = torchrun(
        2, tmp_path / "failing.py", ROOT, *FLAGS, "--seed=3", "--trials=3", f"--output_dir={output}"
    )
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    before, error, _ = text.partition("main.py: error: not today, in seed 4")
    assert error
    assert "round 2 of seed 5: test accuracy" in before
    assert "note:" not in text
    expected = {
        name: content
        for name, content in one_by_one.items()
        if "seed3/" in name or "seed5/" in name
    }
    assert {
        name: content for name, content in files(output).items() if "seed4/" not in name
    } == expected


# Checks and actions on all trials at once


def network(width):
    return lambda *_: nn.Sequential(
        nn.Flatten(), nn.MaxPool1d(112), nn.Linear(7, width), nn.ReLU(), nn.Linear(width, 10)
    )


def test_overwriting_deletes_all_trials_before_the_first_starts(small_args, monkeypatch):
    """Otherwise, after a stop, later trials would count as finished with their old results."""
    monkeypatch.setattr(archs, "build", network(5))
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    main.main(args)
    monkeypatch.setattr(archs, "build", network(6))
    args.overwrite = True
    with monkeypatch.context() as patch, pytest.raises(utils.Stopped):
        patch.setattr(combine_plots, "draw_round", lambda *_: signal.raise_signal(signal.SIGTERM))
        main.main(args)
    assert not utils.Files(small_args(seed=1)).checkpoint.exists()
    args.overwrite = False
    main.main(args)
    for seed in range(3):
        ticket = torch.load(utils.Files(small_args(seed=seed)).ticket(0), weights_only=True)
        assert ticket["model"]["2.weight"].shape == (6, 7)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_later_trial_that_cannot_run_stops_the_first_from_starting(
    overwrite, small_args, monkeypatch
):
    main.main(small_args(prune_iterations=1, end_iter=1, seed=2, lr=0.01))
    before = files(small_args().output_dir)
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    args.overwrite = overwrite
    with (
        FileLock(utils.Files(small_args(seed=2)).lock),
        pytest.raises(utils.BadInput, match="another process"),
    ):
        main.main(args)
    args.val_size = 5000
    with pytest.raises(utils.BadInput, match="--val_size" if overwrite else "--lr=0.01, not"):
        main.main(args)
    assert files(args.output_dir) == before
    assert not utils.Files(args).dumps.joinpath("lt_log.jsonl").exists()


def test_masks_of_all_trials_are_checked_before_the_first_starts(small_args, monkeypatch):
    main.main(small_args(end_iter=1, trials=2))
    path = utils.Files(small_args(seed=1)).ticket(0)
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=r"seed1/0_model_lt.pth.tar is damaged"):
        main.main(small_args(end_iter=1, trials=2, prune_type="reinit", masks_from="lt"))
    assert not utils.Files(small_args(prune_type="reinit")).checkpoint.exists()


def test_a_failed_trial_does_not_stop_the_others_and_is_reported(small_args, monkeypatch, capsys):
    trained, measure = [], main.measure

    def failing(args, *rest):
        trained.append(args.seed)
        if args.seed in (0, 2):
            raise utils.Failure(f"the loss is not finite in round 0 of seed {args.seed}")
        return measure(args, *rest)

    monkeypatch.setattr(main, "measure", failing)
    for expected in ([0, 1, 1, 2], [0, 2]):  # at the start, and at the end of an epoch
        with pytest.raises(utils.Failure, match=r"of seed 0; .* of seed 2$"):
            main.main(small_args(prune_iterations=1, end_iter=1, trials=3))
        assert trained == expected
        trained.clear()
        assert (
            capsys.readouterr().err.count("failed: the loss is not finite in round 0 of seed 0")
            == 1
        )
    assert [finished_rounds(small_args(seed=seed)) for seed in range(3)] == [0, 1, 0]


def test_variables_of_other_launchers_are_ignored(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert [trial.seed for trial in utils.trials(main.parse_args(["--trials=2"]))] == [0, 1]
