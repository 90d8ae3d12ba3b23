"""Draw winning tickets and their controls, for all architectures and datasets with results.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, whatever the number of rounds and seeds. For each
architecture and dataset it prints a table and what follows from it, and draws

- test accuracy against the percentage of weights remaining;
- differences from one of the curves, the baseline, with 95% confidence intervals;
- early-stopping iteration, and test accuracy at early stopping and at the end of training, as in
  the paper's Figure 4;
- test accuracy of the untrained tickets;
- test accuracy during training for some rounds, as in the paper's Figure 3;
- with `main.py --connect_to`, the error barrier between two runs beside test accuracy, and the test
  error on the line between their networks.

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
import string
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

import archs
import utils

# matplotlib, SciPy and seaborn take a second to import, so only functions that need them do it.

COLUMNS = {  # arrays with a value per round
    "bestaccuracy": "test accuracy at best validation (%)",
    "earlystop": "early-stopping iteration",
    "earlystopaccuracy": "test accuracy at early stopping (%)",
    "finalaccuracy": "test accuracy at the end of training (%)",
    "untrained": "test accuracy before training (%)",
    "trainaccuracy": "training accuracy at the end (%)",
    "barrier": "error barrier (points)",
}
DIGITS = dict.fromkeys(COLUMNS, 2) | {"earlystop": 0}  # after the decimal point, in tables
# By default, if measured: are tickets more accurate? are they faster? are they stable?
PRINTED = ["bestaccuracy", "earlystop", "barrier"]
FORMATS = ["png", "pdf", "svg"]  # of figures
STABLE = 2  # points: networks with a lower barrier are stable, say Frankle et al. (2020)
TITLES = COLUMNS | {
    "bestaccuracy_difference": "difference in test accuracy (points)",
    "earlystop_difference": "difference in early-stopping iteration",
}
FIGURES = {  # a figure is drawn if its first quantity is measured
    "combined": ["bestaccuracy"],
    "differences": ["bestaccuracy_difference", "earlystop_difference"],  # from the baseline
    "earlystop": ["earlystop", "earlystopaccuracy", "finalaccuracy"],  # the paper's Figure 4
    "untrained": ["untrained"],
    "barrier": ["barrier", "bestaccuracy"],  # do both go together?
}
LOGGED = [
    "round",
    "epoch",
    "iteration",
    "weights_remaining",
    "train_loss",
    "test_accuracy",
    "val_loss",
    "val_accuracy",
    "masks",
]
# Settings of a source that usually follow from its dataset, which is named instead.
FOLLOWS_DATASET = ("data", "network", "val_size")
NEEDED = LOGGED[:6]  # evaluations of untrained tickets have no training loss, and are left out
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
MARKERS = "osDPX<>pdH*"  # filled ones, without the triangles of BOUNDS
DASHES = ["-", "--", "-.", (0, (4, 1, 1, 1, 1, 1))]
# Triangles that point to where the mean may be.
BOUNDS = {">= ": ("^", "mean is at least"), "<= ": ("v", "mean is at most")}
STYLE = {
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # embeds fonts
    "svg.fonttype": "none",  # text instead of outlines
}
OPEN = {"s": 25, "facecolors": "none", "zorder": 3}  # triangles that do not hide each other
SIDE_BY_SIDE = 0.02  # of the x axis, over which curves are spread so that bars are visible
MANY_CURVES = 6  # more need a figure as wide as a page
TRAINING_POINTS = 50  # of a curve over a round; more would show the noise of evaluations
EQUAL_DENSITY = 1e-3  # relative: with global pruning, runs may keep a few weights more or less
ENOUGH = 3  # seeds for a confidence interval
EMPTY = 1e-9  # percent, in place of 0, which has no logarithm
# Percent; by default, the rounds nearest to these are shown, and the last one.
DENSITIES = (100, 50, 20, 10, 5, 2, 1, EMPTY)
WIDTH = 100  # characters in a line of the printed table
LONG = 60  # characters of a setting; a longer one is named by its checksum
LINE = 20  # characters in a line of a header; two lines hold each of COLUMNS
LETTERS = [f"{a}{b}" for b in ("", *string.digits) for a in string.ascii_uppercase]
TEX = str.maketrans(
    {character: f"\\{character}" for character in "&#$%_{}"}
    | {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$", "<": r"$<$", ">": r"$>$"}
)


def main(args):
    """Draw and tabulate all experiments. Raises utils.BadInput if the results do not allow it."""
    experiments = read_experiments(args)
    tables = []
    latex = ["% These tables need \\usepackage{booktabs}.\n"]
    texts = []
    for runs, log in experiments:
        chosen = choose_rounds(runs, args.rounds)
        baseline = find_baseline(runs, args.baseline)
        table = summary(runs, baseline)
        draw_experiment(args, table, log.merge(chosen), baseline)
        numbers = table.drop(columns=["earlystop_bound", "earlystop_difference_bound", "same"])
        # A program would not notice that a difference is a bound.
        numbers.loc[table["earlystop_difference_bound"] != "", "earlystop_difference"] = math.nan
        tables.append(numbers)
        if not chosen.empty:
            shown = table.merge(chosen)
            texts.append(as_text(shown, baseline, args.columns or measured(table, PRINTED)))
            latex += as_latex(shown, baseline) if args.latex else []
        texts.append("\n".join(answers(table, baseline)))

    for path, frames, description in (
        (args.csv, tables, "a row per curve and round"),
        (args.raw, [runs for runs, _ in experiments], "a row per seed and round"),
    ):
        if path:
            write_text(path, pd.concat(frames).to_csv(index=False), description)
    if args.latex:
        write_text(args.latex, "\n".join(latex), "LaTeX tables")
    for text in filter(None, texts):
        print(f"\n{text}")


def write_text(path, text, description):
    """Write text to a file, and print its path and description.

    Links are followed. What is not a regular file, such as a pipe, is written into.
    """
    sys.stdout.flush()  # which the file may be
    path = Path(path)
    content = text.encode(errors="replace")
    if path.exists() and not path.is_file():
        with utils.writing(path):
            path.write_bytes(content)
    else:
        utils.write(path.resolve(), lambda file: file.write(content), shared=True)
    print(f"{path}: {description}")


# ---- Reading results -----------------------------------------------------------------------------


def read_experiments(args):
    """Return what read_runs returns for each architecture and dataset, as a list.

    Raises utils.BadInput if there are no results, or if no curve is the `--baseline`.
    """
    places = {}
    for folder in args.output_dir:
        found = [
            files
            for files in utils.find_results(folder)
            if args.arch_type in (None, files.arch_type)
            and args.dataset in (None, files.dataset)
            and files.prune_type in (args.prune_type or [files.prune_type])
        ]
        if not found and len(args.output_dir) > 1:
            warn(f"{folder} has no results")
        for files in found:
            places.setdefault((files.arch_type, files.dataset), []).append(files)
    found = [read_runs(places[place]) for place in sorted(places)]
    experiments = [(runs, log) for runs, log in found if not runs.empty]

    if not experiments:
        place = f"dumps/lt/{args.arch_type or '<arch>'}/{args.dataset or '<dataset>'}"
        paths = [
            f"{folder}/{place}/{prune_type}_bestaccuracy.dat"
            for folder in args.output_dir
            for prune_type in args.prune_type or ["<prune_type>"]
        ]
        raise utils.BadInput(
            f"nothing to draw: no results at {' or '.join(paths)}. "
            "Run main.py first, or choose another --output_dir"
        )
    found = {files.prune_type for files in itertools.chain.from_iterable(places.values())}
    for prune_type in sorted({*args.prune_type} - found):
        warn(f"--prune_type={prune_type} has no results")
    curves = dict.fromkeys(curve for runs, _ in experiments for curve in runs["curve"])
    if args.baseline not in (None, *curves):
        raise utils.BadInput(
            f"--baseline={args.baseline!r} is not a curve: choose one of "
            f"{', '.join(map(repr, curves))}"
        )
    return experiments


def read_runs(found):
    """Return all finished rounds and all evaluations of some runs, as two DataFrames.

    The rounds have the columns arch_type, dataset, prune_type, curve; one for each setting in which
    curves differ; seed, round, weights_remaining, COLUMNS; and earlystop_at_end, true if early
    stopping is at the round's last evaluation, and missing if the log does not have it. The
    evaluations have curve, seed and the columns of read_log.
    """
    results = {}
    recorded = {}
    order = [*PRUNE_TYPES, *sorted({files.prune_type for files in found}.difference(PRUNE_TYPES))]
    for files in sorted(found, key=lambda files: order.index(files.prune_type)):
        content = read_settings(files)
        if (run := read_run(files, content.get("seed"))) is not None:
            results[files] = run
            recorded[files] = content
    settings, curves = name_curves(recorded)
    logs = {files: read_log(files.log) for files in without_copies(results, curves)}
    note_versions([recorded[files] for files in logs])
    note_masks(recorded, curves, logs)

    names = dict.fromkeys(name for differing in settings.values() for name in differing)
    runs = [pd.DataFrame()]
    evaluations = [pd.DataFrame()]
    for files, log in logs.items():
        identity = {
            "arch_type": files.arch_type,
            "dataset": files.dataset,
            "prune_type": files.prune_type,
            "curve": curves[files],
            **{name: settings[files].get(name, "") for name in names},
            "seed": str(files.seed),  # the largest ones would become floats
        }
        run = results[files]
        last = run["round"].map(log.groupby("round")["iteration"].max())
        unknown = run["earlystop"].notna() & ~run["earlystop"].le(last)  # an incomplete log
        at_end = run["earlystop"].eq(last).astype("boolean").mask(unknown)
        runs.append(pd.DataFrame({**identity, **run, "earlystop_at_end": at_end}))
        evaluations.append(pd.DataFrame({**identity, **log}))
    return pd.concat(runs, ignore_index=True), pd.concat(evaluations, ignore_index=True)


def without_copies(results, curves):
    """Return the runs, a list of utils.Files, without copies of a run in other folders.

    `results` has what read_run returned for each of them, and `curves` their curves. Raises
    utils.BadInput if runs cannot be told apart, although their results differ.
    """
    kept = {}
    for files in sorted(results, key=lambda files: -len(results[files])):  # copies may be older
        original = kept.setdefault((curves[files], files.seed), files)
        if not results[files].equals(results[original].head(len(results[files]))):
            raise utils.BadInput(
                f"the {files.prune_type} runs in {original.dumps} and {files.dumps} have the same "
                "settings and seed but different results, so they cannot be told apart. Give only "
                "one of their folders to --output_dir"
            )
    copies = [files for files in results if files not in kept.values()]
    if copies:
        names = [f"{files.prune_type} in {files.dumps}" for files in copies]
        warn(f"left out, because another folder has the same runs: {'; '.join(names)}")
    return [files for files in results if files not in copies]


def read_run(files, seed):
    """Return the finished rounds of a run, a DataFrame; None if it has none that can be read.

    The columns are round, weights_remaining and COLUMNS. `seed` is that of its settings, or None.
    """
    paths = {name: files.array(name) for name in ("compression", *COLUMNS)}
    try:
        arrays = {name: utils.read_array(path) for name, path in paths.items() if path.exists()}
        rounds = min(map(len, arrays.values()))  # main.py may be between two files
        run = pd.DataFrame(
            {name: values[:rounds] for name, values in arrays.items()}, columns=[*paths]
        )
        # All rounds have the first two; others may not have been measured.
        percents = run.fillna(dict.fromkeys([*paths][2:], 0)).drop(columns="earlystop")
        if not ((percents >= 0) & (percents <= 100)).all(axis=None):
            raise utils.BadInput(
                f"{paths['compression']}, or an array beside it, has no percentages"
            )
        if seed not in (None, files.seed):  # a copied folder is not another seed
            raise utils.BadInput(f"{files.dumps} has a run of --seed={seed}")
    except utils.BadInput as error:
        warn(f"left out: {error}")
        return None
    run.insert(0, "round", run.index)
    return run.rename(columns={"compression": "weights_remaining"})


def read_log(path):
    """Return the evaluations in a log, a DataFrame with the columns LOGGED and line_errors.

    line_errors has a list, which is empty unless the evaluation measured the barrier.
    """
    rows = []
    line_errors = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        # main.py may be writing it.
        with contextlib.suppress(ValueError, TypeError, OverflowError, AttributeError):
            row = json.loads(line)
            errors = np.array(row.get("line_errors", []), dtype=float)
            rows.append([float(row.get(name, math.nan)) for name in LOGGED])
            is_line = errors.ndim == 1 and len(errors) > 1 and np.isfinite(errors).all()
            line_errors.append(errors.tolist() if is_line else [])
    log = pd.DataFrame(rows, columns=LOGGED, dtype=float).replace([math.inf, -math.inf], math.nan)
    log["line_errors"] = pd.Series(line_errors, index=log.index, dtype=object)
    return log.dropna(subset=NEEDED).astype({"round": int})


# ---- Settings and curves -------------------------------------------------------------------------


def name_curves(recorded):
    """Return the settings in which runs differ, {utils.Files: {flag: text}}, and their curves.

    `recorded` has what read_settings returned for each run. The curves are {utils.Files: name}.
    Warns if runs in a single folder differ, which may be unintended, or if settings cannot be read.
    """
    settings = differing_settings(recorded)
    curves = {}
    for files, differing in settings.items():
        texts = {name: f"{name}={value}" for name, value in differing.items() if value != "False"}
        texts |= {name: name for name, value in differing.items() if value == "True"}
        parts = [files.prune_type, recorded[files].get("masks", ""), *texts.values()]
        curves[files] = ", ".join(filter(None, parts))

    if any(settings.values()) and len({files.root for files in recorded}) == 1:
        names = "; ".join(dict.fromkeys(curves.values()))
        warn(f"runs with different settings are not averaged: {names}")
    unknown = [f"{files.prune_type} in {files.dumps}" for files in recorded if not recorded[files]]
    if unknown:
        warn(f"settings that cannot be read are treated as equal: {'; '.join(unknown)}")
    return settings, curves


def read_settings(files):
    """Return what a run's settings.json says, a dict; an empty one if it cannot be read.

    It has the `seed`; `settings` that tell curves apart, {flag: text}, and `of_source`, those of
    the run whose tickets it uses, which may be itself; `source`, what that run is called; the
    `defaults`; `masks`, from whose_masks; and `made_by`, the code and the versions.
    """
    try:
        content = json.loads(files.settings.read_text())
        recorded = content["settings"]
        settings = comparable(recorded, content.get("refused", []))
        of_source = settings
        if recorded.get("masks_from") or recorded.get("tickets_from"):
            of_source = comparable(recorded.get("masks_from_settings", {}))
        if recorded.get("connect_to"):  # its masks were found in the other order
            of_source = {name: of_source[name] for name in of_source.keys() - utils.ORDER_SETTINGS}
        return {
            "seed": recorded.get("seed"),
            "settings": settings,
            "of_source": of_source,
            "source": "source" if recorded.get("tickets_from") else recorded.get("masks_from"),
            "defaults": comparable(content["defaults"]),
            "masks": whose_masks(files.prune_type, content),
            "made_by": {name: str(value) for name, value in content.get("made_by", {}).items()},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def comparable(settings, refused=()):
    """Return settings that tell curves apart, {flag: text}; whose_masks tells of the masks."""
    left_out = {"seed", "prune_type", "masks_from", "tickets_from", "masks_from_settings"}
    left_out |= utils.MAY_CHANGE_ON_RESUME.union(refused)
    texts = {name: utils.as_flag(settings[name]) for name in settings if name not in left_out}
    if "connect_to" in texts:
        texts["connect_to"] = str(texts["connect_to"] != "none")  # whether, not with which folder
    for name, text in texts.items():
        if name in ("network", "data") or len(text) > LONG:
            texts[name] = f"{zlib.crc32(text.encode()):08x}"
    return texts


def whose_masks(prune_type, content):
    """Return whose masks a run has, such as "lt's masks"; "" if they are those of lt anyway.

    `content` is that of its settings.json. Random masks are never those of lt, but have the same
    densities if these do not depend on the weights.
    """
    settings = content["settings"]
    masks_from = settings.get("masks_from")
    if settings.get("tickets_from"):
        if prune_type == "random":
            return "source's weights"
        takes_weights = utils.takes_weights(settings, content["refused"])
        return "source's tickets" if takes_weights else "source's masks"
    if prune_type == "random":
        as_lt = masks_from or settings.get("prune_scope", "layer") in ("layer", "erk")
        return "" if as_lt else "own densities"
    if prune_type == "lt" or settings.get("one_shot") or content.get("before_training"):
        return ""
    return f"{masks_from}'s masks" if masks_from else "own masks"


def note_versions(recorded):
    """Print a note if runs, which are averaged or compared, were made by different code."""
    table = pd.DataFrame([found["made_by"] for found in recorded if found])
    # The digest of the code says more than the commit.
    table = table.drop(columns=["commit", "changed"], errors="ignore")
    texts = [
        f"{name} {', '.join(table[name].dropna().unique())}"
        for name in table.columns[table.nunique() > 1]
    ]
    if texts:
        warn(f"note: these results were made by different versions: {'; '.join(texts)}")


def note_masks(recorded, curves, logs):
    """Print a note if runs have the masks of another run, which has other masks by now."""
    masks = {files: log.groupby("round")["masks"].last() for files, log in logs.items()}
    changed = [
        f"{curves[files]} in {files.dumps}"
        for files, other in itertools.permutations(logs, 2)
        if files.dumps == other.dumps
        and recorded[files].get("masks") == f"{other.prune_type}'s masks"
        and (masks[files] - masks[other]).any()
    ]
    if changed:
        warn(f"note: these runs have masks of a run that was replaced: {'; '.join(changed)}")


def differing_settings(recorded):
    """Return the settings in which runs differ, as name_curves does.

    A setting is left out if it follows from another one in all runs. `recorded` has what
    read_settings returned for each run. A setting missing from a run counts as its default, and
    runs without settings are one curve.
    """
    known = {files: found for files, found in recorded.items() if found}
    defaults = {name: text for found in known.values() for name, text in found["defaults"].items()}
    own, of_source = [], []
    for found in known.values():
        # Flags that the run refuses are among its own defaults.
        later = {name: defaults[name] for name in defaults if name not in found["defaults"]}
        own.append(later | found["settings"])
        of_source.append(later | found["of_source"])
    own = pd.DataFrame(own, index=list(known))
    of_source = pd.DataFrame(of_source, index=list(known))
    own = own.reindex(columns=[*dict.fromkeys([*own, *of_source])])
    of_source = of_source.reindex_like(own)

    of_run = varied(own.fillna(of_source))  # a flag that a run does not have concerns its source
    of_source = of_source[varied(of_source)]
    differing = dict.fromkeys(recorded, {"settings": "unknown"} if known else {})
    for files, found in known.items():
        source = found["source"]
        differing[files] = own.loc[files, of_run].dropna().to_dict()
        for name, text in of_source.loc[files].dropna().items():
            must_agree = source != "source" or name in utils.TICKET_SETTINGS
            if text != own.at[files, name] or not must_agree:
                differing[files][f"{source}'s {name}"] = text
    return differing


def varied(texts):
    """Return the columns of `texts` in which runs differ, unless they follow from other ones."""
    found = []
    for name in texts:
        leader = utils.FOLLOWS.get(name)
        values = texts[name].dropna()
        follows = leader in texts and values.equals(texts.loc[values.index, leader])
        if values.nunique() > 1 and not follows:
            found.append(name)
    if "dataset" in found:  # which only sources have another of
        values = texts.groupby("dataset").nunique().max()
        found = [name for name in found if name not in FOLLOWS_DATASET or values[name] > 1]
    return found


def warn(message):
    print(f"combine_plots.py: {message}", file=sys.stderr)


# ---- Tables --------------------------------------------------------------------------------------


def find_baseline(runs, wanted):
    """Return the curve that differences are taken from: the wanted one, or the only one of lt.

    Returns None if there is no such curve.
    """
    if wanted in set(runs["curve"]):
        return wanted
    curves = runs.loc[runs["prune_type"] == "lt", "curve"].unique()
    return curves[0] if len(curves) == 1 else None


def choose_rounds(runs, wanted):
    """Return the rounds to show, a DataFrame with the columns curve and round.

    They are the wanted ones, a list. If that is None, they are, for each curve, those nearest to
    DENSITIES and the last one.
    """
    percents = runs.groupby(["curve", "round"], sort=False)["weights_remaining"].mean()
    chosen = percents.index.isin(wanted or (), level="round")
    if wanted is None:
        densities = np.log(percents.clip(lower=EMPTY))[::-1]  # of equal ones, the last counts
        nearest = [
            (of_curve - math.log(density)).abs().idxmin()
            for _, of_curve in densities.groupby("curve")
            for density in DENSITIES
        ]
        chosen = percents.index.isin(nearest)
    if not chosen.any():
        warn(f"--rounds: {' on '.join(runs.iloc[0, :2])} has no results of these rounds")
    return percents.index[chosen].to_frame(index=False)


def with_differences(runs, baseline):
    """Return runs with their differences from other runs of the same seed, a DataFrame.

    It has the columns of `runs` and, for each of COLUMNS, `_difference` from the baseline in the
    round of equal density; and `bestaccuracy_gain`, the difference from the dense network of the
    same curve. What has no partner is NaN. `same` says whether nothing differs from the baseline.
    Early stopping at the last evaluation, or with an incomplete log, may be later; `at_least` and
    `at_most` say whether its difference is such a bound.
    """
    runs = runs.assign(
        order=range(len(runs)),
        density=np.log(runs["weights_remaining"].clip(lower=EMPTY)),
        may_be_later=runs["earlystop_at_end"].fillna(True).astype(bool),
        earlystop_at_end=runs["earlystop_at_end"].astype("Int64"),  # which are counted
    ).sort_values("density")
    pairs = pd.merge_asof(
        runs,
        runs.loc[runs["curve"] == baseline, ["density", "seed", "may_be_later", *COLUMNS]],
        on="density",
        by="seed",
        direction="nearest",
        tolerance=EQUAL_DENSITY,
        suffixes=("", "_baseline"),
    )
    differences = [f"{name}_difference" for name in COLUMNS]
    for name, difference in zip(COLUMNS, differences, strict=True):
        pairs[difference] = pairs[name] - pairs[f"{name}_baseline"]
    pairs.loc[pairs["curve"] == baseline, differences] = math.nan
    pairs["same"] = pairs[differences].fillna(0).eq(0).all(axis="columns")
    pairs["at_least"] = pairs["may_be_later"] & ~pairs["same"]
    pairs["at_most"] = pairs["may_be_later_baseline"].eq(True) & ~pairs["same"]

    dense = runs[runs["round"] == 0].set_index(["curve", "seed"])["bestaccuracy"]
    pairs = pairs.sort_values("order").join(dense.rename("dense"), on=["curve", "seed"])
    return pairs.assign(bestaccuracy_gain=pairs["bestaccuracy"] - pairs["dense"])


def summary(runs, baseline):
    """Return a DataFrame with a row per curve and round, and these columns for each of COLUMNS.

    Over all trials: the mean (named like the column), _std, _min and _max. Over the pairs of trials
    with the same seed: _difference, the mean difference from the baseline, and _difference_low and
    _difference_high, its 95% confidence interval. The column `pairs` is their number, and
    `earlystop_at_end` that of the trials whose early stopping is at the last evaluation; it is
    missing if that is not known. bestaccuracy_gain, _low and _high are the mean difference from the
    dense network and its interval.

    For texts and figures, `earlystop_bound` and `earlystop_difference_bound` are ">= " or "<= " if
    the mean is a bound. A bound has no interval, and a difference of two bounds is NaN. `same` says
    whether all results of the pairs are equal.
    """
    pairs = with_differences(runs, baseline)
    groups = pairs.groupby([*runs.columns[: runs.columns.get_loc("seed")], "round"], sort=False)
    statistics = groups[[*COLUMNS]].agg(["mean", "std", "min", "max"])
    statistics.columns = ["_".join(levels).removesuffix("_mean") for levels in statistics.columns]
    table = groups.agg(
        weights_remaining=("weights_remaining", "mean"),
        trials=("seed", "size"),
        pairs=("bestaccuracy_difference", "count"),
        same=("same", "all"),
        earlystop_at_end=("earlystop_at_end", lambda ends: ends.sum(skipna=False)),
        may_be_later=("may_be_later", "any"),
        at_least=("at_least", "any"),
        at_most=("at_most", "any"),
    ).join(statistics)
    for name in COLUMNS:  # whose mean may be rounded
        table[name] = table[name].clip(table[f"{name}_min"], table[f"{name}_max"])
    for name in (*(f"{name}_difference" for name in COLUMNS), "bestaccuracy_gain"):
        table[name] = groups[name].mean()
        table[f"{name}_low"], table[f"{name}_high"] = interval(groups[name])

    above, below = table.pop("at_least"), table.pop("at_most")
    table["earlystop_bound"] = np.where(table.pop("may_be_later"), ">= ", "")
    bounds = np.select([above & below, above, below], ["", ">= ", "<= "], "")
    table["earlystop_difference_bound"] = bounds
    table.loc[above & below, "earlystop_difference"] = math.nan
    table.loc[above | below, ["earlystop_difference_low", "earlystop_difference_high"]] = math.nan
    return table.reset_index()


def interval(values):
    """Return the 95% confidence interval of a mean, by Student's t distribution.

    It has one degree of freedom less than there are values, and needs three of them. `values` is a
    Series, or one that is grouped.
    """
    from scipy import stats

    n = values.count()
    half = values.sem() * np.where(n >= ENOUGH, stats.t.ppf(0.975, n - 1), math.nan)
    return values.mean() - half, values.mean() + half


def measured(table, columns):
    """Return those of some columns of a table that have values, a list of names."""
    return [*table[[*columns]].dropna(axis="columns", how="all")]


def as_text(table, baseline, columns):
    """Return a summary as text for the terminal, with some of COLUMNS.

    If it is too wide, each of them has a block of its own, or curves have letters.
    """
    letters = dict(zip(table["curve"].unique(), LETTERS, strict=False))
    # Curves with a few weights more or less stay in their order.
    densities = table["weights_remaining"].map(as_percent).str[:-1].astype(float)
    table = table.iloc[(-densities).argsort(kind="stable")]
    for key, groups in itertools.product(({}, letters), ([columns], [[name] for name in columns])):
        shown = table.assign(curve=[key.get(curve, curve) for curve in table["curve"]])
        blocks = [as_cells(shown, group).to_string() for group in groups]
        if max(map(len, "\n".join(blocks).splitlines())) <= WIDTH:
            break

    text = caption(shown, key.get(baseline, baseline), columns)
    if baseline is None and len(letters) > 1:
        text += " For differences between curves, give --baseline the full name of one of them."
    lines = [f"{letter}: {curve}" for curve, letter in key.items()]
    text = "\n\n".join(["\n".join([*lines, *textwrap.wrap(text, WIDTH)]), *blocks])
    return re.sub(" +$", "", text, flags=re.MULTILINE)


def answers(table, baseline):
    """Return what a summary says about test accuracy, as sentences.

    The baseline is compared with its dense network, and other curves with the baseline. If there is
    no baseline, all curves are compared with their dense networks.
    """
    sentences = []
    for curve, rows in table.groupby("curve", sort=False):
        name, seeds, other = (
            ("bestaccuracy_gain", "trials", "the dense network")
            if baseline in (None, curve)
            else ("bestaccuracy_difference", "pairs", baseline)
        )
        rows = rows[(rows["round"] > 0) & (rows[seeds] > 0)]
        text = f"{curve}: no round after the first can be compared with {other}"
        if not rows.empty:  # the last round that has enough seeds for an interval, if possible
            enough = rows[seeds] >= min(ENOUGH, rows[seeds].max())
            text = answer(rows[enough].iloc[-1], name, seeds, other)
        sentences.append(textwrap.fill(text, WIDTH))
    return ["Differences in test accuracy at best validation:", *sentences]


def answer(row, name, seeds, other):
    """Return how a curve differs from another one in a round, a row of a summary, as a sentence.

    `name` is the column of the difference, and `seeds` that of its number of seeds.
    """
    mean, low, high = (row[f"{name}{part}"] for part in ("", "_low", "_high"))
    sign = "+z"
    verdict = f"no clear difference from {other} ({mean:+z.2f} points, "
    if not low <= 0 <= high and abs(mean) >= 0.005:
        sign = ""
        verdict = f"{abs(mean):.2f} points {'above' if mean > 0 else 'below'} {other} ("
        low, high = sorted([abs(low), abs(high)])
    evidence = utils.plural(row[seeds], "seed")
    if low <= high:
        evidence = f"95% interval {low:{sign}.2f} to {high:{sign}.2f}, {evidence}"
    else:
        evidence += ", too few for an interval"
    place = f"At {as_percent(row['weights_remaining'])} of the weights, {row['curve']}"
    return f"{place}: {verdict}{evidence})"


def as_percent(number):
    """Return a percentage with three digits, as text."""
    return f"{number:#.3g}".rstrip(".") + "%"


def as_latex(table, baseline):
    """Return a summary as LaTeX tables, a list with one for each of COLUMNS.

    Small print and narrow gaps make them fit a page.
    """
    tables = []
    for name in measured(table, COLUMNS):
        cells = as_cells(table, [name], ["curve", "weights"]).map(as_tex)
        numbers = "r" * (cells.index.nlevels - 1 + cells.shape[1])
        styler = cells.style.format_index(as_tex, axis=0).format_index(as_tex, axis=1)
        text = styler.to_latex(
            caption=as_tex(caption(table, baseline, [name])),
            label=f"tab:{'-'.join(table.iloc[0, :2])}-{name}",
            column_format=r"@{\hspace{6pt}}".join(["@{}l", *numbers]) + "@{}",
            hrules=True,
            multirow_align="naive",
            position_float="centering",
            sparse_columns=False,
        )
        tables.append(text.replace(r"\centering", r"\centering\footnotesize"))
    return tables


def as_tex(text):
    """Return text with LaTeX's commands for its special characters and mathematical signs."""
    text = text.translate(TEX).replace("$>$=", r"$\geq$").replace("$<$=", r"$\leq$")
    return re.sub(r"[+-](?=\d)", r"$\g<0>$", text)


