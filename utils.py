"""Everything besides the experiment: errors, the state of a run, files, checkpoints, logs."""

import argparse
import contextlib
import errno
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
import zipfile
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from torch import distributed, nn
from tqdm import tqdm

# The flag whose value a flag takes if it is not given, in the order in which they are set.
FOLLOWS = {
    "prune_percent_conv": "prune_percent",
    "prune_percent_downsample": "prune_percent_conv",
    "prune_percent_output": "prune_percent",
}
MAY_CHANGE_ON_RESUME = {
    "prune_iterations",
    "trials",
    "gpu",
    "threads",
    "sparse_below",
    "data_dir",
    "output_dir",
    "overwrite",
    "print_freq",
    "masks_from_checksums",  # each further round adds one
}
# Settings in which a run agrees with the one whose tickets it has by `--tickets_from`.
TICKET_SETTINGS = {
    "arch_type",
    "seed",
    "prune_percent",
    *FOLLOWS,
    "PRUNE_PERCENT",  # of the architecture's file
    "prune_scope",
    "criterion",
    "one_shot",
    "rewind_iter",
}
# Settings in which a run with `--connect_to` and its first run may differ.
ORDER_SETTINGS = {"connect_to", "order_seed", "first_order_seed"}
PYTHON = (3, 11)  # knows the format "z", which writes -0.0 as 0.0
CHECKPOINT_SECONDS = 20  # between checkpoints, at least
CHECKPOINT_SHARE = 0.02  # of the time that checkpoints may take: if one takes long, they are rarer
THREADS = torch.get_num_threads()  # OMP_NUM_THREADS, or the available cores
# Floating-point operations in the forward pass of a batch, from which on more than one thread is
# worth its risk: docs/speed.md.
WORK_FOR_THREADS = 1e9
# Arrays of one value per round.
ARRAYS = (
    "bestaccuracy",
    "finalaccuracy",
    "earlystop",
    "earlystopaccuracy",
    "untrained",
    "trainaccuracy",
    "barrier",
    "compression",
)
SCALARS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "accuracy/val": "val_accuracy",
    "accuracy/test": "test_accuracy",
}
TICKET_SCALARS = {
    "ticket/accuracy": "bestaccuracy",
    "ticket/untrained_accuracy": "untrained",
    "ticket/training_accuracy": "trainaccuracy",
    "ticket/early_stop_iteration": "earlystop",
    "ticket/weights_remaining": "compression",
    "ticket/error_barrier": "barrier",
}
START_OVER = "Choose another --output_dir, or add --overwrite to delete the existing results"


# ---- Errors and the command line -----------------------------------------------------------------


class BadInput(Exception):
    """Flags or files that cannot be used: exit status 2."""


class Failure(Exception):
    """A run that cannot continue: exit status 1."""


class Stopped(Exception):
    """A run stopped by a signal, after saving a checkpoint: exit status 128 + signal number."""

    def __init__(self, number, where, overwrite):
        command = "the same command without --overwrite" if overwrite else "the same command"
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} in {where}; run {command} to resume")
        self.signal = number


class CannotWrite(OSError):
    """An error of the system while a file is written: exit status 1."""

    def __str__(self):
        return (
            f"{self.filename} cannot be written: {self.strerror}. Free some space, or allow writing"
            " there, and run the same command again, which resumes a run; or choose another folder"
        )


