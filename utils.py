"""What the science does not need to show: the state of a run, its checkpoints, logs, tables and figures."""

import argparse
import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullLocator
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from torch import nn
from tqdm import tqdm

PRUNE_TYPES = ("lt", "reinit", "random")
# Settings that may change from one start of a run to the next.
FREE_SETTINGS = {"prune_iterations", "trials", "gpu", "data_dir", "output_dir", "overwrite", "print_freq"}
COLOURS, MARKERS = [f"C{i}" for i in range(10)], "osD^vPX<>*d"  # of curves
CHECKPOINT_SECONDS = 20
# One value a round; the last is written last, so that its length tells how many rounds are finished.
ARRAYS = ("bestaccuracy", "finalaccuracy", "earlystop", "earlystopaccuracy", "compression")
ANEW = "Choose another --output_dir, or start anew with --overwrite"


class BadInput(Exception):
    """Usage or input that cannot be worked with: exit status 2."""


class Failure(Exception):
    """A run that cannot go on: exit status 1."""


class Stopped(Exception):
    """A run that a signal stopped, after a checkpoint: exit status 128 + the signal's number."""

    def __init__(self, number, where, overwrite):
        advice = "Without --overwrite, the" if overwrite else "The"
        super().__init__(f"{signal.Signals(number).name} {where}. {advice} same command goes on from here")
        self.signal = number