def caption(table, baseline, columns):
    """Return what a table with some of COLUMNS shows, as sentences."""
    seeds = "seeds"
    if table["trials"].nunique() == 1:
        seeds = utils.plural(table["trials"].iloc[0], "seed")
    sentences = [
        f"{' on '.join(table.iloc[0, :2])}: {'; '.join(COLUMNS[name] for name in columns)}.",
        "One seed." if seeds == "1 seed" else f"Mean ± standard deviation over {seeds}.",
    ]
    if table["pairs"].any():
        text = f"Differences from the baseline, {baseline}, are paired by seed"
        if table["pairs"].max() >= ENOUGH:
            text += ", with 95% confidence intervals (t distribution) for three or more seeds"
        sentences.append(f"{text}.")
    if "earlystop" in columns and table["earlystop_bound"].any():
        sentences.append(
            ">=: a lower bound. At least one seed stopped early at its last evaluation (its rounds "
            "may be too short), or its log is incomplete."
        )
    return " ".join(sentences)


def as_cells(table, columns, names=("weights", "round", "curve")):
    """Return the cells of a table, a DataFrame of texts whose headers have two lines.

    `columns` are some of COLUMNS, and `names` the columns that name a row.
    """
    table = table.assign(weights=table["weights_remaining"].map(as_percent), seeds=table["trials"])
    names = [*names, "seeds"] if table["seeds"].nunique() > 1 else [*names]
    rows = table.to_dict("records")
    headers = []
    cells = []
    for name in columns:
        first, _, second = textwrap.fill(COLUMNS[name], LINE).partition("\n")
        # pandas would leave out a first line that is that of the column before.
        headers.append((first + " " * (len(headers) % 2), second))
        cells.append([mean_text(row, name) for row in rows])
        if table["pairs"].any() and table[name].notna().any():
            headers.append(("difference from", "the baseline"))
            cells.append([difference_text(row, name) for row in rows])
    return pd.DataFrame(
        zip(*cells, strict=True),
        index=pd.MultiIndex.from_frame(table[names].astype(str)),
        columns=pd.MultiIndex.from_tuples(headers),
    )


