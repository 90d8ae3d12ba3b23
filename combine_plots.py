"""Draw winning tickets and their controls, for all architectures and datasets with results.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, whatever the number of rounds and seeds. For each
architecture and dataset it draws, and prints as a table,

- test accuracy against the percentage of weights remaining;
- early-stopping iteration, and test accuracy at early stopping and at the end of training, as in
  the paper's Figure 4;
- test accuracy of the untrained tickets;
- test accuracy during training for some rounds, as in the paper's Figure 3.

Seeds with the same settings give a mean and a range. Runs with different settings get a curve each,
whether they are in one folder or in several:

    python3 combine_plots.py --output_dir FOLDER1 FOLDER2 --baseline="lt, rewind_iter=0"

`main.py` draws the figures of single runs with the functions here.
"""

import contextlib
import itertools
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

# matplotlib, pandas, SciPy and seaborn take seconds to import, so functions that need them do it.

COLUMNS = {  # arrays with a value per round
    "bestaccuracy": "test accuracy at best validation (%)",
    "earlystop": "early-stopping iteration",
    "earlystopaccuracy": "test accuracy at early stopping (%)",
    "finalaccuracy": "test accuracy at the end of training (%)",
    "untrained": "test accuracy before training (%)",
    "trainaccuracy": "training accuracy at the end (%)",
}
FIGURES = {
    "combined": ["bestaccuracy"],
    "earlystop": ["earlystop", "earlystopaccuracy", "finalaccuracy"],  # the paper's Figure 4
    "untrained": ["untrained"],
}
# Evaluations of untrained tickets have no training loss, and are left out.
LOGGED = ("round", "epoch", "iteration", "weights_remaining", "train_loss", "test_accuracy")
# Known prune types, each with the same colour and marker in all figures. Others come after them.
PRUNE_TYPES = (
    "lt",
    "reinit",
    "random",
    "shuffle",
    "constant",
    "signed_reinit",
    "signed_shuffle",
    "signed_constant",
    "lr_rewind",
    "finetune",
)
COLOURS = [f"C{i}" for i in range(10)]
MARKERS = "osD^v<>PdpH"  # filled ones
MANY_CURVES = 6  # more need a figure as wide as a page, and bars instead of bands
OVER_SEEDS = "mean and range (band or bars) over seeds"
TRAINING_POINTS = 50  # of a curve over a round; more would show the noise of evaluations
EQUAL_DENSITY = 1e-3  # relative: with global pruning, runs may keep a few weights more or less
LINE = 20  # characters in a line of a header; two lines hold each of COLUMNS


def main(args):
    """Draw and tabulate all experiments. Raises utils.BadInput if the results do not allow it."""
    import pandas as pd

    tables = []
    latex = ["% These tables need \\usepackage{booktabs}.\n"]
    experiments = read_experiments(args)
    for runs, log in experiments:
        draw_experiment(args, runs, log)
        baseline = find_baseline(runs, args.baseline)
        table = summary(runs, baseline)
        tables.append(table)
        print(f"\n{as_text(table, baseline)}\n")
        if args.latex:
            latex += as_latex(table, baseline, args.rounds)

    if args.csv:
        text = pd.concat(tables).to_csv(index=False)
        write_text(args.csv, text, "a row per curve and round")
    if args.raw:
        text = pd.concat(runs for runs, _ in experiments).to_csv(index=False)
        write_text(args.raw, text, "a row per seed and round")
    if args.latex:
        rounds = ", ".join(map(str, args.rounds))
        write_text(args.latex, "\n".join(latex), f"LaTeX tables of rounds {rounds}")


def write_text(path, text, content):
    """Write text to a file, and print its path and content."""
    utils.write(Path(path), lambda file: file.write(text.encode()), shared=True)
    print(f"{path}: {content}")


# ---- Reading results -----------------------------------------------------------------------------