# The command line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help has the defaults, and whose errors take one line."""

    def __init__(self, **options):
        super().__init__(**options, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind, wanted, valid):
    """An argparse type: a finite `kind` (int or float) for which `valid(value)` holds; `wanted` says so in words."""

    def parse(text):
        with contextlib.suppress(ValueError, OverflowError):
            value = kind(text)
            if math.isfinite(value) and valid(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")

    return parse


def numbers(wanted, valid):
    """An argparse type: whole numbers with commas between them, each as in `number`, as a list."""
    one = number(int, wanted, valid)
    return lambda text: [one(part) for part in text.split(",")]


def folder(text):
    """The argparse type of a folder."""
    if not text:
        raise argparse.ArgumentTypeError("must name a folder; . is this one")
    return str(Path(text).expanduser())


def trials(args):
    """The settings of the trials that fall to this process: all of them, or its share where torchrun started several.

    The processes of a machine share its cores, or take its GPUs in turn.
    """
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    world = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}  # clusters set RANK for others than torchrun, too
    rank, processes, place, neighbours = (int(world.get(name, default)) for name, default in alone.items())
    if neighbours > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
        torch.set_num_threads(max(1, cores // neighbours))
    if args.gpu != "cpu" and torch.cuda.device_count():
        args.gpu = (args.gpu + place) % torch.cuda.device_count() if processes > 1 else args.gpu
    for seed in range(args.seed, args.seed + args.trials)[rank::processes]:
        yield argparse.Namespace(**vars(args) | {"seed": seed})


def restarted():
    """Whether torchrun has started this process anew, after one of them ended with an error."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def command():
    """What tells one torchrun command from another, over its restarts."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID')} {os.getppid()}"


@functools.cache
def provenance():
    """Which code this is, and of which versions: {"code": digest, "commit", "changed", "python", "torch", ...}."""
    root = Path(__file__).resolve().parent
    loaded = {Path(module.__file__).resolve() for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    code = sorted(path for path in loaded if path.is_file() and (path.parent == root or root / "archs" in path.parents))
    found = {"code": hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:16]}
    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            git = functools.partial(subprocess.check_output, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=10)
            found["commit"] = git(["git", "rev-parse", "HEAD"]).strip()
            found["changed"] = bool(git(["git", "status", "--porcelain", "--untracked-files=no"]))
    found["python"] = platform.python_version()
    for name in ("torch", "torchvision", "numpy"):
        with contextlib.suppress(PackageNotFoundError):  # built from source
            found[name] = version(name)
    return found


def keep_freed_memory():
    """Let the C library keep the memory that a step's tensors free for the next step.

    By default, glibc gives large pieces back to the system, and the page faults of getting them anew can take a quarter of
    a step's time. Without glibc, nothing happens. See mallopt(3).
    """
    trim_threshold, mmap_max = -1, -4
    with contextlib.suppress(AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_max, 0)  # none, as each would be given back


@contextlib.contextmanager
def one_line_errors(program):
    """Turn what users can cause into one line on stderr and an exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # paths may have what the encoding has not
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        return
    except Stopped as stop:
        status, message = 128 + stop.signal, f"stopped: {stop}"
    except KeyboardInterrupt:
        status, message = 130, "stopped"
    except (BadInput, Failure) as error:
        status, message = 2 if isinstance(error, BadInput) else 1, f"error: {error}"
    except OSError as error:
        status, message = 1, f"error: {type(error).__name__}: {error}"
    except (MemoryError, RuntimeError) as error:
        of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not of_memory and "can't allocate memory" not in str(error):  # torch has no type for the CPU's
            raise
        status, message = 1, f"error: out of memory, a smaller --batch_size needs less: {error}"
    sys.unraisablehook = lambda _: None  # a file that a full disk left open is tried, in vain, once more at the exit
    with contextlib.suppress(OSError):
        print(f"{program}:", " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


# The state of a run


@dataclass(kw_only=True)
class State:
    """Where a run is. A checkpoint holds this, and nothing else lasts from one step to the next."""

    round: int = 0
    iteration: int = 0  # of the round
    seconds: float = 0.0  # that the round has taken
    rows: list = field(default_factory=lambda: [[]])  # for each round, a dict for each evaluation and each epoch's end
    masks: dict  # {parameter name: bool tensor}, true where a weight survives
    model: nn.Module
    initial: dict  # the state dict to which survivors are reset
    best: dict  # the state dict at the round's best validation accuracy
    moments: dict  # the optimizer's memory, {name: {parameter name: tensor}}
    loss: torch.Tensor  # float64 (), the sum over the epoch's steps


def copied(live, anew=True):
    """A copy on the CPU of nested dicts and lists of tensors, networks and plain values; a network becomes its state dict.

    Tensors that are on the CPU already are copied only `anew`.
    """
    if isinstance(live, nn.Module):
        live = live.state_dict()
    if isinstance(live, dict):
        return {key: copied(value, anew) for key, value in live.items()}
    if isinstance(live, list):
        return [copied(value, anew) for value in live]
    return live.to("cpu", copy=anew) if isinstance(live, torch.Tensor) else live


def fill(live, saved):
    """Put back what was `copied` into the nested dicts `live`: tensors and networks in place, all else by assignment."""
    for key, value in live.items():
        if isinstance(value, dict):
            fill(value, saved[key])
        elif isinstance(value, torch.Tensor):
            value.copy_(saved[key])
        elif isinstance(value, nn.Module):
            value.load_state_dict(saved[key])
        else:
            live[key] = saved[key]


def alike(live, saved):
    """Whether `saved` has the keys, shapes and types to `fill` `live`."""
    if isinstance(live, nn.Module):
        live = live.state_dict()
    if isinstance(live, dict):
        return isinstance(saved, dict) and live.keys() == saved.keys() and all(alike(live[key], saved[key]) for key in live)
    if isinstance(live, torch.Tensor):
        kinds = [(tensor.shape, tensor.dtype, tensor.layout) for tensor in (live, saved) if isinstance(tensor, torch.Tensor)]
        return kinds == kinds[:1] * 2
    return type(live) is type(saved)


def evaluations(rows):
    """Those of a round's rows that have an evaluation."""
    return [row for row in rows if "val_loss" in row]


def best(rows):
    """The evaluation of best validation accuracy, the first of equals; None where there is none yet."""
    return max(evaluations(rows), key=lambda row: row["val_accuracy"], default=None)


def ticket(rows):
    """What the arrays say of a round, {name: value}."""
    early, end = min(evaluations(rows), key=lambda row: row["val_loss"]), rows[-1]
    accuracies = best(rows)["test_accuracy"], end["test_accuracy"]
    values = *accuracies, early["iteration"], early["test_accuracy"], end["weights_remaining"]
    return dict(zip(ARRAYS, values, strict=True))


def by_epoch(rows, name):
    """A column of a round's rows at the ends of its epochs, from the first; NaN where it was not measured."""
    values = {row["epoch"]: row.get(name, math.nan) for row in rows}  # of an epoch's rows, the last is that of its end
    return [values.get(epoch, math.nan) for epoch in range(1, rows[-1]["epoch"] + 1)]


ROW = {"round", "epoch", "iteration", "weights_remaining", "train_loss", "seconds"}  # what every row has


def consistent(saved, steps, end):
    """Whether a saved state's rows lead to where it is, in rounds of `end` iterations with `steps` in an epoch."""
    try:
        for round_, rows in enumerate(saved["rows"]):
            over = round_ < saved["round"] or saved["iteration"] == end
            if over and (rows[-1]["iteration"] != end or not ticket(rows)):
                return False
            iterations = [0, *(row["iteration"] for row in rows), saved["iteration"] if round_ == saved["round"] else end]
            good = all(
                row.keys() >= ROW
                and all(type(value) in (int, float) for value in row.values())
                and (row["round"], row["epoch"]) == (round_, math.ceil(row["iteration"] / steps))
                for row in rows
            )
            if not good or iterations != sorted(iterations):
                return False
        return len(saved["rows"]) == saved["round"] + 1 and saved["iteration"] <= end
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False


# Files


class Files:
    """Where everything that a run leaves is."""

    def __init__(self, args, prune_type=None):
        root, self.kind = Path(args.output_dir), prune_type or args.prune_type
        place = Path(args.arch_type, args.dataset, f"seed{args.seed}" if args.seed else "")
        self.dumps, self.saves, self.plots = (root / folder / place for folder in ("dumps/lt", "saves", "plots/lt"))
        self.runs = root / "runs" / place / self.kind
        self.log = self.dumps / f"{self.kind}_log.jsonl"
        self.settings = self.dumps / f"{self.kind}_settings.json"
        self.lock = self.saves / f".{self.kind}.lock"
        self.failure = self.saves / f"failed_{self.kind}.txt"
        self.cleared = self.saves / f".{self.kind}.cleared"
        self.initial, self.checkpoint, self.before = (
            self.saves / f"{name}_{self.kind}.pth.tar" for name in ("initial_state_dict", "checkpoint", "checkpoint_before")
        )

    def ticket(self, round_):
        return self.saves / f"{round_}_model_{self.kind}.pth.tar"

    def array(self, name):
        return self.dumps / f"{self.kind}_{name}.dat"

    def figure(self, name):
        return self.plots / f"{self.kind}_{name}.png"

    def rounds(self):
        """How many rounds are finished, by the array that is written last."""
        with contextlib.suppress(BadInput):
            return len(read_array(self.array("compression")))
        return 0

    def complete(self, round_):
        """Whether the arrays and the figure of a finished round are there."""
        paths = self.array(f"all_loss_{round_}"), self.array(f"all_accuracy_{round_}"), self.figure(f"LossVsAccuracy_{round_}")
        return all(path.exists() for path in paths)

    def all_complete(self, rounds):
        """Whether all is there that a checkpoint at the end of so many rounds can give."""
        paths = [self.settings, self.log, self.initial, self.ticket(rounds - 1), self.figure("AccuracyVsWeights")]
        paths += [self.array(name) for name in ARRAYS]
        return all(path.exists() for path in paths) and all(map(self.complete, range(rounds)))

    def results(self):
        """The results there are, checkpoints first: what is left without them cannot be mistaken for a run to go on with."""
        yield from filter(Path.exists, (self.checkpoint, self.before, self.failure))
        yield from self.dumps.glob(f"{self.kind}_*")
        yield from self.plots.glob(f"{self.kind}_*")
        yield from self.saves.glob(f"[0-9]*_model_{self.kind}.pth.tar*")  # with what a kill left of one


def write(path, save, before=None):
    """Write a file whole or not at all: `save(file)` fills one beside it, which is then renamed over `path`.

    What `path` was is kept as `before`, where that is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            save(file)
            file.flush()
            with syncing():
                os.fsync(file.fileno())
        if before and path.exists():
            path.replace(before)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    try:
        folder = os.open(path.parent, os.O_RDONLY)  # so that the new names survive a loss of power too
    except PermissionError:  # Windows opens no folders
        return
    try:
        with syncing():
            os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def syncing():
    """Pass over what os.fsync raises where a file system cannot write to the disk at once; files are written all the same."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def write_array(path, values):
    write(path, lambda file: np.save(file, np.array(values, dtype=float)))


def read_array(path):
    """The 1-D float array in `path`. Raises BadInput where it holds anything else; nothing is unpickled."""
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:  # down to a TokenError for a damaged header
        raise BadInput(f"{path} is not an array that NumPy wrote ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != float:
        raise BadInput(f"{path} is not a 1-D array of floats")
    return values


def save_checkpoint(path, content, before=None):
    """Save what can be `copied` so that torch.load(path, weights_only=True) reads it anywhere."""
    buffer = io.BytesIO()  # on a full disk, torch.save to a file loses the system's error and raises one of its own
    torch.save(copied(content, anew=False), buffer)
    write(path, lambda file: file.write(buffer.getbuffer()), before)


def load_checkpoint(path, types):
    """What `save_checkpoint` saved, on the CPU: a dict with values of these types, {key: type}. Nothing in it is executed.

    Raises BadInput where there is none, or it is damaged by its checksums, or something else.
    """
    try:
        with zipfile.ZipFile(path) as file:  # which torch.save writes, with a CRC-32 of every part, which torch.load ignores
            # They do not cover the list of the parts; where that calls one a folder, torch reads nothing.
            if file.testzip() or any(part.external_attr for part in file.infolist()):
                raise BadInput("its checksum does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(content.get(key), types[key]) for key in types):
            raise BadInput("it is not a checkpoint of this version of the program")
    except FileNotFoundError as error:
        raise BadInput(f"{path} is gone") from error
    except (MemoryError, PermissionError):  # which say nothing of what it holds
        raise
    except Exception as error:  # zipfile and torch raise a dozen kinds for damaged files
        raise BadInput(f"{path} is damaged ({' '.join(str(error).split())[:100]})") from error
    return content


def read_masks(run, round_, masks):
    """The masks that the run of another prune type, `args.masks_from`, had in a round; `masks` are such as are wanted."""
    kind = run.args.masks_from
    path = Files(run.args, kind).ticket(round_)
    again = f"run --prune_type={kind} and this into another --output_dir"
    try:
        found = load_checkpoint(path, {"masks": dict, "args": dict})
    except BadInput as error:
        raise BadInput(f"{error}: put it back, or {again}") from error
    if not alike(masks, found["masks"]):
        raise BadInput(f"{path} has the masks of another network: {again}")
    if other := difference(run, found["args"], {"prune_type", "masks_from", "rewind_iter"}):
        raise BadInput(f"{path} was made with {other}: give the {kind} run's settings, or {again}")
    return found["masks"]


def check_masks(run, round_, wanted):
    """Raise BadInput where the round that the run is in was pruned by other masks than those that are there now."""
    mine = run.saved["state"]["masks"] if run.saved and round_ == run.saved["state"]["round"] else {}
    sizes_alone = run.args.prune_type == "random"
    for name, mask in mine.items():
        if not (mask.sum() == wanted[name].sum() if sizes_alone else mask.equal(wanted[name])):
            raise BadInput(f"{run.files.dumps} was pruned by other masks than {run.args.masks_from} has now. {ANEW}")


@contextlib.contextmanager
def opened(args, network, defaults):
    """The unfinished runs of a command's trials, locked, and compared with the results that there are."""
    with contextlib.ExitStack() as locks:
        runs = [Run(trial, network, defaults) for trial in trials(args)]
        for run in runs:
            take_lock(run)
            locks.callback(run.lock.release)
        yield [run for run in runs if not run.finished()]


def take_lock(run):
    try:
        run.files.saves.mkdir(parents=True, exist_ok=True)
        run.lock.acquire()
    except Timeout as error:
        raise BadInput(f"another process is at work on this run in {run.files.saves}") from error
    except OSError as error:
        raise BadInput(f"--output_dir={run.args.output_dir} cannot be used: {error}") from error


def difference(run, others, free=()):
    """The first setting in which a run differs from `others`, in words; None where only those differ that may.

    A setting that the others lack, as it was not there then, counts as its default.
    """
    for name, value in run.settings.items():
        other = others.get(name, run.defaults.get(name, value))
        if name in FREE_SETTINGS.union(free) or (isinstance(other, (str, int, float, list, type(None))) and value == other):
            continue
        if name == "network":
            pairs = zip([*str(other).splitlines(), ""], [*value.splitlines(), ""], strict=False)
            was, now = next((was.strip(), now.strip()) for was, now in pairs if was != now)
            return f"another network, which has {was or 'nothing'} where this has {now or 'nothing'}"
        return f"other data ({other}), not {value}" if name == "data" else f"{other} for --{name}, not {value}"
    return None


def newest(run):
    """The newest good checkpoint, which has to be of a run with these settings; None where there are no results yet."""
    run.damage = None
    for path in filter(Path.exists, (run.files.checkpoint, run.files.before)):
        try:
            saved = load_checkpoint(path, {"args": dict})
        except BadInput as error:
            run.damage = run.damage or error
            continue
        if other := difference(run, saved["args"]):
            raise BadInput(f"{run.files.dumps} has results with {other}. {ANEW}")
        run.source = path
        return saved
    found = next((path for path in run.files.results() if path.stat().st_size), None)
    if run.damage or found:
        raise BadInput(f"{run.damage or f'{found} exists, without a checkpoint to go on from'}. {ANEW}")
    return None


def note_changes(path, was):
    """Say where a run goes on from a checkpoint that other code or other versions made."""
    now = provenance()
    if not was:
        print(f"note: {path} was made before code and versions were recorded", file=sys.stderr)
    changed = [name for name in now if was.get(name, now[name]) != now[name]]
    if set(changed) - {"commit", "changed"}:  # which other files than these may have made so
        names = "; ".join(f"{name} {was[name]}, now {now[name]}" for name in changed)
        print(f"note: {path} goes on with other code or versions: {names}", file=sys.stderr)


def write_settings(run, device):
    """Record how the run was made, for people and for combine_plots.py."""
    start = datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        start = json.loads(run.files.settings.read_text())["start"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = {"device": f"{device.type}, {name}", "threads": torch.get_num_threads(), "start": start}
    content = {"settings": run.settings, "defaults": run.defaults, "made_by": provenance()} | machine
    write(run.files.settings, lambda file: file.write(json.dumps(content, indent=1).encode()))


def failed(files, of):
    """Why a run failed in the command whose mark begins with `of`; empty where it did not."""
    mark, _, reason = files.failure.read_text().partition("\n") if files.failure.exists() else ("", "", "")
    return reason if mark.startswith(of) else ""


def await_others(args):
    """Under torchrun, wait for the trials of its other processes, which it would stop where this one ends with an error."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    waiting = range(args.seed, args.seed + args.trials) if name else ()
    while waiting := [
        seed for seed in waiting if not _over(args, Files(argparse.Namespace(**vars(args) | {"seed": seed})), name)
    ]:
        time.sleep(2)


def _over(args, files, name):
    return files.rounds() >= args.prune_iterations or failed(files, name)


def title(args, round_):
    return f"round {round_}" + (f" of seed {args.seed}" if args.trials > 1 else "")


class Run:
    """A run's hold on its files: the lock, the checkpoints, and the signals that end it.

    As a context manager, it has SIGINT and SIGTERM end the step under way and write a checkpoint.
    """

    def __init__(self, args, network="", defaults=None):
        self.args, self.files, self.defaults = args, Files(args), defaults or {}
        self.settings = vars(args) | {"network": network}  # what results must have in common to be of one run
        self.lock = FileLock(self.files.lock, blocking=False)
        self.saved = self.source = self.damage = None  # the checkpoint to go on from, its file, what is wrong with a newer one
        self.stop, self.handlers = None, {}  # the number of the signal that came; what signals did before
        self.saved_at = time.monotonic()

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.stop and error[0] is None:
            signal.raise_signal(self.stop)  # it came after the last step

    def finished(self):
        """Whether there is nothing to do, which is said. Finds the checkpoint that there may be to go on from."""
        self.saved = None if self.overwrites() else newest(self)
        wanted, rounds = self.args.prune_iterations, self.files.rounds()
        if self.saved is None or rounds < wanted or ("state" in self.saved and not self.files.all_complete(rounds)):
            return False  # what is missing is written again by the way of a run that is at its end
        more = "; a larger --prune_iterations adds more" if rounds == wanted else f", more than the {wanted} asked for"
        print(f"finished: {self.files.dumps} has all {rounds} rounds{more}")
        note_lost(self.files, rounds)
        return True

    def overwrites(self):
        """Whether results there are go: not again where torchrun restarts a command that has cleared them."""
        cleared = restarted() and self.files.cleared.exists() and self.files.cleared.read_text() == command()
        return self.args.overwrite and not cleared

    def check(self, data, state, steps, end):
        """Raise BadInput where the results there are, or the masks wanted, do not go with what is about to be run.

        `data` is the digest of the data, `state` that of a new run. An epoch has `steps` iterations and a round `end`.
        """
        self.settings["data"] = data
        if self.saved:
            if other := difference(self, self.saved["args"]):
                raise BadInput(f"{self.files.dumps} has results with {other}. {ANEW}")
            saved = self.saved.get("state")
            if not (alike(vars(state), saved) and consistent(saved, steps, end)):
                raise BadInput(f"{self.source} is of another network, other data or another version. {ANEW}")
        if self.args.masks_from:
            check_rounds(self.args)
            for round_ in tqdm(range(self.args.prune_iterations), desc="checking masks", delay=1, leave=False):
                check_masks(self, round_, read_masks(self, round_, state.masks))

    def clear(self):
        """Delete the results there are."""
        for path in list(self.files.results()):
            path.unlink()
        if self.args.overwrite and "TORCHELASTIC_RUN_ID" in os.environ:
            write(self.files.cleared, lambda file: file.write(command().encode()))

    def begin(self, state):
        """Begin a new run's files, or take one up: `state`, that of a new run, becomes that of the checkpoint.

        Raises Failure where torchrun restarts a command in which this run has failed.
        """
        if restarted() and (reason := failed(self.files, command())):
            raise Failure(reason)
        if self.saved:
            fill(vars(state), self.saved["state"])
            if self.damage:
                print(f"{self.damage}: going on from the checkpoint before it")
                self.files.checkpoint.unlink()  # the next one would rename it over the good one
            note_changes(self.source, self.saved.get("made_by") or {})
        else:
            self.clear()
            self.checkpoint(state, now=True)
        self.saved = None
        self.files.failure.unlink(missing_ok=True)
        save_checkpoint(self.files.initial, state.initial)
        write_settings(self, state.loss.device)

    def fail(self, failure):
        """Record why the run cannot go on, and say so; returns that in words."""
        write(self.files.failure, lambda file: file.write(f"{command()}\n{failure}".encode()))
        if self.args.trials > 1:
            print(f"failed: {failure}", file=sys.stderr)
        return str(failure)

    def _stop(self, number, frame):
        self.stop = number
        signal.signal(number, self.handlers[number])  # a second one takes effect at once

    def checkpoint(self, state, now=False):
        """Save the state `now`, or where it is time for it. Raises Stopped where a signal asked for that."""
        if now or self.stop or time.monotonic() > self.saved_at + CHECKPOINT_SECONDS:
            content = {"state": vars(state), "args": self.settings, "made_by": provenance()}
            save_checkpoint(self.files.checkpoint, content, self.files.before)
            self.saved_at = time.monotonic()
        if self.stop:
            where = f"in {title(self.args, state.round)}, after {state.iteration} iterations"
            raise Stopped(self.stop, where, self.args.overwrite)


def check_rounds(args):
    """Raise BadInput where the run whose masks are wanted has fewer rounds than this one is to have."""
    files, kind, rounds = Files(args, args.masks_from), args.masks_from, args.prune_iterations
    if (found := files.rounds()) < rounds:
        short = f"--masks_from={kind} needs the masks of {rounds} rounds, and {files.dumps} has {found}"
        raise BadInput(f"{short}: first run the same with --prune_type={kind} and without --masks_from")


class Log(contextlib.AbstractContextManager):
    """A round as one can watch it: the rows of the log, TensorBoard, the progress bar.

    All three are made anew from the state's rows when the round begins or is taken up, and then follow it.
    """

    def __init__(self, args, state, steps, end):
        self.args, self.state, self.steps, self.end = args, state, steps, end
        self.files = files = Files(args)
        self.title, self.remaining = title(args, state.round), density(list(state.masks.values()))
        self.started = time.monotonic() - state.seconds
        past = [rows[-1]["seconds"] for rows in state.rows[:-1]]
        rest = (args.prune_iterations - state.round) * sum(past) / max(1, len(past)) - state.seconds
        to_go = f"; about {tqdm.format_interval(rest)} to go" if past and rest > 0 else ""
        print(f"\n{self.title}, of 0..{args.prune_iterations - 1}: {self.remaining:.2f}% of the weights remain{to_go}")
        print(table(state.masks), flush=True)
        write_log(files, state.rows)
        files.runs.mkdir(parents=True, exist_ok=True)
        for path in files.runs.glob("events.*.round*"):
            number = path.suffix.removeprefix(".round")
            if number.isdecimal() and int(number) >= state.round:
                path.unlink()
        self.events = EventsWriter(str(files.runs / "events"), f".round{state.round:03}")
        for content in settings_page(args) if state.round == 0 else ():
            self.event(content, 0)
        patience = 0.1 if sys.stderr.isatty() else 30  # seconds between lines; few of them in a file
        self.bar = tqdm(total=end, initial=state.iteration, desc=self.title, dynamic_ncols=True, mininterval=patience)
        for row in evaluations(state.rows[-1]):
            self._add_scalars(row)
        with syncing():
            self.events.flush()

    def __exit__(self, *error):
        self.bar.close()

    def event(self, content, step):
        """Add to TensorBoard's file, but not by SummaryWriter, whose thread dies on a full disk and then blocks this one."""
        self.events.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=content))

    def tick(self):
        """Note that an iteration is over."""
        self.state.seconds = time.monotonic() - self.started
        self.bar.update()

    def add(self, **measured):
        """Add a row to the state, and to the log where it has an evaluation; returns it."""
        state = self.state
        state.seconds = time.monotonic() - self.started
        where = {"round": state.round, "epoch": math.ceil(state.iteration / self.steps), "iteration": state.iteration}
        row = where | {"weights_remaining": self.remaining} | measured | {"seconds": state.seconds}
        state.rows[-1].append(row)
        if "val_loss" in row:
            with self.files.log.open("a") as file:
                print(json.dumps(row), file=file)
            self._add_scalars(row)
            with syncing():
                self.events.flush()
        self._show(row)
        return row

    def _add_scalars(self, row):
        step = row["round"] * self.end + row["iteration"]
        for tag in ("loss/train", "loss/val", "accuracy/val", "accuracy/test"):
            what, split = tag.split("/")
            self.event(summary.scalar(tag, row[f"{split}_{what}"]), step)

    def _show(self, row):
        """Show an epoch's end on the progress bar, with the last evaluation and the best."""
        last = row["iteration"] == self.end
        if last or (row["iteration"] % self.steps == 0 and row["epoch"] % self.args.print_freq == 0):
            shown = evaluations(self.state.rows[-1])
            text = f"epoch {row['epoch']}/{math.ceil(self.end / self.steps)}, loss {row['train_loss']:.4f}"
            if shown:
                text += f", accuracy {shown[-1]['test_accuracy']:.2f}%, best {best(shown)['test_accuracy']:.2f}%"
            self.bar.set_postfix_str(text, refresh=False)


def write_log(files, rounds):
    """Write the log of these rounds, a list of their rows."""
    lines = [f"{json.dumps(row)}\n".encode() for rows in rounds for row in evaluations(rows)]
    write(files.log, lambda file: file.writelines(lines))


def end_round(run, state, log, trained):
    """Write what a finished round leaves: its ticket, TensorBoard's page of it, and what is of all rounds.

    A ticket that is there stays, with the code that it records, where this process has not `trained` any of the round.
    """
    log.bar.close()
    args, files, values = run.args, run.files, ticket(state.rows[-1])
    content = {"model": state.best, "final": state.model, "masks": state.masks, "round": state.round}
    content |= {"weights_remaining": values["compression"], "test_accuracy": values["bestaccuracy"]}
    if trained or not files.ticket(state.round).exists():
        save_checkpoint(files.ticket(state.round), content | {"args": run.settings, "made_by": provenance()})
    for page in ticket_page(state, values):
        log.event(page, state.round)
    with syncing():
        log.events.close()
    write_rounds(run, state.rows, log.steps, log.end)
    top = best(state.rows[-1])
    where = f"iteration {top['iteration']}" if args.max_iter else f"epoch {top['epoch']}"
    at_best = f"{values['bestaccuracy']:.2f}% at best validation ({where})"
    print(f"{log.title}: test accuracy {at_best}, {values['finalaccuracy']:.2f}% at the end")
    note_lost(files, state.round)


def note_lost(files, rounds):
    """Name what cannot be written again of so many rounds."""
    for path in filter(lambda path: not path.exists(), map(files.ticket, range(rounds))):
        print(f"note: {path} is gone, and only training its round anew would bring it back", file=sys.stderr)


def write_rounds(run, rounds, steps, end):
    """Write the arrays and figures of finished rounds, a list of their rows, of `end` iterations with `steps` in an epoch."""
    args, files = run.args, run.files
    for round_, rows in enumerate(rounds):
        if rows is rounds[-1] or not files.complete(round_):
            write_round(files, round_, rows, steps, end)
    table = [ticket(rows) for rows in rounds]
    arrays = {name: [values[name] for values in table] for name in ARRAYS}
    points = [args.prune_type] * len(table), arrays["compression"], arrays["bestaccuracy"]
    plot_accuracy(files.figure("AccuracyVsWeights"), *points, f"{args.arch_type}, {args.dataset}")
    for name, column in arrays.items():
        write_array(files.array(name), column)


def write_round(files, round_, rows, steps, end):
    """Write the arrays and the figure of a round, of `end` iterations with `steps` in an epoch."""
    losses = by_epoch(rows, "train_loss")
    curve = [(min(epoch, end / steps), loss) for epoch, loss in enumerate(losses, start=1)]
    measured = [(row["iteration"] / steps, row["test_accuracy"]) for row in evaluations(rows)]
    plot_round(files.figure(f"LossVsAccuracy_{round_}"), curve, measured)
    write_array(files.array(f"all_loss_{round_}"), losses)
    write_array(files.array(f"all_accuracy_{round_}"), by_epoch(rows, "test_accuracy"))


def settings_page(args):
    """TensorBoard's page of the settings."""
    settings = {name: value for name, value in vars(args).items() if name not in FREE_SETTINGS}
    plain = {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in settings.items()}
    return summary.hparams(plain, {"ticket/accuracy": 0.0, "ticket/weights_remaining": 0.0})


def ticket_page(state, values):
    """TensorBoard's page of a finished round, whose `ticket` is `values`."""
    yield summary.scalar("ticket/accuracy", values["bestaccuracy"])
    yield summary.scalar("ticket/weights_remaining", values["compression"])
    yield summary.scalar("ticket/early_stop_iteration", values["earlystop"])
    weights = state.model.state_dict()
    for name, mask in state.masks.items():
        yield summary.scalar(f"density/{name}", density([mask]))
        if mask.any():
            yield summary.histogram(f"surviving/{name}", weights[name][mask].cpu().numpy(), 64)
    image = connections(next(iter(state.masks.values())))
    if image is not None:
        yield summary.image("ticket/connections_per_pixel", image, dataformats="HW")


def density(masks):
    """Percent of the weights that a list of masks keeps."""
    return 100 * sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def table(masks):
    """What is left of every layer, as text."""
    width = max(map(len, [*masks, "all"]))
    lines = [f"{'layer':{width}}  {'weights':>10}  {'remaining':>10}  {'percent':>7}"]
    rows = [(name, [mask]) for name, mask in masks.items()] + [("all", list(masks.values()))]
    for name, group in rows:
        total, kept = sum(mask.numel() for mask in group), sum(int(mask.sum()) for mask in group)
        lines.append(f"{name:{width}}  {total:10}  {kept:10}  {density(group):7.2f}")
    return "\n".join(lines)


def connections(mask):
    """How many connections each input keeps, for a bool mask (units, inputs): an image in 0..1, 1 for the most.

    The inputs are the pixels of a square image, grey or in three colours, whose connections are added up; None if not.
    """
    counts = mask.sum(0).cpu().numpy()
    for channels in (1, 3) if mask.dim() == 2 else ():
        side = math.isqrt(len(counts) // channels)
        if channels * side**2 == len(counts):
            image = counts.reshape(channels, side, side).sum(0)
            return np.kron(image / max(1, image.max()), np.ones((8, 8)))  # eight times larger, to be seen
    return None


# Figures


@contextlib.contextmanager
def figure(path, rows=1):
    """Axes, one below the other, of a figure of a paper's column width, which is written to `path` at the end."""
    import seaborn as sns  # it takes more than a second, for which --help and errors should not wait

    with sns.axes_style("ticks"), sns.plotting_context("paper"), sns.color_palette("colorblind"):
        fig = Figure(figsize=(3.5, 1.2 + 1.4 * rows), layout="constrained")
        yield fig.subplots(rows, sharex=True, squeeze=False)[:, 0], sns
        sns.despine(fig)
        write(path, lambda file: fig.savefig(file, format="png", dpi=300))
    fig.clear()  # its references go in circles, and would keep the pixels of every round in memory for long


def plot_round(path, losses, accuracies):
    """A round's training losses and test accuracies, both [(epochs, value), ...]."""
    with figure(path, rows=2) as ((above, below), _):
        for axes, points in ((above, losses), (below, accuracies)):
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) <= 30 else None)
        above.set_ylabel("training loss")
        below.set(xlabel="epoch", ylabel="test accuracy (%)")
        below.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def plot_accuracy(path, kinds, percents, accuracies, title):
    """Test accuracy against the percentage of weights remaining, dense at the left: a point for each round of each run.

    `kinds` are the points' prune types. Where several runs have a round, the line is their mean, the band their range.
    """
    with figure(path) as ((axes,), sns):
        curves(axes, sns, kinds, percents, accuracies)
        axes.legend(title=title)
        axes.set_ylabel("test accuracy (%)")


def curves(axes, sns, names, percents, values, **options):
    """Draw values against the percentage of weights remaining, a curve for each name. Prune types look the same always."""
    percents = np.array(percents, dtype=float)
    percents[percents == 0] = np.nan  # for which a logarithmic axis has no place
    looks = dict.fromkeys((*PRUNE_TYPES, *names))  # in this order
    colours, markers = ({name: look[i % len(look)] for i, name in enumerate(looks)} for look in (COLOURS, MARKERS))
    options |= {"hue": names, "palette": colours, "style": names, "markers": markers, "dashes": False}
    sns.lineplot(x=percents, y=values, errorbar=("pi", 100), ax=axes, **options)
    if np.isnan(percents).all():
        return
    low, high = np.nanmin(percents), np.nanmax(percents)
    if low == high:  # one round: an axis needs a width
        axes.set_xlim(0.8 * low, 1.2 * high)
    axes.set(xscale="log", xlabel="weights remaining (%)")
    axes.xaxis.set_inverted(True)
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [digit * 10.0**power for power in range(-6, 3) for digit in digits]
    axes.set_xticks([tick for tick in ticks if low * 0.99 <= tick <= high] if high > 3 * low else np.unique(percents))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%.4g"))
    axes.xaxis.set_minor_locator(NullLocator())