def mean_text(row, name):
    """Return the mean and standard deviation of one of COLUMNS as text."""
    mean, std = row[name], row[f"{name}_std"]
    if math.isnan(mean):
        return "-"
    bound = row.get(f"{name}_bound", "")
    text = f"{bound}{mean:.{DIGITS[name]}f}"
    return text if bound or math.isnan(std) else f"{text} ± {std:.{DIGITS[name]}f}"


def difference_text(row, name):
    """Return the difference of one of COLUMNS from the baseline, and its interval, as text."""
    mean, low, high = (row[f"{name}_difference{part}"] for part in ("", "_low", "_high"))
    if math.isnan(mean) or row["same"]:
        return "-" if math.isnan(mean) else "same"
    digits = DIGITS[name]
    text = f"{row.get(f'{name}_difference_bound', '')}{mean:+z.{digits}f}"
    if low <= high:
        text += f" [{low:+.{digits}f}, {high:+.{digits}f}]"  # -0.00 is below zero
    if row["pairs"] < row["seeds"]:
        text += f" ({utils.plural(row['pairs'], 'seed')})"
    return text


# ---- The figures of a run ------------------------------------------------------------------------


def draw_run(files):
    """Draw the figure over all rounds of a run, and the figures of single rounds if missing."""
    runs, log = read_runs([files])
    smoothed = read_settings(files).get("settings", {}).get("label_smoothing", "0") != "0"
    for round_, curve in zip(runs["round"], runs["curve"], strict=True):
        path = files.figure(f"LossVsAccuracy_{round_}")
        if not path.exists():
            title = f"{curve}, {files.title}, round {round_}"
            draw_round(path, log[log["round"] == round_], title, smoothed)
    path = files.figure("AccuracyVsWeights")
    plot_columns(path, summary(runs, None), ["bestaccuracy"], files.title)


