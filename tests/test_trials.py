"""Several seeds by one command, in one process or dealt out by torchrun, with a process that dies."""

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
import main
import utils
from conftest import ROOT

FLAGS = ("--dataset=digits", "--prune_percent=20", "--prune_iterations=3", "--gpu=cpu")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.dat"))}


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """What four runs, each by a command of its own, leave: the arrays by name."""
    folder = tmp_path_factory.mktemp("single")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in range(3, 7):
        main.main(main.parse_args([*FLAGS, "--end_iter=30", f"--output_dir={folder}", f"--seed={seed}"]))
    torch.set_num_threads(threads)
    return files(folder)


@pytest.mark.parametrize(("seed", "trials", "seeds"), [(0, 1, [0]), (5, 3, [5, 6, 7])])
def test_trials_are_seeds_in_a_row(seed, trials, seeds):
    args = main.parse_args([f"--seed={seed}", f"--trials={trials}"])
    assert [trial.seed for trial in utils.trials(args)] == seeds
    assert all(vars(trial) | {"seed": seed} == vars(args) for trial in utils.trials(args))


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_trial_falls_to_one_process(processes, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    found = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        found += [trial.seed for trial in utils.trials(main.parse_args(["--seed=10", "--trials=5"]))]
    assert sorted(found) == [10, 11, 12, 13, 14]


def test_the_processes_of_a_machine_share_its_cores_and_take_its_gpus_in_turn(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "6")  # on two machines
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    gpus = []
    for place in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(place))
        gpus.append(next(utils.trials(main.parse_args([]))).gpu)
        assert next(utils.trials(main.parse_args(["--gpu=cpu"]))).gpu == "cpu"
    assert gpus == [0, 1, 0]
    assert set(threads) == {2}


def test_a_restart_goes_on_with_what_was_begun_and_clears_what_was_not(small_args, monkeypatch):
    """One of torchrun's processes may die before it has cleared its trials."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    runs = [utils.Run(small_args(seed=seed)) for seed in (0, 1)]
    for run in runs:
        run.files.saves.mkdir(parents=True)
        run.args.overwrite = True
    runs[0].clear()
    assert runs[0].files.cleared.exists()
    assert [run.overwrites() for run in runs] == [True, True], "a new command"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [run.overwrites() for run in runs] == [False, True]
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert [run.overwrites() for run in runs] == [True, True], "another command with the same name"
    monkeypatch.undo()
    runs[1].clear()
    assert not runs[1].files.cleared.exists(), "without torchrun nobody reads it"


def test_a_signal_at_the_end_of_a_trial_stops_the_others_too(small_args, monkeypatch):
    figure = utils.plot_round
    monkeypatch.setattr(utils, "plot_round", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), figure(*args)))
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    with pytest.raises(utils.Stopped, match="SIGTERM in round 0 of seed 0, after 20 iterations"):
        main.main(args)
    monkeypatch.undo()
    assert not utils.Files(small_args(seed=1)).dumps.exists()
    before = files(args.output_dir)
    main.main(small_args(prune_iterations=1, end_iter=1))
    assert files(args.output_dir) == before


def children(process):
    """The numbers of a process's children."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in found.split()]


def test_torchrun_deals_trials_out_and_a_process_that_is_killed_goes_on(tmp_path, one_by_one):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command += ["main.py", *FLAGS, "--end_iter=30", "--seed=3", "--trials=4", f"--output_dir={tmp_path}"]
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        two = set(sorted(os.sched_getaffinity(0))[:2])  # cores, so that each process has one, as the runs to compare with
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, preexec_fn=lambda: os.sched_setaffinity(0, two)
        )
        saves = tmp_path / "saves/fc1/digits"
        deadline = time.monotonic() + 120
        while not all((saves / f"seed{seed}/0_model_lt.pth.tar").exists() for seed in (3, 4)):
            assert process.poll() is None, output.read_text()[-3000:]
            assert time.monotonic() < deadline, output.read_text()[-3000:]
            time.sleep(0.02)
        first = children(process)
        os.kill(first[1], signal.SIGKILL)
        assert process.wait(timeout=300) == 0, output.read_text()[-3000:]
    assert len(first) == 2
    assert files(tmp_path) == one_by_one
    text = output.read_text()
    for seed in range(3, 7):
        assert f"round 2 of seed {seed}: test accuracy" in text
    assert "Traceback" not in text
    assert "SIGTERM in round" in text, "the other process was not stopped with a checkpoint"


# What is decided for all trials at once


def network(width):
    return lambda *_: nn.Sequential(nn.Flatten(), nn.MaxPool1d(112), nn.Linear(7, width), nn.ReLU(), nn.Linear(width, 10))


