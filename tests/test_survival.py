"""Runs survive kills, signals, full disks, damaged and hostile files, and a second process."""

import contextlib
import errno
import gc
import io
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import archs
import combine_plots
import main
import utils
from conftest import ROOT, Mark, arrays, command, finished_rounds, needs_linux, same

FLAGS = ("--dataset=digits", "--gpu=cpu", "--prune_percent=20")


@pytest.fixture
def tiny(monkeypatch, undrawn):
    """A network whose checkpoints have a few kilobytes."""
    monkeypatch.setattr(
        archs, "build", lambda *_: nn.Sequential(nn.Flatten(), nn.MaxPool1d(112), nn.Linear(7, 10))
    )


def run(args, **changes):
    for name, value in changes.items():
        setattr(args, name, value)
    main.main(args)
    return arrays(args)


# Resuming


@needs_linux
def test_runs_killed_at_random_moments_end_as_if_undisturbed():
    result = command("tests/kill_loop.py", "--kills=6", timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "6 kills" in result.stdout


def contents(args):
    """Return the bytes of all files of a run except the lock, by path."""
    return {
        path: path.read_bytes()
        for path in Path(args.output_dir).rglob("*.*")
        if path.suffix != ".lock"
    }


def test_a_finished_run_needs_neither_data_nor_training(small_args, capsys, monkeypatch):
    run(small_args())
    before = contents(small_args())
    for name in ("load_data", "inspect_network", "train"):
        monkeypatch.setattr(main, name, None)
    run(small_args())
    run(small_args(prune_iterations=2))
    assert capsys.readouterr().out.count("has 3 rounds; a larger --prune_iterations adds more") == 2
    assert contents(small_args()) == before


def test_starting_a_finished_run_restores_its_files(small_args, monkeypatch):
    args = small_args(end_iter=3)
    run(args)
    before = contents(args)
    found = utils.Files(args)
    monkeypatch.setattr(main, "train", None)
    for path in found.dumps.glob("lt_*"):
        if path not in (found.array("compression"), found.settings):
            path.unlink()
    found.array("all_loss_1").write_bytes(b"spoilt")
    for path in found.plots.glob("*.png"):
        path.unlink()
    run(args)
    assert contents(args) == before


def test_more_rounds_extend_a_run_as_if_requested_at_first(small_args, tmp_path, undrawn):
    run(small_args(prune_iterations=2))
    assert run(small_args(prune_iterations=4)) == run(
        small_args(prune_iterations=4, output_dir=tmp_path / "at once")
    )


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.01},
        {"prune_percent_output": 10},
        {"end_iter": 3},
        {"val_size": 100},
        {"batch_size": 30},
        {"prune_scope": "global"},
        {"rewind_iter": 5},
        {"lr_milestones": "7"},
        {"lr_schedule": "cosine"},
        {"label_smoothing": 0.1},
        {"optimizer": "adamw"},
    ],
)
def test_results_of_other_settings_are_refused_and_the_difference_named(
    change, small_args, undrawn
):
    args, other = (
        small_args(prune_iterations=1, end_iter=1),
        small_args(**{"prune_iterations": 1, "end_iter": 1, **change}),
    )
    before = run(args)
    (name,) = change
    value = re.escape(utils.as_flag(getattr(args, name)))
    message = rf"with --{name}={value}, not .*--output_dir.*--overwrite"
    with pytest.raises(utils.BadInput, match=message):
        run(other)
    assert arrays(args) == before


def test_overwriting_starts_over_and_spares_other_runs(small_args):
    run(small_args(prune_iterations=2, end_iter=1))
    run(small_args(prune_iterations=1, end_iter=1, prune_type="reinit"))
    run(small_args(prune_iterations=1, end_iter=1, seed=3))
    args = small_args(prune_iterations=1, end_iter=2)
    run(args, overwrite=True)
    dumps = utils.Files(args).dumps
    assert len(np.load(dumps / "lt_compression.dat")) == 1
    assert len(np.load(dumps / "lt_all_loss_0.dat")) == 2
    assert not (dumps / "lt_all_loss_1.dat").exists(), "a round of the deleted run"
    assert len((dumps / "lt_log.jsonl").read_text().splitlines()) == 3
    assert (dumps / "reinit_all_loss_0.dat").exists()
    assert (dumps / "seed3" / "lt_all_loss_0.dat").exists()