def draw_round(path, rows, title, smoothed=False):
    """Draw the losses and accuracies of a round, given its evaluations.

    Marks show the ones that are reported. `smoothed` says whether the training loss has smoothed
    labels, so that it cannot be compared with the validation loss.
    """
    best = pd.Series(utils.best(rows.to_dict("records")))
    early_stop = rows.loc[rows["val_loss"].idxmin()]
    # The mean loss of an epoch's first iterations is noisier than that of all of them.
    epochs = rows[rows["epoch"] != rows["epoch"].shift(-1)]
    title += (
        f" ({as_percent(best['weights_remaining'])})\n"
        f"test accuracy {best['test_accuracy']:.2f}% at best validation"
    )

    with figure(path, title, rows=2) as (above, below):
        for axes, points, name, label, style in (
            (above, epochs, "train_loss", f"training{', smoothed labels' * smoothed}", "C7:"),
            (above, rows, "val_loss", "validation", "C1--"),
            (below, rows, "val_accuracy", "validation", "C1--"),
            (below, rows, "test_accuracy", "test", "C0-"),
        ):
            axes.plot(
                points["iteration"],
                points[name],
                style,
                marker="o" if len(points) <= 30 else None,
                label=label,
            )
        for axes, row, name, label, style in (
            (above, early_stop, "val_loss", "early stopping", "kD"),
            (below, best, "val_accuracy", "best validation", "k*"),
            (below, best, "test_accuracy", "best validation", "k*"),
        ):
            axes.plot(row["iteration"], row[name], style, markersize=6, label=label, zorder=3)
        above.set(
            ylabel="loss",
            yscale="log" if rows[["train_loss", "val_loss"]].min(axis=None) > 0 else "linear",
        )
        below.set_ylabel("accuracy (%)")
        set_iteration_axis(below)


