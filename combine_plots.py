"""Overlay winning tickets and their controls, for every architecture and dataset that has results.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, of whatever length and of however many seeds, and draws for each experiment the
accuracy against the percentage of weights remaining; early-stopping iteration, accuracy there and accuracy at the end, as in
Figure 4 of the paper; and the accuracy while rounds train, as in its Figure 3. Several seeds give their mean, and their
range. A table says the same in numbers.
"""

import json
import math
import sys
from pathlib import Path

import pandas as pd

import utils

EARLY_STOPPING = {  # the arrays of the paper's Figure 4, and what they are
    "earlystop": "early-stopping iteration",
    "earlystopaccuracy": "accuracy there (%)",
    "finalaccuracy": "accuracy at the end (%)",
}
COLUMNS = {"bestaccuracy": "accuracy at best validation (%)", **EARLY_STOPPING}
TRAINING_POINTS = 50  # of a curve over a round; more would show the noise of single evaluations


def main(args):
    dumps = Path(args.output_dir) / "dumps" / "lt"
    summaries = []
    for place in sorted(dumps.glob("*/*")):
        arch_type, dataset = place.parts[-2:]
        if args.arch_type not in (None, arch_type) or args.dataset not in (None, dataset):
            continue
        runs = read_runs(place)
        if not runs.empty:
            draw(args, place, runs)
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
    """The folders of an experiment's seeds."""
    return [folder for folder in (place, *sorted(place.glob("seed*"))) if folder.is_dir()]


def read_runs(place):
    """All finished rounds of all runs of an experiment, a row each: prune_type, seed, round, weights_remaining, COLUMNS."""
    runs = [read_run(folder, kind) for kind in utils.PRUNE_TYPES for folder in seeds(place)]
    runs = pd.concat([run for run in runs if run is not None] or [pd.DataFrame()])
    if not runs.empty:
        percents = runs.groupby(["prune_type", "round"])["weights_remaining"]
        for kind in runs["prune_type"][percents.transform("max") - percents.transform("min") > 1e-6].unique():
            print(f"combine_plots.py: the seeds of {kind} in {place} were pruned by different percentages", file=sys.stderr)
    return runs


def read_run(folder, kind):
    """The rows of one run, or None where there is nothing that can be used, which is said."""
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
    run = pd.DataFrame({"prune_type": kind, "seed": folder.name, "round": range(rounds)})
    run["weights_remaining"] = arrays["compression"][:rounds]
    for name in COLUMNS:
        run[name] = arrays[name][:rounds] if name in arrays else math.nan
    return run


def read_training(place, rounds):
    """What the logs have of these rounds, a row for each evaluation, of all runs."""
    rows = []
    for kind in utils.PRUNE_TYPES:
        for folder in seeds(place):
            path = folder / f"{kind}_log.jsonl"
            for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
                try:
                    row = json.loads(line)
                    if row["round"] in rounds:
                        values = {name: float(row[name]) for name in ("weights_remaining", "iteration", "test_accuracy")}
                        rows.append({"prune_type": kind, "seed": folder.name, **values})
                except (ValueError, KeyError, TypeError):  # the last line of a run that writes it just now
                    continue
    return pd.DataFrame(rows)


# The table


def summary(arch_type, dataset, runs):
    """A row for each prune type and round: the number of trials, the mean, the lowest and the highest of every column."""
    groups = runs.groupby(["prune_type", "round"], sort=False)
    table = groups[[*COLUMNS]].agg(["mean", "min", "max"])
    table.columns = ["_".join(names).removesuffix("_mean") for names in table.columns]
    table.insert(0, "trials", groups.size())
    table.insert(0, "weights_remaining", groups["weights_remaining"].mean())
    table = table.reset_index()
    table.insert(0, "dataset", dataset)
    table.insert(0, "arch_type", arch_type)
    return table


def text(table):
    """A summary for people: each mean with its range."""
    shown = table[["prune_type", "round", "weights_remaining", "trials"]].rename(columns={"weights_remaining": "remaining (%)"})
    for name, title in COLUMNS.items():
        triples = table[[name, f"{name}_min", f"{name}_max"]].itertuples(index=False)
        shown[title] = [spread(*triple, digits=0 if name == "earlystop" else 2) for triple in triples]
    return shown.to_string(index=False, float_format="{:.2f}".format)


