"""What the science does not need to show: files, logs, tables and figures."""

import argparse
import contextlib
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullLocator
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams
from tqdm import tqdm

PRUNE_TYPES = ("lt", "reinit")
PER_ROUND = ("compression", "bestaccuracy", "finalaccuracy", "earlystop", "earlystopaccuracy")  # .dat, one value a round


class BadInput(Exception):
    """Usage or input that cannot be worked with: exit status 2."""


class Failure(Exception):
    """A run that cannot go on: exit status 1."""


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


@contextlib.contextmanager
def one_line_errors(program):
    """Turn what users can cause into one line on stderr and an exit status."""
    try:
        yield
    except BadInput as error:
        status, message = 2, error
    except (Failure, OSError, MemoryError, torch.OutOfMemoryError) as error:
        status, message = 1, f"{type(error).__name__}: {error}" if not isinstance(error, Failure) else error
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    else:
        return
    print(f"{program}: error:", " ".join(str(message).split()), file=sys.stderr)
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


def write(path, save):
    """Write a file whole or not at all: `save(file)` fills one beside it, which is then renamed over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_array(path, values):
    write(path, lambda file: np.save(file, np.array(values, dtype=float)))


def read_array(path):
    """The 1-D float array in `path`. Raises BadInput where it holds anything else; nothing is unpickled."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} is not an array that NumPy wrote ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != float:
        raise BadInput(f"{path} is not a 1-D array of floats")
    return values


