"""Draw winning tickets and their controls, for all architectures and datasets with results.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, whatever the number of rounds and seeds. For each
architecture and dataset it prints a table and what follows from it, and draws

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
import string
import sys
import textwrap
import zlib
from pathlib import Path
from typing import NamedTuple

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
DIGITS = dict.fromkeys(COLUMNS, 2) | {"earlystop": 0}  # after the decimal point, in tables
PRINTED = ["bestaccuracy", "earlystop"]  # by default: are tickets more accurate? are they faster?
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
# Percent; by default, the rounds nearest to these are shown, and the last one.
DENSITIES = (100, 50, 20, 10, 5, 2, 1, 1e-9)
WIDTH = 100  # characters in a line of the printed table
LINE = 20  # characters in a line of a header; two lines hold each of COLUMNS
LETTERS = [f"{a}{b}" for b in ("", *string.digits) for a in string.ascii_uppercase]
TEX = str.maketrans(
    {character: f"\\{character}" for character in "&#$%_{}"}
    | {"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}"}
    | {"±": r"$\pm$", "<": r"$<$", ">": r"$>$"}
)


def main(args):
    """Draw and tabulate all experiments. Raises utils.BadInput if the results do not allow it."""
    import pandas as pd

    experiments = read_experiments(args)
    tables = []
    latex = ["% These tables need \\usepackage{booktabs}.\n"]
    texts = []
    for runs, log in experiments:
        chosen = choose_rounds(runs, args.rounds)
        draw_experiment(args, runs, log.merge(chosen))
        baseline = find_baseline(runs, args.baseline)
        pairs = pair_seeds(runs, baseline)
        table = summary(runs, pairs)
        tables.append(as_csv(table))
        if not chosen.empty:
            shown = table.merge(chosen)
            texts.append(as_text(shown, baseline, args.columns))
            latex += as_latex(shown, baseline) if args.latex else []
        texts.append("\n".join(answers(runs, pairs, baseline)))

    if args.csv:
        write_text(args.csv, pd.concat(tables).to_csv(index=False), "a row per curve and round")
    if args.raw:
        text = pd.concat(runs for runs, _ in experiments).to_csv(index=False)
        write_text(args.raw, text, "a row per seed and round")
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
    stopping is at the round's last evaluation, and missing if the log does not have it. The
    evaluations have curve, seed, LOGGED and masks.
    """
    import pandas as pd

    results = {}
    order = [*PRUNE_TYPES, *sorted({files.prune_type for files in found}.difference(PRUNE_TYPES))]
    for files in sorted(found, key=lambda files: order.index(files.prune_type)):
        run = read_run(files)
        if run is not None:
            results[files] = run
    recorded = {files: read_settings(files) for files in results}
    settings, curves = name_curves(recorded)
    logs = {files: read_log(files.log) for files in without_copies(results, curves)}
    note_versions({files: recorded[files] for files in logs}, curves)
    note_masks(recorded, curves, logs)

    names = dict.fromkeys(name for differing in settings.values() for name in differing)
    runs = []
    evaluations = []
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
        at_end = run["earlystop"].eq(last).astype("boolean")
        at_end = at_end.mask(last.isna() & run["earlystop"].notna())
        runs.append(pd.DataFrame({**identity, **run, "earlystop_at_end": at_end}))
        evaluations.append(pd.DataFrame({**identity, **log}))
    if not runs:
        return pd.DataFrame(), pd.DataFrame()
    return pd.concat(runs, ignore_index=True), pd.concat(evaluations, ignore_index=True)


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
            known = (values >= 0) & (values <= 100)
            if name not in ("compression", "bestaccuracy"):  # which every round has
                known |= np.isnan(values)
            if name != "earlystop" and not known.all():
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
    """Return the evaluations in a log, a DataFrame with the columns LOGGED and masks.

    The last one is the checksum of the masks, NaN in logs of older versions.
    """
    import pandas as pd

    rows = []
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for line in lines:
        # main.py may be writing it.
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
            row = {"masks": math.nan} | json.loads(line)
            rows.append([float(row[name]) for name in (*LOGGED, "masks")])
    log = pd.DataFrame(rows, columns=[*LOGGED, "masks"], dtype=float)
    return log[np.isfinite(log[[*LOGGED]]).all(axis=1)].astype({"round": int})