# Files that a run of lt does not write.
OF_OTHERS = [
    "dumps/lt/fc1/digits/lt_late_compression.dat",
    "dumps/lt/fc1/digits/lt_late_all_loss_0.dat",
    "dumps/lt/fc1/digits/lt_notes.txt",
    "dumps/lt/fc1/digits/lt_all_loss_mean.dat",
    "dumps/lt/fc1/digits/lt_log.jsonl.bak",
    "dumps/lt/fc1/digits/lt_thoughts/lt_log.jsonl",
    "plots/lt/fc1/digits/lt_late_AccuracyVsWeights.png",
    "plots/lt/fc1/digits/lt_slide.png",
    "saves/fc1/digits/0_model_lt_late.pth.tar",
    "saves/fc1/digits/0_model_lt.pth.tar.old",
    "saves/fc1/digits/best_model_lt.pth.tar",
]


def test_files_of_others_are_neither_results_nor_deleted(small_args):
    """Even if their names begin alike."""
    args = small_args(prune_iterations=2, end_iter=1)
    others = [Path(args.output_dir, name) for name in OF_OTHERS]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    run(args)
    run(args, overwrite=True, prune_iterations=1)
    for path in others:
        assert path.read_text() == "precious"


def test_overwriting_deletes_all_that_a_run_wrote(small_args, monkeypatch):
    """Also temporary files that a kill left."""
    args = small_args(prune_iterations=2, end_iter=1)
    run(args)
    found = utils.Files(args)
    written = contents(args)
    for path in [*found.dumps.iterdir(), *found.plots.iterdir(), *found.saves.glob("[0-9]*")]:
        path.with_name(f"{path.name}.tmp").touch()
    monkeypatch.setattr(main, "experiment", lambda *_: None)
    run(args, overwrite=True)
    assert len(written) > 20
    assert contents(args) == {}


def test_bad_usage_spares_existing_results(small_args, undrawn):
    before = run(small_args(prune_iterations=1, end_iter=1))
    with pytest.raises(utils.BadInput):
        run(small_args(batch_size=5000), overwrite=True)
    assert arrays(small_args()) == before


def test_results_without_a_checkpoint_are_not_overwritten(small_args, undrawn):
    args = small_args(prune_iterations=1, end_iter=1)
    before = run(args)
    for path in utils.Files(args).saves.glob("checkpoint*"):
        path.unlink()
    with pytest.raises(utils.BadInput, match=r"no checkpoint to resume from.*--overwrite"):
        run(args)
    assert arrays(args) == before


def test_another_network_is_refused(small_args, tiny):
    args = small_args(prune_iterations=1, end_iter=1)
    run(args)
    archs.build = lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(utils.BadInput, match="another network"):
        run(args, prune_iterations=2)