def read_experiments(args):
    """Return what read_runs returns for each architecture and dataset, as a list.

    Raises utils.BadInput if there are no results, or if no curve is the `--baseline`.
    """
    places = {}
    for files in find_runs(args):
        places.setdefault((files.arch_type, files.dataset), []).append(files)
    experiments = [read_runs(places[place]) for place in sorted(places)]
    experiments = [(runs, log) for runs, log in experiments if not runs.empty]

    if not experiments:
        place = f"{args.arch_type or '<arch>'}/{args.dataset or '<dataset>'}"
        path = f"dumps/lt/{place}/<prune_type>_bestaccuracy.dat"
        paths = [f"{folder}/{path}" for folder in args.output_dir]
        raise utils.BadInput(
            f"nothing to draw: no results at {' or '.join(paths)}. "
            "Run main.py first, or choose another --output_dir"
        )
    curves = dict.fromkeys(curve for runs, _ in experiments for curve in runs["curve"])
    if args.baseline not in (None, *curves):
        raise utils.BadInput(
            f"--baseline={args.baseline!r} is not a curve: choose one of "
            f"{', '.join(map(repr, curves))}"
        )
    return experiments


def find_runs(args):
    """Yield the utils.Files of all runs with results that the flags select."""
    known = set()
    for folder in args.output_dir:
        path = Path(folder).resolve()
        if path in known:
            warn(f"{folder} is given twice")
            continue
        known.add(path)
        found = [
            files
            for files in utils.find_results(folder)
            if args.arch_type in (None, files.arch_type) and args.dataset in (None, files.dataset)
        ]
        if not found and len(args.output_dir) > 1:
            warn(f"{folder} has no results")
        yield from found


def read_runs(found):
    """Return all finished rounds and all evaluations of some runs, as two DataFrames.

    The rounds have the columns arch_type, dataset, prune_type, curve; one for each setting in which
    curves differ; seed, round, weights_remaining, COLUMNS; and earlystop_at_end, true if early
    stopping is at the round's last evaluation. The evaluations have curve, seed and LOGGED.
    """
    import pandas as pd

    results = {}
    order = [*PRUNE_TYPES, *sorted({files.prune_type for files in found}.difference(PRUNE_TYPES))]
    for files in sorted(found, key=lambda files: order.index(files.prune_type)):
        run = read_run(files)
        if run is not None:
            results[files] = run
    settings, curves = name_curves(results)

    names = dict.fromkeys(name for differing in settings.values() for name in differing)
    runs = []
    logs = []
    for files in without_copies(results, curves):
        identity = {
            "arch_type": files.arch_type,
            "dataset": files.dataset,
            "prune_type": files.prune_type,
            "curve": curves[files],
            **{name: settings[files].get(name, "") for name in names},
            "seed": str(files.seed),  # the largest ones would become floats
        }
        log = read_log(files.log)
        run = results[files]
        last = run["round"].map(log.groupby("round")["iteration"].max())
        runs.append(pd.DataFrame({**identity, **run, "earlystop_at_end": run["earlystop"] == last}))
        logs.append(pd.DataFrame({**identity, **log}))
    if not runs:
        return pd.DataFrame(), pd.DataFrame()
    return pd.concat(runs, ignore_index=True), pd.concat(logs, ignore_index=True)


def without_copies(results, curves):
    """Return the runs, a list of utils.Files, without copies of a run in other folders.

    `results` has what read_run returned for each of them, and `curves` their curves. Raises
    utils.BadInput if runs cannot be told apart, although their results differ.
    """
    kept = {}
    copies = []
    for files in sorted(results, key=lambda files: -len(results[files])):  # copies may be older
        original = kept.setdefault((curves[files], files.seed), files)
        if original is files:
            continue
        if not results[files].equals(results[original].head(len(results[files]))):
            raise utils.BadInput(
                f"the {files.prune_type} runs in {original.dumps} and {files.dumps} have the same "
                "settings and seed but different results, so they cannot be told apart. Give only "
                "one of their folders to --output_dir"
            )
        copies.append(f"{files.prune_type} in {files.dumps}")
    if copies:
        warn(f"left out, because another folder has the same runs: {'; '.join(copies)}")
    return [files for files in results if files in kept.values()]