def spread(mean, low, high, digits):
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low < high else "")


# Figures


def draw(args, place, runs):
    """All figures that an experiment's results allow."""
    arch_type, dataset = place.parts[-2:]
    folder, title = Path(args.output_dir, "plots", "lt", "combined_plots"), f"{arch_type}, {dataset}"
    path = folder / f"combined_{arch_type}_{dataset}.png"
    utils.plot_accuracy(path, runs["prune_type"], runs["weights_remaining"], runs["bestaccuracy"], title)
    print(f"{path}: {describe(runs)}")
    complete = runs.dropna()
    if not complete.empty:
        path = folder / f"earlystop_{arch_type}_{dataset}.png"
        plot_early_stopping(path, complete, title)
        print(f"{path}: early stopping and the end of training")
    training = read_training(place, args.rounds)
    if not training.empty:
        path = folder / f"training_{arch_type}_{dataset}.png"
        plot_training(path, training, title)
        print(f"{path}: rounds {', '.join(map(str, args.rounds))}, as far as they are there")


def describe(runs):
    parts = []
    for kind, group in runs.groupby("prune_type", sort=False):
        lengths = sorted(group.groupby("seed").size().unique())
        rounds = " to ".join(map(str, dict.fromkeys([lengths[0], lengths[-1]])))
        trials = group["seed"].nunique()
        parts.append(f"{kind} with {rounds} rounds" + (f" and {trials} seeds" if trials > 1 else ""))
    absent = [kind for kind in ("lt", "reinit") if kind not in set(runs["prune_type"])]
    return ", ".join(parts) + (f" ({' and '.join(absent)} not run yet)" if absent else "")


def plot_early_stopping(path, runs, title):
    """The layout of the paper's Figure 4, one panel below the other: means, with bars for the range of the trials."""
    with utils.figure(path, rows=3) as (panels, sns):
        for axes, (name, label) in zip(panels, EARLY_STOPPING.items(), strict=True):
            first = axes is panels[0]
            utils.curves(axes, sns, runs["prune_type"], runs["weights_remaining"], runs[name], err_style="bars", legend=first)
            axes.set_ylabel(label.replace("stopping ", "stopping\n").replace(" (", "\n("))
        panels[0].legend(title=title)


def plot_training(path, rows, title):
    """The layout of the paper's Figure 3: test accuracy over the iterations of some rounds, a panel for each prune type."""
    width = max(1, rows["iteration"].max() / TRAINING_POINTS)
    rows["iteration"] = (rows["iteration"] / width).apply(math.ceil) * width
    rows = rows.groupby(["prune_type", "seed", "weights_remaining", "iteration"], sort=False).mean().reset_index()
    rows["remaining"] = rows["weights_remaining"].map("{:.3g}".format)
    order = rows.sort_values("weights_remaining", ascending=False)["remaining"].unique()
    kinds = rows["prune_type"].unique()
    # The first evaluations, far below, would leave no room for what the rounds differ in.
    limits = rows["test_accuracy"].quantile(0.03), rows["test_accuracy"].max() + 0.1
    with utils.figure(path, rows=len(kinds)) as (panels, sns):
        for axes, kind in zip(panels, kinds, strict=True):
            here, first = rows[rows["prune_type"] == kind], axes is panels[0]
            names = {"x": "iteration", "y": "test_accuracy", "hue": "remaining"}
            sns.lineplot(here, **names, hue_order=order, errorbar=("pi", 100), legend=first, ax=axes)
            axes.set(xlabel="iteration", ylabel=f"{kind}\ntest accuracy (%)", ylim=limits)
        panels[0].legend(title=f"{title}\nweights remaining (%)", ncols=2, loc="lower right")


def parse_args(argv=None):
    parser = utils.Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--arch_type", metavar="NAME", help="this architecture alone (default: all%(default).0s)")
    add("--dataset", metavar="NAME", help="this dataset alone (default: all%(default).0s)")
    rounds = utils.numbers("whole numbers, 0 or more, with commas between them", lambda value: value >= 0)
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