# ---- Settings and curves -------------------------------------------------------------------------


class Recorded(NamedTuple):
    """What a run's settings.json says."""

    settings: dict  # {flag: value} that tell curves apart; also of the run that made the masks
    defaults: dict
    masks: str  # whose they are, for the name of the curve; "" if there is no choice
    made_by: dict  # code and versions, {name: value}


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
        curves[files] = ", ".join([own_name(files, recorded[files]), *texts.values()])

    if any(settings.values()) and len({files.root for files in recorded}) == 1:
        names = "; ".join(dict.fromkeys(curves.values()))
        warn(f"runs with different settings are not averaged: {names}")
    unknown = [f"{files.prune_type} in {files.dumps}" for files in recorded if not recorded[files]]
    if unknown:
        warn(f"settings that cannot be read are treated as equal: {'; '.join(unknown)}")
    return settings, curves


def own_name(files, recorded):
    """Return the name of a run's curve beside curves of the same settings."""
    masks = recorded.masks if recorded else ""
    return f"{files.prune_type}, {masks}" if masks else files.prune_type


def read_settings(files):
    """Return what a run's settings.json says, as Recorded; None if it cannot be read."""
    try:
        content = json.loads(files.settings.read_text())
        settings = comparable(content["settings"])
        for name in content.get("refused", []):
            settings.pop(name, None)
        masks_from = content["settings"].get("masks_from")
        source = comparable(content["settings"].get("masks_from_settings", {}))
        if not masks_from:  # the run makes its own masks
            source = settings
        maker = masks_from or files.prune_type
        return Recorded(
            settings | {f"{maker}'s {name}": source[name] for name in source},
            comparable(content["defaults"]),
            whose_masks(files.prune_type, content),
            {name: str(value) for name, value in content.get("made_by", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def whose_masks(prune_type, content):
    """Return whose masks a run has, such as "lt's masks"; "" if they are those of lt anyway.

    `content` is that of its settings.json. Random masks are never those of lt, but with layer-wise
    pruning they have the same densities.
    """
    settings = content["settings"]
    masks_from = settings.get("masks_from")
    if prune_type == "lt":
        return ""
    if prune_type == "random":
        own = settings.get("prune_scope") == "global" and not masks_from
        return "own densities" if own else ""
    if settings.get("one_shot") or content.get("before_training"):
        return ""
    return f"{masks_from}'s masks" if masks_from else "own masks"


def note_versions(recorded, curves):
    """Print a note if runs, which are averaged or compared, were made by different code."""
    import pandas as pd

    made_by = {files: found.made_by for files, found in recorded.items() if found}
    table = pd.DataFrame(made_by.values(), index=[curves[files] for files in made_by])
    # The digest of the code says more than the commit.
    table = table.drop(columns=["commit", "changed"], errors="ignore")
    differing = []
    for name in table.columns[table.nunique() > 1]:
        groups = table.groupby(name, sort=False).groups
        texts = [f"{value} ({'; '.join(names.unique())})" for value, names in groups.items()]
        differing.append(f"{name} {', '.join(texts)}")
    if differing:
        warn(f"note: these runs were made by different versions: {'; '.join(differing)}")


def note_masks(recorded, curves, logs):
    """Print a note if runs have the masks of another run, which has other masks by now."""
    masks = {files: log.groupby("round")["masks"].last() for files, log in logs.items()}
    changed = [
        f"{curves[files]} in {files.dumps}"
        for files, other in itertools.permutations(logs, 2)
        if files.dumps == other.dumps
        and recorded[files]
        and recorded[files].masks == f"{other.prune_type}'s masks"
        and (masks[files] - masks[other]).any()
    ]
    if changed:
        warn(f"note: these runs have masks of a run that was replaced: {'; '.join(changed)}")


def comparable(settings):
    """Return the settings that tell curves apart, {flag: value}; whose_masks tells of the masks."""
    left_out = {"seed", "prune_type", "masks_from", "masks_from_settings"}
    kept = {}
    for name, value in settings.items():
        if name in {"network", "data"}:  # too long to be shown
            kept[name] = f"{zlib.crc32(str(value).encode()):08x}"
        elif name not in utils.MAY_CHANGE_ON_RESUME.union(left_out):
            kept[name] = value
    return kept


def differing_settings(recorded):
    """Return the settings in which runs differ, as name_curves does.

    A setting is left out if it follows from another one in all runs. `recorded` has what
    read_settings returned for each run. A setting missing from a run counts as its default, and
    runs without settings are one curve.
    """
    import pandas as pd

    known = {files: found for files, found in recorded.items() if found}
    defaults = {}
    for found in known.values():
        defaults |= found.defaults
    rows = []
    for found in known.values():
        # Flags that the run refuses are among its own defaults.
        later = {name: defaults[name] for name in defaults if name not in found.defaults}
        values = later | found.settings
        rows.append({name: utils.as_flag(value) for name, value in values.items()})
    texts = pd.DataFrame(rows, index=list(known))

    shown = []
    for name in texts:
        leader = utils.FOLLOWS.get(name) or name.partition("'s ")[2]
        values = texts[name].dropna()  # of runs that have the flag
        follows = leader in texts and values.equals(texts.loc[values.index, leader])
        if values.nunique() > 1 and not follows:
            shown.append(name)

    differing = dict.fromkeys(recorded, {"settings": "unknown"} if known else {})
    for files, values in texts[shown].iterrows():
        own = f"{files.prune_type}'s "
        differing[files] = {name.removeprefix(own): text for name, text in values.dropna().items()}
    return differing


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
    if wanted is None:
        densities = np.log(percents.clip(lower=min(DENSITIES)))
        nearest = set()
        for _, of_curve in densities[::-1].groupby("curve"):  # of equal ones, the last counts
            nearest |= {(of_curve - math.log(density)).abs().idxmin() for density in DENSITIES}
        chosen = percents[percents.index.isin(nearest)]
    else:
        chosen = percents[percents.index.isin(wanted, level="round")]
    if chosen.empty:
        warn(f"--rounds: {' on '.join(runs.iloc[0, :2])} has no results of these rounds")
    return chosen.index.to_frame(index=False)


def summary(runs, pairs):
    """Return a DataFrame with a row per curve and round, and these columns for each of COLUMNS.

    Over all trials: the mean (named like the column), _std, _min and _max. Over the pairs of trials
    with the same seed, which pair_seeds returned: _difference, the mean difference from the
    baseline, and _difference_low and _difference_high, its 95% confidence interval. The column
    `pairs` is their number, and `earlystop_at_end` that of the trials whose early stopping is at
    the last evaluation; it is missing if that is not known.

    For texts, `earlystop_bound` and `earlystop_difference_bound` are ">= " or "<= " if the number
    is a bound, and "? " if that is not known. `same` says whether all results of the pairs are
    equal.
    """
    names = [*runs.columns[: runs.columns.get_loc("seed")], "round"]
    groups = runs.groupby(names, sort=False)
    table = groups[[*COLUMNS]].agg(["mean", "std", "min", "max"])
    table.columns = ["_".join(levels).removesuffix("_mean") for levels in table.columns]
    for name in COLUMNS:  # whose mean may be rounded
        table[f"{name}_min"] = table[[name, f"{name}_min"]].min(axis="columns")
        table[f"{name}_max"] = table[[name, f"{name}_max"]].max(axis="columns")
    table.insert(0, "trials", groups.size())
    table.insert(0, "weights_remaining", groups["weights_remaining"].mean())
    unknown = runs["earlystop_at_end"].isna().groupby([runs[name] for name in names]).any()
    at_end = groups["earlystop_at_end"].sum()
    table["earlystop_at_end"] = at_end.mask(unknown)
    table["earlystop_bound"] = np.select([at_end > 0, unknown], [">= ", "? "], "")
    table = table.reset_index()
    table = table.merge(differences(pairs), how="left", on=["curve", "round"])
    table = table.fillna({"pairs": 0, "earlystop_difference_bound": "", "same": False})
    return table.astype({"pairs": int, "same": bool})


def pair_seeds(runs, baseline):
    """Return the differences of runs from those of the baseline, a DataFrame.

    It has the columns of `runs`, and earlystop_at_end_baseline. Runs are compared if they have the
    same seed, in rounds of equal density.
    """
    import pandas as pd

    runs = runs[runs["weights_remaining"] > 0]
    runs = runs.assign(density=np.log(runs["weights_remaining"]))
    runs = runs.sort_values("density", kind="stable")
    columns = [*COLUMNS, "earlystop_at_end"]
    pairs = pd.merge_asof(
        runs[runs["curve"] != baseline],
        runs.loc[runs["curve"] == baseline, ["density", "seed", "round", *columns]],
        on="density",
        by="seed",
        direction="nearest",
        tolerance=EQUAL_DENSITY,
        suffixes=("", "_baseline"),
    )
    pairs = pairs.dropna(subset="round_baseline")
    for name in COLUMNS:
        pairs[name] -= pairs[f"{name}_baseline"]
    return pairs.sort_values("round", kind="stable")


def interval(values):
    """Return the 95% confidence interval of a mean, by Student's t distribution.

    It has one degree of freedom less than there are values, and needs three of them. `values` is a
    Series, or one that is grouped.
    """
    from scipy import stats

    n = values.count()
    half = values.sem() * np.where(n >= 3, stats.t.ppf(0.975, n - 1), math.nan)
    return values.mean() - half, values.mean() + half


def differences(pairs):
    """Return the part of a summary that compares the curves with the baseline.

    Early-stopping iterations at the last evaluation are lower bounds. So their differences are
    bounds, without an interval. They are unknown if both are lower bounds, or may be.
    """
    import pandas as pd

    keys = [pairs["curve"], pairs["round"]]
    groups = pairs.groupby(keys)
    parts = {"pairs": groups.size()}
    for name in COLUMNS:
        low, high = interval(groups[name])
        parts[f"{name}_difference"] = groups[name].mean()
        parts[f"{name}_difference_low"] = low
        parts[f"{name}_difference_high"] = high
    table = pd.DataFrame(parts)
    table["same"] = pairs[[*COLUMNS]].fillna(0).eq(0).all(axis="columns").groupby(keys).all()
    ends = pairs[["earlystop_at_end", "earlystop_at_end_baseline"]]
    above, below = ((ends[name].fillna(True).groupby(keys).any() & ~table["same"]) for name in ends)
    unknown = above & below | ends.isna().any(axis="columns").groupby(keys).any() & ~table["same"]
    bounds = np.select([unknown, above, below], ["", ">= ", "<= "], "")
    table["earlystop_difference_bound"] = bounds
    table.loc[unknown, "earlystop_difference"] = math.nan
    table.loc[above | below, ["earlystop_difference_low", "earlystop_difference_high"]] = math.nan
    return table.reset_index()


def as_csv(table):
    """Return a summary for programs, in which differences that are bounds are missing."""
    known = table["earlystop_difference_bound"] == ""
    table = table.assign(earlystop_difference=table["earlystop_difference"].where(known))
    return table.drop(columns=["earlystop_bound", "earlystop_difference_bound", "same"])


def as_text(table, baseline, columns):
    """Return a summary as text for the terminal, with some of COLUMNS."""
    curves = table["curve"].unique()
    blocks = as_blocks(table, columns)
    lines = []
    if any(len(line) > WIDTH for block in blocks for line in block.splitlines()):
        letters = dict(zip(curves, LETTERS, strict=False))
        lines += [f"{letter}: {curve}" for curve, letter in letters.items()]
        table = table.replace({"curve": letters})
        baseline = letters.get(baseline, baseline)
        blocks = as_blocks(table, columns)
    text = caption(table, baseline, columns)
    if baseline is None and len(curves) > 1:
        text += " For differences between curves, give --baseline the full name of one of them."
    lines += textwrap.wrap(text, WIDTH)
    return "\n\n".join(["\n".join(lines), *blocks])


def as_blocks(table, columns):
    """Return a summary as texts: one with some of COLUMNS, or one for each if that is too wide."""
    table = table.assign(weights=table["weights_remaining"].map(as_percent))
    # Curves with a few weights more or less stay in their order.
    numbers = table["weights"].str[:-1].astype(float)
    table = table.iloc[(-numbers).argsort(kind="stable")]
    names = ["weights", "round", "curve"]
    for groups in ([columns], [[name] for name in columns]):
        texts = [as_cells(table, names, group).to_string() for group in groups]
        blocks = [re.sub(" +$", "", text, flags=re.MULTILINE) for text in texts]
        if max(map(len, blocks[0].splitlines())) <= WIDTH:
            break
    return blocks


def answers(runs, pairs, baseline):
    """Return what the results say about test accuracy, as sentences.

    First the baseline is compared with its dense network, then other curves with the baseline. If
    there is no baseline, all curves are compared with their dense networks.
    """
    tickets = runs[runs["curve"] == baseline] if baseline else runs
    dense = runs.loc[runs["round"] == 0, ["curve", "seed", "bestaccuracy"]]
    of_dense = tickets.merge(dense, on=["curve", "seed"], suffixes=("", "_baseline"))
    of_dense["bestaccuracy"] -= of_dense["bestaccuracy_baseline"]
    sentences = []
    for found, other in ((of_dense, "the dense network"), (pairs, baseline)):
        for curve, rows in found[found["round"] > 0].groupby("curve", sort=False):
            sentences.append(textwrap.fill(answer(curve, rows, other), WIDTH))
    if sentences:
        sentences.insert(0, f"Differences in {COLUMNS['bestaccuracy'].removesuffix(' (%)')}:")
    return sentences


def answer(curve, rows, other):
    """Return how a curve differs from another one in the last round that all seeds have.

    `rows` has the differences in test accuracy, as pair_seeds returns them.
    """
    seeds = rows.groupby("round")["seed"].count()
    rows = rows[rows["round"] == seeds[seeds == seeds.max()].index[-1]]
    mean = rows["bestaccuracy"].mean()
    low, high = interval(rows["bestaccuracy"])
    subject = f"At {as_percent(rows['weights_remaining'].mean())} of the weights, {curve}"
    evidence = utils.plural(len(rows), "seed")
    if len(rows) < 3:
        evidence += ", too few for an interval"
    if low <= 0 <= high or abs(mean) < 0.005:
        if low <= high:
            evidence = f"95% interval {low:+z.2f} to {high:+z.2f}, {evidence}"
        return f"{subject}: no clear difference from {other} ({mean:+z.2f} points, {evidence})"
    if low <= high:
        low, high = sorted([abs(low), abs(high)])
        evidence = f"95% interval {low:.2f} to {high:.2f}, {evidence}"
    where = "above" if mean > 0 else "below"
    return f"{subject}: {abs(mean):.2f} points {where} {other} ({evidence})"


def as_percent(number):
    """Return a percentage with three digits, as text."""
    return f"{number:#.3g}".rstrip(".") + "%"


def as_latex(table, baseline):
    """Return a summary as LaTeX tables, a list with one for each of COLUMNS.

    Small print and narrow gaps make them fit a page.
    """
    place = "-".join(table[["arch_type", "dataset"]].iloc[0])
    table = table.assign(weights=table["weights_remaining"].map(as_percent))
    tables = []
    for name in COLUMNS:
        if table[name].isna().all():
            continue
        cells = as_cells(table, ["curve", "weights"], [name]).map(as_tex)
        columns = cells.index.nlevels + cells.shape[1]
        styler = cells.style.format_index(as_tex, axis=0).format_index(as_tex, axis=1)
        text = styler.to_latex(
            caption=as_tex(caption(table, baseline, [name])),
            label=f"tab:{place}-{name}",
            column_format=r"@{\hspace{6pt}}".join(["@{}l", *"r" * (columns - 1)]) + "@{}",
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
    titles = "; ".join(COLUMNS[name] for name in columns)
    sentences = [f"{' on '.join(table.iloc[0, :2])}: {titles}."]
    trials = table["trials"]
    over = "seeds" if trials.nunique() > 1 else utils.plural(trials.max(), "seed")
    sentences.append("One seed." if over == "1 seed" else f"Mean ± standard deviation over {over}.")
    if table["pairs"].any():
        text = f"Differences from the baseline, {baseline}, are paired by seed"
        if table["pairs"].max() >= 3:
            text += ", with 95% confidence intervals (t distribution) for three or more seeds"
        sentences.append(f"{text}.")
    if "earlystop" in columns and table["earlystop_bound"].eq(">= ").any():
        sentences.append(
            ">=: at least one seed stopped early at its last evaluation, so its rounds may be too "
            "short."
        )
    unknown = table.loc[table["earlystop_at_end"].isna(), "curve"].unique()
    if "earlystop" in columns and len(unknown):
        sentences.append(
            f"?: the log of {', '.join(unknown)} is incomplete, so it is not known whether early "
            "stopping was at the last evaluation."
        )
    return " ".join(sentences)


def as_cells(table, names, columns):
    """Return the cells of a table, a DataFrame of texts whose headers have two lines.

    `names` are the columns that name a row, `columns` some of COLUMNS.
    """
    import pandas as pd

    if table["trials"].nunique() > 1:
        names = [*names, "seeds"]
    table = table.rename(columns={"trials": "seeds"})
    rows = table.to_dict("records")
    headers = []
    cells = []
    for name in columns:
        first, second = two_lines(COLUMNS[name])
        # pandas would leave out a first line that is that of the column before.
        headers.append((first + " " * (len(headers) % 2), second))
        cells.append([mean_text(row, name) for row in rows])
        if table["pairs"].any() and table[name].notna().any():
            headers.append(("difference from", "the baseline"))
            cells.append([difference_text(row, name) for row in rows])
    index = pd.MultiIndex.from_frame(table[names].astype(str))
    headers = pd.MultiIndex.from_tuples(headers)
    return pd.DataFrame(zip(*cells, strict=True), index=index, columns=headers)


def mean_text(row, name):
    """Return the mean and standard deviation of one of COLUMNS as text."""
    mean, std = row[name], row[f"{name}_std"]
    if math.isnan(mean):
        return "-"
    digits = DIGITS[name]
    bound = row.get(f"{name}_bound", "")
    text = f"{bound}{mean:.{digits}f}"
    return text if math.isnan(std) or bound == ">= " else f"{text} ± {std:.{digits}f}"


def difference_text(row, name):
    """Return the difference of one of COLUMNS from the baseline, and its interval, as text."""
    mean, low, high = (row[f"{name}_difference{part}"] for part in ("", "_low", "_high"))
    if math.isnan(mean):
        return "-"
    if row["same"]:
        return "same"
    digits = DIGITS[name]
    text = f"{row.get(f'{name}_difference_bound', '')}{mean:+z.{digits}f}"
    if not math.isnan(low):
        text += f" [{low:+z.{digits}f}, {high:+z.{digits}f}]"
    few = row["pairs"] < row["seeds"]
    return f"{text} ({utils.plural(row['pairs'], 'seed')})" if few else text


def two_lines(title):
    """Split a title into the two lines of a header."""
    first, _, second = textwrap.fill(title, LINE).partition("\n")
    return first, second


# ---- The figures of a run ------------------------------------------------------------------------


def draw_run(files):
    """Draw the figure over all rounds of a run, and the figures of single rounds if missing."""
    curve = own_name(files, read_settings(files))
    runs = read_run(files).assign(curve=curve, seed=files.seed)
    for round_ in runs["round"]:
        if not files.figure(f"LossVsAccuracy_{round_}").exists():
            draw_round(files, curve, round_)
    plot_columns(files.figure("AccuracyVsWeights"), runs, ["bestaccuracy"], files.title)


def draw_round(files, curve, round_):
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
    title = f"{curve}, {files.title}\nround {round_}, {remaining:.2f}% of the weights"
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

    `runs` is that of read_runs, and `log` has the evaluations of the rounds whose training is
    drawn.
    """
    arch_type, dataset = runs[["arch_type", "dataset"]].iloc[0]
    title = f"{arch_type}, {dataset}"

    def path_of(name):
        return Path(args.figures, f"{name}_{arch_type}_{dataset}.{args.format}")

    print(f"{title}: {describe(runs)}")
    for name, columns in FIGURES.items():
        complete = runs.dropna(subset=columns)
        if complete.empty:
            continue
        path = path_of(name)
        plot_columns(path, complete, columns, title, shared=True)
        content = ", ".join(COLUMNS[column].removesuffix(" (%)") for column in columns)
        print(f"{path}: {content}; {OVER_SEEDS}")

    if not log.empty:
        path = path_of("training")
        plot_training(path, log, title)
        rounds = ", ".join(map(str, sorted(log["round"].unique())))
        print(
            f"{path}: test accuracy during training (rounds {rounds}), {OVER_SEEDS}; "
            f"each point is the mean over 1/{TRAINING_POINTS} of the longest round"
        )


def describe(runs):
    """Return how many rounds and seeds each curve has."""
    parts = []
    for curve, group in runs.groupby("curve", sort=False):
        lengths = group.groupby("seed").size()
        rounds = " to ".join(map(str, sorted({lengths.min(), lengths.max()})))
        seeds = utils.plural(len(lengths), "seed")
        parts.append(f"{curve} with {utils.plural(rounds, 'round')} and {seeds}")
    return "; ".join(parts)


def mark_last_evaluations(axes, runs):
    """Open the markers of early-stopping iterations that are a seed's last evaluation."""
    groups = runs.groupby(["curve", "round"], sort=False)
    means = groups[["weights_remaining", "earlystop"]].mean()
    at_end = groups["earlystop_at_end"].sum() > 0
    found = styles(runs["curve"])
    for curve, points in means[at_end].groupby("curve"):
        colour, marker, _ = found[curve]
        axes.plot(
            points["weights_remaining"],
            points["earlystop"],
            linestyle="none",
            color=colour,
            marker=marker,
            markerfacecolor="white",
        )
    if at_end.any():
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
                errorbar=spread,
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
        errorbar=spread,
        ax=axes,
        **options,
    )
    axes.set_ylabel(textwrap.fill(COLUMNS[column], LINE))
    if not percents.isna().all():
        set_percent_axis(axes, percents)


def spread(values):
    """Return minimum and maximum of a Series, and its mean if rounding puts that outside."""
    mean = values.mean()
    return min(values.min(), mean), max(values.max(), mean)


def styles(curves):
    """Return the colour, marker and dashes of each curve, {curve: (colour, marker, dashes)}.

    The first curve of each of PRUNE_TYPES has those of its type, others get the next free ones.
    """
    first = {}
    for curve in dict.fromkeys(curves):
        first.setdefault(curve.partition(",")[0], curve)
    numbers = {first[kind]: i for i, kind in enumerate(PRUNE_TYPES) if kind in first}
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
    add("--rounds", type=utils.numbers("[0, inf)"), metavar="N,...",
        help="comma-separated rounds to tabulate, and whose training is drawn (default: those"
             " nearest to 100, 50, 20, 10, 5, 2 and 1%% of the weights, and the last%(default).0s)")
    add("--columns", nargs="+", default=PRINTED, choices=COLUMNS, metavar="NAME",
        help=f"quantities to print: {', '.join(COLUMNS)}"
             f" (default: {' '.join(PRINTED)}%(default).0s)")
    add("--output_dir", type=utils.folder, metavar="DIR", nargs="+", action="extend",
        help="one or more of main.py's --output_dir (default: .%(default).0s)")
    add("--figures", type=utils.folder, metavar="DIR",
        help="where figures go (default: plots/lt/combined_plots in --output_dir, or plots_A_B for"
             " the folders A and B%(default).0s)")
    add("--baseline", metavar="NAME",
        help="curve that differences are taken from (default: the only one of lt%(default).0s)")
    add("--format", default="png", choices=["png", "pdf", "svg"],
        help="file type of the figures")
    add("--csv", type=utils.folder, metavar="FILE",
        help="also write the table, with a row per curve and round (default: none%(default).0s)")
    add("--raw", type=utils.folder, metavar="FILE",
        help="also write a CSV file with a row per seed and round (default: none%(default).0s)")
    add("--latex", type=utils.folder, metavar="FILE",
        help="also write LaTeX tables of the rounds that are printed (default: none%(default).0s)")
    # fmt: on
    args = parser.parse_args(argv)
    args.columns = list(dict.fromkeys(args.columns))
    args.output_dir = args.output_dir or ["."]
    args.figures = args.figures or default_figures(parser, args.output_dir)
    check_tables(parser, {name: getattr(args, name) for name in ("csv", "raw", "latex")})
    return args


def check_tables(parser, paths):
    """Exit with status 2 if tables cannot be written to these paths, {flag: path or None}."""
    places = set()
    for name, text in paths.items():
        if text is None:
            continue
        path = Path(text)
        if path.is_dir():
            parser.error(f"--{name}={path} is a folder; it must be a file")
        if path.resolve() in places:
            parser.error(f"--{name}={path} is the file of another table, too")
        if path.is_file() and path.samefile("/dev/stdout"):
            parser.error(f"--{name}={path} is the file that the output goes to; choose another one")
        places.add(path.resolve())


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
    sys.stdout.reconfigure(errors="replace")  # an ASCII terminal has no ±
    with utils.one_line_errors("combine_plots.py"):
        main(parse_args())