@pytest.mark.parametrize(
    ("duration", "longest"), [(0, 30), (0.4, 30), (1, 60)], ids=["instant", "fast", "slow"]
)
def test_checkpoints_are_rarer_if_they_take_long(
    duration, longest, small_args, monkeypatch, undrawn
):
    """By a clock that advances ten seconds per iteration, and by `duration` per checkpoint."""
    now, saved = [0], []
    monkeypatch.setattr(utils.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(utils.tqdm, "update", lambda *_: now.__setitem__(0, now[0] + 10))
    save = utils.save_checkpoint

    def spy(path, *rest):
        if "checkpoint_" in path.name:
            now[0] += duration
            saved.append(now[0])
        save(path, *rest)

    monkeypatch.setattr(utils, "save_checkpoint", spy)
    run(small_args(prune_iterations=2, end_iter=6))
    assert saved[0] <= 10
    distances = [after - duration - before for before, after in itertools.pairwise(saved)]
    assert longest - 10 < max(distances) <= longest
    assert duration * len(saved) <= 0.025 * now[0]
    assert now[0] - saved[-1] <= 0, "no checkpoint at the end of the round"


def test_a_checkpoint_is_checked_again_when_its_trial_resumes(small_args, tiny, monkeypatch):
    """Its trial may have waited for hours."""
    args = small_args(prune_iterations=2, end_iter=1)
    expected = run(args)
    found = utils.Files(args)
    found.ticket(1).unlink()  # so that the last round is trained
    whole = found.checkpoint.read_bytes()
    start, changed = utils.Run.start_or_resume, []

    def change(trial, state):
        changed.pop()()
        start(trial, state)

    monkeypatch.setattr(utils.Run, "start_or_resume", change)
    changed.append(lambda: found.checkpoint.write_bytes(whole[:-1000]))
    assert run(args) == expected, "it does not resume from the previous checkpoint"

    other = small_args(prune_iterations=2, end_iter=1, seed=1)
    changed.append(lambda: None)
    run(other)
    found.ticket(1).unlink()
    changed.append(lambda: found.checkpoint.write_bytes(utils.Files(other).checkpoint.read_bytes()))
    with pytest.raises(utils.BadInput, match="has results with --seed=1, not 0"):
        run(args)

    saved = torch.load(utils.Files(args).previous_checkpoint, weights_only=True)
    del saved["state"]["masks"]
    found.checkpoint.write_bytes(whole)
    changed.append(lambda: torch.save(saved, found.checkpoint))
    with pytest.raises(utils.BadInput, match="of another network or version"):
        run(args)


def test_only_the_trial_that_trains_holds_tensors(small_args, tiny, monkeypatch):
    """Those of finished trials, and the checkpoints of later ones, would fill the memory."""
    args = small_args(trials=3)
    expected = run(args)
    for seed in range(3):
        utils.Files(small_args(seed=seed)).ticket(2).unlink()  # so that the last round is trained
    resumed, start = [], utils.Run.start_or_resume

    def spy(trial, state):
        others = [other for other in gc.get_objects() if type(other) is utils.Run]
        resumed.append((trial.args.seed, [other.state for other in others]))
        for other in filter(lambda other: other.saved, others):
            tensors = [*other.saved["state"]["model"].values(), other.saved["state"]["loss"]]
            assert {tensor.device.type for tensor in tensors} == {"meta"}
        start(trial, state)

    monkeypatch.setattr(utils.Run, "start_or_resume", spy)
    gc.collect()
    assert run(args) == expected
    assert [seed for seed, _ in resumed] == [0, 1, 2]
    assert all(set(states) == {None} for _, states in resumed)


# Signals


@needs_linux
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_a_checkpoint_and_say_how_to_resume(
    number, status, tmp_path, small_args, undrawn
):
    flags = [
        sys.executable,
        "main.py",
        *FLAGS,
        "--prune_iterations=2",
        "--end_iter=10",
        f"--output_dir={tmp_path}",
    ]
    process = subprocess.Popen(
        flags, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "saves/fc1/digits/checkpoint_lt.pth.tar"
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status
    assert error.splitlines()[-1].startswith(f"main.py: stopped by {number.name} in round ")
    assert "; run the same command to resume" in error
    stop = utils.Stopped(number, "round 0", overwrite=True)
    assert "run the same command without --overwrite to resume" in str(stop)
    args = small_args(prune_iterations=2, end_iter=10)
    expected = run(args)
    assert run(args, output_dir=str(tmp_path)) == expected


@pytest.mark.parametrize("last", [6, 19, 20, 39, 40])
def test_nothing_is_lost_if_the_reader_of_the_output_ends(last, small_args, monkeypatch, undrawn):
    """The progress bar fails in round 1, also at an evaluation and at the end of the round."""
    args = small_args(prune_iterations=3, rewind_iter=5)
    expected = run(args)
    update = utils.tqdm.update

    def fail(bar, n=1):
        update(bar, n)
        if bar.desc == "round 1" and bar.n == last:
            raise BrokenPipeError

    with monkeypatch.context() as patch, pytest.raises(BrokenPipeError):
        patch.setattr(utils.tqdm, "update", fail)
        run(args, overwrite=True)
    state = torch.load(utils.Files(args).checkpoint, weights_only=True)["state"]
    assert (state["round"], state["iteration"]) == (1, last)
    assert run(args, overwrite=False) == expected


@needs_linux
def test_a_closed_pipe_ends_a_run_quietly(tmp_path, small_args, monkeypatch, undrawn):
    """As in `python3 main.py | head -1`."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is buffered must not fail at exit
    flags = ("--prune_iterations=2", "--end_iter=2", f"--output_dir={tmp_path}")
    process = subprocess.Popen(
        [sys.executable, "main.py", *FLAGS, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("2 rounds of 40 iterations")
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert "rror" not in error
    args = small_args(prune_iterations=2)
    expected = run(args)
    assert run(args, output_dir=str(tmp_path)) == expected


# Files


def limited(folder, limit, *more):
    """Run main.py in a process whose files cannot grow beyond `limit` bytes, as on a full disk."""
    import resource  # here, because Windows does not have it

    return subprocess.run(
        [
            sys.executable,
            "main.py",
            *FLAGS,
            "--prune_iterations=2",
            "--end_iter=2",
            f"--output_dir={folder}",
            *more,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


# The initial weights have 1.1 MB, a checkpoint 4.3 MB, a ticket 2.4 MB, figures and events less.
@needs_linux
@pytest.mark.parametrize("limit", [100, 2_000_000])
def test_files_that_cannot_grow_are_one_line_and_the_run_resumes(
    limit, tmp_path, small_args, undrawn
):
    result = limited(tmp_path, limit)
    assert result.returncode == 1, result.stderr
    error = result.stderr.splitlines()[-1]
    path = tmp_path / "saves/fc1/digits/checkpoint_lt.pth.tar"
    assert error.startswith(f"main.py: error: {path} cannot be written: File too large. Free some")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    args = small_args(end_iter=2, prune_iterations=2)
    expected = run(args)
    assert run(args, output_dir=str(tmp_path)) == expected


@pytest.fixture
def small_disk(tmp_path):
    """The folder of a disk of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed; the limits on file size test the same")
    yield folder
    subprocess.run(["umount", folder], check=True)


@needs_linux
def test_a_run_resumes_after_a_full_disk(small_disk, small_args, monkeypatch, undrawn):
    ballast, left, unraised = small_disk / "ballast", 11_800_000, []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    args = small_args(prune_iterations=3, end_iter=2)
    expected = run(args)
    for space in (10_000, 1_000_000, 3_000_000, 6_000_000, 10_000_000):
        ballast.write_bytes(bytes(left - space))
        message = rf"^{small_disk}/\S+ cannot be written: No space left on device\. Free some space"
        with pytest.raises(utils.CannotWrite, match=message):
            run(args, output_dir=str(small_disk))
        gc.collect()
        assert not unraised, "a file was left open"
        for path in small_disk.rglob("*.pth.tar"):
            utils.load_checkpoint(path, {})
        for path in small_disk.rglob("*.dat"):
            utils.read_array(path)
        ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert run(args, output_dir=str(small_disk)) == expected


@pytest.mark.parametrize("last", [0, 3, 6, 9])
def test_a_failed_event_leaves_no_file_open(last, small_args, tiny, monkeypatch):
    """This holds for the first event, others before the first iteration, and later ones."""
    opened, written = [], []

    class Full(utils.RecordWriter):
        def __init__(self, path):
            super().__init__(path)
            opened.append(self._writer)

        def write(self, data):
            if len(written) == last:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(data)
            super().write(data)

    monkeypatch.setattr(utils, "RecordWriter", Full)
    with pytest.raises(utils.CannotWrite, match="runs/fc1/digits/lt cannot be written: No space"):
        run(small_args(prune_iterations=1))
    assert opened
    assert all(file.closed for file in opened)


@pytest.mark.parametrize(
    ("number", "fails"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_file_systems_without_sync_work(number, fails, small_args, tiny, monkeypatch):
    def fsync(_):
        raise OSError(number, "fsync")

    monkeypatch.setattr(os, "fsync", fsync)
    args = small_args(prune_iterations=1, end_iter=1)
    with pytest.raises(OSError, match="fsync") if fails else contextlib.nullcontext():
        run(args)
    assert fails or finished_rounds(args) == 1


@pytest.mark.parametrize("name", ["checkpoint_lt.pth.tar", "lt_compression.dat", "lt_log.jsonl"])
def test_an_error_of_the_system_names_the_file(name, small_args, tiny, monkeypatch, capsys):
    """Even if libraries would replace it by one of their own, as NumPy does."""

    class Full(io.FileIO):
        def write(self, _):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    original = Path.open

    def full(path, mode="r"):
        is_full = path.name in (name, f"{name}.tmp") and mode != "r"
        return Full(path, mode.replace("b", "")) if is_full else original(path, mode)

    args = small_args(prune_iterations=1)
    expected = run(args)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(SystemExit) as stop, utils.one_line_errors("main.py"):
            run(args, overwrite=True)
    assert stop.value.code == 1
    place = "saves" if "checkpoint" in name else "dumps/lt"
    path = Path(args.output_dir, place, "fc1/digits", name)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"main.py: error: {path} cannot be written: Disk quota exceeded. Free")
    assert run(args, overwrite=name.startswith("checkpoint")) == expected


def test_a_reader_that_has_ended_is_no_error_of_the_system():
    with pytest.raises(BrokenPipeError), utils.writing("pipe"):
        raise BrokenPipeError


def fill_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**45), lambda: np.empty(2**50), fill_a_gpu]
)
def test_out_of_memory_is_one_line(allocate, capsys):
    with pytest.raises(SystemExit) as stop, utils.one_line_errors("main.py"):
        allocate()
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("main.py: error: out of memory, a smaller --batch_size needs less: ")
    assert message.count("\n") == 1


