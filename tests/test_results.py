"""The pages of results are true: their tables, figures and claims follow from the stored runs."""

import fnmatch
import itertools
import json
import re
import tarfile
from functools import cache
from operator import itemgetter

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

import combine_plots
import main
import utils
from conftest import ROOT, code_blocks, read_raw, started

README = (ROOT / "README.md").read_text()
INDEX = ROOT / "docs/results.md"
RESULTS = ROOT / "docs/results"
PAGES = {page.stem: page for page in sorted(RESULTS.glob("*.md"))}
COLUMNS = {title: name for name, title in combine_plots.COLUMNS.items()}
PINNED = f"matplotlib=={matplotlib.__version__}" in (ROOT / "tests/constraints.txt").read_text()


@cache
def commands(topic):
    """Return the commands of a page: interpreter, script and arguments of each."""
    return [words for script in code_blocks(PAGES[topic], "sh") for words in started(script)]


def drawings(topic):
    """Return the settings of combine_plots.py's commands on a page; the first writes the tables."""
    lines = commands(topic)
    return [
        combine_plots.parse_args(args) for _, name, *args in lines if name == "combine_plots.py"
    ]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with the arrays, logs and settings of all runs of the pages."""
    folder = tmp_path_factory.mktemp("stored")
    for path in RESULTS.glob("*/runs.tar.xz"):
        with tarfile.open(path) as archive:
            files = [member for member in archive if member.isfile()]
            assert not [member for member in files if (folder / member.name).exists()], path
            archive.extractall(folder, files, filter="data")
    return folder


@pytest.mark.parametrize("topic", PAGES)
def test_stored_runs_have_the_settings_of_their_commands(topic, stored, monkeypatch):
    monkeypatch.chdir(stored)
    trainings = [main.parse_args(args) for _, name, *args in commands(topic) if name == "main.py"]
    assert trainings
    for args in trainings:
        for seed in range(args.seed, args.seed + args.trials):
            args.seed = seed
            files = utils.Files(args)
            recorded = json.loads(files.settings.read_text())
            found = utils.difference(vars(args), recorded["settings"], recorded["defaults"])
            assert found == ("", ""), files.settings
            assert len(utils.read_array(files.array("compression"))) == args.prune_iterations


def test_stored_arrays_follow_from_their_logs(stored):
    logs = list(stored.rglob("*_log.jsonl"))
    assert logs
    for log in logs:
        rows = map(json.loads, log.read_text().splitlines())
        rounds = [list(group) for _, group in itertools.groupby(rows, itemgetter("round"))]
        expected = pd.DataFrame(map(utils.round_summary, rounds))
        for name in utils.ARRAYS:
            path = log.with_name(log.name.replace("_log.jsonl", f"_{name}.dat"))
            if path.exists():
                np.testing.assert_allclose(utils.read_array(path), expected[name], err_msg=path)


@pytest.mark.parametrize("topic", PAGES)
def test_files_of_a_page_follow_from_the_stored_runs(topic, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(stored)
    for args in drawings(topic):
        args.figures = tmp_path
        for name in ("csv", "raw"):
            if path := getattr(args, name):
                setattr(args, name, tmp_path / (ROOT / path).relative_to(RESULTS / topic))
        combine_plots.main(args)
    for code in code_blocks(PAGES[topic], "python"):
        if "savefig" in code:  # pages also show code that is not to be run
            with matplotlib.rc_context():
                exec(code.replace(f"docs/results/{topic}", str(tmp_path)), {})
    names = {path.name for path in (RESULTS / topic).iterdir()} - {"runs.tar.xz"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    for name in ("summary.csv", "seeds.csv"):
        kept = pd.read_csv(RESULTS / topic / name)
        written = pd.read_csv(tmp_path / name)
        pd.testing.assert_frame_equal(written[kept.columns], kept)  # quantities may be added
    if topic == "lenet" and PINNED:  # other versions draw text differently
        name = "combined_fc1_mnist.png"
        np.testing.assert_array_equal(imread(tmp_path / name), imread(RESULTS / topic / name))


@cache
def results(topic):
    """Return the results of a topic's seeds, and their summary, two DataFrames."""
    runs = read_raw(RESULTS / topic / "seeds.csv")
    wanted = drawings(topic)[0].baseline
    summary = pd.concat(
        combine_plots.summary(of_dataset, combine_plots.find_baseline(of_dataset, wanted))
        for _, of_dataset in runs.groupby(["arch_type", "dataset"])
    )
    summary["seeds"] = summary["trials"]
    for table in (runs, summary):
        table["percent"] = table["weights_remaining"].map(combine_plots.as_percent)
    return runs, summary


