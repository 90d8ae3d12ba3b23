"""Draw winning tickets and their controls, for every architecture and dataset that has results.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, of whatever length and of however many seeds, and draws for each experiment the
accuracy against the percentage of weights remaining; early-stopping iteration, accuracy there and accuracy at the end, as in
Figure 4 of the paper; and the accuracy while rounds train, as in its Figure 3. Several seeds of the same settings give their
mean, and their range. Runs of different settings are curves of their own. A table says the same in numbers. `main.py` draws the
figures of single runs by the functions here.
"""

import contextlib
import json
import math
import re
import sys
import zlib
from pathlib import Path

import numpy as np

import utils

# matplotlib, pandas and seaborn take seconds to import, so only what draws does.

EARLY_STOPPING = {  # the arrays of the paper's Figure 4, and what they are
    "earlystop": "early-stopping iteration",
    "earlystopaccuracy": "accuracy there (%)",
    "finalaccuracy": "accuracy at the end (%)",
}
COLUMNS = {"bestaccuracy": "accuracy at best validation (%)", **EARLY_STOPPING}
# Settings in which a prune type may differ from another and be compared with it all the same.
OF_THE_TYPE = {"masks_from", "rewind_iter"}
COLOURS, MARKERS = [f"C{i}" for i in range(10)], "osD^vPX<>*d"  # of curves
TRAINING_POINTS = 50  # of a curve over a round; more would show the noise of single evaluations


def main(args):
    import pandas as pd

    dumps = Path(args.output_dir) / "dumps" / "lt"
    summaries = []
    for place in sorted(dumps.glob("*/*")):
        arch_type, dataset = place.parts[-2:]
        if args.arch_type not in (None, arch_type) or args.dataset not in (None, dataset):
            continue
        runs, names = read_runs(place)
        if not runs.empty:
            draw(args, place, runs, names)
            summaries.append(summary(arch_type, dataset, runs))
            print(f"\n{text(summaries[-1])}\n")
    if not summaries:
        wanted = f"{dumps}/{args.arch_type or '<arch>'}/{args.dataset or '<dataset>'}/<prune_type>_bestaccuracy.dat"
        raise utils.BadInput(f"nothing to draw: no results at {wanted}. Run main.py first, or choose another --output_dir")
    if args.csv:
        utils.write(Path(args.csv), lambda file: pd.concat(summaries).to_csv(file, index=False))
        print(f"{args.csv}: the table")


# What main.py left


def seeds(place):
    """The folders of an experiment's seeds, {folder: seed}."""
    found = {folder: re.fullmatch(r"seed([1-9]\d*)", folder.name) for folder in place.glob("seed*") if folder.is_dir()}
    numbers = {folder: int(match[1]) for folder, match in found.items() if match}
    return {place: 0} | dict(sorted(numbers.items(), key=lambda item: item[1]))


def read_runs(place):
    """All finished rounds of all runs of an experiment, a row each: curve, seed, round, weights_remaining, COLUMNS.

    And the runs' curves, {(prune type, folder): name}.
    """
    import pandas as pd

    folders = seeds(place)
    found = {(kind, folder): read_run(folder, kind) for kind in utils.PRUNE_TYPES for folder in folders}
    found = {key: run for key, run in found.items() if run is not None}
    recorded = {(kind, folder): read_settings(folder, kind) for kind, folder in found}
    names = curve_names(recorded)
    if any("," in name for name in names.values()):
        curves = "; ".join(dict.fromkeys(names.values()))
        print(f"combine_plots.py: {place} has runs of different settings, not averaged: {curves}", file=sys.stderr)
    if unknown := [f"{kind} in {folder}" for (kind, folder), settings in recorded.items() if settings is None]:
        print(f"combine_plots.py: taken to have the same settings, as none can be read: {'; '.join(unknown)}", file=sys.stderr)
    runs = [
        pd.DataFrame({"curve": names[kind, folder], "seed": folders[folder], **columns})
        for (kind, folder), columns in found.items()
    ]
    return pd.concat(runs, ignore_index=True) if runs else pd.DataFrame(), names