def test_errors_in_the_program_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), utils.one_line_errors("main.py"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_an_unwritable_folder_is_refused(small_args, monkeypatch):
    """The error is simulated, because root may write anywhere."""
    args = small_args(prune_iterations=1, end_iter=1)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "results")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(utils.BadInput, match=r"cannot be used: .*Permission denied"):
        main.main(args)


def test_arrays_that_are_newer_than_the_checkpoint_finish_no_round(
    small_args, stop_after, tmp_path, capsys, undrawn
):
    """As after restoring a backup of saves/ within the last round, whose ticket is newer, too."""
    args = small_args(prune_iterations=2)
    expected = run(small_args(prune_iterations=2, output_dir=tmp_path / "undisturbed"))
    stop_after(70, args)
    found = utils.Files(args)
    backup = shutil.copytree(found.saves, tmp_path / "backup")
    run(args)
    last = found.ticket(1).read_bytes()
    shutil.rmtree(found.saves)
    backup.rename(found.saves)
    found.ticket(1).write_bytes(last)
    capsys.readouterr()
    assert run(args) == expected
    assert "finished: " not in capsys.readouterr().out
    state = torch.load(found.checkpoint, weights_only=True)["state"]
    assert "train_accuracy" in state["rows"][1][-1]


@pytest.mark.parametrize("rounds", [2, 3])
@pytest.mark.parametrize("write", ["write_arrays", "write_array", "save_checkpoint"])
def test_a_round_without_its_files_is_not_finished(
    write, rounds, small_args, tmp_path, monkeypatch, undrawn
):
    """The run dies after the last checkpoint of round 1, before or while its files are written."""
    expected = run(small_args(prune_iterations=rounds, output_dir=tmp_path / "undisturbed"))
    args = small_args(prune_iterations=rounds)
    save, original = utils.save_round, getattr(utils, write)

    def die(*_, **__):
        raise KeyboardInterrupt

    def save_or_die(run, log):
        if run.state.round == 1:
            monkeypatch.setattr(utils, write, die)
        save(run, log)

    monkeypatch.setattr(utils, "save_round", save_or_die)
    with pytest.raises(KeyboardInterrupt):
        run(args)
    monkeypatch.setattr(utils, write, original)
    monkeypatch.setattr(utils, "save_round", save)
    assert not utils.Files(args).ticket(1).exists()
    assert run(args) == expected
    assert utils.Files(args).ticket(1).exists()