@contextlib.contextmanager
def one_line_errors(program):
    """Report errors that a user can cause as one line on stderr, and exit with a status."""
    prepare_streams()
    try:
        if sys.version_info < PYTHON:
            needed = ".".join(map(str, PYTHON))
            raise BadInput(f"Python {needed} or newer is needed, not {platform.python_version()}")
        yield
    except Stopped as stop:
        exit_with(128 + stop.signal, program, stop)
    except KeyboardInterrupt:
        exit_with(130, program, "stopped")
    except BadInput as error:
        exit_with(2, program, f"error: {error}")
    except Failure as error:
        exit_with(1, program, f"error: {error}")
    except BrokenPipeError:  # the output is read by another process, such as head, which has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        sys.exit(141)  # 128 + SIGPIPE, which Windows does not have
    except CannotWrite as error:
        exit_with(1, program, f"error: {error}")
    except OSError as error:
        exit_with(1, program, f"error: {type(error).__name__}: {error}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        exit_with(1, program, f"error: out of memory, a smaller --batch_size needs less: {error}")


def prepare_streams():
    """Replace closed streams by the null device; let the others escape what they cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell; its number must not go to a file of results
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):  # a notebook's have not
            stream.reconfigure(errors="backslashreplace")


def out_of_memory(error):
    """Return whether an error says that memory is used up."""
    # torch has no error type for the CPU's memory.
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error)


def exit_with(status, program, message):
    with contextlib.suppress(OSError):
        print(f"{program}:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of descriptions."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults in its help and reports errors in one line.

    Its description is the first paragraph of `doc`, the program's docstring, which is None with
    PYTHONOPTIMIZE=2.
    """

    def __init__(self, doc, **options):
        paragraph, _, _ = (doc or "").partition("\n\n")
        super().__init__(
            description=textwrap.fill(paragraph, 79),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def number(kind, interval, *words):
    """Return an argparse type: a number in an interval, or one of some words.

    `kind` is int or float, `interval` a text such as "[0, 100)".
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    noun = "a whole number" if kind is int else "a number"
    expected = " or ".join([f"{noun} in {interval}", *words])

    def parse(text):
        if text in words:
            return text
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low < value < high or (value == low and interval.startswith("[")):
                return value
        raise argparse.ArgumentTypeError(f"must be {expected}, not {text!r}")

    return parse


def numbers(interval):
    """Return an argparse type: comma-separated whole numbers in an interval, or none, as a list."""
    one = number(int, interval)
    return lambda text: [] if text == "none" else [one(part) for part in text.split(",")]


def folder(text):
    """Parse the path of a folder or file; an argparse type."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty; . is the current folder")
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such user") from error


def folder_or_none(text):
    """Parse as folder does, and none as None."""
    return None if text == "none" else folder(text)


def as_flag(value):
    """Return the value of a flag as text, as on the command line."""
    if value in (None, []):
        return "none"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def plural(n, noun):
    """Return "1 round" or "2 rounds"; `n` may also be a text such as "2 to 3"."""
    return f"{n} {noun}" if n in (1, "1") else f"{n} {noun}s"


def progress(items, description):
    """Return `items`, a sequence, with a progress bar if going through them takes over a second."""
    interval = update_interval()
    return tqdm(items, desc=description, delay=1, leave=False, mininterval=interval)


def update_interval():
    """Return the seconds between updates of a progress bar; a file needs few lines."""
    return 0.1 if sys.stderr.isatty() else 30


def under_torchrun():
    """Return whether torchrun started this process. (Other launchers set RANK, too.)"""
    return "TORCHELASTIC_RUN_ID" in os.environ


def from_torchrun(name, default):
    """Return the number in an environment variable that torchrun sets; `default` without it."""
    return int(os.environ.get(name, default)) if under_torchrun() else default


def trials(args):
    """Return the settings of this process's trials: all of them, or its share under torchrun.

    The processes of a machine take turns on its GPUs. Raises BadInput if torchrun started more
    processes than there are trials.
    """
    if args.overwrite and under_torchrun():
        raise BadInput(
            "--overwrite cannot be used with torchrun, whose restarts would delete the results "
            "again: choose another --output_dir"
        )
    processes = from_torchrun("WORLD_SIZE", 1)
    if processes > args.trials:
        raise BadInput(
            f"torchrun started {processes} processes for --trials={args.trials}: "
            "start at most one process per trial"
        )

    gpu = args.gpu
    gpus = torch.cuda.device_count()
    if gpu != "cpu" and gpus > 0 and processes > 1:
        gpu = (gpu + from_torchrun("LOCAL_RANK", 0)) % gpus
    rank = from_torchrun("RANK", 0)
    seeds = range(args.seed, args.seed + args.trials)[rank::processes]
    return [argparse.Namespace(**vars(args) | {"seed": seed, "gpu": gpu}) for seed in seeds]


def pick_threads(threads, work):
    """Return the number of CPU threads: `threads` (from `--threads`), or what the work needs.

    If `threads` is None, OMP_NUM_THREADS counts. Otherwise small networks get one thread, and large
    ones all cores of this process: several threads wait for each other, which takes most of the
    time if another process needs a core. `work` is the number of floating-point operations of a
    batch's forward pass.
    """
    if threads:
        return threads
    cores = THREADS
    if under_torchrun():  # which sets OMP_NUM_THREADS=1
        cores = max(1, available_cores() // from_torchrun("LOCAL_WORLD_SIZE", 1))
    elif os.environ.get("OMP_NUM_THREADS"):
        return THREADS
    return cores if work >= WORK_FOR_THREADS else 1


def available_cores():
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def wait_for_processes():
    """Wait until torchrun's other processes have trained.

    torchrun stops all processes as soon as one exits with an error.
    """
    if not under_torchrun():
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would react only after the barrier
    try:
        distributed.init_process_group("gloo", timeout=timedelta(days=365))
        distributed.barrier()
    except RuntimeError as error:
        print(f"note: not waiting for torchrun's other processes: {error}", file=sys.stderr)


# ---- The state of a run --------------------------------------------------------------------------


@dataclass(kw_only=True)
class State:
    """The state of a run: what a checkpoint saves and what lasts from one iteration to the next."""

    round: int = 0
    iteration: int = 0  # within the round
    seconds: float = 0.0  # spent on the round
    # For each round, a list of rows: a dict for each evaluation and each end of an epoch.
    rows: list = field(default_factory=lambda: [[]])
    masks: dict  # {parameter name: bool tensor}, true if a weight survives
    model: nn.Module
    initial: dict  # the state dict that survivors are reset to
    start: dict  # the state dict at the start of the round
    best: dict  # the state dict at the round's best validation accuracy
    optimizer_state: dict  # {name: {parameter name: tensor}}; those of sparse layers are sparse
    loss: torch.Tensor  # float64 (), the sum over the epoch's iterations


def snapshot(live, copy=True):
    """Return a copy on the CPU of nested dicts and lists of tensors, networks and plain values.

    A network becomes its state dict, and a sparse tensor dense. Without `copy`, dense tensors on
    the CPU are shared.
    """
    if isinstance(live, nn.Module):
        live = live.state_dict()
    if isinstance(live, dict):
        return {key: snapshot(value, copy) for key, value in live.items()}
    if isinstance(live, list):
        return [snapshot(value, copy) for value in live]
    if isinstance(live, torch.Tensor):
        return live.to_dense().to("cpu", copy=copy)
    return live


def restore(live, saved):
    """Restore a snapshot into nested dicts: tensors and networks in place, the rest assigned."""
    for key, value in live.items():
        if isinstance(value, dict):
            restore(value, saved[key])
        elif isinstance(value, torch.Tensor):
            sparse = value.layout == torch.sparse_csr
            value.copy_(saved[key].sparse_mask(value) if sparse else saved[key])
        elif isinstance(value, nn.Module):
            value.load_state_dict(saved[key])
        else:
            live[key] = saved[key]


def same_structure(live, saved):
    """Return whether `saved` has the same keys, shapes and types as `live`, and can be restored."""
    if isinstance(live, nn.Module):
        live = live.state_dict()
    if isinstance(live, dict):
        same_keys = isinstance(saved, dict) and live.keys() == saved.keys()
        return same_keys and all(same_structure(live[key], saved[key]) for key in live)
    if isinstance(live, torch.Tensor) and isinstance(saved, torch.Tensor):
        return live.shape == saved.shape and live.dtype == saved.dtype
    return type(live) is type(saved)


def checksum(tensors, value=0):
    """Return the CRC-32 of tensors on the CPU, continued from `value`."""
    for tensor in tensors:
        value = zlib.crc32(tensor.contiguous().numpy(), value)
    return value


def same_bits(tensors, others):
    """Return whether two dicts of tensors are equal, bit by bit, so that NaN equals NaN."""
    sums = [{name: checksum([found[name].cpu()]) for name in found} for found in (tensors, others)]
    return sums[0] == sums[1]


# ---- The rows of a round -------------------------------------------------------------------------


def trained(rows):
    """Return the rows without the one of the untrained ticket."""
    return [row for row in rows if "train_loss" in row]


def evaluations(rows):
    """Return the rows that have an evaluation after training, and not only a training loss."""
    return [row for row in trained(rows) if "val_loss" in row]


def best(rows):
    """Return the row of best validation accuracy; None if there is no evaluation yet.

    Of equal accuracies, that of the lowest validation loss counts, then the first.
    """
    return min(
        evaluations(rows), key=lambda row: (-row["val_accuracy"], row["val_loss"]), default=None
    )


def round_summary(rows):
    """Return a finished round's values in ARRAYS, {name: number}; NaN if not measured."""
    at_best = best(rows)
    at_early_stop = min(evaluations(rows), key=lambda row: row["val_loss"])
    at_end = rows[-1]
    return {
        "bestaccuracy": at_best["test_accuracy"],
        "finalaccuracy": at_end["test_accuracy"],
        "earlystop": at_early_stop["iteration"],
        "earlystopaccuracy": at_early_stop["test_accuracy"],
        "untrained": rows[0]["test_accuracy"],
        "trainaccuracy": at_end["train_accuracy"],
        "barrier": at_end.get("barrier", math.nan),
        "compression": at_end["weights_remaining"],
    }


def by_epoch(rows, name):
    """Return a column of a round's rows at the end of each epoch; NaN if not measured."""
    # An epoch's last row wins.
    values = {row["epoch"]: row.get(name, math.nan) for row in trained(rows)}
    return [values.get(epoch, math.nan) for epoch in range(1, rows[-1]["epoch"] + 1)]


# ---- Files ---------------------------------------------------------------------------------------


class Files:
    """The paths of everything that a run writes.

    `saves`, if given, is the folder of another run's tickets, without that of its seed.
    """

    def __init__(self, args, prune_type=None, saves=None):
        self.prune_type = prune_type or args.prune_type
        self.arch_type = args.arch_type
        self.dataset = args.dataset
        self.seed = args.seed
        self.title = f"{args.arch_type}, {args.dataset}"  # of figures
        self.root = root = Path(args.output_dir)
        place = Path(args.arch_type, args.dataset)
        saves = Path(saves or root / "saves" / place)
        if args.seed:
            place /= f"seed{args.seed}"
            saves /= f"seed{args.seed}"
            self.title += f", seed {args.seed}"
        self.dumps = root / "dumps/lt" / place
        self.saves = saves
        self.plots = root / "plots/lt" / place
        self.runs = root / "runs" / place / self.prune_type
        self.log = self.dumps / f"{self.prune_type}_log.jsonl"
        self.settings = self.dumps / f"{self.prune_type}_settings.json"
        self.lock = self.saves / f".{self.prune_type}.lock"
        self.initial = self.saves / f"initial_state_dict_{self.prune_type}.pth.tar"
        self.checkpoint = self.saves / f"checkpoint_{self.prune_type}.pth.tar"
        self.previous_checkpoint = self.saves / f"checkpoint_before_{self.prune_type}.pth.tar"

    def ticket(self, round_):
        return self.saves / f"{round_}_model_{self.prune_type}.pth.tar"

    def array(self, name):
        return self.dumps / f"{self.prune_type}_{name}.dat"

    def figure(self, name):
        return self.plots / f"{self.prune_type}_{name}.png"

    def finished_rounds(self, rounds):
        """Return the number of finished rounds, given the lists of rows of all rounds.

        A round is finished if it has its last row and its ticket, which is written last.
        """
        last = len(rounds) - 1
        ended = rounds[last] and "train_accuracy" in rounds[last][-1]
        return last + bool(ended and self.ticket(last).exists())

    def results(self):
        """Yield the existing results, checkpoints first.

        If deleting them is interrupted, the rest cannot be mistaken for a run to resume.
        """
        yield from filter(Path.exists, (self.checkpoint, self.previous_checkpoint))
        paths = [
            self.initial,
            self.log,
            self.settings,
            self.figure("AccuracyVsWeights"),
            *map(self.array, ARRAYS),
            # Of each round:
            self.ticket("*"),
            self.figure("LossVsAccuracy_*"),
            self.array("all_loss_*"),
            self.array("all_accuracy_*"),
        ]
        names = "|".join(re.escape(path.name).replace(r"\*", r"\d+") for path in paths)
        known = re.compile(rf"({names})(\.tmp)?")  # a kill may leave temporary files
        for folder in (self.dumps, self.saves, self.plots):
            for path in folder.glob("*"):
                if known.fullmatch(path.name) and path.is_file():
                    yield path


def find_results(output_dir):
    """Yield the Files of all runs in a folder that have finished a round, in the order of seeds."""
    for place in sorted(Path(output_dir, "dumps/lt").glob("*/*")):
        folders = {0: place}
        for folder in place.glob("seed*"):
            if match := re.fullmatch(r"seed([1-9]\d*)", folder.name):
                folders[int(match[1])] = folder
        for seed in sorted(folders):
            args = argparse.Namespace(
                output_dir=output_dir, arch_type=place.parent.name, dataset=place.name, seed=seed
            )
            for path in sorted(folders[seed].glob("*_compression.dat")):
                yield Files(args, path.name.removesuffix("_compression.dat"))


def write(path, save, previous=None, shared=False):
    """Write a file atomically: with what `save(file)` writes, under a temporary name at first.

    An existing file is first renamed to `previous`, if given. Several processes may write a
    `shared` file at once, so that each needs a temporary file of its own. Raises CannotWrite.
    """
    buffer = io.BytesIO()  # NumPy, torch and Pillow replace the errors of a full disk by their own
    save(buffer)
    name = f"{path.name}.{uuid.uuid4().hex}" if shared else path.name
    temporary = path.with_name(f"{name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                sync(os.fsync, file.fileno())
            if previous and path.exists():
                path.replace(previous)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path):
    """Raise errors of the system as CannotWrite, which names the file and says what to do."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWrite(error.errno, error.strerror or str(error), str(path)) from error


def sync(function, *args):
    """Call a function that calls os.fsync; ignore file systems that do not support it."""
    try:
        function(*args)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_array(path, values):
    """Write numbers as a 1-D float array in NumPy's format."""
    write(path, lambda file: np.save(file, np.array(values, dtype=float)))


def read_array(path):
    """Return the 1-D float array in a file, without unpickling. Raises BadInput if it has none."""
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header raises anything, even tokenize.TokenError
        raise BadInput(f"{path} is not an array in NumPy's format ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != float:
        raise BadInput(f"{path} is not a 1-D array of floats")
    return values


def write_arrays(files, rounds, start=0):
    """Write the arrays of finished rounds, given as a list of their rows.

    The arrays of single rounds are written from round `start` on.
    """
    for number, rows in enumerate(rounds):
        if number >= start:
            write_array(files.array(f"all_loss_{number}"), by_epoch(rows, "train_loss"))
            write_array(files.array(f"all_accuracy_{number}"), by_epoch(rows, "test_accuracy"))
    summaries = [round_summary(rows) for rows in rounds]
    for name in ARRAYS:
        values = [of_round[name] for of_round in summaries]
        if name == "barrier" and all(map(math.isnan, values)):
            files.array(name).unlink(missing_ok=True)  # only runs with --connect_to have barriers
        else:
            write_array(files.array(name), values)


def write_results(files, rounds):
    """Write the log, and the arrays of finished rounds, given the lists of rows of all rounds."""
    logged = [row for rows in rounds for row in rows if "val_loss" in row]
    lines = [f"{json.dumps(row)}\n".encode() for row in logged]
    write(files.log, lambda file: file.writelines(lines))
    write_arrays(files, rounds[: files.finished_rounds(rounds)])


def save_checkpoint(path, content, previous=None):
    """Write a snapshot of `content` that torch.load(path, weights_only=True) reads."""
    write(path, lambda file: torch.save(snapshot(content, copy=False), file), previous)


def load_checkpoint(path, types, device="cpu"):
    """Return the dict that `save_checkpoint` wrote. Nothing in it is executed.

    On the device "meta", its tensors have shapes and types, but no values. Raises BadInput if the
    file is missing or damaged, or if a value does not have its type in `types`, {key: type}.
    """
    try:
        # torch.save writes a zip file with a CRC-32 of each part, which torch.load ignores. Its
        # table of contents has no checksum; if that calls a part a folder, torch reads nothing.
        with zipfile.ZipFile(path) as file:
            if file.testzip() or any(part.external_attr for part in file.infolist()):
                raise BadInput("its checksum is wrong")
        content = torch.load(path, map_location=device, weights_only=True)
        known = isinstance(content, dict)
        if not known or not all(isinstance(content.get(key), types[key]) for key in types):
            raise BadInput("it is not a checkpoint of this version of the program")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(f"{path} is missing") from error
    except (MemoryError, PermissionError):  # these say nothing about the content
        raise
    except Exception as error:  # zipfile and torch raise a dozen types for damaged files
        reason = " ".join(str(error).split())[:100]
        raise BadInput(f"{path} is damaged ({reason})") from error
    return content


# ---- A run and its checkpoints -------------------------------------------------------------------


@contextlib.contextmanager
def lock(runs):
    """Lock runs against other processes. Raises BadInput if another process has a lock."""
    with contextlib.ExitStack() as locks:
        for run in runs:
            path = run.files.lock
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                locks.enter_context(FileLock(path, blocking=False))
            except Timeout as error:
                raise BadInput(in_use(path)) from error
            except OSError as error:
                problem = f"--output_dir={run.args.output_dir} cannot be used: {error}"
                if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                    problem += ". Its file system does not lock files: choose another one"
                raise BadInput(problem) from error
        yield


def in_use(path):
    """Return in words that another process has the lock of a run.

    If the file system has no locks, the file itself is the lock, and has the process number and the
    host. It stays if that host goes down.
    """
    with contextlib.suppress(OSError, ValueError):
        number, host, *_ = path.read_text().splitlines()
        since = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
        return (
            f"process {number} on {host} has used the run in {path.parent} since {since}. If it has"
            f" ended, delete {path}"
        )
    return f"another process has the lock of the run, {path}: wait for it, or stop it"


class Run:
    """One trial: its settings, its state, its checkpoints, and the signals that stop it.

    As a context manager, it makes SIGINT and SIGTERM finish the current iteration, save a
    checkpoint and raise Stopped. If the reader of the output ends, it saves a checkpoint, too.
    """

    def __init__(self, args, settings=None, defaults=None, refused=(), before_training=False):
        self.args = args
        self.files = Files(args)
        self.settings = settings or {}  # {name: value}; results of one run agree in these
        self.defaults = defaults or {}  # {flag: value}
        self.refused = list(refused)  # the flags that the run does not have
        self.before_training = before_training  # whether the criterion uses no trained weights
        self.source = source_files(args)  # of the run whose tickets it uses, or None
        self.source_settings = {}  # {name: value}
        self.own_output = set()  # tensors for which the source has another number of outputs
        self.saved_path = None  # of the checkpoint to resume from
        self.saved = None  # its content
        self.state = None  # until it is started or resumed
        self.next_save = time.monotonic() + CHECKPOINT_SECONDS
        self.stop = None  # the number of the signal that arrived
        self.handlers = {}  # the signals' previous handlers, {number: handler}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if kind is BrokenPipeError and self.state:  # from printing, between two iterations
            self.checkpoint(now=True)

    def _stop(self, number, frame):
        self.stop = number
        signal.signal(number, self.handlers[number])  # a second signal takes effect at once

    def find_checkpoint(self, device="meta"):
        """Find the checkpoint to resume from. Raises BadInput if there is none that can be used.

        On the device "meta", its tensors have no values, so that those of many trials fit into
        memory.
        """
        self.saved_path, self.saved = newest_checkpoint(self, device)

    def finished_rounds(self):
        """Return the number of finished rounds that the checkpoint has."""
        if self.saved is None:
            return 0
        # check_state refuses the states of other versions.
        return self.files.finished_rounds(self.saved["state"].get("rows") or [[]])

    def is_finished(self):
        """Return whether the checkpoint has all rounds."""
        return self.finished_rounds() >= self.args.prune_iterations

    def round_is_finished(self):
        """Return whether the state's round is finished."""
        return self.files.finished_rounds(self.state.rows) > self.state.round

    def record_data(self, digest):
        """Record what identifies the data as a setting.

        Raises BadInput if the checkpoint, or a source that must agree, is of other data.
        """
        self.settings["data"] = digest
        if self.saved:
            self.check_settings(self.saved["args"])
        must_agree = self.source and "data" not in free_settings(self)
        if must_agree and self.source_settings["data"] != digest:
            raise bad_source(self, f"{self.source.ticket(0)} was made with other data")

    def check_state(self, state):
        """Raise BadInput if the checkpoint cannot be restored into a new run's `state`."""
        if self.saved is None:
            return
        if not same_structure(vars(state), self.saved["state"]):
            raise BadInput(
                f"the checkpoint in {self.files.saves} is of another network or version. "
                f"{START_OVER}"
            )
        if self.args.one_shot and self.saved["state"]["round"]:
            first_weights(self, state.model)

    def check_settings(self, others):
        """Raise BadInput if the existing results have other settings or masks, {name: value}."""
        other, _ = difference(self.settings, others, self.defaults)
        checksums = [found.get("masks_from_checksums", []) for found in (self.settings, others)]
        if any(now != before for now, before in zip(*checksums, strict=False)):
            other = other or f"other tickets than there are now in {self.source.saves}"
        if other:
            raise BadInput(f"{self.files.dumps} has results with {other}. {START_OVER}")

    def clear(self):
        """Delete all existing results."""
        for path in [*self.files.results(), *self.files.runs.glob("events*")]:
            path.unlink()

    def start_or_resume(self, state):
        """Save the new run's `state`, or restore the checkpoint into it; note what has changed."""
        if self.saved:
            self.find_checkpoint("cpu")  # which may have changed since it was checked
            self.check_state(state)
        if self.saved:
            restore(vars(state), self.saved["state"])
            subject = f"{self.files.dumps} resumes with changes"
            now = provenance() | machine(self.args, state.loss.device)
            note_changes(subject, self.saved["made_by"], now)
            write_results(self.files, state.rows)
            if self.saved_path == self.files.previous_checkpoint:
                # The newest one is damaged. It must not replace the previous one.
                self.files.checkpoint.unlink(missing_ok=True)
            self.state = state
        else:
            if self.source:
                path = self.source.ticket(0)
                made_by = read_ticket(self, 0, state.model, state.masks)["made_by"]
                note_changes(f"{path} was made before changes", made_by, provenance())
            self.clear()
            self.state = state
            self.checkpoint(now=True)
        self.saved = None
        save_checkpoint(self.files.initial, state.initial)
        write_settings(self)

    def checkpoint(self, now=False):
        """Save the state if it is time to, or `now`. Raises Stopped if a signal has arrived."""
        state = self.state
        start = time.monotonic()
        if now or self.stop or start > self.next_save:
            made_by = provenance() | machine(self.args, state.loss.device)
            content = {"state": vars(state), "args": self.settings, "made_by": made_by}
            save_checkpoint(self.files.checkpoint, content, self.files.previous_checkpoint)
            end = time.monotonic()
            self.next_save = end + max(CHECKPOINT_SECONDS, (end - start) / CHECKPOINT_SHARE)
        if self.stop:
            where = f"{title(self.args, state.round)} after {state.iteration} iterations"
            raise Stopped(self.stop, where, self.args.overwrite)


def newest_checkpoint(run, device):
    """Return path and content of the newest undamaged checkpoint; (None, None) without results.

    Its tensors are on `device`. Raises BadInput if its settings differ, or if there are results but
    no checkpoint.
    """
    damage = None
    for path in filter(Path.exists, (run.files.checkpoint, run.files.previous_checkpoint)):
        try:
            saved = load_checkpoint(path, {"state": dict, "args": dict, "made_by": dict}, device)
        except BadInput as error:
            damage = damage or error
            continue
        run.check_settings(saved["args"])
        if damage and path != run.saved_path:  # otherwise it is printed already
            print(f"{damage}: resuming from the previous checkpoint", file=sys.stderr)
        return path, saved

    if damage:
        raise BadInput(f"{damage}. {START_OVER}")
    result = next(run.files.results(), None)
    if result:
        raise BadInput(f"{result} exists, but there is no checkpoint to resume from. {START_OVER}")
    return None, None


def difference(settings, others, defaults, free=()):
    """Return the first setting in which `others` differ from `settings`, {name: value}.

    It is returned in words, and what to do to have the same; both are "" if there is none. Settings
    in `free` may differ. A setting missing from `others`, which are of an older version then,
    counts as its default.
    """
    texts = {  # of what is too long to be shown, or no flag
        "network": ("another network", ""),
        "data": ("other data", ""),
        "PRUNE_PERCENT": (
            "another PRUNE_PERCENT in the architecture's file (settings.json has it)",
            "restore it",
        ),
    }
    for name, value in settings.items():
        other = others.get(name, defaults.get(name, value))
        if name in MAY_CHANGE_ON_RESUME.union(free):
            continue
        if name == "masks_from_settings":
            inner, _ = difference(value, other, defaults)
            if inner:
                return f"tickets of a run with {inner}", ""
        elif other != value:
            if name in texts:
                return texts[name]
            flag = f"--{name}={as_flag(other)}"
            remedy = f"give {flag}"
            if isinstance(other, bool):
                remedy = f"give --{name}" if other else f"leave out --{name}"
            return f"{flag}, not {as_flag(value)}", remedy
    return "", ""


def note_changes(subject, made_by, now):
    """Print a note if code, versions or machine, {name: value}, are not as they were."""
    changes = []
    for name in now.keys() & made_by.keys() - {"commit", "changed"}:
        if made_by[name] != now[name]:
            changes.append(f"{name} {made_by[name]}, now {now[name]}")
    if changes:
        print(f"note: {subject}: {'; '.join(sorted(changes))}", file=sys.stderr)


@functools.cache
def provenance():
    """Return code and versions: {"code": digest, "commit", "changed", "python", "torch", ...}."""
    root = Path(__file__).resolve().parent
    files = [root / "main.py", root / "utils.py", *sorted((root / "archs").rglob("*.py"))]
    code = b"".join(path.read_bytes() for path in files)
    made_by = {"code": hashlib.sha256(code).hexdigest()[:16]}
    if (root / ".git").exists():
        options = {"cwd": root, "stderr": subprocess.DEVNULL, "text": True, "timeout": 10}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            commit = subprocess.check_output(["git", "rev-parse", "HEAD"], **options)
            changes = ["git", "status", "--porcelain", "--untracked-files=no"]
            made_by["commit"] = commit.strip()
            made_by["changed"] = bool(subprocess.check_output(changes, **options))
    made_by["python"] = platform.python_version()
    for name in ("torch", "torchvision", "numpy"):
        with contextlib.suppress(PackageNotFoundError):  # built from source
            made_by[name] = version(name)
    return made_by


def machine(args, device):
    """Return what else may change a result's last digits, {name: value}."""
    if device.type == "cpu":
        name = platform.machine()
        precision = {}
    else:
        name = torch.cuda.get_device_name(device)
        precision = {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),  # "high" is TF32
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return {
        "device": f"{device.type}, {name}",
        "threads": torch.get_num_threads(),
        "sparse_below": args.sparse_below,
        **precision,
    }


def write_settings(run):
    """Write how the run was made, for people and for combine_plots.py."""
    start = datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        start = json.loads(run.files.settings.read_text())["start"]  # of a resumed run
    content = {
        "settings": run.settings,
        "refused": run.refused,
        "before_training": run.before_training,
        "defaults": run.defaults,
        "made_by": provenance(),
        **machine(run.args, run.state.loss.device),
        "start": start,
    }
    write(run.files.settings, lambda file: file.write(json.dumps(content, indent=1).encode()))


# ---- Tickets: of the first round, and of other runs ----------------------------------------------


def first_weights(run, model):
    """Return the state dict at the end of round 0, from its ticket.

    Raises BadInput if the ticket cannot be used for this network.
    """
    path = run.files.ticket(0)
    try:
        final = load_checkpoint(path, {"final": dict})["final"]
        if not same_structure(model, final):
            raise BadInput(f"{path} is of another network")
    except BadInput as error:
        raise BadInput(f"--one_shot needs the ticket of round 0: {error}. {START_OVER}") from error
    return final


def source_flag(args):
    """Return the flag that names the run whose tickets a run uses; None if it makes its own masks.

    `--connect_to` counts before the others, which such a run repeats.
    """
    flags = ("connect_to", "tickets_from", "masks_from")
    return next((flag for flag in flags if getattr(args, flag)), None)


def source_files(args):
    """Return the Files of the run whose tickets a run uses; None if it makes its own masks."""
    flag = source_flag(args)
    if flag == "connect_to":
        return Files(args, saves=args.connect_to)
    if flag == "tickets_from":
        return Files(args, "lt", args.tickets_from)
    return Files(args, args.masks_from) if flag else None


def takes_weights(settings, refused):
    """Return whether a run starts its rounds from weights of the source, as lt and random do.

    `settings` are those of the run, {name: value}, and `refused` the flags that it does not have.
    """
    return bool(settings.get("tickets_from")) and "rewind_iter" not in refused


def uses_weights(run):
    """Return whether a run takes weights of the source, or must have the same ones."""
    return bool(run.args.connect_to) or takes_weights(run.settings, run.refused)


def record_source(run, model, masks):
    """Return the settings of the source, and a checksum per round of all that is used of it.

    `masks` keep all weights of `model`. Raises BadInput if a round is missing or cannot be used.
    """
    checksums = []
    rounds = range(run.args.prune_iterations)
    for round_ in progress(rounds, "checking tickets"):
        ticket = read_ticket(run, round_, model, masks)
        run.source_settings = run.source_settings or ticket["args"]
        other, _ = difference(ticket["args"], run.source_settings, run.defaults)
        if other:
            path = run.source.ticket(round_)
            raise bad_source(run, f"{path} is of another run than that of round 0, with {other}")
        masks = masks | ticket["masks"]
        checksums.append(checksum([*ticket["masks"].values(), *ticket["final"].values()]))
    run.own_output = masks.keys() - ticket["masks"].keys()
    if uses_weights(run):
        weights = read_weights(run, model)
        run.own_output |= model.state_dict().keys() - weights.keys()
        checksums = [checksum(weights.values(), value) for value in checksums]

    recorded = {"masks_from_checksums": checksums}
    source = run.source_settings
    if run.args.connect_to:  # whose settings are this run's; its masks may be those of another run
        recorded["first_order_seed"] = source.get("order_seed", 0)
        source = source.get("masks_from_settings", {})
    kept = {}
    for name, value in source.items():
        if name not in MAY_CHANGE_ON_RESUME and name != "seed":
            kept[name] = value
    return recorded | {"masks_from_settings": kept}


def read_source(run, round_, model, masks):
    """Return what is used of the source in a round: {"masks", "weights", "final"}.

    Each is {name: tensor}. An output layer with another number of outputs is missing. `weights` are
    those at the source's iteration K, and `final` those at the end of the round; they are empty if
    they are not used. Raises Failure if this is not what record_source found.
    """
    try:
        ticket = read_ticket(run, round_, model, masks)
        used = {
            "masks": ticket["masks"],
            "final": ticket["final"],
            "weights": read_weights(run, model) if uses_weights(run) else {},
        }
        now = checksum(tensor for tensors in used.values() for tensor in tensors.values())
    except BadInput:  # although it could be used
        now = None
    if now != run.settings["masks_from_checksums"][round_]:
        raise Failure(
            f"the tickets in {run.source.saves} have changed since this run started. Restore them "
            "and run the same command to resume, or choose another --output_dir"
        )
    return used


def read_ticket(run, round_, model, masks):
    """Return the ticket of the source in a round, with the masks that fit to `masks`.

    Its `final` is empty if it is not used. Raises BadInput if the ticket is missing, if it comes
    from other settings or another network, or if its masks are not nested in `masks`.
    """
    args = run.args
    path = run.source.ticket(round_)
    remedy = ""
    if not path.exists():
        if source_flag(args) == "masks_from":
            remedy = "run the same command with --prune_type=lt and without --masks_from first"
        elif round_:
            rounds = plural(args.prune_iterations, "round")
            remedy = f"give --prune_iterations={round_}, or let that run finish {rounds}"
    try:
        if os.path.realpath(path) == os.path.realpath(run.files.ticket(round_)):
            remedy = "choose another --output_dir"
            raise BadInput("these are the tickets of this very run")
        types = {"masks": dict, "final": dict, "round": int, "args": dict, "made_by": dict}
        ticket = load_checkpoint(path, types)
        if ticket["round"] != round_:
            raise BadInput(f"{path} is the ticket of round {ticket['round']}")
        original = ticket["args"].get("tickets_from")
        if original and not args.connect_to:
            remedy = (
                f"give --tickets_from={original} instead, as seen from where that run was started"
            )
            raise BadInput(f"{path} is a ticket of the run in {original}")
        free = free_settings(run)
        other, remedy = difference(run.settings, ticket["args"], run.defaults, free)
        if other.startswith("--seed="):
            remedy = ""  # the folder has another seed's, too
        if other:
            raise BadInput(f"{path} was made with {other}")
        # Shared weights have several names in a ticket. Each needs one mask only.
        found = {name: ticket["masks"].get(name) for name in masks}
        ticket["masks"] = fitting(found, masks, path)
        if any((mask & ~masks[name].cpu()).any() for name, mask in ticket["masks"].items()):
            raise BadInput(f"{path} keeps weights that an earlier round has pruned")
        if not args.connect_to:
            ticket["final"] = {}
        elif not same_structure(model, ticket["final"]):
            raise BadInput(f"{path} is of another network")
    except BadInput as error:
        raise bad_source(run, error, remedy) from error
    return ticket


def free_settings(run):
    """Return the settings in which a run and its source may differ, a set of names."""
    flag = source_flag(run.args)
    if flag == "connect_to":
        return ORDER_SETTINGS
    if flag == "tickets_from":
        return (run.settings.keys() - TICKET_SETTINGS).union(run.refused)
    return {"prune_type", "masks_from", "rewind_iter"}


def read_weights(run, model):
    """Return the source's weights at its iteration K, those that fit to `model`.

    Raises BadInput if they are missing or of another network.
    """
    path = run.source.initial
    try:
        return fitting(load_checkpoint(path, {}), model.state_dict(), path)
    except BadInput as error:
        raise bad_source(run, error) from error


def fitting(found, own, path):
    """Return the tensors of another run, {name: tensor}, that fit to those of this run, `own`.

    Only the output layer may be missing among them: the one layer of another shape, which differs
    in its number of outputs only. Raises BadInput, which names `path`, if anything else differs.
    """
    shapes = {name: getattr(found.get(name), "shape", None) for name in own}
    others = [name for name in own if shapes[name] != own[name].shape]
    layers = {name.rpartition(".")[0] for name in others}
    if len(layers) == 1 and all(
        shapes[name] is not None and shapes[name][1:] == own[name].shape[1:] for name in others
    ):
        found = {name: found[name] for name in found if name not in others}
        own = {name: own[name] for name in own if name not in others}
    if not same_structure(own, found):
        problem = f"{path} is of another network"
        if others and shapes[others[0]] is not None:
            here, there = tuple(own[others[0]].shape), tuple(shapes[others[0]])
            problem += (
                f", whose {others[0]} has the shape {there}, not {here}: only the output layer may "
                "differ, in its number of outputs"
            )
        raise BadInput(problem)
    return found


def bad_source(run, problem, remedy=""):
    """Return the error that the tickets of another run cannot be used, and what to do instead."""
    folder = "give the folder saves/<arch>/<dataset>, without that of a seed, of"
    rounds = plural(run.args.prune_iterations, "round")
    advice = {
        "connect_to": (
            f"{folder} a run by the same command, without --connect_to and --order_seed, in "
            "another --output_dir"
        ),
        "tickets_from": (
            f"{folder} an lt run that has finished {rounds} with --seed={run.args.seed}"
        ),
        "masks_from": "use another --output_dir for both runs",
    }
    flag = source_flag(run.args)
    text = ", or ".join(filter(None, [remedy, advice[flag]]))
    value = getattr(run.args, flag)
    return BadInput(f"--{flag}={value}: {problem}. {text[0].upper()}{text[1:]}")


# ---- The log of a round --------------------------------------------------------------------------


class Log:
    """The progress of a round: log.jsonl, TensorBoard and the progress bar.

    The log is appended to. TensorBoard's file of the round is rewritten from the state's rows, so
    that it has nothing from after the checkpoint that a run resumed from.
    """

    def __init__(self, run, steps, end):
        self.run = run
        self.args = args = run.args
        self.state = state = run.state
        self.steps = steps
        self.end = end
        self.files = run.files
        self.remaining = density(list(state.masks.values()))
        self.masks = checksum(snapshot(state.masks, copy=False).values())
        self.start_time = time.monotonic() - state.seconds
        print(f"\n{round_header(args, state, self.remaining)}")
        print(table(state.masks), flush=True)

        self.files.dumps.mkdir(parents=True, exist_ok=True)
        self.files.runs.mkdir(parents=True, exist_ok=True)
        suffix = f".round{state.round:03}"
        for path in self.files.runs.glob(f"events.*{suffix}"):
            path.unlink()
        name = f"events.out.tfevents.{time.time():.0f}{suffix}"
        self.events = RecordWriter(str(self.files.runs / name))
        self.bar = tqdm(
            total=end,
            initial=state.iteration,
            desc=title(args, state.round),
            dynamic_ncols=True,
            mininterval=update_interval(),
        )

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.push(self)  # closes the file and the bar if this fails
            self.write_event(file_version="brain.Event:2")
            if self.state.round == 0:
                self.add_summaries(0, settings_page(self.run))
            self.add_scalars(evaluations(self.state.rows[-1]))
            stack.pop_all()
        return self

    def __exit__(self, *error):
        # An error is reported already. A file left open would report it again.
        with contextlib.suppress(OSError):
            self.events.close()
        with contextlib.suppress(OSError):
            self.bar.close()

    def write_event(self, **content):
        """Write an event to TensorBoard's file.

        SummaryWriter's thread would die on a full disk and then block this one.
        """
        event = event_pb2.Event(wall_time=time.time(), **content)
        with writing(self.files.runs):
            self.events.write(event.SerializeToString())

    def add_summaries(self, step, summaries):
        """Write summaries to TensorBoard's file."""
        for content in summaries:
            self.write_event(step=step, summary=content)

    def add_scalars(self, rows):
        """Write the evaluations in these rows to TensorBoard's file."""
        for row in rows:
            step = row["round"] * self.end + row["iteration"]
            scalars = [summary.scalar(tag, row[name]) for tag, name in SCALARS.items()]
            self.add_summaries(step, scalars)
        self.flush()

    def flush(self):
        """Let TensorBoard's file reach the disk."""
        with writing(self.files.runs):
            sync(self.events.flush)

    def step(self):
        """Count an iteration."""
        self.state.seconds = time.monotonic() - self.start_time
        self.bar.update()

    def add(self, measured):
        """Add measurements, {name: number}, as a row to the state and the log; return the row."""
        state = self.state
        state.seconds = time.monotonic() - self.start_time
        row = {
            "round": state.round,
            "epoch": math.ceil(state.iteration / self.steps),
            "iteration": state.iteration,
            "weights_remaining": self.remaining,
            "masks": self.masks,
            **measured,
            "seconds": state.seconds,
        }
        state.rows[-1].append(row)
        if "val_loss" in row:
            with writing(self.files.log), self.files.log.open("a") as file:
                print(json.dumps(row), file=file)
            self.add_scalars(evaluations([row]))
        due = row["epoch"] % self.args.print_freq == 0 or state.iteration == self.end
        if due and "train_loss" in row:
            self.show(row)
        return row

    def show(self, row):
        """Show the losses and accuracies so far beside the progress bar."""
        epochs = math.ceil(self.end / self.steps)
        text = f"epoch {row['epoch']}/{epochs}, loss {row['train_loss']:.4f}"
        evaluated = evaluations(self.state.rows[-1])
        if evaluated:
            last = evaluated[-1]["test_accuracy"]
            at_best = best(evaluated)["test_accuracy"]
            text += f", test accuracy {last:.2f}% ({at_best:.2f}% at best validation)"
        self.bar.set_postfix_str(text, refresh=False)


def title(args, round_):
    """Return the name of a round, with its seed if there are several."""
    return f"round {round_} of seed {args.seed}" if args.trials > 1 else f"round {round_}"


def round_header(args, state, remaining):
    """Return the line that announces a round, with the time that the run will still take."""
    header = (
        f"{title(args, state.round)} (last: {args.prune_iterations - 1}): "
        f"{remaining:.2f}% of the weights remain"
    )
    seconds = [rows[-1]["seconds"] for rows in state.rows[:-1]]  # of each finished round
    if seconds:
        rounds = args.prune_iterations - state.round
        to_go = rounds * sum(seconds) / len(seconds) - state.seconds
        if to_go > 0:
            header += f"; about {tqdm.format_interval(to_go)} to go"
    return header


def save_round(run, log):
    """Write a finished round's page in TensorBoard, the arrays and the ticket."""
    state = run.state
    log.bar.close()
    rows = state.rows[-1]
    values = round_summary(rows)

    log.add_summaries(state.round, ticket_page(state, values))
    log.flush()
    write_arrays(run.files, state.rows, start=state.round)
    ticket = {
        "model": state.best,
        "final": state.model,
        "masks": under_all_names(state.model, state.masks),
        "round": state.round,
        "weights_remaining": values["compression"],
        "test_accuracy": values["bestaccuracy"],
        "args": run.settings,
        "made_by": provenance(),
    }
    # Last, because with it, the round is finished.
    save_checkpoint(run.files.ticket(state.round), ticket)

    at_best = best(rows)
    place = f"epoch {at_best['epoch']}"
    if run.args.max_iter or run.args.eval_iter:
        place = f"iteration {at_best['iteration']}"
    text = (
        f"{title(run.args, state.round)}: test accuracy {values['bestaccuracy']:.2f}% "
        f"at best validation ({place}), {values['finalaccuracy']:.2f}% at the end"
    )
    if run.args.connect_to:
        text += f"; error barrier {values['barrier']:.2f} points"
    print(text)


def under_all_names(model, masks):
    """Return masks, {parameter name: tensor}, under all names of weights that modules share."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if names[parameter] in masks:
            found[name] = masks[names[parameter]]
    return found


def settings_page(run):
    """Return TensorBoard's summaries of the prune type, the rate and flags without their default.

    A page that names the columns is left out: TensorBoard would take that of the first run. So it
    shows the flags of all runs, and those first in which they differ.
    """
    settings = {name: getattr(run.args, name) for name in ("prune_type", "prune_percent")}
    for name, value in vars(run.args).items():
        if name not in MAY_CHANGE_ON_RESUME and value != run.defaults.get(name):
            settings[name] = value if isinstance(value, (int, float, str)) else as_flag(value)
    _, *pages = summary.hparams(settings, {})
    return pages


def ticket_page(state, values):
    """Yield TensorBoard's summaries of a finished round, whose round_summary is `values`."""
    for tag, name in TICKET_SCALARS.items():
        if not math.isnan(values[name]):
            yield summary.scalar(tag, values[name])
    weights = state.model.state_dict()
    for name, mask in state.masks.items():
        yield summary.scalar(f"density/{name}", density([mask]))
        if mask.any():
            survivors = weights[name][mask].cpu().numpy()
            yield summary.histogram(f"surviving/{name}", survivors, 64)
    first_mask = next(iter(state.masks.values()))
    image = connections(first_mask)
    if image is not None:
        yield summary.image("ticket/connections_per_pixel", image, dataformats="HW")


def density(masks):
    """Return the percentage of weights that a list of masks keeps."""
    return 100 * sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def table(masks):
    """Return the number of weights that remain in each layer, as a table."""
    width = max(map(len, [*masks, "all"]))
    lines = [f"{'layer':{width}}  {'weights':>10}  {'remaining':>10}  {'percent':>7}"]
    groups = {name: [mask] for name, mask in masks.items()} | {"all": list(masks.values())}
    for name, group in groups.items():
        total = sum(mask.numel() for mask in group)
        remaining = sum(int(mask.sum()) for mask in group)
        lines.append(f"{name:{width}}  {total:10}  {remaining:10}  {density(group):7.2f}")
    return "\n".join(lines)


def connections(mask):
    """Return an image of how many connections each input pixel keeps, in 0..1; 1 is the most.

    `mask` is a bool tensor (units, inputs). The inputs must be a square image, grey or in three
    colours, whose connections are added up; otherwise None is returned.
    """
    if mask.dim() != 2:
        return None
    counts = mask.sum(0).cpu().numpy()
    for channels in (1, 3):
        side = math.isqrt(len(counts) // channels)
        if channels * side**2 == len(counts):
            image = counts.reshape(channels, side, side).sum(0)
            return np.kron(image / max(1, image.max()), np.ones((8, 8)))  # eight times larger
    return None
