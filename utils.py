"""Everything besides the experiment itself: the state of a run, its files and checkpoints, its log, and errors."""

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
import time
import zipfile
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

PRUNE_TYPES = ("lt", "reinit", "random")
# Settings that may change from one start of a run to the next.
FREE_SETTINGS = {"prune_iterations", "trials", "gpu", "data_dir", "output_dir", "overwrite", "print_freq"}
CHECKPOINT_SECONDS = 20
# One value a round; the last is written last, so that its length tells how many rounds are finished.
ARRAYS = ("bestaccuracy", "finalaccuracy", "earlystop", "earlystopaccuracy", "compression")
SCALARS = {"loss/train": "train_loss", "loss/val": "val_loss", "accuracy/val": "val_accuracy", "accuracy/test": "test_accuracy"}
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


def number(kind, interval, *words):
    """Return an argparse type: a `kind` (int or float) in an interval such as "[0, 100)", or one of these words."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    noun = "a whole number" if kind is int else "a number"
    wanted = " or ".join([f"{noun} in {interval}", *words])

    def parse(text):
        if text in words:
            return text
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low < value < high or (value == low and interval.startswith("[")):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")

    return parse


def numbers(interval):
    """Return an argparse type: a list of whole numbers in an interval, written with commas between them."""
    one = number(int, interval)
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
    if world and args.overwrite:
        raise BadInput("--overwrite is not for torchrun, whose restarts would clear again: choose another --output_dir")
    if processes > args.trials:
        raise BadInput(f"torchrun started {processes} processes for --trials={args.trials}: start one for each, at most")
    if neighbours > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))
    gpus = torch.cuda.device_count()
    gpu = (args.gpu + place) % gpus if args.gpu != "cpu" and gpus and processes > 1 else args.gpu
    seeds = range(args.seed, args.seed + args.trials)[rank::processes]
    return [argparse.Namespace(**vars(args) | {"seed": seed, "gpu": gpu}) for seed in seeds]


def report(failures):
    """Raise Failure if trials of this process failed, a list of messages.

    torchrun ends all processes when one exits with an error, so under torchrun each waits here until all have trained.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would act on Ctrl-C only after the barrier
        try:
            distributed.init_process_group("gloo", timeout=timedelta(days=365))
            distributed.barrier()
        except RuntimeError as error:
            print(f"note: not waiting for torchrun's other processes: {error}", file=sys.stderr)
    if failures:
        raise Failure("; ".join(failures))


@functools.cache
def provenance():
    """Which code this is, and of which versions: {"code": digest, "commit", "changed", "python", "torch", ...}."""
    root = Path(__file__).resolve().parent
    code = [root / "main.py", root / "utils.py", *sorted((root / "archs").rglob("*.py"))]
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