def plot_columns(path, table, columns, title, names=None, baseline=None, shared=False):
    """Plot some columns of a summary against weights remaining, with a panel for each.

    `names` maps curves to other names for the legend.
    """
    looks = styles(table["curve"])
    with figure(path, title, len(columns), len(looks) > MANY_CURVES, shared) as panels:
        for axes, column in zip(panels, columns, strict=True):
            plot_curves(axes, table, column, looks, names or {})
            y, label, curve = reference(table, column, baseline)
            colour = looks[curve]["color"] if curve else "black"
            axes.axhline(y, color=colour, linestyle=":", label=label, zorder=0)
            if column == "barrier":
                axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            axes.set_ylabel(textwrap.fill(TITLES[column], LINE))
        set_percent_axis(axes, table.dropna(subset=columns, how="all")["weights_remaining"])


def plot_curves(axes, table, column, looks, names):
    """Plot a column of a summary, with bars from its low to its high end, side by side.

    Means that are bounds are open triangles.
    """
    low, high = ("_low", "_high") if column in FIGURES["differences"] else ("_min", "_max")
    drawn = table.groupby("curve")[column].transform("count") > 0
    table = table[drawn & (table["weights_remaining"] > 0)]  # a logarithmic axis has no 0
    percents = table["weights_remaining"]
    side = (table["curve"].factorize()[0] + 0.5) / table["curve"].nunique() - 0.5
    table = table.assign(
        x=percents / (percents.max() / percents.min()) ** (SIDE_BY_SIDE * side),
        bound=table.get(f"{column}_bound", ""),
    )
    for curve, rows in table.groupby("curve", sort=False):
        look = looks[curve] | {"markevery": list(rows["bound"] == "")}
        axes.plot(rows["x"], rows[column], label=names.get(curve, curve), **look)
        axes.vlines(rows["x"], rows[column + low], rows[column + high], look["color"])
    for bound, (marker, meaning) in BOUNDS.items():
        points = table[table["bound"] == bound]
        colours = [looks[curve]["color"] for curve in points["curve"]]
        if colours:
            axes.scatter(points["x"], points[column], marker=marker, edgecolors=colours, **OPEN)
            axes.scatter([], [], marker=marker, edgecolors="black", label=meaning, **OPEN)


