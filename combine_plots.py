"""Draw winning tickets and their controls, for all architectures and datasets with results.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, whatever the number of rounds and seeds. For each
architecture and dataset it draws, and prints as a table,

- test accuracy against the percentage of weights remaining;
- early-stopping iteration, and test accuracy at early stopping and at the end, as in the paper's
  Figure 4;
- test accuracy during training for some rounds, as in the paper's Figure 3.

Several seeds with the same settings give a mean and a range. Runs with different settings get a
curve each. `main.py` draws the figures of single runs with the functions here.
"""

import contextlib
import json
import math
import os
import re
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np

import utils

# matplotlib, pandas and seaborn take seconds to import, so functions that draw import them.

EARLY_STOPPING = {  # the arrays in the paper's Figure 4, and their axes
    "earlystop": "early-stopping iteration",
    "earlystopaccuracy": "test accuracy at early stopping (%)",
    "finalaccuracy": "test accuracy at the end (%)",
}
COLUMNS = {"bestaccuracy": "test accuracy at best validation (%)", **EARLY_STOPPING}
COLOURS = [f"C{i}" for i in range(10)]
MARKERS = "osD^vPX<>*d"
OVER_SEEDS = "mean and range (band or bars) over seeds"
TRAINING_POINTS = 50  # of a curve over a round; more would show the noise of evaluations


def main(args):
    """Draw and tabulate all experiments. Raises utils.BadInput if there are no results."""
    import pandas as pd

    dumps = Path(args.output_dir) / "dumps" / "lt"
    summaries = []
    for place in sorted(dumps.glob("*/*")):
        arch_type, dataset = place.parts[-2:]
        if args.arch_type not in (None, arch_type) or args.dataset not in (None, dataset):
            continue
        runs, names = read_runs(place)
        if not runs.empty:
            draw_experiment(args, place, runs, names)
            summaries.append(summary(arch_type, dataset, runs))
            print(f"\n{as_text(summaries[-1])}\n")

    if not summaries:
        place = dumps / (args.arch_type or "<arch>") / (args.dataset or "<dataset>")
        raise utils.BadInput(
            f"nothing to draw: no results at {place}/<prune_type>_bestaccuracy.dat. "
            "Run main.py first, or choose another --output_dir"
        )
    if args.csv:
        table = pd.concat(summaries)
        utils.write(Path(args.csv), lambda file: table.to_csv(file, index=False), shared=True)
        print(f"{args.csv}: the table")


# ---- Reading results -----------------------------------------------------------------------------


def read_runs(place):
    """Return all finished rounds of all runs in an experiment's folder, and the runs' curves.

    The rounds are a DataFrame with the columns curve, seed, round, weights_remaining and COLUMNS.
    The curves are {(prune type, folder): name}.
    """
    import pandas as pd

    columns = {}
    folders = seed_folders(place)
    for prune_type in utils.PRUNE_TYPES:
        for folder in folders:
            run = read_run(prune_type, folder)
            if run is not None:
                columns[prune_type, folder] = run
    settings = {key: read_settings(*key) for key in columns}
    names = curve_names(settings)

    if any("," in name for name in names.values()):
        curves = "; ".join(dict.fromkeys(names.values()))
        warn(f"{place} has runs with different settings, which are not averaged: {curves}")
    unknown = [f"{key[0]} in {key[1]}" for key in settings if settings[key] is None]
    if unknown:
        warn(f"settings that cannot be read are treated as equal: {'; '.join(unknown)}")

    runs = []
    for (prune_type, folder), run in columns.items():
        name = names[prune_type, folder]
        runs.append(pd.DataFrame({"curve": name, "seed": folders[folder], **run}))
    if not runs:
        return pd.DataFrame(), names
    return pd.concat(runs, ignore_index=True), names


def seed_folders(place):
    """Return the folders of an experiment's seeds, {folder: seed}, ordered by seed."""
    seeds = {place: 0}
    for folder in place.glob("seed*"):
        match = re.fullmatch(r"seed([1-9]\d*)", folder.name)
        if match and folder.is_dir():
            seeds[folder] = int(match[1])
    return dict(sorted(seeds.items(), key=lambda item: item[1]))