def copy_state(model):
    """A copy of everything the model holds, which training cannot touch."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def save_checkpoint(path, content):
    """Save nested dicts of tensors and plain values so that torch.load(path, weights_only=True) reads them anywhere."""

    def to_cpu(value):
        if isinstance(value, dict):
            return {key: to_cpu(item) for key, item in value.items()}
        return value.cpu() if isinstance(value, torch.Tensor) else value

    write(path, lambda file: torch.save(to_cpu(content), file))


# A run's log


class Log:
    """Everything that a run leaves behind: progress, tables, logs, arrays, checkpoints, figures, TensorBoard events."""

    def __init__(self, args):
        self.args, self.folders = args, folders(args)
        self.arrays = {name: [] for name in PER_ROUND}
        self.bar = self.writer = None
        found = [path for path in self._results() if path.exists()]
        if found and not args.overwrite:
            raise BadInput(
                f"{found[0]} exists: results are there already. "
                "Choose another --output_dir or --seed, or start anew with --overwrite"
            )
        try:
            for folder in vars(self.folders).values():
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--output_dir={args.output_dir} cannot be used: {error}") from error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar:
            self.bar.close()
            self.writer.close()

    def _results(self):
        kind = self.args.prune_type
        yield from self.folders.dumps.glob(f"{kind}_*")
        yield from self.folders.plots.glob(f"{kind}_*")
        yield from self.folders.saves.glob(f"*_{kind}.pth.tar")
        yield from self.folders.runs.glob("*")

    def _path(self, folder, name):
        return folder / f"{self.args.prune_type}_{name}"

    def initial(self, state):
        """Start the run's files with the weights that it starts from."""
        for path in list(self._results()):
            path.unlink()
        save_checkpoint(self.folders.saves / f"initial_state_dict_{self.args.prune_type}.pth.tar", state)

    def round(self, round_, masks, iterations):
        """Begin a round of so many iterations: its table, its progress bar, its TensorBoard file."""
        self.round_, self.iterations = round_, iterations
        self.rows, self.losses, self.accuracies = [], [], []
        self.remaining = density(masks.values())
        print(f"\nround {round_} of 0..{self.args.prune_iterations - 1}: {self.remaining:.2f}% of the weights remain")
        print(table(masks), flush=True)
        self.writer = SummaryWriter(str(self.folders.runs), filename_suffix=f".round{round_:03}", flush_secs=10)
        if round_ == 0:
            settings = {name: value for name, value in vars(self.args).items() if value is not None}
            for summary in hparams(settings, {"ticket/accuracy": 0.0, "ticket/weights_remaining": 0.0}):
                self.writer.file_writer.add_summary(summary)
        patience = 0.1 if sys.stderr.isatty() else 30  # seconds between lines; few of them in a file
        self.bar = tqdm(total=iterations, desc=f"round {round_}", dynamic_ncols=True, mininterval=patience)

    def epoch(self, epoch, loss, row=None):
        """Take up an epoch's mean training loss and, where there was one, its evaluation."""
        self.losses.append(loss)
        self.accuracies.append(row["test_accuracy"] if row else math.nan)
        if row:
            row = {"round": self.round_, "weights_remaining": self.remaining, **row}
            self.rows.append(row)
            with self._path(self.folders.dumps, "log.jsonl").open("a") as file:
                print(json.dumps(row), file=file)
            step = self.round_ * self.iterations + row["iteration"]
            for tag in ("loss/train", "loss/val", "accuracy/val", "accuracy/test"):
                what, split = tag.split("/")
                self.writer.add_scalar(tag, row[f"{split}_{what}"], step)
        if self.rows and (epoch % self.args.print_freq == 0 or epoch == self.args.end_iter):
            accuracy, best = self.rows[-1]["test_accuracy"], self.best()["test_accuracy"]
            self.bar.set_postfix_str(
                f"epoch {epoch}/{self.args.end_iter}, loss {loss:.4f}, accuracy {accuracy:.2f}%, best {best:.2f}%",
                refresh=False,
            )

    def best(self):
        """The evaluation of best validation accuracy so far, the first of equals."""
        return max(self.rows, key=lambda row: row["val_accuracy"])

    def ticket(self, round_, model, masks, best):
        """End a round: the ticket's checkpoint, the arrays, the figures and TensorBoard's pages of it."""
        self.bar.close()
        early, best_row, final_row = min(self.rows, key=lambda row: row["val_loss"]), self.best(), self.rows[-1]
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
        values = (
            self.remaining,
            best_row["test_accuracy"],
            final_row["test_accuracy"],
            early["iteration"],
            early["test_accuracy"],
        )
        for name, value in zip(PER_ROUND, values, strict=True):
            self.arrays[name].append(value)
            write_array(self._path(self.folders.dumps, f"{name}.dat"), self.arrays[name])
        write_array(self._path(self.folders.dumps, f"all_loss_{round_}.dat"), self.losses)
        write_array(self._path(self.folders.dumps, f"all_accuracy_{round_}.dat"), self.accuracies)
        plot_round(self._path(self.folders.plots, f"LossVsAccuracy_{round_}.png"), self.losses, self.accuracies)
        path = self._path(self.folders.plots, "AccuracyVsWeights.png")
        curves = {self.args.prune_type: [(self.arrays["compression"], self.arrays["bestaccuracy"])]}
        plot_accuracy(path, curves, title=f"{self.args.arch_type}, {self.args.dataset}")
        self._tensorboard_ticket(round_, model, masks, best_row["test_accuracy"], early["iteration"])
        print(
            f"round {round_}: test accuracy {best_row['test_accuracy']:.2f}% at best validation "
            f"(epoch {best_row['epoch']}), {final_row['test_accuracy']:.2f}% at the end"
        )

    def _tensorboard_ticket(self, round_, model, masks, accuracy, early):
        self.writer.add_scalar("ticket/accuracy", accuracy, round_)
        self.writer.add_scalar("ticket/weights_remaining", self.remaining, round_)
        self.writer.add_scalar("ticket/early_stop_iteration", early, round_)
        state = model.state_dict()
        for name, mask in masks.items():
            self.writer.add_scalar(f"density/{name}", density([mask]), round_)
            if mask.any():
                self.writer.add_histogram(f"surviving/{name}", state[name][mask].cpu().numpy(), round_)
        first = next(iter(masks.values()))
        if first.dim() == 2:  # fully connected to the pixels
            self.writer.add_image("ticket/connections_per_pixel", connections(first), round_, dataformats="HW")
        self.writer.close()


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
    """How many connections each input pixel keeps, for a bool mask (units, pixels): an image in 0..1, 1 for the most.

    The pixels are those of a square image, grey or in three colours, whose connections are added up.
    """
    counts = mask.sum(0).cpu().numpy()
    channels = 1 if math.isqrt(len(counts)) ** 2 == len(counts) else 3
    side = math.isqrt(len(counts) // channels)
    image = counts.reshape(channels, side, side).sum(0)
    return np.kron(image / max(1, image.max()), np.ones((8, 8)))  # eight times larger, to be seen


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


def plot_round(path, losses, accuracies):
    """A round's training loss and test accuracy over its epochs."""
    epochs = np.arange(1, len(losses) + 1)
    with figure(path, rows=2) as ((above, below), sns):
        sns.lineplot(x=epochs, y=losses, ax=above)
        sns.lineplot(x=epochs, y=accuracies, ax=below, marker="o" if len(epochs) <= 30 else None)
        above.set_ylabel("training loss")
        below.set(xlabel="epoch", ylabel="test accuracy (%)")
        below.xaxis.get_major_locator().set_params(integer=True)


def plot_accuracy(path, curves, title):
    """Test accuracy against the percentage of weights remaining, dense at the left.

    `curves` is {prune type: [(percents, accuracies), ...]}, a pair for each seed: the line is the mean, the band the range.
    """
    colors, markers = dict(zip(PRUNE_TYPES, ("C0", "C1"), strict=True)), dict(zip(PRUNE_TYPES, "os", strict=True))
    rows = [(kind, x, y) for kind, runs in curves.items() for run in runs for x, y in zip(*run, strict=True)]
    kinds, percents, accuracies = zip(*rows, strict=True)
    with figure(path) as ((axes,), sns):
        sns.lineplot(
            x=percents,
            y=accuracies,
            hue=kinds,
            style=kinds,
            palette=colors,
            markers=markers,
            dashes=False,
            errorbar=("pi", 100),
            ax=axes,
        )
        axes.legend(title=title)
        axes.set(xscale="log", xlabel="weights remaining (%)", ylabel="test accuracy (%)")
        axes.invert_xaxis()
        low, high = min(percents), max(percents)
        ticks = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5)]
        axes.set_xticks([tick for tick in ticks if low * 0.99 <= tick <= high] if high > 3 * low else sorted(set(percents)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%.4g"))
        axes.xaxis.set_minor_locator(NullLocator())