def test_a_run_resumes_from_the_previous_checkpoint_if_one_is_damaged(
    small_args, capsys, tmp_path, undrawn
):
    args = small_args(prune_iterations=2)
    expected = run(args)
    saves = utils.Files(args).saves
    newest = saves / "checkpoint_lt.pth.tar"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert run(args) == expected
    assert capsys.readouterr().err.count("checkpoint_lt.pth.tar is damaged") == 1
    assert run(args) == expected
    assert "damaged" not in capsys.readouterr().err, "the damaged checkpoint was not replaced"

    for path in saves.glob("checkpoint*"):
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(utils.BadInput, match=r"is damaged.*--overwrite"):
        run(args)
    assert arrays(args) == expected


def test_a_finished_run_with_a_damaged_checkpoint_trains_from_the_previous_one(
    small_args, tmp_path, stop_after, capsys, undrawn
):
    """The previous checkpoint is within the last round, whose arrays need all of its rows."""
    args = small_args(prune_iterations=2)
    expected = run(small_args(prune_iterations=2, output_dir=tmp_path / "undisturbed"))
    stop_after(70, args)
    found = utils.Files(args)
    within = found.checkpoint.read_bytes()
    run(args)
    found.previous_checkpoint.write_bytes(within)
    found.checkpoint.write_bytes(b"junk")
    assert run(args) == expected
    assert "finished: " not in capsys.readouterr().out
    assert run(args) == expected
    assert "finished: " in capsys.readouterr().out


def test_a_damaged_checkpoint_never_replaces_the_previous_one(
    small_args, capsys, monkeypatch, undrawn
):
    """Otherwise a kill between the two renames would leave no undamaged checkpoint."""
    args = small_args(prune_iterations=2)
    run(args)
    found = utils.Files(args)
    found.checkpoint.write_bytes(found.checkpoint.read_bytes()[:-1000])
    replace, renamed = Path.replace, []

    def look(path, target):
        renamed.append(target)
        if path == found.checkpoint:
            utils.load_checkpoint(path, {})  # raises BadInput if this one is damaged
        replace(path, target)

    monkeypatch.setattr(Path, "replace", look)
    run(args, prune_iterations=3)
    assert found.previous_checkpoint in renamed


