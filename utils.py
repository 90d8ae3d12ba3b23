"""What the science does not need to show: files, logs, tables and figures."""

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
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullLocator
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

PRUNE_TYPES = ("lt", "reinit", "random")
LAST = "compression.dat"  # written after everything else of a round
PER_ROUND = ("bestaccuracy.dat", "finalaccuracy.dat", "earlystop.dat", "earlystopaccuracy.dat", LAST)  # one value a round
# Settings that may change from one start of a run to the next.
FREE_SETTINGS = {"prune_iterations", "trials", "gpu", "data_dir", "output_dir", "overwrite", "print_freq"}
CHECKPOINT_SECONDS = 20
HISTOGRAM_BINS = 64
CHECKPOINT = {  # what is in one
    "round": int,
    "iteration": int,
    "model": dict,
    "masks": dict,
    "moments": dict,
    "loss": torch.Tensor,
    "random": dict,
    "best": (dict, type(None)),
    "best_accuracy": (int, float),
    "rows": list,
    "losses": list,
    "accuracies": list,
    "arrays": dict,
    "log_size": int,
    "seconds": float,
    "args": dict,
}


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
    """An ArgumentParser whose errors take one line."""

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
    rank, processes, place, neighbours = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
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
    except BadInput as error:
        status, message = 2, f"error: {error}"
    except Failure as error:
        status, message = 1, f"error: {error}"
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


# Files


def folders(args):
    """Where the results of a run go, by the kind of file."""
    root = Path(args.output_dir)
    place = Path(args.arch_type, args.dataset, f"seed{args.seed}" if args.seed else "")
    return SimpleNamespace(
        dumps=root / "dumps" / "lt" / place,
        saves=root / "saves" / place,
        plots=root / "plots" / "lt" / place,
        runs=root / "runs" / place / args.prune_type,
    )


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


def copy_state(model):
    """A copy of everything the model holds, which training cannot touch."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def save_checkpoint(path, content, before=None):
    """Save nested dicts of tensors and plain values so that torch.load(path, weights_only=True) reads them anywhere."""

    def to_cpu(value):
        if isinstance(value, dict):
            return {key: to_cpu(item) for key, item in value.items()}
        if isinstance(value, list):
            return [to_cpu(item) for item in value]
        return value.cpu() if isinstance(value, torch.Tensor) else value

    buffer = io.BytesIO()  # on a full disk, torch.save to a file loses the system's error and raises one of its own
    torch.save(to_cpu(content), buffer)
    write(path, lambda file: file.write(buffer.getbuffer()), before)


def load_checkpoint(path, types):
    """What `save_checkpoint` saved, on the CPU: a dict with values of these types, {key: type}. Nothing in it is executed.

    Raises FileNotFoundError, or BadInput where the file is damaged by its checksums or is something else.
    """
    try:
        with zipfile.ZipFile(path) as file:  # which torch.save writes, with a CRC-32 of every part, which torch.load ignores
            if file.testzip():
                raise BadInput("its checksum does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(content.get(key), types[key]) for key in types):
            raise BadInput("it is not a checkpoint of this version of the program")
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and torch raise a dozen kinds for damaged files
        raise BadInput(f"{path} is damaged ({' '.join(str(error).split())[:100]})") from error
    return content


def check_contents(path, saved):
    """Raise BadInput where the parts of a run's checkpoint have the right types, but hold something else than a run's."""
    keys = {"round", "epoch", "iteration", "train_loss", "val_loss", "val_accuracy", "test_accuracy"}
    rounds, rows = saved["round"], saved["rows"]
    lists = [(saved["losses"], len(saved["accuracies"])), (saved["accuracies"], len(saved["losses"]))]
    lists += [(saved["arrays"].get(name), rounds) for name in PER_ROUND]
    good = (
        min(rounds, saved["iteration"], saved["log_size"]) >= 0
        and all(isinstance(values, list) and len(values) == n for values, n in lists)
        and all(isinstance(value, (int, float)) for values, _ in lists for value in values)
        and all(isinstance(row, dict) and keys <= row.keys() for row in rows)
        and bool(rows) == (saved["best"] is not None)
        and saved["loss"].numel() == 1
        and all(isinstance(state, torch.Tensor) for state in saved["random"].values())
    )
    if not good:
        raise BadInput(f"{path} is damaged (it holds no run's state)")


@contextlib.contextmanager
def fitting():
    """Say in one line that what a checkpoint holds does not fit the network that is to take it up."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadInput("the results there are of another network than this: start anew with --overwrite") from error