def reference(table, column, baseline):
    """Return the dotted line of a column: its height, its label and its curve, which may be None.

    It is a limit that the column has, or the dense network of the baseline, or of the first curve
    if there is none.
    """
    curve = baseline or table["curve"].iloc[0]
    if column in FIGURES["differences"]:
        return 0, baseline, curve
    if column == "barrier":
        return STABLE, f"stable below {STABLE} points", None
    dataset = table["dataset"].iloc[0]
    if column == "untrained" and dataset in archs.datasets():  # its folder may have been deleted
        return 100 / archs.facts(dataset).CLASSES, "chance", None
    dense = table[(table["curve"] == curve) & (table["round"] == 0)]
    exact = dense.assign(bound=dense.get(f"{column}_bound", "")).query("bound == ''")
    return exact[column].mean(), f"{curve}, dense", curve


# ---- The figures of several runs -----------------------------------------------------------------


def draw_experiment(args, table, log, baseline):
    """Draw all figures for an architecture on a dataset, and print their paths.

    `table` is a summary, and `log` has the evaluations of the rounds whose training is drawn.
    """
    arch_type, dataset = table[["arch_type", "dataset"]].iloc[0]
    title = f"{arch_type}, {dataset}"
    place = f"{arch_type}_{dataset}.{args.format}"
    print(f"{title}:")
    for name, (first, *others) in FIGURES.items():
        if not measured(table, [first]):
            continue
        columns = [first, *measured(table, others)]
        counts, *spread = (
            ("pairs", "95% interval", ENOUGH) if name == "differences" else ("trials", "range", 2)
        )
        content, names = over_seeds(table.set_index("curve")[counts], *spread)
        path = Path(args.figures, f"{name}_{place}")
        plot_columns(path, table, columns, f"{title}: {content}", names, baseline, shared=True)
        print(f"{path}: {', '.join(TITLES[column] for column in columns)}; {content}")

    if not log.empty:
        path = Path(args.figures, f"training_{place}")
        notes = plot_training(path, log, title)
        print("; ".join([f"{path}: test accuracy during training", *notes]))
        missing = sorted(set(table["curve"]).difference(log["curve"]))
        if missing:
            warn(f"not in {path}, because the log has none of its rounds: {'; '.join(missing)}")
    lines = log[log["line_errors"].astype(bool)]
    if not lines.empty:
        path = Path(args.figures, f"interpolation_{place}")
        content = plot_interpolation(path, lines, title)
        print(f"{path}: test error on the line between two networks; {content}")