def test_damage_at_any_byte_is_detected(small_args, tiny):
    args = small_args(prune_iterations=1, end_iter=1)
    run(args)
    path = utils.Files(args).saves / "checkpoint_lt.pth.tar"
    whole = path.read_bytes()
    keys = {"state": dict, "args": dict}
    good = utils.load_checkpoint(path, keys)
    detected = 0
    directory = whole.index(b"PK\1\2")  # the table of contents, which has no checksum
    for place in (*range(0, directory, 10), *range(directory, len(whole))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            # Bytes between the parts do not matter.
            assert same(utils.load_checkpoint(path, keys), good), f"byte {place}"
        except utils.BadInput:
            detected += 1
    assert detected > len(whole) / 10 / 4
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place])
        with pytest.raises(utils.BadInput):
            utils.load_checkpoint(path, keys)


# Two processes


def test_a_second_process_on_the_same_run_is_refused(small_args, undrawn):
    args = small_args(prune_iterations=1, end_iter=1)
    saves = utils.Files(args).saves
    saves.mkdir(parents=True)
    with FileLock(saves / ".lt.lock"):
        with pytest.raises(utils.BadInput, match="another process"):
            run(args)
        run(small_args(prune_iterations=1, end_iter=1, prune_type="reinit"))
        run(small_args(prune_iterations=1, end_iter=1, seed=1))
    run(args)


@pytest.fixture
def fail_to_lock(monkeypatch):
    """A function that lets the system refuse locks: fail_to_lock(error number)."""
    fcntl = pytest.importorskip("fcntl")

    def start(number):
        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuse)

    return start


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_locks_a_stale_lock_says_whose_it_is(small_args, tiny, fail_to_lock):
    """The existence of a lock file counts then."""
    fail_to_lock(errno.ENOSYS)
    args = small_args(prune_iterations=1, end_iter=1)
    path = utils.Files(args).lock
    run(args)
    assert not path.exists()
    path.write_text("123\nnode7\n")
    os.utime(path, (0, 0))
    since = f"{datetime.fromtimestamp(0):%Y-%m-%d %H:%M}"
    message = rf"^process 123 on node7 has used the run in \S+ since {since}\. If .* delete {path}"
    with pytest.raises(utils.BadInput, match=message):
        run(args)
    path.unlink()
    run(args)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_that_refuses_locks_is_named(number, small_args, tiny, fail_to_lock):
    fail_to_lock(number)
    message = f"--output_dir=.* {os.strerror(number)}.* does not lock files: choose another one"
    with pytest.raises(utils.BadInput, match=message):
        run(small_args(prune_iterations=1, end_iter=1))


