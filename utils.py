"""What the science does not need to show: the state of a run, its checkpoints, logs, tables and figures."""

import argparse
import contextlib
import ctypes
import io
import json
import math
import os
import signal
import sys
import time
import zipfile
from dataclasses import dataclass, field
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
CHECKPOINT_SECONDS = 20
ANEW = "Choose another --output_dir or --seed, or start anew with --overwrite"


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
    return text


def trials(args):
    """The settings of the trials that fall to this process: all of them, or its share where torchrun started several.

    The processes of a machine share its cores, or take its GPUs in turn.
    """
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    rank, processes, place, neighbours = (int(os.environ.get(name, default)) for name, default in alone.items())
    if neighbours > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        args.overwrite = False  # what there is now is what was begun before the restart
    if args.gpu != "cpu" and torch.cuda.device_count():
        args.gpu = (args.gpu + place) % torch.cuda.device_count() if processes > 1 else args.gpu
    for seed in range(args.seed, args.seed + args.trials)[rank::processes]:
        yield argparse.Namespace(**vars(args) | {"seed": seed})


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


def copied(live):
    """A copy on the CPU of nested dicts and lists of tensors, networks and plain values; a network becomes its state dict."""
    if isinstance(live, nn.Module):
        live = live.state_dict()
    if isinstance(live, dict):
        return {key: copied(value) for key, value in live.items()}
    if isinstance(live, list):
        return [copied(value) for value in live]
    return live.to("cpu", copy=True) if isinstance(live, torch.Tensor) else live


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
        return isinstance(saved, torch.Tensor) and (live.shape, live.dtype) == (saved.shape, saved.dtype)
    return type(live) is type(saved)


def evaluations(rows):
    """Those of a round's rows that have an evaluation."""
    return [row for row in rows if "val_loss" in row]


def best(rows):
    """The evaluation of best validation accuracy, the first of equals; None where there is none yet."""
    return max(evaluations(rows), key=lambda row: row["val_accuracy"], default=None)


def ticket(rows):
    """What the arrays say of a round, {name: value}; by the length of the last, which is written last, a round is finished."""
    early = min(evaluations(rows), key=lambda row: row["val_loss"])
    return {
        "bestaccuracy": best(rows)["test_accuracy"],
        "finalaccuracy": rows[-1]["test_accuracy"],
        "earlystop": early["iteration"],
        "earlystopaccuracy": early["test_accuracy"],
        "compression": rows[-1]["weights_remaining"],
    }


def by_epoch(rows, name):
    """A column of a round's rows at the ends of its epochs, from the first; NaN where it was not measured."""
    values = {row["epoch"]: row.get(name, math.nan) for row in rows}  # of an epoch's rows, the last is that of its end
    return [values.get(epoch, math.nan) for epoch in range(1, rows[-1]["epoch"] + 1)]


def consistent(saved, steps, end):
    """Whether a saved state's rows lead to where it is, in rounds of `end` iterations with `steps` in an epoch."""
    try:
        *finished, here = saved["rows"]
        for rows in saved["rows"] if saved["iteration"] == end else finished:
            ticket(rows)
        done = [row["iteration"] for row in here if row["epoch"] == math.ceil(row["iteration"] / steps)]
        return len(done) == len(here) and len(finished) == saved["round"] and max([0, *done]) <= saved["iteration"] <= end
    except (AttributeError, KeyError, TypeError, ValueError):
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
        yield from self.saves.glob(f"[0-9]*_model_{self.kind}.pth.tar")


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
            os.fsync(file.fileno())
        if before and path.exists():
            path.replace(before)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # so that the new names survive a loss of power too
    os.fsync(folder)
    os.close(folder)


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
    torch.save(copied(content), buffer)
    write(path, lambda file: file.write(buffer.getbuffer()), before)