def over_seeds(seeds, spread, needed):
    """Return what a figure shows, such as "mean and range, 3 seeds", and names for its legend.

    `seeds` has numbers of seeds by curve. If curves differ in them, they are in the names. `spread`
    is what bars show of at least as many seeds as are `needed`.
    """
    ends = seeds[seeds > 0].groupby(level="curve", sort=False).agg(["min", "max"])
    texts = {
        curve: utils.plural(low if low == high else f"{low} to {high}", "seed")
        + (", no interval" if high < needed <= seeds.max() and needed == ENOUGH else "")
        for curve, low, high in ends.itertuples()
    }
    statistic = f"mean and {spread}" if seeds.max() >= needed else "mean"
    text, *others = set(texts.values())
    if others:
        # A line of a legend does not break within the number of seeds.
        glued = {curve: text.replace(" ", "\N{NO-BREAK SPACE}") for curve, text in texts.items()}
        return f"{statistic} over seeds", {curve: f"{curve} ({glued[curve]})" for curve in texts}
    return text if text == "1 seed" else f"{statistic}, {text}", {}


def plot_training(path, rows, title):
    """Plot test accuracy during training as in the paper's Figure 3, with a panel per curve.

    `rows` has evaluations as read_runs returns them. Those within 1/TRAINING_POINTS of the longest
    round are drawn as one point, at the mean of their iterations. Returns what is drawn, as texts.
    """
    width = max(1, rows["iteration"].max() / TRAINING_POINTS)
    rows = rows.assign(part=(rows["iteration"] / width).apply(math.ceil))
    groups = rows.groupby(["curve", "seed", "round", "part"], sort=False)
    notes = []
    if groups.size().max() > 1:
        notes.append(f"each point is the mean over 1/{TRAINING_POINTS} of the longest round")
    rows = groups[["iteration", "weights_remaining", "test_accuracy"]].mean().reset_index()
    # The last part of an unfinished round may have fewer evaluations than that of other seeds.
    rows["iteration"] = rows.groupby(["curve", "round", "part"])["iteration"].transform("mean")
    # The first evaluations, far below the others, would leave no room for the differences.
    low, high = limits(rows["test_accuracy"], outside=0.03)
    outside = (rows["test_accuracy"] < low).mean()
    if outside:
        notes.append(f"{100 * outside:.2g}% of the points are below {low:.4g}%")

    with rounds_of_curves(path, rows, "iteration", "test_accuracy", title) as (panels, content):
        for axes in panels:
            axes.set(ylabel="test accuracy (%)", ylim=(low, high))
        set_iteration_axis(panels[-1], notes)
    return [content, *notes]


def plot_interpolation(path, rows, title):
    """Plot test errors on the line between the networks of two runs, with a panel per curve.

    `rows` has evaluations with line_errors as read_runs returns them. Returns what is drawn.
    """
    points = rows.explode("line_errors", ignore_index=True).astype({"line_errors": float})
    lines = points.groupby(["curve", "seed", "round"])
    points["position"] = lines.cumcount() / (lines["round"].transform("size") - 1)
    with rounds_of_curves(path, points, "position", "line_errors", title) as (panels, content):
        for axes in panels:
            axes.set(ylabel="test error (%)", ylim=limits(points["line_errors"]))
        panels[-1].set_xlabel("position on the line\n(0: first run, 1: run with --connect_to)")
    return content


def limits(values, outside=0.0):
    """Return the limits of an axis for some values; a share of them may be `outside`, below it."""
    low, high = values.quantile([outside, 1])
    margin = 0.05 * (high - low) + 0.01
    return low - margin, high + margin


@contextlib.contextmanager
def rounds_of_curves(path, rows, x, y, title):
    """Plot a column `y` of rows against `x`, with a panel per curve and a line per round.

    Yields the panels and what is drawn, such as "mean and range, 3 seeds".
    """
    import seaborn as sns

    rows = rows.assign(remaining=round_labels(rows))
    labels = rows.sort_values("weights_remaining", ascending=False)["remaining"].unique()
    seeds = rows.groupby(["curve", "round"], sort=False)["seed"].nunique()
    content, names = over_seeds(seeds.droplevel("round"), "range", 2)
    curves = rows.groupby("curve", sort=False)
    with figure(
        path, f"{title}: {content}\nweights remaining", rows=len(curves), shared=True
    ) as panels:
        for axes, (curve, points) in zip(panels, curves, strict=True):
            sns.lineplot(
                points,
                x=x,
                y=y,
                hue="remaining",
                hue_order=labels,
                palette="viridis_r",
                errorbar=("pi", 100),
                # A line of one point would be invisible.
                marker="o" if points[x].nunique() <= 10 else None,
                ax=axes,
            )
            axes.get_legend().remove()
            axes.set_title(textwrap.fill(names.get(curve, curve), 40))
        yield panels, content


def round_labels(rows):
    """Return the percentage of weights remaining as text, with the round if it is ambiguous."""
    labels = rows.groupby(["curve", "round"])["weights_remaining"].transform("mean").map(as_percent)
    ambiguous = rows["round"].groupby([rows["curve"], labels]).transform("nunique") > 1
    return labels.mask(ambiguous, labels + " (round " + rows["round"].astype(str) + ")")


# ---- The look of figures -------------------------------------------------------------------------


