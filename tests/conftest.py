"""What several tests need: fixtures, small networks and data, and a way to run commands."""

import os

# Set before torch starts its threads. Two of them, which wait for each other, are slow if other
# processes need the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from numpy.random import SeedSequence
from torch import nn

import archs
import combine_plots
import main
import utils

ROOT = Path(__file__).parent.parent

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

torch.set_flush_denormal(True)  # as main.main does, before torch starts its threads


def command(*args, cwd=ROOT, timeout=120):
    """Run `python3 args...` as a user does, which takes seconds; return the CompletedProcess."""
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, timeout=timeout, capture_output=True, text=True
    )


# A program that does nothing but write its name and its arguments to a file, in one line.
STUB = r"""#!/bin/sh
line=$(printf '%s\037' "${0##*/}" "$@")
printf '%s\n' "$line" >> "$STARTED"
"""


def started(script):
    """Return the commands that a shell script starts, without effects: name and arguments."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for program in ("python3", "pip", "torchrun", "sbatch", "tar"):
            (folder / program).write_text(STUB)
            (folder / program).chmod(0o755)
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/activate").touch()
        (folder / "started").touch()
        variables = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "STARTED": str(folder / "started"),
            "SLURM_ARRAY_TASK_ID": "3",
            "I": "1",
        }
        shell = ["bash", "-euc", script]
        subprocess.run(shell, cwd=folder, env=os.environ | variables, check=True, timeout=60)
        lines = (folder / "started").read_text().splitlines()
    return [line.rstrip("\x1f").split("\x1f") for line in lines]


def code_blocks(page, language):
    """Return the code on a page in a language, such as sh."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def png_size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB`\x82")
    return tuple(int.from_bytes(content[at : at + 4], "big") for at in (16, 20))


def read_raw(path):
    """Return the results of seeds in a file that combine_plots.py wrote with --raw, a DataFrame."""
    names = pd.read_csv(path, nrows=0).columns
    texts = names[: names.get_loc("seed") + 1]
    types = dict.fromkeys(texts, str) | {"earlystop_at_end": "boolean"}
    runs = pd.read_csv(path, dtype=types).fillna(dict.fromkeys(texts, ""))
    # Quantities that were added later.
    return runs.reindex(columns=[*dict.fromkeys([*runs, *combine_plots.COLUMNS])])


@pytest.fixture
def undrawn(monkeypatch):
    """Draw no figures, which take most of the time of a small run and of combine_plots.py."""
    monkeypatch.setattr(combine_plots, "draw_run", lambda _: None)
    monkeypatch.setattr(combine_plots, "draw_experiment", lambda *_: None)


@pytest.fixture
def train_round(monkeypatch, undrawn):
    """A function that trains a round without writing files.

    train_round(args, model or state, data, masks=None) returns the state.
    """
    monkeypatch.setattr(utils, "save_round", lambda *_: None)
    monkeypatch.setattr(utils.Run, "checkpoint", lambda *_, **__: None)

    def train(args, start, data, masks=None):
        state = main.new_state(args, start) if isinstance(start, nn.Module) else start
        utils.restore(state.masks, masks or state.masks)
        with utils.Run(args) as run:
            run.state = state
            main.train(args, state, data, run)
        return state

    return train


@pytest.fixture
def stop_after(monkeypatch):
    """A function that starts a run and stops it by SIGTERM: stop_after(iterations, args)."""

    def run(iterations, args):
        ticks, tick = itertools.count(1), utils.Log.step

        def step(log):
            tick(log)
            if next(ticks) == iterations:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch, pytest.raises(utils.Stopped):
            patch.setattr(utils.Log, "step", step)
            main.main(args)

    return run


def finished_rounds(args):
    """Return the number of rounds in a run's arrays."""
    path = utils.Files(args).array("compression")
    return len(np.load(path)) if path.exists() else 0


def losses_of(args):
    """Return the training losses of all epochs of a run, an array."""
    rounds = range(args.prune_iterations)
    return np.concatenate([np.load(utils.Files(args).array(f"all_loss_{r}")) for r in rounds])


def arrays(args):
    """Return the bytes of the arrays in a run's folder, by name."""
    return {path.name: path.read_bytes() for path in utils.Files(args).dumps.glob("*.dat")}


def same(a, b):
    """Return whether nested dicts and lists hold equal tensors and values."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Mark:
    """An object that creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def small_network(*_):
    """Return a network with everything a run must save: batch norm, dropout, biases."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4 * 8 * 8, 10),
    )


def small_data(n, channels=1, size=28, classes=10, seed=0, device="cpu"):
    """Return n random examples as main.Data: 3/4 for training, the rest for validation and test."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    images, labels = images.to(device), labels.to(device)
    cut = 3 * n // 4
    test = (images[cut:], labels[cut:])
    return main.Data(
        train=(images[:cut], labels[:cut]),
        val=test,
        test=test,
        mean=torch.tensor(0.0, device=device),
        std=torch.tensor(255.0, device=device),
    )


def trial_data(args):
    """Load the data of a trial as main.main and main.experiment do."""
    return main.hold_out(args, main.load_data(args, torch.device("cpu")))