# ---- Tables --------------------------------------------------------------------------------------


def tables(text):
    """Yield the header and the rows of each table of a page, lists of cells."""
    for table in re.findall(r"^.+\n(?:\|-+)+\|\n(?:.+\n)+", text, re.MULTILINE):
        header, _, *rows = (line.strip().strip("|").split("|") for line in table.splitlines())
        yield [cell.strip() for cell in header], [[cell.strip() for cell in row] for row in rows]


def row_of(topic, header, label):
    """Return the cells of a row with this label: means, and differences from the baseline.

    The header names a quantity, and either curves or percentages of weights remaining; the label is
    one of the others.
    """
    dataset, _, title = header[0].rpartition(": ")
    name = COLUMNS[title]
    _, table = results(topic)
    table = table[table["dataset"].isin([dataset.lower()] if dataset else table["dataset"])]
    cells = [label]
    row = {}
    for head in header[1:]:
        if head == "difference":  # of the cell before
            cells.append(combine_plots.difference_text(row, name))
        else:
            percent, curve = sorted([head, label], key=lambda text: "`" in text)
            found = table[(table["percent"] == percent) & (table["curve"] == curve.strip("`"))]
            assert len(found) == 1, f"{len(found)} rows for {percent} of {curve}: {header[0]}"
            (row,) = found.to_dict("records")
            cells.append(combine_plots.mean_text(row, name))
    return cells


TEXTS = {
    "README.md": ("lenet", README.partition("\n## Results\n")[2].partition("\n## ")[0]),
    **{page.name: (topic, page.read_text()) for topic, page in PAGES.items()},
}


@pytest.mark.parametrize(("topic", "text"), TEXTS.values(), ids=TEXTS)
def test_tables_have_the_numbers_of_the_files(topic, text):
    found = list(tables(text))
    assert found
    for header, rows in found:
        assert header[0].rpartition(": ")[2] in COLUMNS
        assert rows == [row_of(topic, header, row[0]) for row in rows]


# ---- Claims --------------------------------------------------------------------------------------

