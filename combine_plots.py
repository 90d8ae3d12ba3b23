"""Overlay winning tickets and their controls, for every architecture and dataset that has results.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, of whatever length and of however many seeds, and draws for each experiment the
accuracy against the percentage of weights remaining; early-stopping iteration, accuracy there and accuracy at the end, as in
Figure 4 of the paper; and the accuracy while rounds train, as in its Figure 3. Several seeds of the same settings give their
mean, and their range. Runs of different settings are curves of their own. A table says the same in numbers.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all is imported, Ctrl-C needs no traceback

import json
import math
import re
import sys
import zlib
from pathlib import Path

import pandas as pd

import utils

EARLY_STOPPING = {  # the arrays of the paper's Figure 4, and what they are
    "earlystop": "early-stopping iteration",
    "earlystopaccuracy": "accuracy there (%)",
    "finalaccuracy": "accuracy at the end (%)",
}
COLUMNS = {"bestaccuracy": "accuracy at best validation (%)", **EARLY_STOPPING}
# Settings in which a prune type may differ from another and be compared with it all the same.
OF_THE_TYPE = {"masks_from", "rewind_iter"}
TRAINING_POINTS = 50  # of a curve over a round; more would show the noise of single evaluations


def main(args):
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
    for (kind, folder), run in found.items():
        run.insert(0, "seed", folders[folder])
        run.insert(0, "curve", names[kind, folder])
    return pd.concat(found.values(), ignore_index=True) if found else pd.DataFrame(), names


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
    run = pd.DataFrame({"round": range(rounds), "weights_remaining": arrays["compression"][:rounds]})
    for name in COLUMNS:
        run[name] = arrays[name][:rounds] if name in arrays else math.nan
    return run


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
    rows = []
    for (kind, folder), curve in names.items():
        path = folder / f"{kind}_log.jsonl"
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                values = {name: float(row[name]) for name in ("weights_remaining", "iteration", "test_accuracy")}
                if row["round"] in rounds and all(map(math.isfinite, values.values())):
                    rows.append({"curve": curve, "seed": folder.name, "round": row["round"], **values})
            except (ValueError, KeyError, TypeError):  # the last line of a run that writes it just now
                continue
    return pd.DataFrame(rows)


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


# Figures


def draw(args, place, runs, names):
    """All figures that an experiment's results allow."""
    arch_type, dataset = place.parts[-2:]
    folder, title = Path(args.output_dir, "plots", "lt", "combined_plots"), f"{arch_type}, {dataset}"
    path = folder / f"combined_{arch_type}_{dataset}.png"
    utils.plot_accuracy(path, runs["curve"], runs["weights_remaining"], runs["bestaccuracy"], title)
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
    with utils.figure(path, rows=3) as (panels, sns):
        for axes, (name, label) in zip(panels, EARLY_STOPPING.items(), strict=True):
            first = axes is panels[0]
            utils.curves(axes, sns, runs["curve"], runs["weights_remaining"], runs[name], err_style="bars", legend=first)
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
    with utils.figure(path, rows=len(curves)) as (panels, sns):
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