@pytest.fixture
def small_args(tmp_path):
    """A function that returns the settings of a short run: small_args(seed=1, augment=True)."""

    def make(**changes):
        flags = {
            "dataset": "digits",
            "prune_percent": 20,
            "prune_iterations": 3,
            "end_iter": 2,
            "gpu": "cpu",
        }
        flags |= {"output_dir": tmp_path / "out"} | changes
        values = {name: "" if value is True else f"={value}" for name, value in flags.items()}
        return main.parse_args([f"--{name}{value}" for name, value in values.items()])

    return make


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a copy of `archs`, used instead of it; for new datasets and architectures."""
    folder = tmp_path / "archs"
    shutil.copytree(ROOT / "archs", folder)
    monkeypatch.setattr(archs, "__file__", str(folder / "__init__.py"))
    monkeypatch.setattr(archs, "__path__", [str(folder)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = {name: sys.modules[name] for name in archs_modules()}
    for name in before:
        del sys.modules[name]
    yield folder
    for name in archs_modules():
        del sys.modules[name]
    sys.modules.update(before)


def archs_modules():
    """Return the names of the imported datasets and architectures, and of their folders."""
    found = [name for name in sys.modules if name.startswith("archs.")]
    found.remove("archs.sparse")  # of which two would have different classes
    return found


@pytest.fixture
def starts(monkeypatch):
    """The network and the masks at the start of each round: [(state dict, masks), ...]."""
    found, train = [], main.train

    def spy(args, state, *rest):
        found.append((utils.snapshot(state.model), utils.snapshot(state.masks)))
        return train(args, state, *rest)

    monkeypatch.setattr(main, "train", spy)
    return found


def ticket(args, round_, kind=None):
    """Return the content of a round's ticket."""
    return torch.load(utils.Files(args, kind).ticket(round_), weights_only=True)


def initial_weights(args):
    """Return the weights to which a run resets, from its file."""
    return torch.load(utils.Files(args).initial, weights_only=True)


def change_initial(args):
    """Change one of the weights to which a run resets, in its file."""
    weights = initial_weights(args)
    weights["5.bias"][0] += 1e-3
    torch.save(weights, utils.Files(args).initial)


@pytest.fixture
def check_refused(monkeypatch):
    """A function that asserts that a run is refused because of its source, before it loads data.

    check_refused(args, flag, problem, remedy, source) checks the parts of the message.
    """

    def check(args, flag, problem, remedy, source):
        monkeypatch.setattr(main, "load_data", None)
        with pytest.raises(utils.BadInput, match=problem) as error:
            main.main(args)
        message = str(error.value)
        assert message.startswith(f"--{flag}={getattr(args, flag)}: ")
        assert remedy in message
        folder = "ive the folder saves/<arch>/<dataset>, without that of a seed, of"
        assert f"{folder} {source}" in message
        assert not list(utils.Files(args).saves.glob("*.pth.tar"))

    return check


def log_rows(args):
    """Return the rows of a run's log."""
    return [json.loads(line) for line in utils.Files(args).log.read_text().splitlines()]


def grouped(names, scope):
    """Return the names of the layers whose weights are compared with each other, as lists."""
    return [list(names)] if scope == "global" else [[name] for name in names]


def check_masks(scores, before, after, scope, tolerance=0.0):
    """Assert that exactly 20% of the survivors are pruned, those of the lowest scores.

    `scores` are NumPy arrays, the masks before and after it tensors, by layer. If the scores were
    computed in another way, they may be in another order within a tolerance.
    """
    pruned = 0
    for group in grouped(scores, scope):
        score = np.concatenate([scores[name].ravel() for name in group])
        old, new = (
            torch.cat([masks[name].flatten() for name in group]).numpy()
            for masks in (before, after)
        )
        assert not (new & ~old).any(), "a pruned weight was revived"
        if scope == "layer":
            assert new.sum() == old.sum() - round(0.2 * old.sum())
        lowest = score[new].min(initial=np.inf)
        assert score[old & ~new].max(initial=-np.inf) <= lowest + tolerance
        pruned += (old & ~new).sum()
    if scope != "layer":
        assert pruned == round(0.2 * sum(int(mask.sum()) for mask in before.values()))


def check_training(args, starts, optimizer, iterations, rate):
    """Assert that every round ends with the same bits as if it is trained plainly.

    `starts` is that of the fixture, and `rate` a function of the round and the iteration.
    """
    data = trial_data(args)
    for round_, (state, masks) in enumerate(starts):
        expected, _ = train_plainly(
            args, state, masks, data, round_, optimizer, iterations, partial(rate, round_)
        )
        final = ticket(args, round_)["final"]
        assert final.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(final[name], tensor), (round_, name)


def train_plainly(args, state, masks, data, round_, optimizer, iterations, rate):
    """Train a round in the plainest way, with an optimizer of torch.optim.

    From `--rewind_iter` on, the order follows from `--order_seed`, too. Returns the state dict at
    the end and the loss of each iteration.
    """
    model = main.new_model(args, 0)
    model.load_state_dict(state)
    optimizer = optimizer(model.parameters())
    images, labels = data.train
    steps = len(labels) // args.batch_size
    losses = []
    model.train()
    for iteration in iterations:
        epoch, index = divmod(iteration, steps)
        key = (round_, epoch + 1)
        if args.order_seed and (round_ > 0 or iteration >= args.rewind_iter):
            key += (args.order_seed,)
        draws = SeedSequence(args.seed, spawn_key=key).generate_state(1 + steps, np.uint64)
        of_order, *of_steps = draws.tolist()
        torch.manual_seed(of_order)
        order = torch.randperm(len(labels))
        torch.manual_seed(of_steps[index])
        batch = order[index * args.batch_size : (index + 1) * args.batch_size]
        optimizer.param_groups[0]["lr"] = rate(iteration)
        optimizer.zero_grad()
        logits = model(data.normalize(images[batch]))
        loss = F.cross_entropy(logits, labels[batch], label_smoothing=args.label_smoothing)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, weight in model.named_parameters():
            weight.data *= masks.get(name, 1)
    return model.state_dict(), losses