def read_run(prune_type, folder):
    """Return the columns of a run, {name: a value per finished round}; None if it has none."""
    paths = {name: folder / f"{prune_type}_{name}.dat" for name in ("compression", *COLUMNS)}
    if not paths["compression"].exists() or not paths["bestaccuracy"].exists():
        return None

    arrays = {}
    try:
        for name, path in paths.items():
            if not path.exists():  # of an older version
                continue
            arrays[name] = utils.read_array(path)
            if name != "earlystop" and not all(0 <= value <= 100 for value in arrays[name]):
                raise utils.BadInput(f"{path} has values that are not percentages")
    except utils.BadInput as error:
        warn(f"left out: {error}")
        return None

    rounds = min(map(len, arrays.values()))  # main.py may be between two files
    columns = {"round": range(rounds), "weights_remaining": arrays["compression"][:rounds]}
    for name in COLUMNS:
        columns[name] = arrays[name][:rounds] if name in arrays else math.nan
    return columns


def read_settings(prune_type, folder):
    """Return a run's settings and their defaults, two {flag: value}; None if they cannot be read.

    The settings include those of the run that made the masks, such as {"lt's lr": 0.1}.
    """
    path = folder / f"{prune_type}_settings.json"
    try:
        recorded = json.loads(path.read_text())
        settings = comparable(recorded["settings"])
        source = comparable(settings.pop("masks_from_settings", {}))
        defaults = dict(recorded["defaults"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not settings.get("masks_from"):  # the run makes its own masks
        source = settings
    maker = settings.get("masks_from") or prune_type
    return settings | {f"{maker}'s {name}": source[name] for name in source}, defaults


def comparable(settings):
    """Return the settings that tell curves apart, {flag: value}."""
    kept = {}
    for name, value in settings.items():
        if name in {"network", "data"}:  # too long to be shown
            kept[name] = f"{zlib.crc32(str(value).encode()):08x}"
        elif name not in utils.MAY_CHANGE_ON_RESUME.union({"seed", "prune_type"}):
            kept[name] = value
    return kept


def curve_names(recorded):
    """Return the name of each run's curve, {(prune type, folder): name}.

    It is the prune type and the settings that differ between runs. A setting is left out if it
    follows from another one in all runs. `recorded` has what read_settings returned for each run.
    A setting missing from a run counts as its default, and runs without settings are one curve.
    """
    known = {key: found for key, found in recorded.items() if found}
    relevant = {name for settings, _ in known.values() for name in settings}
    defaults = {}
    for _, found in known.values():
        defaults |= {name: found[name] for name in found if name in relevant}
    values = {}
    for key, (settings, _) in known.items():
        refused = utils.REFUSED.get(key[0], {})
        complete = defaults | settings
        values[key] = {name: complete[name] for name in complete if name not in refused}

    names = {}
    for key in recorded:
        parts = [key[0]]
        if key not in known and known:
            parts.append("settings not known")
        for name, value in values.get(key, {}).items():
            if differs(name, value, values) and not follows(name, values):
                own_name = name.removeprefix(f"{key[0]}'s ")
                parts.append(f"{own_name}={as_flag(value)}")
        names[key] = ", ".join(dict.fromkeys(parts))
    return names


def differs(name, value, values):
    """Return whether a run has another value of a setting."""
    return any(settings.get(name, value) != value for settings in values.values())


def follows(name, values):
    """Return whether a setting equals, in all runs that have it, the one that it follows from."""
    leader = utils.FOLLOWS.get(name) or name.partition("'s ")[2]
    having = [settings for settings in values.values() if name in settings]
    return bool(leader) and all(settings[name] == settings.get(leader) for settings in having)


def as_flag(value):
    """Return a setting as text, as on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else value


def read_training(names, rounds):
    """Return the evaluations in some rounds of all runs, a DataFrame with a row for each."""
    import pandas as pd

    rows = []
    for (prune_type, folder), curve in names.items():
        for row in read_log(folder / f"{prune_type}_log.jsonl"):
            if row["round"] in rounds:
                rows.append({"curve": curve, "seed": folder.name, **row})
    return pd.DataFrame(rows)


def read_log(path):
    """Yield the evaluations in a log, {name: number}, as far as figures need them."""
    if not path.exists():
        return
    names = ("round", "epoch", "iteration", "weights_remaining", "test_accuracy")
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # main.py may be writing it
            row = json.loads(line)
            values = {name: float(row[name]) for name in names}
            if all(map(math.isfinite, values.values())):
                yield values | {"round": row["round"]}


def warn(message):
    print(f"combine_plots.py: {message}", file=sys.stderr)


# ---- The table -----------------------------------------------------------------------------------


def summary(arch_type, dataset, runs):
    """Return a DataFrame with a row per curve and round: trials, and mean, min, max of COLUMNS."""
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


def as_text(table):
    """Return a summary as text, in which each mean is followed by its range."""
    shown = table[["curve", "round", "weights_remaining", "trials"]]
    shown = shown.rename(columns={"weights_remaining": "remaining (%)"})
    for name, title in COLUMNS.items():
        triples = table[[name, f"{name}_min", f"{name}_max"]].itertuples(index=False)
        digits = 0 if name == "earlystop" else 2
        shown[title] = [mean_and_range(*triple, digits) for triple in triples]
    return shown.to_string(index=False, float_format="{:.2f}".format)


def mean_and_range(mean, low, high, digits):
    if math.isnan(mean):
        return "-"
    text = f"{mean:.{digits}f}"
    if low < high:
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text


# ---- The figures of a run ------------------------------------------------------------------------


def draw_run(files):
    """Draw the figure over all rounds of a run, and the figures of single rounds if missing."""
    import pandas as pd

    for round_ in range(files.rounds()):
        if not files.figure(f"LossVsAccuracy_{round_}").exists():
            draw_round(files, round_)
    run = read_run(files.prune_type, files.dumps)
    runs = pd.DataFrame({"curve": files.prune_type, "seed": files.seed, **run})
    plot_accuracy(files.figure("AccuracyVsWeights"), runs, files.title)


def draw_round(files, round_):
    """Draw a round's training losses and test accuracies against the epoch."""
    losses = utils.read_array(files.array(f"all_loss_{round_}"))
    rows = [row for row in read_log(files.log) if row["round"] == round_]
    # Iterations per epoch, from an evaluation at the end of one; others give less.
    steps = max(row["iteration"] / row["epoch"] for row in rows)
    end = rows[-1]["iteration"] / steps  # in epochs; the last epoch may be incomplete
    loss_points = [(min(epoch, end), loss) for epoch, loss in enumerate(losses, start=1)]
    accuracy_points = [(row["iteration"] / steps, row["test_accuracy"]) for row in rows]
    remaining = rows[-1]["weights_remaining"]
    title = f"{files.prune_type}, {files.title}\nround {round_}, {remaining:.2f}% of the weights"
    plot_round(files.figure(f"LossVsAccuracy_{round_}"), loss_points, accuracy_points, title)


def plot_round(path, losses, accuracies, title):
    """Plot a round's training losses and test accuracies, two lists of (epochs, value)."""
    with figure(path, rows=2) as ((above, below), _):
        above.set_title(title)
        for axes, points in ((above, losses), (below, accuracies)):
            marker = "o" if len(points) <= 30 else None
            axes.plot(*zip(*points, strict=True), marker=marker)
        above.set_ylabel("training loss")
        below.set(xlabel="epoch", ylabel="test accuracy (%)")
        below.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def plot_accuracy(path, runs, title, shared=False):
    """Plot test accuracy against the percentage of weights remaining, starting with 100.

    `runs` has a row per round and run, and the columns of read_runs.
    """
    with figure(path, shared=shared) as ((axes,), sns):
        plot_curves(axes, sns, runs, "bestaccuracy")
        legend_above(axes, with_seeds(runs), title)


# ---- The figures of several runs -----------------------------------------------------------------


def draw_experiment(args, place, runs, names):
    """Draw all figures for the runs in an experiment's folder, and print their paths."""
    arch_type, dataset = place.parts[-2:]
    folder = Path(args.output_dir, "plots", "lt", "combined_plots")
    title = f"{arch_type}, {dataset}"
    path = folder / f"combined_{arch_type}_{dataset}.png"
    plot_accuracy(path, runs, title, shared=True)
    print(f"{path}: test accuracy at best validation, {OVER_SEEDS}; {describe(runs)}")

    complete = runs.dropna()
    if not complete.empty:
        path = folder / f"earlystop_{arch_type}_{dataset}.png"
        plot_early_stopping(path, complete, title)
        print(f"{path}: early stopping and the end of training, {OVER_SEEDS}")

    training = read_training(names, args.rounds)
    if not training.empty:
        path = folder / f"training_{arch_type}_{dataset}.png"
        plot_training(path, training, title)
        rounds = ", ".join(map(str, sorted(training["round"].unique())))
        print(
            f"{path}: test accuracy during training (rounds {rounds}), {OVER_SEEDS}; "
            f"each point is the mean over 1/{TRAINING_POINTS} of the longest round"
        )


def describe(runs):
    """Return how many rounds and seeds each curve has, and which prune types are missing."""
    parts = []
    for curve, group in runs.groupby("curve", sort=False):
        lengths = group.groupby("seed").size()
        rounds = " to ".join(map(str, sorted({lengths.min(), lengths.max()})))
        seeds = utils.plural(len(lengths), "seed")
        parts.append(f"{curve} with {utils.plural(rounds, 'round')} and {seeds}")
    text = "; ".join(parts)
    prune_types = {curve.split(",")[0] for curve in runs["curve"]}
    missing = [name for name in ("lt", "reinit") if name not in prune_types]
    if missing:
        text += f" (not run yet: {', '.join(missing)})"
    return text


def plot_early_stopping(path, runs, title):
    """Plot the panels of the paper's Figure 4 in a column: means, with bars for the range."""
    with figure(path, rows=3, shared=True) as (panels, sns):
        for axes, name in zip(panels, EARLY_STOPPING, strict=True):
            plot_curves(axes, sns, runs, name, err_style="bars", legend=axes is panels[0])
        legend_above(panels[0], with_seeds(runs), title)


def plot_training(path, rows, title):
    """Plot test accuracy during training as in the paper's Figure 3, with a panel per curve.

    `rows` is the DataFrame of read_training. Evaluations within 1/TRAINING_POINTS of the longest
    round are drawn as one point, at the mean of their iterations.
    """
    width = max(1, rows["iteration"].max() / TRAINING_POINTS)
    rows["part"] = (rows["iteration"] / width).apply(math.ceil)
    rows = rows.groupby(["curve", "seed", "round", "part"], sort=False).mean().reset_index()
    # The last part of an unfinished round may have fewer evaluations than that of other seeds.
    parts = rows.groupby(["curve", "round", "part"])
    rows["iteration"] = parts["iteration"].transform("mean")
    labels = round_labels(rows)
    rows["remaining"] = rows["round"].map(labels)
    names = with_seeds(rows)
    # The first evaluations, far below the others, would leave no room for the differences.
    limits = (rows["test_accuracy"].quantile(0.03) - 0.1, rows["test_accuracy"].max() + 0.1)

    with figure(path, rows=len(names), shared=True) as (panels, sns):
        for axes, (curve, name) in zip(panels, names.items(), strict=True):
            points = rows[rows["curve"] == curve]
            longest = points.groupby(["seed", "round"]).size().max()
            marker = "o" if longest <= 10 else None  # a line of one point is invisible
            sns.lineplot(
                points,
                x="iteration",
                y="test_accuracy",
                hue="remaining",
                hue_order=list(labels.values()),
                errorbar=("pi", 100),
                marker=marker,
                legend=axes is panels[0],
                ax=axes,
            )
            lines = name.replace(", ", "\n")
            axes.set(xlabel="iteration", ylabel=f"{lines}\ntest accuracy (%)", ylim=limits)
        legend_above(panels[0], {}, f"{title}: weights remaining (%)", ncols=4)


def round_labels(rows):
    """Return the legend's text for each round: the percentage of weights remaining."""
    remaining = rows.groupby("round")["weights_remaining"].agg(["min", "max", "mean"])
    texts = {}
    for round_, low, high, mean in remaining.itertuples():
        # With global pruning, runs may keep a few weights more or less.
        same = math.isclose(low, high, rel_tol=1e-3)
        texts[round_] = f"{mean:.3g}" if same else "differs"
    labels = {}
    for round_, text in texts.items():
        ambiguous = text == "differs" or list(texts.values()).count(text) > 1
        labels[round_] = f"{text} (round {round_})" if ambiguous else text
    return labels


# ---- The look of figures -------------------------------------------------------------------------


@contextlib.contextmanager
def figure(path, rows=1, shared=False):
    """Yield the axes of a figure, one per row, and seaborn; write the figure at the end.

    It has the width of a paper's column. Several processes may write a `shared` figure at once.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("ticks"), sns.plotting_context("paper"), sns.color_palette("colorblind"):
        fig = Figure(figsize=(3.5, 1.2 + 1.4 * rows), layout="constrained")
        yield fig.subplots(rows, sharex=True, squeeze=False)[:, 0], sns
        sns.despine(fig)
        utils.write(path, lambda file: fig.savefig(file, format="png", dpi=300), shared=shared)
    fig.clear()  # reference cycles would keep each figure's pixels in memory


def with_seeds(runs):
    """Return the name of each curve with its number of seeds, such as {"lt": "lt (3 seeds)"}."""
    seeds = runs.groupby("curve", sort=False)["seed"].nunique()
    return {curve: f"{curve} ({utils.plural(n, 'seed')})" for curve, n in seeds.items()}


def legend_above(axes, texts, title, ncols=1):
    """Move the legend of some axes above all panels, where it covers no curve.

    `texts` maps labels to the texts to show. Labels without one are shown as they are.
    """
    handles, labels = axes.get_legend_handles_labels()
    shown = [textwrap.fill(texts.get(label, label), 44) for label in labels]  # a column's width
    axes.get_legend().remove()
    fig = axes.figure
    fig.legend(handles, shown, title=title, ncols=ncols, loc="outside upper center")
    lines = sum(1 + text.count("\n") for text in shown)
    height = 0.2 * (1 + math.ceil(lines / ncols))  # inches, with the title
    fig.set_figheight(fig.get_figheight() + height)  # the panels keep theirs


def plot_curves(axes, sns, runs, column, **options):
    """Plot one of COLUMNS against the percentage of weights remaining, with means and ranges.

    With global pruning, seeds may keep a few weights more or less in a round, so all of them are
    drawn at their mean percentage. The prune types have the same colours and markers in all
    figures.
    """
    names = runs["curve"]
    percents = runs.groupby([names, "round"])["weights_remaining"].transform("mean")
    percents = percents.replace(0, np.nan)  # a logarithmic axis has no 0
    colours = {}
    markers = {}
    for i, name in enumerate(dict.fromkeys((*utils.PRUNE_TYPES, *names))):
        colours[name] = COLOURS[i % len(COLOURS)]
        markers[name] = MARKERS[i % len(MARKERS)]
    sns.lineplot(
        x=percents,
        y=runs[column],
        hue=names,
        palette=colours,
        style=names,
        markers=markers,
        dashes=False,
        errorbar=("pi", 100),
        ax=axes,
        **options,
    )
    axes.set_ylabel(textwrap.fill(COLUMNS[column], 20))
    if not percents.isna().all():
        set_percent_axis(axes, percents)


def set_percent_axis(axes, percents):
    """Make the x axis logarithmic, from 100% on the left, with readable ticks."""
    from matplotlib.ticker import FormatStrFormatter, NullLocator

    low = np.nanmin(percents)
    high = np.nanmax(percents)
    if low == high:  # an axis needs a width
        axes.set_xlim(0.8 * low, 1.2 * high)
    axes.set(xscale="log", xlabel="weights remaining (%)")
    axes.xaxis.set_inverted(True)

    ticks = np.unique(percents)
    if high > 3 * low:
        digits = (1, 2, 5) if high < 1000 * low else (1,)
        ticks = [digit * 10.0**power for power in range(-6, 3) for digit in digits]
        ticks = [tick for tick in ticks if low * 0.99 <= tick <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%.4g"))
    axes.xaxis.set_minor_locator(NullLocator())


# ---- Flags ---------------------------------------------------------------------------------------


def parse_args(argv=None):
    """Return the settings from the command line. Exits with status 2 if they are unusable."""
    parser = utils.Parser(description=__doc__.partition("\n\n")[0])
    # fmt: off
    add = parser.add_argument
    add("--arch_type", metavar="NAME",
        help="draw only this architecture (default: all%(default).0s)")
    add("--dataset", metavar="NAME",
        help="draw only this dataset (default: all%(default).0s)")
    add("--rounds", default="0,3,7,15", type=utils.numbers("[0, inf)"), metavar="N,...",
        help="comma-separated rounds whose training is drawn")
    add("--csv", type=utils.folder, metavar="FILE",
        help="also write the table to a file (default: none%(default).0s)")
    add("--output_dir", default=".", type=utils.folder, metavar="DIR",
        help="the --output_dir of main.py")
    # fmt: on
    args = parser.parse_args(argv)
    if args.csv and Path(args.csv).is_dir():
        parser.error(f"--csv={args.csv} is a folder; it must be a file")
    return args


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend works only in its own process
    with utils.one_line_errors("combine_plots.py"):
        main(parse_args())