def test_the_lock_is_released_on_an_error(small_args, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(main, "load_data", None)
        with pytest.raises(TypeError):
            run(small_args())
    run(small_args(prune_iterations=1, end_iter=1))


# Hostile files


def test_pickles_are_never_executed(small_args, tmp_path, capsys, undrawn):
    args, mark = small_args(prune_iterations=1, end_iter=1), tmp_path / "mark"
    run(args)
    hostile = [pickle.dumps(Mark(mark), protocol=protocol) for protocol in (0, 2, 5)]
    for save in (
        torch.save,
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    ):
        save({"model": Mark(mark), "masks": {}}, tmp_path / "hostile.pt")
        hostile.append((tmp_path / "hostile.pt").read_bytes())
    np.save(tmp_path / "hostile.npy", np.array([Mark(mark)], dtype=object), allow_pickle=True)
    hostile.append((tmp_path / "hostile.npy").read_bytes())
    saves, dumps = utils.Files(args).saves, utils.Files(args).dumps
    for content in hostile:
        for path in saves.glob("checkpoint*"):
            path.write_bytes(content)
        with pytest.raises(utils.BadInput, match="damaged"):
            run(args)
        (dumps / "lt_compression.dat").write_bytes(content)
        with pytest.raises(utils.BadInput, match="lt_compression"):
            utils.read_array(dumps / "lt_compression.dat")
        with pytest.raises(utils.BadInput, match="nothing to draw"):
            combine_plots.main(combine_plots.parse_args([f"--output_dir={args.output_dir}"]))
        assert "left out" in capsys.readouterr().err
    assert not mark.exists()
    with pytest.raises(utils.BadInput):
        utils.load_checkpoint(tmp_path / "hostile.pt", {})


def test_damaged_initial_weights_change_nothing_and_are_restored(small_args, tmp_path, undrawn):
    path = utils.Files(small_args()).initial
    expected = run(small_args(prune_iterations=5, end_iter=1))
    whole = torch.load(path, weights_only=True)
    run(small_args(prune_iterations=1, end_iter=1), overwrite=True)
    contents = (
        Mark(tmp_path / "mark"),
        {"1.weight": torch.zeros(2)},
        archs.build("digits", "fc1").state_dict(),
        None,
    )
    for rounds, content in enumerate(contents, start=2):
        path.unlink()
        if content is not None:
            torch.save(content, path)
        found = run(small_args(prune_iterations=rounds, end_iter=1))
        assert same(torch.load(path, weights_only=True), whole)
    assert found == expected
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_holds_only_the_state(small_args, tiny):
    args = small_args(prune_iterations=1, end_iter=1)
    run(args)
    saved = torch.load(utils.Files(args).checkpoint, weights_only=True)
    assert saved.keys() == {"state", "args", "made_by"}
    assert {name: saved["args"][name] for name in vars(args)} == vars(args)
    assert utils.same_structure(vars(main.new_state(args, main.new_model(args, 0))), saved["state"])


# Fuzzing

words = (
    st.text(max_size=20)
    | st.integers().map(str)
    | st.floats(allow_subnormal=False).map(str)
    | st.sampled_from(["", "0", "1e400", "nan", "-0"])
)
flags = st.sampled_from(sorted(vars(main.parse_args([])))) | st.text(max_size=10)


# Values of the wrong type for anything in a checkpoint.
wrong = (
    st.none()
    | st.integers(-3, 3)
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
    | st.just({"a": {}})
)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(
        ["model", "initial", "best", "masks", "optimizer_state", "loss", "state", "args", "made_by"]
    ),
    wrong,
)
def test_a_checkpoint_with_any_content_is_resumed_or_refused(
    tmp_path, small_args, tiny, name, content
):
    args = small_args(prune_iterations=1, end_iter=1)
    path, original = utils.Files(args).saves / "checkpoint_lt.pth.tar", tmp_path / "original"
    if not original.exists():
        run(args)
        original.write_bytes(path.read_bytes())
        (path.parent / "checkpoint_before_lt.pth.tar").unlink()
    saved = torch.load(original, weights_only=True)
    (saved if name in saved else saved["state"])[name] = content
    torch.save(saved, path)
    # Without its ticket, the round is not finished and uses all of the checkpoint.
    utils.Files(args).ticket(0).unlink(missing_ok=True)
    try:
        run(args)
    except (utils.BadInput, utils.Failure) as error:
        assert str(error)


@pytest.mark.parametrize(
    "spoilt", [None, b"", b'{"round": 0}\n[1]\n{"rou', b"\x80\xff\n", b'{"round": 9}\n' * 50]
)
def test_a_damaged_log_and_array_are_restored_on_resuming(spoilt, small_args, tiny):
    log = utils.Files(small_args()).log
    run(small_args(prune_iterations=2, end_iter=2))
    whole = log.read_bytes()
    log.unlink()
    losses = utils.Files(small_args()).array("all_loss_0")
    before = losses.read_bytes()
    losses.unlink()
    if spoilt is not None:
        log.write_bytes(spoilt)
        losses.write_bytes(spoilt)
    run(small_args(prune_iterations=3, end_iter=2))
    assert log.read_bytes().startswith(whole)
    assert losses.read_bytes() == before
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["round"], row["epoch"]) for row in rows] == [
        (r, epoch) for r in range(3) for epoch in (0, 1, 2)
    ]


# Changes between two starts of a run


def test_a_network_edited_without_new_shapes_is_refused(small_args, monkeypatch):
    def build(activation):
        return lambda *_: nn.Sequential(
            nn.Flatten(), nn.MaxPool1d(112), nn.Linear(7, 9), activation(), nn.Linear(9, 10)
        )

    monkeypatch.setattr(archs, "build", build(nn.ReLU))
    run(small_args(prune_iterations=1, end_iter=1))
    monkeypatch.setattr(archs, "build", build(nn.Tanh))
    with pytest.raises(utils.BadInput, match=r"has results with another network"):
        run(small_args(prune_iterations=2, end_iter=1))


@pytest.mark.parametrize("change", ["labels", "size", "pixels", "facts"])
def test_changed_data_is_refused(change, small_args, tiny, monkeypatch):
    load = archs.load

    def other(dataset, data_dir, train):
        images, labels = load(dataset, data_dir, train)
        changed = {
            "labels": (images, labels.roll(1)),
            "size": (images[:-50], labels[:-50]),
            "pixels": (255 - images, labels),
        }
        return changed.get(change, (images, labels))

    run(small_args(prune_iterations=1, end_iter=1))
    monkeypatch.setattr(archs, "load", other)
    if change == "facts":
        monkeypatch.setattr(archs.facts("digits"), "MEAN", (0.3,))
    with pytest.raises(utils.BadInput, match=r"has results with other data"):
        run(small_args(prune_iterations=2, end_iter=1))