def read_run(files):
    """Return the finished rounds of a run, a DataFrame; None if it has none that can be read.

    The columns are round, weights_remaining and COLUMNS.
    """
    import pandas as pd

    paths = {name: files.array(name) for name in ("compression", *COLUMNS)}
    arrays = {}
    try:
        for name, path in paths.items():
            if not path.exists():  # the run has not measured it
                continue
            arrays[name] = values = utils.read_array(path)
            if name != "earlystop" and ((values < 0) | (values > 100)).any():
                raise utils.BadInput(f"{path} has values that are not percentages")
    except utils.BadInput as error:
        warn(f"left out: {error}")
        return None

    rounds = min(map(len, arrays.values()))  # main.py may be between two files
    columns = {"round": range(rounds), "weights_remaining": arrays["compression"][:rounds]}
    for name in COLUMNS:
        columns[name] = arrays[name][:rounds] if name in arrays else math.nan
    return pd.DataFrame(columns)


def read_log(path):
    """Return the evaluations in a log, a DataFrame with the columns LOGGED."""
    import pandas as pd

    rows = []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # main.py may be writing it
            row = json.loads(line)
            rows.append([float(row[name]) for name in LOGGED])
    log = pd.DataFrame(rows, columns=LOGGED, dtype=float)
    return log[np.isfinite(log).all(axis=1)].astype({"round": int})


# ---- Settings and curves -------------------------------------------------------------------------


def name_curves(found):
    """Return the settings in which runs differ, {utils.Files: {flag: text}}, and their curves.

    The curves are {utils.Files: name}. Warns if runs in a single folder differ, which may be
    unintended, or if settings cannot be read.
    """
    recorded = {files: read_settings(files) for files in found}
    settings = differing_settings(recorded)
    curves = {}
    for files, differing in settings.items():
        parts = [files.prune_type]
        for name, value in differing.items():
            if value == "True":
                parts.append(name)
            elif value != "False":
                parts.append(f"{name}={value}")
        curves[files] = ", ".join(parts)

    if any(settings.values()) and len({files.root for files in found}) == 1:
        names = "; ".join(dict.fromkeys(curves.values()))
        warn(f"runs with different settings are not averaged: {names}")
    unknown = [f"{files.prune_type} in {files.dumps}" for files in found if not recorded[files]]
    if unknown:
        warn(f"settings that cannot be read are treated as equal: {'; '.join(unknown)}")
    return settings, curves