@contextlib.contextmanager
def figure(path, title, rows=1, wide=False, shared=False):
    """Yield the axes of a figure, one per row; add a legend with a title, and write the figure.

    It is as wide as a paper's column, or as its page. Several processes may write a `shared` figure
    at once.
    """
    import seaborn as sns
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = sns.axes_style("ticks") | sns.plotting_context("paper") | STYLE
    with rc_context(style), sns.color_palette("colorblind"):
        size = (6.9, 1 + 2.2 * rows) if wide else (3.3, 0.6 + 1.6 * rows)
        fig = Figure(figsize=size, layout="constrained")
        panels = fig.subplots(rows, sharex=True, squeeze=False)[:, 0]
        yield panels
        handles = {}
        for axes in panels:
            found, labels = axes.get_legend_handles_labels()
            handles |= dict(zip((textwrap.fill(text, 44) for text in labels), found, strict=True))
        fig.legend(
            handles.values(),
            handles,
            title="\n".join(textwrap.fill(line, 48) for line in title.splitlines()),
            ncols=max(1, (116 if wide else 56) // (10 + max(map(len, handles)))),
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
        ).get_title().set_multialignment("center")
        sns.despine(fig)
        # The legend is outside: "tight" enlarges the figure by it, and the panels keep their size.
        options = {
            "format": path.suffix.removeprefix("."),
            "dpi": 300,
            "bbox_inches": "tight",
            "pad_inches": 0.03,
        }
        utils.write(path, lambda file: fig.savefig(file, **options), shared=shared)


def styles(curves):
    """Return the colour, marker and dashes of each curve, {curve: matplotlib's arguments}.

    The first curve of each of PRUNE_TYPES has the colour and marker of its type, others get the
    next free ones. Dashes tell curves of the same type apart.
    """
    kinds = [curve.partition(",")[0] for curve in dict.fromkeys(curves)]
    reserved = [number for number, kind in enumerate(PRUNE_TYPES) if kind in kinds]
    free = (number for number in itertools.count() if number not in reserved)
    found = {}
    for position, (curve, kind) in enumerate(zip(dict.fromkeys(curves), kinds, strict=True)):
        before = kinds[:position].count(kind)
        number = PRUNE_TYPES.index(kind) if kind in PRUNE_TYPES and not before else next(free)
        found[curve] = {
            "color": f"C{number}",  # matplotlib starts again after the last one
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": DASHES[before % len(DASHES)],
        }
    return found


def set_iteration_axis(axes, notes=()):
    """Label an x axis of iterations, in thousands so that the numbers do not touch."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("\n".join(["iteration", *notes]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def set_percent_axis(axes, percents):
    """Make the x axis logarithmic, from 100% on the left, with readable ticks."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = percents[percents > 0].agg(["min", "max"])
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    locator = LogLocator(subs=digits) if high > 10 * low else MaxNLocator(5, steps=[1, 2, 5, 10])
    axes.set(xscale="log", xlabel="weights remaining (%)")
    axes.xaxis.set_inverted(True)
    ticks = locator.tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if 0.99 * low <= tick <= 1.01 * high] or [low])
    axes.xaxis.set_major_formatter(FormatStrFormatter("%.4g"))
    axes.xaxis.set_minor_locator(NullLocator())


# ---- Flags ---------------------------------------------------------------------------------------


def parse_args(argv=None):
    """Return the settings from the command line. Exits with status 2 if they are unusable."""
    parser = utils.Parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--arch_type", metavar="NAME",
        help="draw only this architecture (default: all%(default).0s)")
    add("--dataset", metavar="NAME",
        help="draw only this dataset (default: all%(default).0s)")
    add("--prune_type", metavar="NAME", nargs="+", action="extend", default=[],
        help="draw only these prune types (default: all%(default).0s)")
    add("--rounds", type=utils.numbers("[0, inf)"), metavar="N,...",
        help="comma-separated rounds to tabulate, and whose training is drawn (default: those"
             " nearest to 100, 50, 20, 10, 5, 2 and 1%% of the weights, and the last%(default).0s)")
    add("--columns", nargs="+", action="extend", default=[], choices=COLUMNS, metavar="NAME",
        help=f"quantities to print: {', '.join(COLUMNS)}"
             f" (default: {' '.join(PRINTED)}, if measured%(default).0s)")
    add("--output_dir", type=utils.folder, metavar="DIR", nargs="+", action="extend",
        help="one or more of main.py's --output_dir (default: .%(default).0s)")
    add("--figures", type=utils.folder, metavar="DIR",
        help="where figures go (default: plots/lt/combined_plots in --output_dir, or plots_A_B for"
             " the folders A and B%(default).0s)")
    add("--baseline", metavar="NAME",
        help="curve that differences are taken from (default: the only one of lt%(default).0s)")
    add("--format", default=FORMATS[0], choices=FORMATS,
        help="file type of the figures")
    for flag, content in (
        ("--csv", "the table, with a row per curve and round"),
        ("--raw", "a CSV file with a row per seed and round"),
        ("--latex", "LaTeX tables of the rounds that are printed"),
    ):
        add(flag, type=utils.folder, metavar="FILE",
            help=f"also write {content} (default: none%(default).0s)")
    # fmt: on
    args = parser.parse_args(argv)
    args.columns = list(dict.fromkeys(args.columns))
    args.output_dir = args.output_dir or ["."]
    args.figures = args.figures or default_figures(parser, args.output_dir)
    check_tables(parser, [args.csv, args.raw, args.latex])
    return args


def check_tables(parser, tables):
    """Exit with status 2 if tables cannot be written to these paths, which may be None."""
    places = [Path(table).resolve() for table in tables if table]
    for place in places:
        output = place.is_file() and os.path.samestat(place.stat(), os.fstat(1))
        result = place.suffix.removeprefix(".") in ("dat", "json", "jsonl", "tar", *FORMATS)
        if place.is_dir() or result or output or places.count(place) > 1:
            parser.error(
                f"{place} cannot hold a table: it is a folder, a run's array, ticket, log, "
                "settings or figure, the file of the output, or that of another table"
            )


def default_figures(parser, folders):
    """Return the folder for figures of these folders. Exits with status 2 if it has a long name."""
    places = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    if len(places) == 1:
        return str(Path(folders[0], "plots/lt/combined_plots"))
    common = os.path.commonpath(places)
    names = ["_".join(place.relative_to(common).parts) or place.name for place in places]
    name = "_".join(["plots", *names])
    if len(name) > 200:  # most file systems allow 255 bytes
        parser.error("so many folders need --figures=DIR, which says where figures go")
    return name


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend works only in its own process
    with utils.one_line_errors("combine_plots.py"):
        main(parse_args())