def load_checkpoint(path, types):
    """What `save_checkpoint` saved, on the CPU: a dict with values of these types, {key: type}. Nothing in it is executed.

    Raises BadInput where there is none, or it is damaged by its checksums, or something else.
    """
    try:
        with zipfile.ZipFile(path) as file:  # which torch.save writes, with a CRC-32 of every part, which torch.load ignores
            if file.testzip():
                raise BadInput("its checksum does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(content.get(key), types[key]) for key in types):
            raise BadInput("it is not a checkpoint of this version of the program")
    except FileNotFoundError as error:
        raise BadInput(f"{path} is gone") from error
    except Exception as error:  # zipfile and torch raise a dozen kinds for damaged files
        raise BadInput(f"{path} is damaged ({' '.join(str(error).split())[:100]})") from error
    return content


def read_masks(args, round_, masks):
    """The masks that the run of another prune type, `args.masks_from`, had in a round; `masks` are such as are wanted."""
    path = Files(args, args.masks_from).ticket(round_)
    again = f"run the same with --prune_type={args.masks_from}, without --masks_from and with --overwrite"
    try:
        found = load_checkpoint(path, {"masks": dict, "args": dict})
    except BadInput as error:
        raise BadInput(f"{error}: {again}") from error
    if not alike(masks, found["masks"]):
        raise BadInput(f"{path} has the masks of another network: {again}")
    if other := difference(args, found["args"], {"prune_type", "masks_from", "rewind_iter"}):
        raise BadInput(f"{path} was made with {other}: give the {args.masks_from} run's settings, or {again}")
    return found["masks"]


def check_masks_from(args):
    """Raise BadInput where the run whose masks are wanted has fewer rounds than this one is to have."""
    files, kind, rounds = Files(args, args.masks_from), args.masks_from, args.prune_iterations
    if (found := files.rounds()) < rounds:
        short = f"--masks_from={kind} needs the masks of {rounds} rounds, and {files.dumps} has {found}"
        raise BadInput(f"{short}: first run the same with --prune_type={kind} and without --masks_from")


def difference(args, others, free=()):
    """The first setting in which a run differs from `others`, in words; None where only those differ that may."""
    bound = {name: value for name, value in vars(args).items() if name not in FREE_SETTINGS.union(free)}
    found = (f"{others.get(name)} for --{name}, not {value}" for name, value in bound.items() if value != others.get(name))
    return next(found, None)


def title(args, round_):
    return f"round {round_}" + (f" of seed {args.seed}" if args.trials > 1 else "")


class Run:
    """A run's hold on its files: the lock, the checkpoints, and the signals that end it.

    Once it has begun, SIGINT and SIGTERM end the step under way and write a checkpoint.
    """

    def __init__(self, args):
        self.args, self.files = args, Files(args)
        self.lock = FileLock(self.files.lock, blocking=False)
        self.saved = None  # the checkpoint to take the run up from
        self.stop, self.handlers = None, {}  # the number of the signal that came; what signals did before
        self.saved_at = time.monotonic()

    def __enter__(self):
        try:
            self.files.saves.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except Timeout as error:
            raise BadInput(f"another process is at work on this run in {self.files.saves}") from error
        except OSError as error:
            raise BadInput(f"--output_dir={self.args.output_dir} cannot be used: {error}") from error
        return self

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.lock.release()

    def finished(self):
        """Whether there is nothing to do, which is said. Finds the checkpoint that there may be to go on from."""
        self.saved = None if self.args.overwrite else self._newest()
        rounds = self.args.prune_iterations
        finished = self.saved is not None and self.files.rounds() >= rounds
        if finished:
            print(f"finished: {self.files.dumps} has all {rounds} rounds; a larger --prune_iterations adds more")
        return finished

    def _newest(self):
        """The newest good checkpoint, which has to be of a run with these settings; None where there are no results yet."""
        damage = None
        for path in filter(Path.exists, (self.files.checkpoint, self.files.before)):
            try:
                saved = load_checkpoint(path, {"args": dict})
            except BadInput as error:
                damage = damage or error
                continue
            if other := difference(self.args, saved["args"]):
                raise BadInput(f"{self.files.dumps} has results with {other}. {ANEW}")
            if damage:
                print(f"{damage}: going on from the checkpoint before it")
                self.files.checkpoint.unlink()  # the next one would rename it over the good one
            return saved
        found = next((path for path in self.files.results() if path.stat().st_size), None)
        if damage or found:
            raise BadInput(f"{damage or f'{found} exists, without a checkpoint to go on from'}. {ANEW}")
        return None

    def begin(self, state, steps, end):
        """Begin a new run's files, or take one up: `state`, that of a new run, becomes that of the checkpoint.

        An epoch has `steps` iterations and a round `end`.
        """
        if self.args.masks_from:
            check_masks_from(self.args)
        if self.saved:
            saved = self.saved.get("state")
            if not (alike(vars(state), saved) and consistent(saved, steps, end)):
                raise BadInput(f"{self.files.checkpoint} is of another network, other data or another version. {ANEW}")
            fill(vars(state), saved)
        self.handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        if not self.saved:
            for path in list(self.files.results()):
                path.unlink()
            self.checkpoint(state, now=True)
        self.saved = None
        save_checkpoint(self.files.initial, state.initial)

    def _stop(self, number, frame):
        self.stop = number
        signal.signal(number, self.handlers[number])  # a second one takes effect at once

    def checkpoint(self, state, now=False):
        """Save the state `now`, or where it is time for it. Raises Stopped where a signal asked for that."""
        if now or self.stop or time.monotonic() > self.saved_at + CHECKPOINT_SECONDS:
            save_checkpoint(self.files.checkpoint, {"state": vars(state), "args": vars(self.args)}, self.files.before)
            self.saved_at = time.monotonic()
        if self.stop:
            where = f"in {title(self.args, state.round)}, after {state.iteration} iterations"
            raise Stopped(self.stop, where, self.args.overwrite)


class Log(contextlib.AbstractContextManager):
    """A round as one can watch it: the rows of the log, TensorBoard, the progress bar.

    All three are made anew from the state's rows when the round begins or is taken up, and then follow it.
    """

    def __init__(self, args, state, steps, end):
        self.args, self.state, self.steps, self.end = args, state, steps, end
        self.files = files = Files(args)
        self.title, self.remaining = title(args, state.round), density(list(state.masks.values()))
        self.started = time.monotonic() - state.seconds
        print(f"\n{self.title}, of 0..{args.prune_iterations - 1}: {self.remaining:.2f}% of the weights remain")
        print(table(state.masks), flush=True)
        lines = [f"{json.dumps(row)}\n".encode() for rows in state.rows[:-1] for row in evaluations(rows)]
        write(files.log, lambda file: file.writelines(lines))
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
        for row in state.rows[-1]:
            self._follow(row)

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
        self._follow(row)
        return row

    def _follow(self, row):
        """Take a row of the round to the log and TensorBoard, where it has an evaluation, and an epoch's end to the bar."""
        shown, step = evaluations(self.state.rows[-1]), row["round"] * self.end + row["iteration"]
        if "val_loss" in row:
            with self.files.log.open("a") as file:
                print(json.dumps(row), file=file)
            for tag in ("loss/train", "loss/val", "accuracy/val", "accuracy/test"):
                what, split = tag.split("/")
                self.event(summary.scalar(tag, row[f"{split}_{what}"]), step)
            self.events.flush()
        last = row["iteration"] == self.end
        if shown and (last or (row["iteration"] % self.steps == 0 and row["epoch"] % self.args.print_freq == 0)):
            of_epoch = f"epoch {row['epoch']}/{math.ceil(self.end / self.steps)}, loss {row['train_loss']:.4f}"
            accuracy, top = shown[-1]["test_accuracy"], best(shown)["test_accuracy"]
            self.bar.set_postfix_str(f"{of_epoch}, accuracy {accuracy:.2f}%, best {top:.2f}%", refresh=False)


def end_round(args, state, log):
    """Write what a finished round leaves: its ticket, its figures, the arrays of all rounds, TensorBoard's page of it."""
    log.bar.close()
    files, rows, table = log.files, state.rows[-1], [ticket(rows) for rows in state.rows]
    values, arrays = table[-1], {name: [values[name] for values in table] for name in table[-1]}
    content = {"model": state.best, "final": state.model, "masks": state.masks, "round": state.round, "args": vars(args)}
    content |= {"weights_remaining": values["compression"], "test_accuracy": values["bestaccuracy"]}
    save_checkpoint(files.ticket(state.round), content)
    for content in ticket_page(state, values):
        log.event(content, state.round)
    log.events.close()
    losses, accuracies = by_epoch(rows, "train_loss"), by_epoch(rows, "test_accuracy")
    curve = [(min(epoch, log.end / log.steps), loss) for epoch, loss in enumerate(losses, start=1)]
    measured = [(row["iteration"] / log.steps, row["test_accuracy"]) for row in evaluations(rows)]
    plot_round(files.figure(f"LossVsAccuracy_{state.round}"), curve, measured)
    points = [args.prune_type] * len(table), arrays["compression"], arrays["bestaccuracy"]
    plot_accuracy(files.figure("AccuracyVsWeights"), *points, f"{args.arch_type}, {args.dataset}")
    write_array(files.array(f"all_loss_{state.round}"), losses)
    write_array(files.array(f"all_accuracy_{state.round}"), accuracies)
    for name, column in arrays.items():
        write_array(files.array(name), column)
    at_best = f"{values['bestaccuracy']:.2f}% at best validation (epoch {best(rows)['epoch']})"
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


def curves(axes, sns, kinds, percents, values, **options):
    """Draw values against the percentage of weights remaining, a curve for each prune type."""
    percents = np.array(percents, dtype=float)
    percents[percents == 0] = np.nan  # for which a logarithmic axis has no place
    colours, markers = (dict(zip(PRUNE_TYPES, looks, strict=True)) for looks in (("C0", "C1", "C2"), "osD"))
    options |= {"hue": kinds, "palette": colours, "style": kinds, "markers": markers, "dashes": False}
    sns.lineplot(x=percents, y=values, errorbar=("pi", 100), ax=axes, **options)
    axes.set(xscale="log", xlabel="weights remaining (%)")
    axes.xaxis.set_inverted(True)
    low, high = np.nanmin(percents), np.nanmax(percents)
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [digit * 10.0**power for power in range(-6, 3) for digit in digits]
    axes.set_xticks([tick for tick in ticks if low * 0.99 <= tick <= high] if high > 3 * low else np.unique(percents))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%.4g"))
    axes.xaxis.set_minor_locator(NullLocator())