def read_settings(files):
    """Return a run's settings and their defaults, two {flag: value}; None if they cannot be read.

    The settings include those of the run that made the masks, such as {"lt's lr": 0.1}.
    """
    try:
        recorded = json.loads(files.settings.read_text())
        settings = comparable(recorded["settings"])
        for name in recorded.get("refused", []):
            settings.pop(name, None)
        source = comparable(settings.pop("masks_from_settings", {}))
        defaults = dict(recorded["defaults"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not settings.get("masks_from"):  # the run makes its own masks
        source = settings
    maker = settings.get("masks_from") or files.prune_type
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


def differing_settings(recorded):
    """Return the settings in which runs differ, as name_curves does.

    A setting is left out if it follows from another one in all runs. `recorded` has what
    read_settings returned for each run. A setting missing from a run counts as its default, and
    runs without settings are one curve.
    """
    known = {files: found for files, found in recorded.items() if found}
    relevant = {name for settings, _ in known.values() for name in settings}
    defaults = {}
    for _, found in known.values():
        defaults |= {name: found[name] for name in found if name in relevant}
    values = {}
    for files, (settings, own_defaults) in known.items():
        # Flags that the run refuses are among its own defaults.
        added_later = [name for name in defaults if name not in own_defaults]
        values[files] = {name: defaults[name] for name in added_later} | settings

    differing = {}
    for files in recorded:
        differing[files] = {}
        if files not in known and known:
            differing[files]["settings"] = "unknown"
        for name, value in values.get(files, {}).items():
            if differs(name, value, values) and not follows(name, values):
                own_name = name.removeprefix(f"{files.prune_type}'s ")
                differing[files][own_name] = as_flag(value)
    return differing


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
    if value in (None, []):
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def warn(message):
    print(f"combine_plots.py: {message}", file=sys.stderr)


# ---- Tables --------------------------------------------------------------------------------------


def find_baseline(runs, wanted):
    """Return the curve that differences are taken to: the wanted one, or the only one of lt.

    Returns None if there is no such curve.
    """
    curves = runs["curve"].unique()
    if wanted is None:
        curves = runs.loc[runs["prune_type"] == "lt", "curve"].unique()
        wanted = curves[0] if len(curves) == 1 else None
    return wanted if wanted in curves else None


def summary(runs, baseline):
    """Return a DataFrame with a row per curve and round, and these columns for each of COLUMNS.

    Over all trials: the mean (named like the column), _std, _min and _max. Over the pairs of trials
    with the same seed: _difference, the mean difference to the baseline, and _difference_low and
    _difference_high, its 95% confidence interval. `pairs` is their number, and
    `earlystop_at_end` that of the trials whose early stopping is at the last evaluation.
    """
    names = [*runs.columns[: runs.columns.get_loc("seed")], "round"]
    groups = runs.groupby(names, sort=False)
    table = groups[[*COLUMNS]].agg(["mean", "std", "min", "max"])
    table.columns = ["_".join(levels).removesuffix("_mean") for levels in table.columns]
    table.insert(0, "trials", groups.size())
    table.insert(0, "weights_remaining", groups["weights_remaining"].mean())
    table["earlystop_at_end"] = groups["earlystop_at_end"].sum()
    table = table.reset_index()
    table = table.merge(differences(runs, baseline), how="left", on=["curve", "round"])
    return table.fillna({"pairs": 0}).astype({"pairs": int})


def differences(runs, baseline):
    """Return the part of a summary that compares the curves with the baseline.

    Rounds are compared if their densities are equal. The confidence interval is that of a paired t
    test: Student's t distribution, with one degree of freedom less than there are pairs. It needs
    three pairs.
    """
    import pandas as pd
    from scipy import stats

    runs = runs[runs["weights_remaining"] > 0]
    runs = runs.assign(density=np.log(runs["weights_remaining"])).sort_values("density")
    reference = runs.loc[runs["curve"] == baseline, ["density", "seed", *COLUMNS]]
    pairs = pd.merge_asof(
        runs[runs["curve"] != baseline],
        reference,
        on="density",
        by="seed",
        direction="nearest",
        tolerance=EQUAL_DENSITY,
        suffixes=("", "_baseline"),
    )
    for name in COLUMNS:
        pairs[name] -= pairs[f"{name}_baseline"]

    groups = pairs.groupby(["curve", "round"])[[*COLUMNS]]
    n = groups.count()
    mean = groups.mean()
    half = groups.sem().where(n >= 3) * stats.t.ppf(0.975, n - 1)
    parts = {"pairs": n["bestaccuracy"]}
    for name in COLUMNS:
        parts[f"{name}_difference"] = mean[name]
        parts[f"{name}_difference_low"] = mean[name] - half[name]
        parts[f"{name}_difference_high"] = mean[name] + half[name]
    return pd.DataFrame(parts).reset_index()


def as_text(table, baseline):
    """Return a summary as text for the terminal."""
    text = caption(table, baseline, COLUMNS)
    if baseline is None and table["curve"].nunique() > 1:
        text += " For differences between curves, name one of them with --baseline."
    lines = textwrap.wrap(text, 100)
    names = table.columns[: table.columns.get_loc("round") + 1]
    names = names.drop(["arch_type", "dataset", "curve"])
    columns = [*COLUMNS]
    for side_by_side in columns[:3], columns[3:]:
        cells = as_cells(table, names, side_by_side)
        lines += ["", cells.to_string(index=False, sparsify=False)]
    return "\n".join(lines)


def as_latex(table, baseline, rounds):
    """Return some rounds of a summary as LaTeX tables, a list with one for each of COLUMNS.

    Small print and narrow gaps make them fit a page.
    """
    table = table[table["round"].isin(rounds)]
    if table.empty:
        warn("--latex: there are no results of the rounds in --rounds")
    tables = []
    for name in COLUMNS:
        if table[name].isna().all():
            continue
        cells = as_cells(table, ["curve"], [name]).map(with_symbols)
        escaped = with_symbols(caption(table, baseline, [name]))
        for character in "%_":
            escaped = escaped.replace(character, f"\\{character}")
        styler = cells.style.format(escape="latex-math").format_index(escape="latex-math", axis=1)
        text = styler.hide(axis="index").to_latex(
            caption=escaped,
            column_format="@{}l" + r"@{\hspace{6pt}}r" * (cells.shape[1] - 1) + "@{}",
            hrules=True,
            position_float="centering",
            sparse_columns=False,
        )
        tables.append(text.replace(r"\centering", r"\centering\footnotesize"))
    return tables


def caption(table, baseline, columns):
    """Return what a table with some of COLUMNS shows, as sentences."""
    arch_type, dataset = table[["arch_type", "dataset"]].iloc[0]
    titles = "; ".join(COLUMNS[name] for name in columns)
    text = f"{arch_type} on {dataset}: {titles}. Mean ± standard deviation over seeds."
    if table["pairs"].any():
        text += f" Differences to the baseline ({baseline}) are paired by seed, at equal density"
        if table["pairs"].max() >= 3:
            text += ", with 95% confidence intervals (t distribution) for three or more seeds"
        text += "."
    if "earlystop" in columns and table["earlystop_at_end"].any():
        text += (
            " >=: at least one seed stopped early at its last evaluation, so its rounds may be too "
            "short."
        )
    return text


def as_cells(table, names, columns):
    """Return the cells of a table, a DataFrame of texts whose headers have two lines.

    `names` are the columns that name a row, `columns` some of COLUMNS.
    """
    import pandas as pd

    cells = {}
    for name in names:
        cells["", name] = table[name].astype(str)
    cells["weights", "remaining (%)"] = table["weights_remaining"].map("{:.2f}".format)
    cells["", "seeds"] = table["trials"].astype(str)
    for name in columns:
        title = COLUMNS[name]
        digits = 0 if name == "earlystop" else 2
        texts = []
        for mean, std, at_end in table[[name, f"{name}_std", "earlystop_at_end"]].to_numpy():
            bound = ">= " if name == "earlystop" and at_end else ""
            texts.append(bound + mean_and_std(mean, std, digits))
        cells[two_lines(title)] = texts

        parts = table[[f"{name}_difference", f"{name}_difference_low", f"{name}_difference_high"]]
        if parts.notna().any(axis=None):
            title = re.sub("test accuracy|training accuracy|iteration", "difference", title)
            cells[two_lines(title)] = [mean_and_interval(*row, digits) for row in parts.to_numpy()]
    return pd.DataFrame(cells, index=table.index)


def mean_and_std(mean, std, digits):
    if math.isnan(mean):
        return "-"
    text = f"{mean:.{digits}f}"
    return text if math.isnan(std) else f"{text} ± {std:.{digits}f}"


def mean_and_interval(mean, low, high, digits):
    if math.isnan(mean):
        return "-"
    text = f"{mean:+z.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:+z.{digits}f}, {high:+z.{digits}f}]"


def two_lines(title):
    """Split a title into the two lines of a header."""
    first, _, second = textwrap.fill(title, LINE).partition("\n")
    return first, second


def with_symbols(text):
    """Return text with LaTeX's symbols for signs of numbers, >= and ±."""
    text = re.sub(r"[+-](?=\d)", r"$\g<0>$", text)
    return text.replace(">=", r"$\geq$").replace("±", r"$\pm$")


# ---- The figures of a run ------------------------------------------------------------------------


def draw_run(files):
    """Draw the figure over all rounds of a run, and the figures of single rounds if missing."""
    runs = read_run(files).assign(curve=files.prune_type, seed=files.seed)
    for round_ in runs["round"]:
        if not files.figure(f"LossVsAccuracy_{round_}").exists():
            draw_round(files, round_)
    plot_columns(files.figure("AccuracyVsWeights"), runs, ["bestaccuracy"], files.title)


def draw_round(files, round_):
    """Draw a round's training losses and test accuracies against the epoch."""
    losses = utils.read_array(files.array(f"all_loss_{round_}"))
    log = read_log(files.log)
    rows = log[log["round"] == round_]
    # Iterations per epoch, from an evaluation at the end of one; others give less.
    steps = (rows["iteration"] / rows["epoch"]).max()
    epochs = rows["iteration"] / steps
    end = epochs.iloc[-1]  # the last epoch may be incomplete
    loss_points = [(min(epoch, end), loss) for epoch, loss in enumerate(losses, start=1)]
    accuracy_points = list(zip(epochs, rows["test_accuracy"], strict=True))
    remaining = rows["weights_remaining"].iloc[-1]
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


def plot_columns(path, runs, columns, title, shared=False):
    """Plot some of COLUMNS against the percentage of weights remaining, with a panel for each.

    `runs` has a row per round and run, and the columns of read_runs.
    """
    many = runs["curve"].nunique() > MANY_CURVES
    err_style = "bars" if many or len(columns) > 1 else "band"
    with figure(path, rows=len(columns), wide=many, shared=shared) as (panels, sns):
        for axes, column in zip(panels, columns, strict=True):
            first = axes is panels[0]
            plot_curves(axes, sns, runs, column, err_style=err_style, legend=first)
            if column == "earlystop":
                mark_last_evaluations(axes, runs)
        legend_above(panels[0], with_seeds(runs), title, ncols=1 + many)


# ---- The figures of several runs -----------------------------------------------------------------


def draw_experiment(args, runs, log):
    """Draw all figures for an architecture on a dataset, and print their paths.

    `runs` and `log` are the DataFrames of read_runs.
    """
    arch_type, dataset = runs[["arch_type", "dataset"]].iloc[0]
    title = f"{arch_type}, {dataset}"
    # Several folders have no place in common but the current one.
    folder = args.output_dir[0] if len(args.output_dir) == 1 else "."

    def path_of(name):
        return utils.combined_figure(folder, name, arch_type, dataset, args.format)

    print(f"{title}: {describe(runs)}")
    for name, columns in FIGURES.items():
        complete = runs.dropna(subset=columns)
        if complete.empty:
            continue
        path = path_of(name)
        plot_columns(path, complete, columns, title, shared=True)
        content = ", ".join(COLUMNS[column].removesuffix(" (%)") for column in columns)
        print(f"{path}: {content}; {OVER_SEEDS}")

    training = log[log["round"].isin(args.rounds)]
    if not training.empty:
        path = path_of("training")
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
    missing = {"lt", "reinit"}.difference(runs["prune_type"])
    if missing:
        text += f" (not run yet: {', '.join(sorted(missing))})"
    return text


def mark_last_evaluations(axes, runs):
    """Open the markers of early-stopping iterations that are a seed's last evaluation."""
    groups = runs.groupby(["curve", "round"], sort=False)
    means = groups[["weights_remaining", "earlystop", "earlystop_at_end"]].mean()
    found = styles(runs["curve"])
    for curve, points in means[means["earlystop_at_end"] > 0].groupby("curve"):
        colour, marker, _ = found[curve]
        axes.plot(
            points["weights_remaining"],
            points["earlystop"],
            linestyle="none",
            color=colour,
            marker=marker,
            markerfacecolor="white",
        )
    if means["earlystop_at_end"].any():
        label = "open: a seed's last evaluation"
        axes.plot([], [], "o", color="grey", markerfacecolor="white", label=label)


def plot_training(path, rows, title):
    """Plot test accuracy during training as in the paper's Figure 3, with a panel per curve.

    `rows` has evaluations as read_runs returns them. Those within 1/TRAINING_POINTS of the longest
    round are drawn as one point, at the mean of their iterations.
    """
    width = max(1, rows["iteration"].max() / TRAINING_POINTS)
    rows = rows.assign(part=(rows["iteration"] / width).apply(math.ceil))
    rows = rows.groupby(["curve", "seed", "round", "part"], sort=False)[[*LOGGED[1:]]].mean()
    rows = rows.reset_index()
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
            axes.set_title(textwrap.fill(name, 44))
            axes.set(xlabel="iteration", ylabel="test accuracy (%)", ylim=limits)
        legend_above(panels[0], {}, f"{title}: weights remaining (%)", ncols=4)


def round_labels(rows):
    """Return the legend's text for each round: the percentage of weights remaining."""
    remaining = rows.groupby("round")["weights_remaining"].agg(["min", "max", "mean"])
    texts = {}
    for round_, low, high, mean in remaining.itertuples():
        # With global pruning, runs may keep a few weights more or less.
        same = math.isclose(low, high, rel_tol=EQUAL_DENSITY)
        texts[round_] = f"{mean:.3g}" if same else "differs"
    labels = {}
    for round_, text in texts.items():
        ambiguous = text == "differs" or list(texts.values()).count(text) > 1
        labels[round_] = f"{text} (round {round_})" if ambiguous else text
    return labels


# ---- The look of figures -------------------------------------------------------------------------


@contextlib.contextmanager
def figure(path, rows=1, wide=False, shared=False):
    """Yield the axes of a figure, one per row, and seaborn; write the figure at the end.

    It is as wide as a paper's column, or as its page. Several processes may write a `shared` figure
    at once.
    """
    import seaborn as sns
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = sns.axes_style("ticks") | sns.plotting_context("paper")
    fonts = {"pdf.fonttype": 42, "svg.fonttype": "none"}  # embedded, and text instead of outlines
    with rc_context(style | fonts), sns.color_palette("colorblind"):
        size = (7.0, 1.2 + 2.4 * rows) if wide else (3.5, 1.2 + 1.4 * rows)
        fig = Figure(figsize=size, layout="constrained")
        yield fig.subplots(rows, sharex=True, squeeze=False)[:, 0], sns
        sns.despine(fig)
        options = {"format": path.suffix.removeprefix("."), "dpi": 300}
        utils.write(path, lambda file: fig.savefig(file, **options), shared=shared)
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
    drawn at their mean percentage.
    """
    names = runs["curve"]
    percents = runs.groupby([names, "round"])["weights_remaining"].transform("mean")
    percents = percents.replace(0, np.nan)  # a logarithmic axis has no 0
    colours, markers, dashes = {}, {}, {}
    for name, style in styles(names).items():
        colours[name], markers[name], dashes[name] = style
    sns.lineplot(
        x=percents,
        y=runs[column],
        hue=names,
        palette=colours,
        style=names,
        markers=markers,
        dashes=dashes,
        errorbar=("pi", 100),
        ax=axes,
        **options,
    )
    axes.set_ylabel(textwrap.fill(COLUMNS[column], LINE))
    if not percents.isna().all():
        set_percent_axis(axes, percents)


def styles(curves):
    """Return the colour, marker and dashes of each curve, {curve: (colour, marker, dashes)}.

    Curves that are not of PRUNE_TYPES get the next free ones.
    """
    present = set(curves)
    numbers = {curve: i for i, curve in enumerate(PRUNE_TYPES) if curve in present}
    free = (number for number in itertools.count() if number not in numbers.values())
    for curve in dict.fromkeys(curves):
        if curve not in numbers:
            numbers[curve] = next(free)
    found = {}
    for curve, i in numbers.items():
        dashes = "" if i < len(COLOURS) else (2, 1)
        found[curve] = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], dashes
    return found


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
    parser = utils.Parser(__doc__.partition("\n\n")[0])
    # fmt: off
    add = parser.add_argument
    add("--arch_type", metavar="NAME",
        help="draw only this architecture (default: all%(default).0s)")
    add("--dataset", metavar="NAME",
        help="draw only this dataset (default: all%(default).0s)")
    add("--rounds", default="0,3,7,15", type=utils.numbers("[0, inf)"), metavar="N,...",
        help="comma-separated rounds whose training is drawn, and which --latex writes")
    add("--output_dir", type=utils.folder, metavar="DIR", nargs="+", action="extend",
        help="one or more of main.py's --output_dir; figures of several go to the current folder"
             " (default: .%(default).0s)")
    add("--baseline", metavar="NAME",
        help="curve that differences are taken to (default: the only one of lt%(default).0s)")
    add("--format", default="png", choices=["png", "pdf", "svg"],
        help="file type of the figures")
    add("--csv", type=utils.folder, metavar="FILE",
        help="also write the table, with a row per curve and round (default: none%(default).0s)")
    add("--raw", type=utils.folder, metavar="FILE",
        help="also write a CSV file with a row per seed and round (default: none%(default).0s)")
    add("--latex", type=utils.folder, metavar="FILE",
        help="also write LaTeX tables of --rounds (default: none%(default).0s)")
    # fmt: on
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or ["."]
    files = {name: getattr(args, name) for name in ("csv", "raw", "latex")}
    for name, path in files.items():
        if path and Path(path).is_dir():
            parser.error(f"--{name}={path} is a folder; it must be a file")
        if path and list(files.values()).count(path) > 1:
            parser.error(f"--{name}={path} is the file of another table, too")
    return args


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend works only in its own process
    sys.stdout.reconfigure(errors="replace")  # an ASCII terminal has no ±
    with utils.one_line_errors("combine_plots.py"):
        main(parse_args())