# A run's log


class Events:
    """A TensorBoard event file, through tensorboardX.

    Not through its SummaryWriter, whose thread dies on a full disk and then blocks the run that feeds it.
    """

    def __init__(self, folder, round_):
        self.writer = EventsWriter(str(folder / "events"), f".round{round_:03}")

    def add(self, content, step):
        self.writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=content))

    def flush(self):
        self.writer.flush()


class Log:
    """Everything that a run leaves behind: progress, tables, logs, arrays, checkpoints, figures, TensorBoard events.

    It holds the run's lock, and once the run has begun, SIGINT and SIGTERM end the step and write a checkpoint.
    """

    def __init__(self, args):
        self.args, self.folders = args, folders(args)
        self.bar = self.events = self.stop = None
        self.handlers = {}
        self.log_path = self._path(self.folders.dumps, "log.jsonl")
        self.initial_path, self.checkpoint_path, self.before_path = (
            self.folders.saves / f"{name}_{args.prune_type}.pth.tar"
            for name in ("initial_state_dict", "checkpoint", "checkpoint_before")
        )
        try:
            self.folders.saves.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folders.saves / f".{args.prune_type}.lock", blocking=False)
            self.lock.acquire()
        except Timeout as error:
            raise BadInput(f"another process is at work on this run in {self.folders.saves}") from error
        except OSError as error:
            raise BadInput(f"--output_dir={args.output_dir} cannot be used: {error}") from error
        try:
            self.saved = None if args.overwrite else self._load()
            self._compare_settings()
        except BadInput:
            self.lock.release()
            raise
        self.arrays = self.saved["arrays"] if self.saved else {name: [] for name in PER_ROUND}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.bar is not None:
            self.bar.close()
        self.lock.release()

    def _stop(self, number, frame):
        self.stop = number
        signal.signal(number, self.handlers[number])  # a second one takes effect at once

    def _path(self, folder, name):
        return folder / f"{self.args.prune_type}_{name}"

    def _results(self):
        """The run's results, checkpoints first: what is left without them cannot be mistaken for a run to go on with."""
        kind = self.args.prune_type
        yield from (self.checkpoint_path, self.before_path)
        yield from self.folders.dumps.glob(f"{kind}_*")
        yield from self.folders.plots.glob(f"{kind}_*")
        yield from self.folders.saves.glob(f"[0-9]*_{kind}.pth.tar")

    def _load(self):
        """The newest good checkpoint, or None where there are no results yet."""
        damage = None
        for path in (self.checkpoint_path, self.before_path):
            try:
                saved = load_checkpoint(path, CHECKPOINT)
                check_contents(path, saved)
            except FileNotFoundError:
                continue
            except BadInput as error:
                damage = damage or error
                continue
            if damage:
                print(f"{damage}: going on from the checkpoint before it")
                self.checkpoint_path.unlink()  # the next one would rename it over the good one
            return saved
        found = next((path for path in self._results() if path.exists() and path.stat().st_size), None)
        if damage or found:
            raise BadInput(
                f"{damage or f'{found} exists, without a checkpoint to go on from'}. "
                "Choose another --output_dir or --seed, or start anew with --overwrite"
            )
        return None

    def _compare_settings(self):
        """Raise BadInput where the results there are were made with other settings."""
        for name, value in vars(self.args).items() if self.saved else ():
            other = self.saved["args"].get(name)
            if name not in FREE_SETTINGS and value != other:
                raise BadInput(
                    f"{self.folders.dumps} has results with {other} for --{name}, not {value}. "
                    "Choose another --output_dir or --seed, or start anew with --overwrite"
                )

    @property
    def finished(self):
        """Whether there is nothing to do. The array that is written last tells."""
        rounds = self.args.prune_iterations
        try:
            finished = bool(self.saved) and len(read_array(self._path(self.folders.dumps, LAST))) >= rounds
        except BadInput:  # not there or damaged: the last round's files are written again
            finished = False
        if finished:
            print(f"finished: {self.folders.dumps} has all {rounds} rounds; a larger --prune_iterations adds more")
        return finished

    def begin(self, model):
        """Begin a new run's files with the model's state, to which later rounds are reset; or take up those there are."""
        if self.args.masks_from:
            self._check_rounds_of(self.args.masks_from)
        self.handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        for path in vars(self.folders).values():
            path.mkdir(parents=True, exist_ok=True)
        if self.saved:
            self._cut_log(self.saved["log_size"])
            self.initial = self._load_initial(model.state_dict())
            return
        for path in list(self._results()):
            path.unlink(missing_ok=True)
        self.keep(model)

    def keep(self, model):
        """Make the model's state the one to which later rounds are reset."""
        self.initial = copy_state(model)
        save_checkpoint(self.initial_path, self.initial)

    def _check_rounds_of(self, kind):
        path, wanted = self.folders.dumps / f"{kind}_{LAST}", self.args.prune_iterations
        found = len(read_array(path)) if path.exists() else 0
        if found < wanted:
            raise BadInput(
                f"--masks_from={kind} needs the masks of {wanted} rounds, and {self.folders.dumps} has {found}: "
                f"first run the same with --prune_type={kind} and without --masks_from"
            )

    def masks_of(self, kind, round_, masks):
        """The masks that the run of another prune type had in a round, on the device of `masks`."""
        path = self.folders.saves / f"{round_}_model_{kind}.pth.tar"
        again = f"run the same with --prune_type={kind}, without --masks_from and with --overwrite"
        try:
            found = load_checkpoint(path, {"masks": dict, "args": dict})
            wanted = {name: torch.empty_like(mask).copy_(found["masks"][name].view_as(mask)) for name, mask in masks.items()}
        except FileNotFoundError as error:
            raise BadInput(f"{path}, whose masks are wanted, is gone: {again}") from error
        except (BadInput, RuntimeError, KeyError, AttributeError) as error:
            raise BadInput(f"{path} has no masks for this network: {again}") from error
        for name, value in vars(self.args).items():
            other = found["args"].get(name)
            if name not in FREE_SETTINGS | {"prune_type", "masks_from", "rewind_iter"} and value != other:
                raise BadInput(
                    f"{path} was made with {other} for --{name}, not {value}: give the {kind} run's settings, or {again}"
                )
        return wanted

    def _cut_log(self, size):
        """Leave out the rows since the checkpoint, which come again. A log that is shorter keeps its rows that are whole."""
        with self.log_path.open("a+b") as file:
            if file.tell() >= size:
                file.truncate(size)
                return
            file.seek(0)
            lines = file.readlines()
        print(f"{self.log_path} has lost rows since the checkpoint")
        whole = []
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(json.loads(line), dict) and line.endswith(b"\n"):
                    whole.append(line)
        write(self.log_path, lambda file: file.writelines(whole))

    def _load_initial(self, state):
        try:
            initial = load_checkpoint(self.initial_path, dict.fromkeys(state, torch.Tensor))
            if all(initial[name].shape == state[name].shape for name in state):
                return initial
            problem = "has weights of other shapes"
        except FileNotFoundError:
            problem = "is gone"
        except BadInput as error:
            problem = f"cannot be used ({error})"
        raise BadInput(
            f"{self.initial_path}, to which weights are reset, {problem}: put it back, or start anew with --overwrite"
        )

    def round(self, round_, masks, steps, begin, end):
        """Begin a round of iterations `begin` to `end`, `steps` per epoch: its table, its progress bar, its events.

        Returns the checkpoint to take the round up from, if there is one.
        """
        saved = self.saved if self.saved and self.saved["round"] == round_ else None
        done = saved["iteration"] if saved else begin
        skipped = [math.nan] * (begin // steps)  # epochs before a rewound network's first
        at_first = {"rows": [], "losses": skipped, "accuracies": skipped}
        self.rows, self.losses, self.accuracies = (list((saved or at_first)[name]) for name in at_first)
        if not begin <= done <= end or len(self.losses) != (done // steps if done < end else math.ceil(end / steps)):
            raise BadInput(f"{self.checkpoint_path} is damaged (it is of another point of the round)")
        self.round_, self.iterations, self.steps = round_, end, steps
        self.started = time.monotonic() - (saved["seconds"] if saved else 0)
        self.remaining = density(masks.values())
        of_seed = f" of seed {self.args.seed}" if self.args.trials > 1 else ""
        self.name = f"round {round_}{of_seed}"
        print(f"\n{self.name}, of 0..{self.args.prune_iterations - 1}: {self.remaining:.2f}% of the weights remain")
        print(table(masks), flush=True)
        for path in self.folders.runs.glob("events.*.round*"):
            number = path.name.rpartition(".round")[2]
            if number.isdecimal() and int(number) >= round_:
                path.unlink()
        self.events = Events(self.folders.runs, round_)
        if round_ == 0:
            settings = {
                name: value if isinstance(value, (bool, int, float, str)) else str(value)
                for name, value in vars(self.args).items()
                if name not in FREE_SETTINGS
            }
            for content in summary.hparams(settings, {"ticket/accuracy": 0.0, "ticket/weights_remaining": 0.0}):
                self.events.add(content, 0)
        for row in self.rows:
            self._add_evaluation(row)
        self.events.flush()
        patience = 0.1 if sys.stderr.isatty() else 30  # seconds between lines; few of them in a file
        self.bar = tqdm(total=end, initial=done, desc=self.name, dynamic_ncols=True, mininterval=patience)
        self.next_checkpoint = time.monotonic() + CHECKPOINT_SECONDS
        if round_ == 0 and not saved:
            self.next_checkpoint = 0  # at once, so that there is one
        return saved

    def checkpoint_due(self):
        return self.stop or time.monotonic() > self.next_checkpoint

    def checkpoint(self, **state):
        """Save where the round is: `state`, and what this log holds of it. Raises Stopped where a signal asked for it."""
        with self.log_path.open("a") as file:
            os.fsync(file.fileno())
            log_size = file.tell()
        state |= {
            "rows": self.rows,
            "losses": self.losses,
            "accuracies": self.accuracies,
            "arrays": self.arrays,
            "log_size": log_size,
            "seconds": time.monotonic() - self.started,
            "args": vars(self.args),
        }
        save_checkpoint(self.checkpoint_path, state, self.before_path)
        self.next_checkpoint = time.monotonic() + CHECKPOINT_SECONDS
        if self.stop:
            self._raise_stopped(f"after {state['iteration']} of {self.iterations} iterations")

    def _raise_stopped(self, where):
        raise Stopped(self.stop, f"in {self.name}, {where}", self.args.overwrite)

    def add(self, row, measured, epoch_ends):
        """Take up what training gives: a row of the log where the network was measured, an epoch's loss where it ends."""
        if measured:
            row = {"round": self.round_, "weights_remaining": self.remaining, **row}
            row["seconds"] = time.monotonic() - self.started
            self.rows.append(row)
            with self.log_path.open("a") as file:
                print(json.dumps(row), file=file)
            self._add_evaluation(row)
            self.events.flush()
        if epoch_ends:
            self.losses.append(row["train_loss"])
            self.accuracies.append(row.get("test_accuracy", math.nan))
        epoch, last = row["epoch"], row["iteration"] == self.iterations
        if self.rows and epoch_ends and (epoch % self.args.print_freq == 0 or last):
            accuracy, best = self.rows[-1]["test_accuracy"], self._best()["test_accuracy"]
            self.bar.set_postfix_str(
                f"epoch {epoch}/{math.ceil(self.iterations / self.steps)}, loss {row['train_loss']:.4f}, "
                f"accuracy {accuracy:.2f}%, best {best:.2f}%",
                refresh=False,
            )

    def _add_evaluation(self, row):
        step = self.round_ * self.iterations + row["iteration"]
        for tag in ("loss/train", "loss/val", "accuracy/val", "accuracy/test"):
            what, split = tag.split("/")
            self.events.add(summary.scalar(tag, row[f"{split}_{what}"]), step)

    def _best(self):
        """The evaluation of best validation accuracy so far, the first of equals."""
        return max(self.rows, key=lambda row: row["val_accuracy"])

    def ticket(self, round_, model, masks, best):
        """End a round: the ticket's checkpoint, the arrays, the figures and TensorBoard's pages of it."""
        self.bar.close()
        early, best_row, final_row = min(self.rows, key=lambda row: row["val_loss"]), self._best(), self.rows[-1]
        save_checkpoint(
            self.folders.saves / f"{round_}_model_{self.args.prune_type}.pth.tar",
            {
                "model": best,
                "final": model.state_dict(),
                "masks": masks,
                "round": round_,
                "weights_remaining": self.remaining,
                "test_accuracy": best_row["test_accuracy"],
                "args": vars(self.args),
            },
        )
        values = {
            "bestaccuracy.dat": best_row["test_accuracy"],
            "finalaccuracy.dat": final_row["test_accuracy"],
            "earlystop.dat": early["iteration"],
            "earlystopaccuracy.dat": early["test_accuracy"],
            LAST: self.remaining,
        }
        self._events_of_ticket(round_, model, masks, best_row["test_accuracy"], early["iteration"])
        self.arrays = {name: [*self.arrays[name][:round_], values[name]] for name in PER_ROUND}
        measured = [(row["iteration"] / self.steps, row["test_accuracy"]) for row in self.rows]
        losses = [(min(epoch, self.iterations / self.steps), loss) for epoch, loss in enumerate(self.losses, start=1)]
        plot_round(self._path(self.folders.plots, f"LossVsAccuracy_{round_}.png"), losses, measured)
        path = self._path(self.folders.plots, "AccuracyVsWeights.png")
        percents, accuracies = self.arrays[LAST], self.arrays["bestaccuracy.dat"]
        title = f"{self.args.arch_type}, {self.args.dataset}"
        plot_accuracy(path, [self.args.prune_type] * len(percents), percents, accuracies, title)
        write_array(self._path(self.folders.dumps, f"all_loss_{round_}.dat"), self.losses)
        write_array(self._path(self.folders.dumps, f"all_accuracy_{round_}.dat"), self.accuracies)
        for name in PER_ROUND:
            write_array(self._path(self.folders.dumps, name), self.arrays[name])
        print(
            f"{self.name}: test accuracy {best_row['test_accuracy']:.2f}% at best validation "
            f"(epoch {best_row['epoch']}), {final_row['test_accuracy']:.2f}% at the end"
        )
        if self.stop:  # after the last round there is no step that would see it
            self._raise_stopped("at its end")

    def _events_of_ticket(self, round_, model, masks, accuracy, early):
        add = self.events.add
        add(summary.scalar("ticket/accuracy", accuracy), round_)
        add(summary.scalar("ticket/weights_remaining", self.remaining), round_)
        add(summary.scalar("ticket/early_stop_iteration", early), round_)
        state = model.state_dict()
        for name, mask in masks.items():
            add(summary.scalar(f"density/{name}", density([mask])), round_)
            if mask.any():
                surviving = state[name][mask].cpu().numpy()
                add(summary.histogram(f"surviving/{name}", surviving, HISTOGRAM_BINS), round_)
        first = next(iter(masks.values()))
        image = connections(first) if first.dim() == 2 else None
        if image is not None:
            add(summary.image("ticket/connections_per_pixel", image, dataformats="HW"), round_)
        self.events.writer.close()


def density(masks):
    """Percent of the weights that the masks keep."""
    kept, total = np.sum([[int(mask.sum()), mask.numel()] for mask in masks], axis=0)
    return 100 * float(kept) / float(total)


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
    for channels in (1, 3):
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
    sns.lineplot(
        x=percents,
        y=values,
        hue=kinds,
        style=kinds,
        palette=dict(zip(PRUNE_TYPES, ("C0", "C1", "C2"), strict=True)),
        markers=dict(zip(PRUNE_TYPES, "osD", strict=True)),
        dashes=False,
        errorbar=("pi", 100),
        ax=axes,
        **options,
    )
    axes.set(xscale="log", xlabel="weights remaining (%)")
    axes.xaxis.set_inverted(True)
    low, high = np.nanmin(percents), np.nanmax(percents)
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [digit * 10.0**power for power in range(-6, 3) for digit in digits]
    axes.set_xticks([tick for tick in ticks if low * 0.99 <= tick <= high] if high > 3 * low else np.unique(percents))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%.4g"))
    axes.xaxis.set_minor_locator(NullLocator())
