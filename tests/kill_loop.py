"""Kill runs at random moments, resume them, and compare their results with an undisturbed run:

    python3 tests/kill_loop.py --kills=200

Each run is a process, forked from one that has imported everything, so that a kill takes a second
and not ten. Checkpoints are saved every few iterations, not every 20 seconds. The network has batch
norm and dropout. From the second round on, its linear layer is sparse.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process with a pool of threads cannot be forked
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import seaborn  # noqa: F401
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import archs
import main
import utils
from conftest import small_network

EPOCHS, ROUNDS = 2, 3


SGD = ["--optimizer=sgd", "--lr=0.05", "--lr_milestones=9"]
NESTEROV = ["--optimizer=sgd", "--lr=0.05", "--nesterov", "--label_smoothing=0.1"]
ADAMW = ["--optimizer=adamw", "--weight_decay=0.5", "--lr_schedule=cosine", "--warmup_iter=4"]
MOVEMENT = ["--criterion=movement", "--eval_iter=7", "--rewind_iter=5", "--warmup_iter=8"]
SOURCE = "{folder}/movement/saves/fc1/digits"  # of the undisturbed run
# Together they use everything that a run must save, and every criterion.
KINDS = {
    "movement": MOVEMENT,
    "increase": ["--criterion=increase", "--prune_type=reinit", "--augment", "--max_iter=17", *SGD],
    "snip": ["--criterion=snip", "--prune_type=finetune", *SGD],
    "same_sign": ["--criterion=same_sign", "--prune_type=signed_shuffle", *ADAMW],
    "initial": ["--criterion=initial", "--prune_type=random", *NESTEROV],
    "grasp": ["--criterion=grasp", "--prune_scope=erk"],
    "synflow": ["--criterion=synflow", "--prune_scope=global"],
    "one_shot": ["--one_shot"],
    "transfer": [f"--tickets_from={SOURCE}", "--criterion=movement", "--rewind_iter=5", *SGD],
    "connected": [f"--connect_to={SOURCE}", *MOVEMENT],
}


def start(folder, kind):
    """Start a run in a forked process; return the process number."""
    child = os.fork()
    if child:
        return child
    with folder.with_suffix(".output").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    flags = [
        f"--output_dir={folder}",
        f"--prune_iterations={ROUNDS}",
        f"--end_iter={EPOCHS}",
        "--dataset=digits",
        "--gpu=cpu",
        "--prune_percent=30",
        "--batch_size=120",
        "--sparse_below=90",
        *(flag.format(folder=folder.parent) for flag in KINDS[kind]),
    ]
    status = 0
    try:
        with utils.one_line_errors("main.py"):
            main.main(main.parse_args(flags))
    except SystemExit as error:
        status = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    os._exit(status)


def contents(folder):
    """Return the results of a run, except times, {name: comparable value}."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".dat":
            found[name] = path.read_bytes()
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [
                {key: value for key, value in row.items() if key != "seconds"} for row in rows
            ]
        elif name.endswith(".pth.tar") and "checkpoint" not in name:
            state = torch.load(path, weights_only=True)
            state.pop("args", None)  # it has the folder's name
            found[name] = flat(state)
        elif path.suffix == ".png":
            found[name] = path.read_bytes()
        elif path.suffix == ".tmp":
            found[name] = "left over"
    for folder_ in sorted(folder.glob("runs/*/*/*")):
        events = EventAccumulator(
            str(folder_), size_guidance={"scalars": 0, "histograms": 0, "images": 0}
        ).Reload()
        tags = events.Tags()
        for tag in tags["scalars"]:
            found[f"{folder_.name} {tag}"] = [
                (event.step, event.value) for event in events.Scalars(tag)
            ]
        for tag in tags["images"]:
            found[f"{folder_.name} {tag}"] = [event.step for event in events.Images(tag)]
        for tag in tags["histograms"]:
            found[f"{folder_.name} {tag}"] = [event.step for event in events.Histograms(tag)]
    return found


def flat(state):
    """Return nested dicts of tensors as nested dicts of bytes."""
    if isinstance(state, torch.Tensor):
        return np.ascontiguousarray(state.numpy()).tobytes()
    return {key: flat(value) for key, value in state.items()} if isinstance(state, dict) else state


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def loop(kills, seed, folder):
    """Kill runs this many times; return how many finished.

    Raises AssertionError if the results of one are not those of the undisturbed run.
    """
    archs.build = small_network
    utils.CHECKPOINT_SECONDS = 0.004
    utils.CHECKPOINT_SHARE = 1  # of the time, which is otherwise too short for so many
    dice = random.Random(seed)
    expected = {}
    killed = finished = 0
    while killed < kills:
        run, kind = folder / f"run{finished}", list(KINDS)[finished % len(KINDS)]
        if kind not in expected:
            began = time.monotonic()
            status = wait(start(folder / kind, kind))
            assert status == 0, (folder / f"{kind}.output").read_text()
            expected[kind] = contents(folder / kind)
            seconds = time.monotonic() - began
        while True:
            child = start(run, kind)
            time.sleep(dice.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            status = wait(child)
            assert status in (0, -signal.SIGKILL), run.with_suffix(".output").read_text()[-3000:]
            killed += status == -signal.SIGKILL
            if status != -signal.SIGKILL or killed >= kills:
                break
        status = wait(start(run, kind))
        assert status == 0, (run.with_suffix(".output")).read_text()[-3000:]
        found = contents(run)
        different = [
            name
            for name in {*found, *expected[kind]}
            if found.get(name) != expected[kind].get(name)
        ]
        assert not different, f"{run}: {different}"
        finished += 1
    return finished


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", default=200, type=int)
    parser.add_argument("--seed", default=0, type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finished = loop(args.kills, args.seed, Path(folder))
    print(
        f"{args.kills} kills, {finished} runs resumed to their end: nothing lost, nothing doubled"
    )