DENSE, REINIT = "lt @ 100%", "reinit, lt's masks"
MOVED = "lt, source's tickets, source's dataset"
REDRAWN = "reinit, source's masks, source's dataset"
MAGNITUDE = "lt, criterion=magnitude"
SCOPE = "random, prune_scope"
# What the index says of two curves and their densities, or of one, in this order. A curve may be a
# pattern of fnmatch; each seed then counts with the mean of its networks.
CLAIMS = [
    ("lenet", "earlystop", "lt @ 51.3%", DENSE),
    ("lenet", "earlystopaccuracy", "lt @ 51.3%", DENSE),
    ("lenet", "earlystop", "lt @ 51.3%", "lt @ 21.1%"),
    ("lenet", "earlystop", "lt @ 21.1%", DENSE),
    ("lenet", "earlystop", f"{REINIT} @ 21.1%", "lt @ 21.1%"),
    ("lenet", "earlystopaccuracy", "lt @ 21.1%", f"{REINIT} @ 21.1%"),
    ("lenet", "finalaccuracy", "lt @ 21.1%", f"{REINIT} @ 21.1%"),
    ("lenet", "earlystopaccuracy", "lt @ 13.5%", DENSE),
    ("lenet", "earlystopaccuracy", "lt @ 3.58%", DENSE),
    ("lenet", "earlystop", "lt @ 3.58%", DENSE),
    ("lenet", "earlystopaccuracy", "lt @ 2.87%", DENSE),
    ("lenet", "earlystopaccuracy", f"{REINIT} @ 21.1%", DENSE),
    ("lenet", "earlystopaccuracy", f"{REINIT} @ 3.58%", DENSE),
    ("lenet", "finalaccuracy", "lt @ 13.5%", DENSE),
    ("lenet", "trainaccuracy", "lt @ 13.5%"),
    ("lenet", "earlystop", "random @ 21.1%", DENSE),
    ("lenet", "earlystopaccuracy", "random @ 21.1%", DENSE),
    ("lenet", "earlystop", "random @ 2.87%", DENSE),
    ("lenet", "earlystopaccuracy", "random @ 2.87%", DENSE),
    *[
        ("fashionmnist", "bestaccuracy", f"lt @ {percent}", DENSE)
        for percent in ("51.3%", "21.1%", "13.5%", "3.58%", "2.87%")
    ],
    ("fashionmnist", "bestaccuracy", "lt @ 21.1%", f"{REINIT} @ 21.1%"),
    ("fashionmnist", "bestaccuracy", "lt @ 3.58%", f"{REINIT} @ 3.58%"),
    ("fashionmnist", "bestaccuracy", f"{REINIT} @ 21.1%", DENSE),
    *[
        ("resets", "bestaccuracy", f"signed_{reset}, lt's masks @ 5.57%", "lt @ 5.57%")
        for reset in ("reinit", "shuffle", "constant")
    ],
    ("resets", "bestaccuracy", "shuffle, lt's masks @ 5.57%", f"{REINIT} @ 5.57%"),
    ("resets", "bestaccuracy", "constant, lt's masks @ 5.57%", f"{REINIT} @ 5.57%"),
    ("resets", "bestaccuracy", f"{REINIT} @ 5.57%", "lt @ 5.57%"),
    ("resets", "untrained", "lt @ 5.57%"),
    ("resets", "untrained", "signed_constant, lt's masks @ 5.57%"),
    ("resets", "bestaccuracy", "lt @ 5.57%", "finetune, own masks @ 5.57%"),
    ("resets", "bestaccuracy", "lr_rewind, own masks @ 5.57%", "finetune, own masks @ 5.57%"),
    ("resets", "bestaccuracy", "lr_rewind, own masks @ 5.57%", "lt @ 5.57%"),
    ("sgd", "bestaccuracy", "lr_rewind, own masks @ 5.57%", "lt @ 5.57%"),
    ("transfer", "bestaccuracy", f"{MOVED}=mnist @ 21.1%", "fashionmnist: lt @ 100%"),
    ("transfer", "bestaccuracy", f"{MOVED}=fashionmnist @ 21.1%", "mnist: lt @ 100%"),
    *[
        ("transfer", "bestaccuracy", f"{MOVED}={source} @ 5.57%", f"{REDRAWN}={source} @ 5.57%")
        for source in ("mnist", "fashionmnist")
    ],
    ("transfer_lenet5", "bestaccuracy", f"{MOVED}=mnist @ 21.6%", DENSE),
    *[
        ("transfer_lenet5", "bestaccuracy", f"{MOVED}=mnist @ {at}", f"{REDRAWN}=mnist @ {at}")
        for at in ("21.6%", "7.78%")
    ],
    ("stability", "barrier", DENSE),
    ("stability", "barrier", "lt @ 21.1%"),
    ("stability", "barrier", "lt @ 2.87%"),
    ("stability", "barrier", f"{REINIT} @ 2.87%", "lt @ 2.87%"),
    ("stability", "barrier", "lt, rewind_iter=0 @ 100%"),
    ("stability", "barrier", "lt, rewind_iter=500 @ 100%"),
    ("stability", "barrier", "lt, rewind_iter=0 @ 21.6%"),
    ("stability", "bestaccuracy", "lt, rewind_iter=0 @ 21.6%", "lt, rewind_iter=0 @ 100%"),
    *[
        ("rewinding", "bestaccuracy", f"lt, rewind_iter={k}, * @ {percent}", "lt, * @ 100%")
        for k in (0, 50, 200)
        for percent in ("40.5%", "16.7%", "7.17%")
    ],
    *[
        (
            "rewinding",
            "bestaccuracy",
            f"{REINIT}, *rewind_iter=0 @ {percent}",
            f"lt, rewind_iter=0, * @ {percent}",
        )
        for percent in ("40.5%", "16.7%", "7.17%")
    ],
    *[
        ("rewinding", "bestaccuracy", f"{curve} @ 16.7%", "lt, rewind_iter=200, * @ 16.7%")
        for curve in (f"{REINIT}, *rewind_iter=200", "random, *")
    ],
    *[("rewinding", "barrier", f"lt, rewind_iter={k}, * @ 100%") for k in (0, 50, 100, 200)],
    *[
        ("rewinding", "barrier", f"lt, rewind_iter={k}, * @ {percent}")
        for k in (50, 200, 0)
        for percent in ("40.5%", "16.7%")
    ],
    *[
        ("rewinding_longer", name, f"lt, rewind_iter={k}, * @ {percent}", *compared)
        for k in (0, 400)
        for name, *compared in (("bestaccuracy", "lt, * @ 100%"), ("barrier",))
        for percent in ("40.5%", "16.7%")
    ],
    *[("rewinding_longer", "barrier", f"lt, rewind_iter={k}, * @ 100%") for k in (200, 400)],
    *[
        (
            "rewinding_steps",
            "bestaccuracy",
            f"lt, prune_percent=36, * @ {smaller}",
            f"lt, prune_percent=60, * @ {larger}",
        )
        for smaller, larger in (("17.5%", "16.7%"), ("7.64%", "7.17%"))
    ],
    *[
        ("before", "bestaccuracy", f"lt, criterion={name} @ 5.50%", f"{MAGNITUDE} @ 5.50%")
        for name in ("snip", "grasp", "synflow")
    ],
    *[
        ("before", "bestaccuracy", f"lt, {criterion} @ 5.50%", f"random, {criterion} @ 5.50%")
        for criterion in ("criterion=snip", "criterion=grasp", "criterion=synflow")
    ],
    *[
        ("before_lenet5", "bestaccuracy", f"random @ {at}", f"lt @ {at}")
        for at in ("60.0%", "21.6%", "7.78%")
    ],
    *[
        ("criteria", "bestaccuracy", f"lt, criterion={name} @ 5.50%", f"{MAGNITUDE} @ 5.50%")
        for name in ("increase", "movement", "initial")
    ],
    ("criteria", "untrained", "signed_constant, lt's masks, criterion=same_sign @ 21.0%"),
    *[
        ("criteria", "bestaccuracy", f"{MAGNITUDE} @ {at}", f"{MAGNITUDE}, one_shot @ {at}")
        for at in ("5.50%", "2.81%")
    ],
    *[
        ("layers", "bestaccuracy", f"{SCOPE}=erk @ 5.50%", f"{SCOPE}={other} @ 5.50%")
        for other in ("layer", "global")
    ],
]