@contextlib.contextmanager
def one_line_errors(program):
    """Report errors that users can cause as one line on stderr and an exit status."""
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
    with contextlib.suppress(OSError):
        print(f"{program}:", " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


# The state of a run


@dataclass(kw_only=True)
class State:
    """The state of a run: all that a checkpoint saves, and all that lasts from one step to the next."""

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
    """Restore what was `copied` into the nested dicts `live`: tensors and networks in place, all else by assignment."""
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
    """Whether `saved` has the structure of `live`: the same keys, shapes and types."""
    if isinstance(live, nn.Module):
        live = live.state_dict()
    if isinstance(live, dict):
        return isinstance(saved, dict) and live.keys() == saved.keys() and all(alike(live[key], saved[key]) for key in live)
    if isinstance(live, torch.Tensor):
        return isinstance(saved, torch.Tensor) and live.shape == saved.shape and live.dtype == saved.dtype
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


# Files


class Files:
    """Where everything that a run leaves is."""

    def __init__(self, args, prune_type=None):
        root, self.kind = Path(args.output_dir), prune_type or args.prune_type
        place = Path(args.arch_type, args.dataset, f"seed{args.seed}" if args.seed else "")
        self.dumps, self.saves, self.plots = (root / folder / place for folder in ("dumps/lt", "saves", "plots/lt"))
        self.runs = root / "runs" / place / self.kind
        self.title = f"{args.arch_type}, {args.dataset}"  # of figures
        self.log = self.dumps / f"{self.kind}_log.jsonl"
        self.settings = self.dumps / f"{self.kind}_settings.json"
        self.lock = self.saves / f".{self.kind}.lock"
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

    def results(self):
        """The results there are, checkpoints first: what is left without them cannot be mistaken for a run to go on with."""
        yield from filter(Path.exists, (self.checkpoint, self.before))
        yield from self.dumps.glob(f"{self.kind}_*")
        yield from self.plots.glob(f"{self.kind}_*")
        yield from self.saves.glob(f"[0-9]*_model_{self.kind}.pth.tar*")  # with what a kill left of one


def write(path, save, before=None):
    """Write a file atomically: `save(file)` writes a temporary one, which is then renamed to `path`.

    The previous version is kept as `before`, if given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            save(file)
            file.flush()
            sync(os.fsync, file.fileno())
        if before and path.exists():
            path.replace(before)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sync(function, *args):
    """Call a function that calls os.fsync; ignore it if the file system does not support that."""
    try:
        function(*args)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
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
        raise BadInput(f"{path} is missing") from error
    except (MemoryError, PermissionError):  # which say nothing of what it holds
        raise
    except Exception as error:  # zipfile and torch raise a dozen kinds for damaged files
        raise BadInput(f"{path} is damaged ({' '.join(str(error).split())[:100]})") from error
    return content


def read_masks(run, round_, masks):
    """The masks of a round of the run of another prune type, `args.masks_from`; `masks` have the shapes expected."""
    kind = run.args.masks_from
    path = Files(run.args, kind).ticket(round_)
    try:
        found = load_checkpoint(path, {"masks": dict, "args": dict})
        if not alike(masks, found["masks"]):
            raise BadInput(f"{path} has the masks of another network")
        if other := difference(run, found["args"], {"prune_type", "masks_from", "rewind_iter"}):
            raise BadInput(f"{path} was made with {other}")
    except BadInput as error:
        again = f"run the same with --prune_type={kind}, and with --overwrite if that has finished"
        raise BadInput(f"--masks_from={kind}: {error}. First {again}") from error
    return found["masks"]


@contextlib.contextmanager
def opened(trials, model, defaults):
    """Yield the runs of these trials, locked against other processes, each with its newest checkpoint, if any."""
    runs = [Run(trial, model, defaults) for trial in trials]
    with contextlib.ExitStack() as locks:
        for run in runs:
            try:
                run.files.saves.mkdir(parents=True, exist_ok=True)
                locks.enter_context(FileLock(run.files.lock, blocking=False))
            except Timeout as error:
                raise BadInput(f"another process is at work on this run in {run.files.saves}") from error
            except OSError as error:
                raise BadInput(f"--output_dir={run.args.output_dir} cannot be used: {error}") from error
            if not run.args.overwrite:
                run.source, run.saved = newest_checkpoint(run)
        yield runs


def difference(run, others, free=()):
    """The first setting in which a run differs from `others`, in words; None if they agree. Those in `free` may differ.

    A setting missing from `others`, which are older than it, counts as its default.
    """
    words = {"network": "another network", "data": "other data"}  # too long to be shown
    for name, value in run.settings.items():
        other = others.get(name, run.defaults.get(name, value))
        if other != value and name not in FREE_SETTINGS.union(free):
            return words.get(name, f"{other} for --{name}, not {value}")
    return None


def newest_checkpoint(run):
    """Return the path and the content of the newest undamaged checkpoint, (None, None) if there are no results.

    Raises BadInput if its settings differ, or if there are results without a checkpoint.
    """
    damage = None
    for path in filter(Path.exists, (run.files.checkpoint, run.files.before)):
        try:
            saved = load_checkpoint(path, {"state": dict, "args": dict, "made_by": dict})
        except BadInput as error:
            damage = damage or error
            continue
        if other := difference(run, saved["args"]):
            raise BadInput(f"{run.files.dumps} has results with {other}. {ANEW}")
        if damage:
            print(f"{damage}: resuming from the checkpoint before it", file=sys.stderr)
        return path, saved
    if found := next(run.files.results(), None):
        raise BadInput(f"{damage or f'{found} exists, without a checkpoint to resume from'}. {ANEW}")
    return None, None


def note_changes(run, was):
    """Warn if the checkpoint that a run resumes from was made by other code or versions."""
    now = provenance()
    names = [name for name in now if name not in ("commit", "changed") and was.get(name) != now[name]]
    if names:
        changes = "; ".join(f"{name} {was.get(name)}, now {now[name]}" for name in names)
        print(f"note: {run.files.dumps} resumes with other code or versions: {changes}", file=sys.stderr)


def write_settings(run, device):
    """Record how the run was made, for people and for combine_plots.py."""
    start = datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        start = json.loads(run.files.settings.read_text())["start"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = {"device": f"{device.type}, {name}", "threads": torch.get_num_threads(), "start": start}
    content = {"settings": run.settings, "defaults": run.defaults, "made_by": provenance()} | machine
    write(run.files.settings, lambda file: file.write(json.dumps(content, indent=1).encode()))


def title(args, round_):
    return f"round {round_}" + (f" of seed {args.seed}" if args.trials > 1 else "")


class Run:
    """One trial: its settings, its checkpoints, and the signals that stop it.

    As a context manager, it makes SIGINT and SIGTERM finish the current step and write a checkpoint.
    """

    def __init__(self, args, model=None, defaults=None):
        self.args, self.files, self.defaults = args, Files(args), defaults or {}
        network = re.sub(r" at 0x[0-9a-f]+", "", str(model))  # without addresses, which change
        self.settings = vars(args) | {"network": network}  # what results must have in common to be of one run
        self.source = self.saved = None  # the checkpoint to resume from: its path and its content
        self.stop, self.handlers = None, {}  # the number of the signal that came; what signals did before
        self.saved_at = time.monotonic()

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def finished_rounds(self):
        """Return how many rounds are finished: those before the checkpoint's, and its own if its arrays were written."""
        if self.saved is None:
            return 0
        rounds = self.saved["state"].get("round", 0)  # `check` refuses the state of another version
        if self.source == self.files.checkpoint and self.files.rounds() > rounds:
            rounds += 1
        return rounds

    def write_results(self):
        """Write the log and the arrays of the finished rounds from the checkpoint's rows."""
        rounds = self.saved["state"]["rows"]
        lines = [f"{json.dumps(row)}\n".encode() for rows in rounds for row in evaluations(rows)]
        write(self.files.log, lambda file: file.writelines(lines))
        write_arrays(self.files, rounds[: self.finished_rounds()])

    def check(self, data, state):
        """Raise BadInput if the checkpoint or the masks of another run do not fit the data and a new run's `state`."""
        self.settings["data"] = data
        if self.saved:
            if other := difference(self, self.saved["args"]):
                raise BadInput(f"{self.files.dumps} has results with {other}. {ANEW}")
            if not alike(vars(state), self.saved["state"]):
                raise BadInput(f"the checkpoint in {self.files.saves} is of another network or version. {ANEW}")
        if self.args.masks_from:
            for round_ in tqdm(range(self.args.prune_iterations), desc="checking masks", delay=1, leave=False):
                read_masks(self, round_, state.masks)

    def clear(self):
        """Delete the results there are."""
        for path in [*self.files.results(), *self.files.runs.glob("events*")]:
            path.unlink()

    def begin(self, state):
        """Start a new run, or resume one: then the checkpoint is copied into `state`, which is that of a new run."""
        if self.saved:
            fill(vars(state), self.saved["state"])
            note_changes(self, self.saved["made_by"])
            self.write_results()
            if self.source == self.files.before:  # a damaged checkpoint would be renamed over this good one
                self.files.checkpoint.unlink(missing_ok=True)
        else:
            self.clear()
            self.checkpoint(state, now=True)
        self.saved = None
        save_checkpoint(self.files.initial, state.initial)
        write_settings(self, state.loss.device)

    def _stop(self, number, frame):
        self.stop = number
        signal.signal(number, self.handlers[number])  # a second one takes effect at once

    def checkpoint(self, state, now=False):
        """Save the state, if `now` or CHECKPOINT_SECONDS after the last time. Raises Stopped if a signal came."""
        if now or self.stop or time.monotonic() > self.saved_at + CHECKPOINT_SECONDS:
            content = {"state": vars(state), "args": self.settings, "made_by": provenance()}
            save_checkpoint(self.files.checkpoint, content, self.files.before)
            self.saved_at = time.monotonic()
        if self.stop:
            where = f"in {title(self.args, state.round)}, after {state.iteration} iterations"
            raise Stopped(self.stop, where, self.args.overwrite)


class Log:
    """The progress of a round: log.jsonl, TensorBoard and the progress bar.

    The log is appended to, as a run that resumes has it rewritten at the start. The other two begin with the state's rows.
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
        for folder in (files.dumps, files.runs):
            folder.mkdir(parents=True, exist_ok=True)
        suffix = f".round{state.round:03}"
        for path in files.runs.glob(f"events.*{suffix}"):  # from before the run resumed
            path.unlink()
        self.events = RecordWriter(str(files.runs / f"events.out.tfevents.{time.time():.0f}{suffix}"))
        patience = 0.1 if sys.stderr.isatty() else 30  # seconds between lines; few of them in a file
        self.bar = tqdm(total=end, initial=state.iteration, desc=self.title, dynamic_ncols=True, mininterval=patience)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.push(self)  # closes what is open if this fails
            self.events.write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            if self.state.round == 0:
                self.add_summaries(0, settings_page(self.args))
            self.add_scalars(evaluations(self.state.rows[-1]))
            stack.pop_all()
        return self

    def __exit__(self, *error):
        self.bar.close()
        with contextlib.suppress(OSError):  # of a full disk, which is reported already; an open file would report it again
            self.events.close()

    def add_summaries(self, step, summaries):
        """Add to TensorBoard's file; not by SummaryWriter, whose thread dies on a full disk and then blocks this one."""
        for content in summaries:
            event = event_pb2.Event(wall_time=time.time(), step=step, summary=content)
            self.events.write(event.SerializeToString())

    def add_scalars(self, rows):
        for row in rows:
            step = row["round"] * self.end + row["iteration"]
            self.add_summaries(step, [summary.scalar(tag, row[name]) for tag, name in SCALARS.items()])
        sync(self.events.flush)

    def tick(self):
        """Count an iteration."""
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
            self.add_scalars([row])
        if row["epoch"] % self.args.print_freq == 0 or state.iteration == self.end:
            text = f"epoch {row['epoch']}/{math.ceil(self.end / self.steps)}, loss {row['train_loss']:.4f}"
            if shown := evaluations(state.rows[-1]):
                text += f", accuracy {shown[-1]['test_accuracy']:.2f}%, best {best(shown)['test_accuracy']:.2f}%"
            self.bar.set_postfix_str(text, refresh=False)
        return row


def write_arrays(files, rounds, start=0):
    """Write the arrays of finished rounds, a list of their rows: those over all rounds, and those of each from `start` on."""
    for number, rows in list(enumerate(rounds))[start:]:
        write_array(files.array(f"all_loss_{number}"), by_epoch(rows, "train_loss"))
        write_array(files.array(f"all_accuracy_{number}"), by_epoch(rows, "test_accuracy"))
    table = [ticket(rows) for rows in rounds]
    for name in ARRAYS:
        write_array(files.array(name), [values[name] for values in table])


def end_round(run, state, log):
    """Write the ticket of a finished round, its page in TensorBoard, and the arrays."""
    log.bar.close()
    args, files, number, rows = run.args, run.files, state.round, state.rows[-1]
    values = ticket(rows)

    content = {"model": state.best, "final": state.model, "masks": state.masks, "round": number}
    content |= {"weights_remaining": values["compression"], "test_accuracy": values["bestaccuracy"]}
    save_checkpoint(files.ticket(number), content | {"args": run.settings, "made_by": provenance()})
    log.add_summaries(number, ticket_page(state, values))
    sync(log.events.flush)
    write_arrays(files, state.rows, start=number)

    top = best(rows)
    where = f"iteration {top['iteration']}" if args.max_iter else f"epoch {top['epoch']}"
    at_best = f"{values['bestaccuracy']:.2f}% at best validation ({where})"
    print(f"{log.title}: test accuracy {at_best}, {values['finalaccuracy']:.2f}% at the end")


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