def test_other_code_and_versions_are_reported_and_recorded(small_args, tiny, monkeypatch, capsys):
    made = utils.provenance()
    run(small_args(prune_iterations=1, end_iter=1))
    monkeypatch.setattr(
        utils, "provenance", lambda: made | {"code": "edited", "commit": "abc", "torch": "9.0"}
    )
    run(small_args(prune_iterations=2, end_iter=1))
    error = capsys.readouterr().err
    assert error.count("note: ") == 1
    assert f"code {made['code']}, now edited" in error
    assert f"torch {made['torch']}, now 9.0" in error
    files = utils.Files(small_args())
    assert [
        torch.load(files.ticket(r), weights_only=True)["made_by"]["code"] for r in range(2)
    ] == [made["code"], "edited"]
    assert json.loads(files.settings.read_text())["made_by"]["commit"] == "abc"


def test_changes_since_a_run_finished_are_noted(small_args, tiny, monkeypatch, capsys):
    args = small_args(prune_iterations=1, end_iter=1)
    made = utils.provenance()
    run(args)
    run(args)
    assert "note: " not in capsys.readouterr().err
    monkeypatch.setattr(utils, "provenance", lambda: made | {"code": "edited"})
    run(args)
    captured = capsys.readouterr()
    note = f"note: {utils.Files(args).dumps} was finished before changes: code {made['code']}, now"
    assert f"{note} edited\n" in captured.err
    assert "finished: " in captured.out


def test_a_commit_without_code_changes_is_not_reported(small_args, tiny, monkeypatch, capsys):
    made = utils.provenance()
    run(small_args(prune_iterations=1, end_iter=1))
    monkeypatch.setattr(
        utils, "provenance", lambda: made | {"commit": "of the README", "changed": "maybe"}
    )
    run(small_args(prune_iterations=2, end_iter=1))
    assert "note: " not in capsys.readouterr().err


def test_the_code_digest_covers_the_experiment(tmp_path, monkeypatch):
    """Every change gives another digest, even without git."""
    for path in ("main.py", "utils.py", "archs"):
        (shutil.copytree if Path(ROOT, path).is_dir() else shutil.copy)(
            ROOT / path, tmp_path / path
        )
    digests = [utils.provenance()["code"]]
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "utils.py"))
    for edited in (None, "main.py", "archs/common/fc1.py"):
        if edited:
            with Path(tmp_path, edited).open("a") as file:
                file.write("# another comment\n")
        digests.append(utils.provenance.__wrapped__()["code"])
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_setting_missing_from_older_results_counts_as_its_default(small_args, tiny):
    args = small_args(prune_iterations=1, end_iter=1)
    run(args)
    path = utils.Files(args).checkpoint
    saved = torch.load(path, weights_only=True)
    for name in ("momentum", "network", "data"):
        del saved["args"][name]
    torch.save(saved, path)
    run(small_args(prune_iterations=2, end_iter=1))
    torch.save(saved, path)
    with pytest.raises(utils.BadInput, match=r"--momentum=0\.9, not 0\.5"):
        run(small_args(prune_iterations=2, end_iter=1, momentum=0.5))


def test_fewer_rounds_than_exist_train_nothing(small_args, tiny, capsys, monkeypatch):
    run(small_args(end_iter=1, prune_iterations=4))
    run(small_args(end_iter=1, prune_iterations=2))
    assert "has 4 rounds" in capsys.readouterr().out
    assert len(np.load(utils.Files(small_args()).array("compression"))) == 4


def test_a_lost_array_is_restored(small_args, tiny):
    expected = run(small_args(end_iter=1))
    utils.Files(small_args()).array("compression").unlink()
    assert run(small_args(end_iter=1)) == expected


def test_a_checkpoint_that_does_not_fit_deletes_no_other(small_args, tiny):
    args = small_args(prune_iterations=1, end_iter=1)
    run(args)
    found = utils.Files(args)
    saved = torch.load(found.checkpoint, weights_only=True)
    torch.save(saved | {"state": {}}, found.previous_checkpoint)
    found.checkpoint.write_bytes(b"junk")
    with pytest.raises(utils.BadInput, match="another network or version"):
        run(args, prune_iterations=2)
    assert found.checkpoint.read_bytes() == b"junk"