def claim_text(topic, name, *places):
    """Return a mean and its standard deviation, or a difference and its 95% interval, as text."""
    runs, _ = results(topic)
    values = []
    for place in places:
        dataset, curve, percent = re.fullmatch("(?:(.*): )?(.*) @ (.*)", place).groups()
        rows = runs[runs["curve"].isin(fnmatch.filter(runs["curve"], curve))]
        rows = rows[rows["percent"] == percent]
        rows = rows[rows["dataset"].isin([dataset] if dataset else rows["dataset"])]
        assert "*" in curve or rows["seed"].is_unique, place
        # Dense networks are in several curves.
        rows = rows.drop_duplicates(["seed", *combine_plots.COLUMNS])
        values.append(rows.groupby("seed")[name].mean())
    if len(values) == 1:
        row = {name: values[0].mean(), f"{name}_std": values[0].std()}
        return combine_plots.mean_text(row, name)
    difference = values[0] - values[1]
    low, high = combine_plots.interval(difference)
    row = {
        f"{name}_difference": difference.mean(),
        f"{name}_difference_low": low,
        f"{name}_difference_high": high,
    }
    counts = {"same": False, "pairs": len(difference), "seeds": len(difference)}
    text = combine_plots.difference_text(row | counts, name)
    if name == "earlystop":
        text += f" iterations ({difference.mean() / values[1].mean():+.0%})"
    return text


NUMBER = r"[+-][\d.]+ \[[^]]*\](?: iterations \(.*?%\))?|[\d.]+ ± [\d.]+"


def test_the_index_has_the_numbers_of_the_files():
    shown = re.findall(NUMBER, INDEX.read_text())
    assert shown == [claim_text(*claim) for claim in CLAIMS]


def test_the_index_names_the_densities_of_its_numbers():
    """Above the table, or in the row of a number, without its verdict."""
    claims = iter(CLAIMS)
    for section in INDEX.read_text().split("\n## "):
        above = section.partition("\n|")[0]
        for line in section.splitlines():
            text = above + line.rpartition(" | ")[0]
            for _ in re.findall(NUMBER, line):
                _, _, *places = next(claims)
                percents = {place.rpartition(" @ ")[2] for place in places} - {"100%"}
                assert all(percent in text for percent in percents), line