def test_overwriting_clears_all_trials_before_the_first_begins(small_args, monkeypatch):
    """Or else those that a stop left for later would count as finished, with results of before."""
    monkeypatch.setattr(archs, "build", network(5))
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    main.main(args)
    monkeypatch.setattr(archs, "build", network(6))
    args.overwrite = True
    with monkeypatch.context() as patch, pytest.raises(utils.Stopped):
        patch.setattr(utils, "plot_round", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        main.main(args)
    assert not utils.Files(small_args(seed=1)).checkpoint.exists()
    args.overwrite = False
    main.main(args)
    for seed in range(3):
        ticket = torch.load(utils.Files(small_args(seed=seed)).ticket(0), weights_only=True)
        assert ticket["model"]["2.weight"].shape == (6, 7)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_wrong_with_a_later_trial_keeps_the_first_from_starting(overwrite, small_args, monkeypatch):
    main.main(small_args(prune_iterations=1, end_iter=1, seed=2, lr=0.01))
    before = files(small_args().output_dir)
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    args.overwrite = overwrite
    with FileLock(utils.Files(small_args(seed=2)).lock), pytest.raises(utils.BadInput, match="another process"):
        main.main(args)
    args.val_size = 5000
    with pytest.raises(utils.BadInput, match="--val_size" if overwrite else "0.01 for --lr"):
        main.main(args)
    assert files(args.output_dir) == before
    assert not utils.Files(args).dumps.joinpath("lt_log.jsonl").exists()


def test_masks_are_checked_for_all_trials_and_rounds_before_the_first_starts(small_args, monkeypatch):
    main.main(small_args(end_iter=1, trials=2))
    path = utils.Files(small_args(seed=1)).ticket(2)
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=r"seed1/2_model_lt.pth.tar is damaged"):
        main.main(small_args(end_iter=1, trials=2, prune_type="reinit", masks_from="lt"))
    assert not utils.Files(small_args(prune_type="reinit")).checkpoint.exists()


@pytest.fixture
def sick_seed_1(monkeypatch):
    """Training of seed 1 fails."""
    trained, measure = [], main.measure

    def sick(args, *rest):
        trained.append(args.seed)
        if args.seed == 1:
            raise utils.Failure("the loss is not finite in round 0 of seed 1")
        return measure(args, *rest)

    monkeypatch.setattr(main, "measure", sick)
    return trained


def test_a_trial_that_fails_keeps_no_other_from_running(small_args, sick_seed_1):
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    for expected in ([0, 1, 2], [1]):
        with pytest.raises(utils.Failure, match=r"of seed 1$"):
            main.main(args)
        assert sick_seed_1 == expected
        sick_seed_1.clear()
    assert [utils.Files(small_args(seed=seed)).rounds() for seed in range(3)] == [1, 0, 1]


def test_a_restart_by_torchrun_does_not_train_again_what_failed(small_args, sick_seed_1, monkeypatch):
    args = small_args(prune_iterations=1, end_iter=1, trials=3)
    with pytest.raises(utils.Failure):
        main.main(args)
    sick_seed_1.clear()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(utils.Failure, match="of seed 1"):
        main.main(args)
    assert sick_seed_1 == []
    monkeypatch.undo()
    main.main(args)
    assert not utils.Files(small_args(seed=1)).failure.exists()


def test_only_torchruns_own_variables_count(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert [trial.seed for trial in utils.trials(main.parse_args(["--trials=2"]))] == [0, 1]


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch):
    threads = []
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    next(utils.trials(main.parse_args([])))
    assert threads == [3]


def test_what_failed_in_another_command_is_tried_again(small_args, sick_seed_1, monkeypatch):
    args = small_args(prune_iterations=1, end_iter=1, trials=2)
    with pytest.raises(utils.Failure):
        main.main(args)
    sick_seed_1.clear()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(os, "getppid", lambda: -1)
    with pytest.raises(utils.Failure):
        main.main(args)
    assert sick_seed_1 == [1]


def test_a_failure_is_said_at_once_when_others_follow(small_args, sick_seed_1, capsys):
    with pytest.raises(utils.Failure):
        main.main(small_args(prune_iterations=1, end_iter=1, trials=3))
    error = capsys.readouterr().err
    assert error.index("failed: the loss is not finite in round 0 of seed 1") < error.index("round 0 of seed 2")


def test_under_torchrun_a_trial_that_fails_lets_the_others_end(tmp_path):
    """Or else torchrun would stop them, for each restart there is."""
    code = """
import main, utils
measure = main.measure
def sick(args, *rest):
    if args.seed == 1:
        raise utils.Failure("the loss is not finite in round 0 of seed 1")
    return measure(args, *rest)
main.measure = sick
with utils.one_line_errors("main.py"):
    main.main(main.parse_args())
"""
    (tmp_path / "sick.py").write_text(code)
    flags = (*FLAGS, "--end_iter=120", "--trials=2", f"--output_dir={tmp_path / 'out'}")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "sick.py", *flags]
    result = subprocess.run(
        run, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1
    assert "error: the loss is not finite in round 0 of seed 1" in result.stderr
    assert "SIGTERM" not in result.stderr
    assert len(files(tmp_path / "out")) == 5 + 2 * 3


def test_masks_of_an_lt_run_that_was_made_anew_are_not_mixed_with_those_of_before(small_args):
    main.main(small_args(end_iter=1))
    for kind in ("reinit", "random"):
        main.main(small_args(end_iter=1, prune_iterations=2, prune_type=kind, masks_from="lt"))
    lt = small_args(end_iter=1)
    lt.overwrite = True
    path = utils.Files(lt).ticket(1)
    old = torch.load(path, weights_only=True)
    torch.save(old | {"masks": {name: mask.flip(0) for name, mask in old["masks"].items()}}, path)
    with pytest.raises(utils.BadInput, match="was pruned by other masks than lt has now"):
        main.main(small_args(end_iter=1, prune_type="reinit", masks_from="lt"))
    main.main(small_args(end_iter=1, prune_type="random", masks_from="lt"))  # which has their sizes alone