def read_run(folder, kind):
    """The columns of one run, {name: a value per finished round}, or None if there is nothing that can be used."""
    files = {name: folder / f"{kind}_{name}.dat" for name in ("compression", *COLUMNS)}
    if not (files["compression"].exists() and files["bestaccuracy"].exists()):
        return None
    try:
        arrays = {name: utils.read_array(file) for name, file in files.items() if file.exists()}
        for name, values in arrays.items():
            if name != "earlystop" and not all(0 <= value <= 100 for value in values):
                raise utils.BadInput(f"{files[name]} has values that are no percentages")
    except utils.BadInput as error:
        print(f"combine_plots.py: left out: {error}", file=sys.stderr)
        return None
    rounds = min(map(len, arrays.values()))  # a run may be between two files just now
    columns = {"round": range(rounds), "weights_remaining": arrays["compression"][:rounds]}
    for name in COLUMNS:
        columns[name] = arrays[name][:rounds] if name in arrays else math.nan
    return columns


def read_settings(folder, kind):
    """What a run recorded of its settings, ({flag: value}, {flag: default}); None where nothing can be read."""
    path = folder / f"{kind}_settings.json"
    try:
        recorded = json.loads(path.read_text())
        settings, defaults = dict(recorded["settings"]), dict(recorded["defaults"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    bound = {name: value for name, value in settings.items() if name not in {*utils.FREE_SETTINGS, "seed", "prune_type"}}
    for name in bound.keys() & {"network", "data"}:  # too long to be shown
        bound[name] = f"{zlib.crc32(str(bound[name]).encode()):08x}"
    return bound, defaults


def curve_names(recorded):
    """What a curve is called, for what `read_settings` gave, {(prune type, folder): name}: the settings that differ are named.

    A setting that a run does not have, as it is newer, counts as its default. Runs whose settings are not known are one curve.
    """
    known = {key: found for key, found in recorded.items() if found}
    bound = {name for settings, _ in known.values() for name in settings}
    defaults = {name: value for _, found in known.values() for name, value in found.items() if name in bound}
    values = {key: defaults | settings for key, (settings, _) in known.items()}
    names = {}
    for kind, folder in recorded:
        mine, parts = values.get((kind, folder)), [kind]
        if mine is None and known:
            parts.append("settings not known")
        for name, value in (mine or {}).items():
            others = [other.get(name, value) for key, other in values.items() if key[0] == kind or name not in OF_THE_TYPE]
            if any(other != value for other in others):
                parts.append(f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
        names[kind, folder] = ", ".join(parts)
    return names


def read_training(names, rounds):
    """What the logs have of these rounds, a row for each evaluation of the runs, {(prune type, folder): curve}."""
    import pandas as pd

    rows = []
    for (kind, folder), curve in names.items():
        here = read_log(folder / f"{kind}_log.jsonl")
        rows += [{"curve": curve, "seed": folder.name, **row} for row in here if row["round"] in rounds]
    return pd.DataFrame(rows)


def read_log(path):
    """Yield the evaluations of a log, {name: number} for the columns that figures need; nothing if there is no log."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line of a run that writes it just now
            row = json.loads(line)
            names = ("round", "epoch", "iteration", "weights_remaining", "test_accuracy")
            values = {name: float(row[name]) for name in names}
            if all(map(math.isfinite, values.values())):
                yield values | {"round": row["round"]}


# The table


def summary(arch_type, dataset, runs):
    """A row for each curve and round: the number of trials, the mean, the lowest and the highest of every column."""
    groups = runs.groupby(["curve", "round"], sort=False)
    table = groups[[*COLUMNS]].agg(["mean", "min", "max"])
    table.columns = ["_".join(names).removesuffix("_mean") for names in table.columns]
    table.insert(0, "trials", groups.size())
    table.insert(0, "weights_remaining", groups["weights_remaining"].mean())
    table = table.reset_index()
    table.insert(0, "prune_type", table["curve"].str.split(", ").str[0])
    table.insert(0, "dataset", dataset)
    table.insert(0, "arch_type", arch_type)
    return table


def text(table):
    """A summary for people: each mean with its range."""
    shown = table[["curve", "round", "weights_remaining", "trials"]].rename(columns={"weights_remaining": "remaining (%)"})
    for name, title in COLUMNS.items():
        triples = table[[name, f"{name}_min", f"{name}_max"]].itertuples(index=False)
        shown[title] = [spread(*triple, digits=0 if name == "earlystop" else 2) for triple in triples]
    return shown.to_string(index=False, float_format="{:.2f}".format)


def spread(mean, low, high, digits):
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low < high else "")


# Figures of a run


def draw_run(files):
    """Draw the figure over all rounds of a run, and those of its rounds that are missing."""
    for round_ in range(files.rounds()):
        if not files.figure(f"LossVsAccuracy_{round_}").exists():
            draw_round(files, round_)
    percents, accuracies = (utils.read_array(files.array(name)) for name in ("compression", "bestaccuracy"))
    plot_accuracy(files.figure("AccuracyVsWeights"), [files.kind] * len(percents), percents, accuracies, files.title)


def draw_round(files, round_):
    """Draw a round's training losses and test accuracies over its epochs."""
    losses = utils.read_array(files.array(f"all_loss_{round_}"))
    rows = [row for row in read_log(files.log) if row["round"] == round_]
    steps = max(row["iteration"] / row["epoch"] for row in rows)  # of an epoch, if one ends with an evaluation
    end = rows[-1]["iteration"] / steps  # in epochs, the last of which may be cut short
    curve = [(min(epoch, end), loss) for epoch, loss in enumerate(losses, start=1)]
    measured = [(row["iteration"] / steps, row["test_accuracy"]) for row in rows]
    plot_round(files.figure(f"LossVsAccuracy_{round_}"), curve, measured)


# Figures


def draw(args, place, runs, names):
    """All figures that an experiment's results allow."""
    arch_type, dataset = place.parts[-2:]
    folder, title = Path(args.output_dir, "plots", "lt", "combined_plots"), f"{arch_type}, {dataset}"
    path = folder / f"combined_{arch_type}_{dataset}.png"
    plot_accuracy(path, runs["curve"], runs["weights_remaining"], runs["bestaccuracy"], title)
    print(f"{path}: {describe(runs)}")
    complete = runs.dropna()
    if not complete.empty:
        path = folder / f"earlystop_{arch_type}_{dataset}.png"
        plot_early_stopping(path, complete, title)
        print(f"{path}: early stopping and the end of training")
    training = read_training(names, args.rounds)
    if not training.empty:
        path = folder / f"training_{arch_type}_{dataset}.png"
        plot_training(path, training, title)
        print(f"{path}: rounds {', '.join(map(str, args.rounds))}, as far as they are there")


def describe(runs):
    parts = []
    for curve, group in runs.groupby("curve", sort=False):
        lengths = sorted(group.groupby("seed").size().unique())
        rounds = " to ".join(map(str, dict.fromkeys([lengths[0], lengths[-1]])))
        trials = group["seed"].nunique()
        parts.append(
            f"{curve} with {rounds} round{'' if rounds == '1' else 's'}" + (f" and {trials} seeds" if trials > 1 else "")
        )
    run = {curve.split(",")[0] for curve in runs["curve"]}
    absent = [kind for kind in ("lt", "reinit") if kind not in run]
    return "; ".join(parts) + (f" ({' and '.join(absent)} not run yet)" if absent else "")


def plot_early_stopping(path, runs, title):
    """The layout of the paper's Figure 4, one panel below the other: means, with bars for the range of the trials."""
    with figure(path, rows=3) as (panels, sns):
        for axes, (name, label) in zip(panels, EARLY_STOPPING.items(), strict=True):
            first = axes is panels[0]
            curves(axes, sns, runs["curve"], runs["weights_remaining"], runs[name], err_style="bars", legend=first)
            axes.set_ylabel(label.replace("stopping ", "stopping\n").replace(" (", "\n("))
        panels[0].legend(title=title)


def plot_training(path, rows, title):
    """The layout of the paper's Figure 3: test accuracy over the iterations of some rounds, a panel for each curve."""
    width = max(1, rows["iteration"].max() / TRAINING_POINTS)
    rows["iteration"] = (rows["iteration"] / width).apply(math.ceil) * width
    rows = rows.groupby(["curve", "seed", "round", "iteration"], sort=False).mean().reset_index()
    remaining = rows.groupby("round")["weights_remaining"].agg(["min", "max"])
    texts = [f"{low:.3g}" if high - low < 1e-6 else "differs" for low, high in remaining.itertuples(index=False)]
    labels = {
        number: f"{text} (round {number})" if text == "differs" or texts.count(text) > 1 else text
        for number, text in zip(remaining.index, texts, strict=True)
    }
    rows["remaining"] = rows["round"].map(labels)
    curves = rows["curve"].unique()
    # The first evaluations, far below, would leave no room for what the rounds differ in.
    limits = rows["test_accuracy"].quantile(0.03) - 0.1, rows["test_accuracy"].max() + 0.1
    with figure(path, rows=len(curves)) as (panels, sns):
        for axes, curve in zip(panels, curves, strict=True):
            here = rows[rows["curve"] == curve]
            few = here.groupby(["seed", "round"]).size().max() <= 10  # a line of one point cannot be seen
            names = {"x": "iteration", "y": "test_accuracy", "hue": "remaining", "hue_order": list(labels.values())}
            sns.lineplot(here, **names, errorbar=("pi", 100), marker="o" if few else None, legend=axes is panels[0], ax=axes)
            axes.set(xlabel="iteration", ylabel=f"{curve.replace(', ', chr(10))}\ntest accuracy (%)", ylim=limits)
        handles, texts = panels[0].get_legend_handles_labels()
        panels[0].get_legend().remove()
        heading = f"{title}: weights remaining (%)"
        panels[0].figure.legend(handles, texts, title=heading, ncols=4, loc="outside upper center")  # where no curve is


# How figures look


@contextlib.contextmanager
def figure(path, rows=1):
    """Axes, one below the other, of a figure of a paper's column width, which is written to `path` at the end."""
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("ticks"), sns.plotting_context("paper"), sns.color_palette("colorblind"):
        fig = Figure(figsize=(3.5, 1.2 + 1.4 * rows), layout="constrained")
        yield fig.subplots(rows, sharex=True, squeeze=False)[:, 0], sns
        sns.despine(fig)
        utils.write(path, lambda file: fig.savefig(file, format="png", dpi=300))
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
    from matplotlib.ticker import FormatStrFormatter, NullLocator

    percents = np.array(percents, dtype=float)
    percents[percents == 0] = np.nan  # for which a logarithmic axis has no place
    looks = dict.fromkeys((*utils.PRUNE_TYPES, *names))  # in this order
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


def parse_args(argv=None):
    parser = utils.Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--arch_type", metavar="NAME", help="this architecture alone (default: all%(default).0s)")
    add("--dataset", metavar="NAME", help="this dataset alone (default: all%(default).0s)")
    rounds = utils.numbers("[0, inf)")
    add("--rounds", default=[0, 3, 7, 15], type=rounds, metavar="N,...", help="rounds whose training is drawn")
    add("--csv", type=utils.folder, metavar="FILE", help="write the table to a file, too (default: no%(default).0s)")
    add("--output_dir", default=".", type=utils.folder, metavar="DIR", help="where main.py put its results")
    args = parser.parse_args(argv)
    if args.csv and Path(args.csv).is_dir():
        parser.error(f"--csv={args.csv} is a folder: name a file")
    return args


if __name__ == "__main__":
    with utils.one_line_errors("combine_plots.py"):
        main(parse_args())
