"""combine_plots.py: the results it finds, its figures and its table."""

import argparse
import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from scipy import stats
from torch import nn

import archs
import combine_plots
import main
import utils
from conftest import ROOT, command, png_size


def write_curve(folder, kind, accuracies, percent=20):
    utils.write_array(
        folder / f"{kind}_compression.dat",
        [100 * (1 - percent / 100) ** i for i in range(len(accuracies))],
    )
    utils.write_array(folder / f"{kind}_bestaccuracy.dat", accuracies)


@pytest.fixture
def drawn(monkeypatch):
    """The rounds that are drawn, {"arch_dataset": [(curve, percent, accuracy), ...]}."""
    found, summary = {}, combine_plots.summary

    def spy(runs, baseline):
        points = runs[["curve", "weights_remaining", "bestaccuracy"]]
        name = "_".join(runs[["arch_type", "dataset"]].iloc[0])
        found[name] = list(points.itertuples(index=False, name=None))
        return summary(runs, baseline)

    monkeypatch.setattr(combine_plots, "summary", spy)
    return found


def figure_of(save):
    """Return the figure that a function passed to utils.write saves."""
    return next(
        cell.cell_contents for cell in save.__closure__ if hasattr(cell.cell_contents, "axes")
    )


def combine(folder, *flags):
    combine_plots.main(combine_plots.parse_args([f"--output_dir={folder}", *flags]))


def test_all_results_are_found(tmp_path, drawn, capsys):
    dumps = tmp_path / "dumps/lt"
    write_curve(dumps / "fc1/mnist", "lt", [97, 98, 97.5])
    write_curve(dumps / "fc1/mnist", "reinit", [97, 96])
    write_curve(dumps / "lenet5/cifar10", "lt", [50])
    write_curve(dumps / "fc1/digits/seed5", "reinit", [90, 91], percent=50)
    (dumps / "vgg16/cifar10").mkdir(parents=True)  # started, but no round is finished
    combine(tmp_path)
    assert set(drawn) == {"fc1_mnist", "lenet5_cifar10", "fc1_digits"}
    assert [kind for kind, _, _ in drawn["fc1_mnist"]] == ["lt"] * 3 + ["reinit"] * 2
    output = capsys.readouterr().out
    for line in ("\nlenet5, cifar10:\n", "combined_lenet5_cifar10.png: test accuracy at best"):
        assert line in output
    for name in drawn:
        png_size(tmp_path / f"plots/lt/combined_plots/combined_{name}.png")

    drawn.clear()
    combine(tmp_path, "--dataset=mnist", "--arch_type=fc1")
    assert set(drawn) == {"fc1_mnist"}

    drawn.clear()
    combine(tmp_path, "--prune_type", "reinit", "--prune_type", "random")
    assert {name: {kind for kind, _, _ in drawn[name]} for name in drawn} == {
        "fc1_mnist": {"reinit"},
        "fc1_digits": {"reinit"},
    }
    assert capsys.readouterr().err.count("has no results") == 1  # random


def test_seeds_of_different_length_give_mean_and_range(tmp_path, figures):
    dumps = tmp_path / "dumps/lt/fc1/mnist"
    write_curve(dumps, "lt", [97, 98, 96])
    write_curve(dumps / "seed1", "lt", [95, 99])
    combine(tmp_path)
    (panel,) = figures["combined_fc1_mnist.png"]
    assert panel["lines"] == {"lt": approx([(100, 96), (80, 98.5), (64, 96)])}
    assert panel["bars"] == approx([(100, 95, 97), (80, 98, 99), (64, 96, 96)])
    assert panel["x"] == ("log", True)
    assert panel["title"] == "fc1, mnist: mean and range, 1 to 2 seeds"


def approx(points):
    return [pytest.approx(point) for point in points]


def test_damaged_arrays_are_left_out_and_reported(tmp_path, drawn, capsys):
    dumps = tmp_path / "dumps/lt/fc1/mnist"
    write_curve(dumps, "lt", [97, 98])
    write_curve(dumps / "seed1", "lt", [97, 98])
    (dumps / "seed1/lt_bestaccuracy.dat").write_bytes(b"\x80\x04N.")
    write_curve(dumps, "reinit", [97, 98, 99])
    utils.write_array(dumps / "reinit_bestaccuracy.dat", [97, 98])  # as between two writes
    combine(tmp_path)
    assert drawn["fc1_mnist"] == [
        (kind, x, y) for kind in ("lt", "reinit") for x, y in ((100, 97), (80, 98))
    ]
    error = capsys.readouterr().err
    assert [line for line in error.splitlines() if "left out" in line] == [
        line for line in error.splitlines() if "seed1" in line
    ]
    assert "seed1/lt_bestaccuracy.dat" in error


def test_without_results_the_error_names_the_path(tmp_path):
    result = command("combine_plots.py", f"--output_dir={tmp_path}", "--dataset=mnist")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("combine_plots.py: error: nothing to draw")
    assert f"{tmp_path}/dumps/lt/<arch>/mnist/<prune_type>_bestaccuracy.dat" in result.stderr

    write_curve(tmp_path / "dumps/lt/fc1/mnist", "lt", [97, 98])
    with pytest.raises(utils.BadInput, match=r"<dataset>/reinit_bestaccuracy\.dat or "):
        combine(tmp_path, "--prune_type", "reinit", "random")


# The paper's figures


# For each prune type, its trials: early-stopping iterations, accuracies then, and at the end.
EARLY = {
    "lt": [([500, 300], [97, 98], [97.5, 98.5]), ([700, 500], [96, 97], [96.5, 97.5])],
    "random": [([600, 900], [95, 94], [96, 95])],
}


@pytest.fixture
def experiment(tmp_path):
    """Results of two rounds with four evaluations each: two trials of lt and one of random."""
    for kind, trials in EARLY.items():
        for seed, (iterations, there, end) in enumerate(trials):
            folder = tmp_path / "dumps/lt/fc1/mnist" / (f"seed{seed}" if seed else "")
            write_curve(folder, kind, [value + 1 for value in end])
            for name, values in (
                ("earlystop", iterations),
                ("earlystopaccuracy", there),
                ("finalaccuracy", end),
                ("untrained", [value / 10 for value in end]),
                ("trainaccuracy", [value / 2 for value in end]),
            ):
                utils.write_array(folder / f"{kind}_{name}.dat", values)
            rows = [
                {
                    "round": r,
                    "epoch": 1,
                    "iteration": i,
                    "weights_remaining": (100.0, 80.0)[r],
                    "train_loss": 0.1,
                    "test_accuracy": 90 + seed + r + i / 1000,
                }
                for r in range(2)
                for i in (250, 500, 750, 1000)
            ]
            (folder / f"{kind}_log.jsonl").write_text(
                "".join(f"{json.dumps(row)}\n" for row in rows) + '{"round": 1, "ite'
            )
    return tmp_path


@pytest.fixture
def figures(monkeypatch):
    """The panels of each figure that was written, by file name."""
    found, write = {}, utils.write

    def look(path, save, *rest, **options):
        if path.suffix == ".png":
            found[path.name] = [panel(axes) for axes in figure_of(save).axes]
        write(path, save, *rest, **options)

    monkeypatch.setattr(utils, "write", look)
    return found


def panel(axes):
    """Return what is to be seen in a panel and in the legend of its figure."""
    (legend,) = axes.figure.legends
    lines = [line for line in axes.lines if len(line.get_xdata())]
    dotted = [line for line in lines if line.get_transform() != axes.transData]
    bars = [bars for bars in axes.collections if isinstance(bars, LineCollection)]
    return {
        "heading": axes.get_title().replace("\N{NO-BREAK SPACE}", " "),
        "title": legend.get_title().get_text(),
        "legend": [
            text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in legend.get_texts()
        ],
        "label": axes.get_ylabel().replace("\n", " "),
        "x": (axes.get_xscale(), axes.xaxis_inverted()),
        "ticks": [tick for tick in axes.get_xticks() if tick > 0],
        "y": axes.get_yscale(),
        "xlabel": axes.get_xlabel(),
        "lines": {name(line): points(line) for line in lines if line not in dotted},
        "colours": {name(line): line.get_color() for line in lines},
        "dotted": {line.get_label(): line.get_ydata()[0] for line in dotted},
        "bars": [
            (*path.vertices[0], path.vertices[1][1])
            for bar in bars
            for path in bar.get_paths()
            if np.isfinite(path.vertices).all()
        ],
        "triangles": [
            (*point, "up" if shape.get_paths()[0].vertices[:, 1].argmax() == 0 else "down")
            for shape in axes.collections
            if isinstance(shape, PathCollection)
            for point in shape.get_offsets().tolist()
        ],
        "marked": {name(line): line.get_markevery() for line in lines},
        "range": axes.get_ylim(),
        "markers": {line.get_marker() for line in axes.lines},
    }


def name(line):
    return line.get_label().replace("\N{NO-BREAK SPACE}", " ")


def points(line):
    return list(zip(*map(list, line.get_data()), strict=True))


def test_early_stopping_is_drawn_as_in_the_papers_figure_4(experiment, figures):
    combine(experiment)
    panels = figures["earlystop_fc1_mnist.png"]
    assert [panel["label"] for panel in panels] == [
        "early-stopping iteration",
        "test accuracy at early stopping (%)",
        "test accuracy at the end of training (%)",
    ]
    assert panels[0]["title"] == "fc1, mnist: mean and range over seeds"
    assert panels[0]["legend"] == ["lt (2 seeds)", "random (1 seed)", "lt, dense"]
    expected = ([(600, 400), (96.5, 97.5), (97, 98)], [(600, 900), (95, 94), (96, 95)])
    for index, panel in enumerate(panels):
        assert panel["x"] == ("log", True)
        lt, random = panel["lines"].values()
        side = (100 / 80) ** (0.02 / 4)  # bars do not cover each other
        for line, values, shift in zip((lt, random), expected, (side, 1 / side), strict=True):
            assert line == approx(zip([100 * shift, 80 * shift], values[index], strict=True))
        ends = sorted(trial[index][0] for trial in EARLY["lt"])
        assert panel["bars"][0] == pytest.approx((lt[0][0], *ends))
        assert panel["dotted"] == {"lt, dense": pytest.approx(expected[0][index][0])}


def test_untrained_tickets_are_drawn(experiment, figures):
    combine(experiment)
    (panel,) = figures["untrained_fc1_mnist.png"]
    assert panel["label"] == "test accuracy before training (%)"
    assert panel["legend"] == ["lt (2 seeds)", "random (1 seed)", "chance"]
    lt, random = ([y for _, y in line] for line in panel["lines"].values())
    assert lt == approx([9.7, 9.8])
    assert random == approx([9.6, 9.5])
    assert panel["dotted"] == {"chance": 10}


def test_a_dataset_that_was_deleted_has_no_chance(tmp_path, figures):
    write_run(tmp_path, "lt", [90, 91])
    (tmp_path / "dumps/lt/fc1/mnist").rename(tmp_path / "dumps/lt/fc1/letters")
    combine(tmp_path)
    assert figures["untrained_fc1_letters.png"][0]["legend"] == ["lt", "lt, dense"]


def test_the_dense_network_is_that_of_the_baseline(two_folders, figures):
    combine_all(two_folders, "--figures=f", "--baseline=lt, rewind_iter=500")
    (panel,) = figures["combined_fc1_mnist.png"]
    assert panel["dotted"] == {"lt, rewind_iter=500, dense": 90.5}
    colours = panel["colours"]
    assert colours["lt, rewind_iter=500, dense"] == colours["lt, rewind_iter=500 (2 seeds)"]
    write_curve(two_folders[1] / "dumps/lt/fc1/mnist", "lt", [80, 91])
    combine_all(two_folders, "--figures=f", "--baseline=lt, rewind_iter=0")
    (panel,) = figures["combined_fc1_mnist.png"]
    assert panel["dotted"] == {"lt, rewind_iter=0, dense": 90.5}
    colours = panel["colours"]
    assert colours["lt, rewind_iter=0, dense"] == colours["lt, rewind_iter=0 (2 seeds)"]


def test_rounds_of_older_versions_are_not_drawn_in_the_figure_of_untrained_tickets(
    experiment, figures, capsys
):
    utils.write_array(experiment / "dumps/lt/fc1/mnist/random_untrained.dat", [math.nan, 9])
    combine(experiment)
    (panel,) = figures["untrained_fc1_mnist.png"]
    first, second = panel["lines"]["random (1 seed)"]
    assert math.isnan(first[1])
    assert second[1] == 9
    assert "left out" not in capsys.readouterr().err


def test_training_is_drawn_for_chosen_rounds_as_in_figure_3(experiment, figures, capsys):
    combine(experiment, "--rounds=1,7")
    lt, random = figures["training_fc1_mnist.png"]
    assert lt["label"] == random["label"] == "test accuracy (%)"
    assert (lt["heading"], random["heading"]) == ("lt (2 seeds)", "random (1 seed)")
    assert lt["title"] == "fc1, mnist: mean and range over seeds\nweights remaining"
    assert lt["legend"] == ["80.0%"]
    iterations = [250, 500, 750, 1000]
    assert lines(lt) == [
        approx(zip(iterations, [91.75, 92, 92.25, 92.5], strict=True)),
    ], "not where they were measured"
    assert lines(random) == [approx(zip(iterations, [91.25, 91.5, 91.75, 92], strict=True))]
    combine(experiment)
    assert figures["training_fc1_mnist.png"][0]["legend"] == ["100%", "80.0%"]
    assert "each point is the mean" not in capsys.readouterr().out
    figures.clear()
    combine(experiment, "--rounds=5")
    assert "training_fc1_mnist.png" not in figures


def lines(panel):
    return list(panel["lines"].values())


def test_points_that_are_left_out_are_counted(tmp_path, figures, capsys):
    row = {"round": 0, "epoch": 1, "weights_remaining": 100.0, "train_loss": 0.1}
    accuracies = [10, *np.linspace(97, 98, 39)]
    write_log(
        tmp_path / "dumps/lt/fc1/mnist",
        [row | {"iteration": i, "test_accuracy": y} for i, y in enumerate(accuracies, 1)],
    )
    combine(tmp_path)
    (panel,) = figures["training_fc1_mnist.png"]
    low, high = panel["range"]
    assert 10 < low < 97 < 98 < high
    assert high - 98 == pytest.approx(0.05 * (98 - np.quantile(accuracies, 0.03)) + 0.01)
    note = f"2.5% of the points are below {low:.4g}%"
    assert panel["xlabel"] == f"iteration\n{note}"
    assert f"training_fc1_mnist.png: test accuracy during training; 1 seed; {note}\n" in (
        capsys.readouterr().out
    )


def test_nothing_is_said_of_points_if_all_are_drawn(tmp_path, figures, capsys):
    row = {"round": 0, "epoch": 1, "weights_remaining": 100.0, "train_loss": 0.1}
    write_log(
        tmp_path / "dumps/lt/fc1/mnist",
        [row | {"iteration": i, "test_accuracy": 98 - i / 100} for i in range(20)],
    )
    combine(tmp_path)
    assert figures["training_fc1_mnist.png"][0]["xlabel"] == "iteration"
    assert "of the points" not in capsys.readouterr().out


def test_a_curve_without_a_log_is_named(tmp_path, figures, capsys):
    write_run(tmp_path, "lt", [90, 91], end=900)
    write_run(tmp_path, "reinit", [90, 89])
    combine(tmp_path)
    assert len(figures["training_fc1_mnist.png"]) == 1
    assert "because the log has none of its rounds: reinit, own masks" in capsys.readouterr().err


def test_densities_get_darker_in_grey(tmp_path, figures):
    write_run(tmp_path, "lt", [90] * 8, percent=50, end=900)
    combine(tmp_path)
    (panel,) = figures["training_fc1_mnist.png"]
    colours = list(panel["colours"].values())
    greys = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in colours]
    assert len(greys) == 7
    assert greys == sorted(greys, reverse=True)


def test_a_long_round_is_drawn_as_fifty_means(tmp_path, figures, capsys):
    folder = tmp_path / "dumps/lt/fc1/mnist"
    write_curve(folder, "lt", [97])
    rows = [
        {
            "round": 0,
            "epoch": 1,
            "iteration": i,
            "weights_remaining": 100.0,
            "train_loss": 0.1,
            "test_accuracy": 90 + i % 20,
        }
        for i in range(10, 5001, 10)
    ]
    (folder / "lt_log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    combine(tmp_path)
    (panel,) = figures["training_fc1_mnist.png"]
    assert lines(panel) == [approx((x, 95) for x in range(55, 5000, 100))], "not at the mean"
    assert panel["xlabel"] == "iteration\neach point is the mean over 1/50 of the longest round"
    assert "each point is the mean over 1/50" in capsys.readouterr().out


def test_seeds_that_are_not_equally_far_have_the_same_points(tmp_path, figures):
    """The first seed has finished a round, the second one is within it."""
    row = {"round": 0, "epoch": 1, "weights_remaining": 100.0, "train_loss": 0.1}
    for seed, end in enumerate((1000, 245)):
        folder = tmp_path / "dumps/lt/fc1/mnist" / (f"seed{seed}" if seed else "")
        iterations = range(5, end + 1, 5)
        write_log(folder, [row | {"iteration": i, "test_accuracy": 90 + seed} for i in iterations])
    combine(tmp_path)
    (line,) = lines(figures["training_fc1_mnist.png"][0])
    assert [y for _, y in line] == [90.5] * 13 + [90] * 37


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def printed(output):
    """Return the rows of the tables in an output, with single spaces and without empty cells."""
    rows = []
    for block in re.findall(r"^weights round curve.*\n((?:.+\n)+)", output, re.MULTILINE):
        rows += [" ".join(line.split()) for line in block.splitlines()]
    return rows


def test_the_table_has_means_and_deviations_on_screen_and_in_the_file(experiment, capsys, tmp_path):
    combine(experiment, f"--csv={tmp_path / 'new/table.csv'}")
    output = capsys.readouterr().out
    assert "Mean ± standard deviation over seeds." in " ".join(output.split())
    assert printed(output) == [
        "100% 0 lt 2 98.00 ± 0.71 - 600 ± 141 -",
        "random 1 97.00 -1.50 600 +100",
        "80.0% 1 lt 2 99.00 ± 0.71 - 400 ± 141 -",
        "random 1 96.00 -3.50 900 +600",
    ]
    rows = read_csv(tmp_path / "new/table.csv")
    assert [(row["prune_type"], row["round"], row["trials"]) for row in rows] == [
        ("lt", "0", "2"),
        ("lt", "1", "2"),
        ("random", "0", "1"),
        ("random", "1", "1"),
    ]
    expected = {
        "round": 0,
        "trials": 2,
        "weights_remaining": 100,
        "bestaccuracy": 98,
        "bestaccuracy_std": 0.5**0.5,
        "bestaccuracy_min": 97.5,
        "bestaccuracy_max": 98.5,
        "earlystop": 600,
        "earlystop_std": 20000**0.5,
        "earlystop_min": 500,
        "earlystop_max": 700,
        "earlystopaccuracy": 96.5,
        "earlystopaccuracy_std": 0.5**0.5,
        "earlystopaccuracy_min": 96,
        "earlystopaccuracy_max": 97,
        "finalaccuracy": 97,
        "finalaccuracy_std": 0.5**0.5,
        "finalaccuracy_min": 96.5,
        "finalaccuracy_max": 97.5,
        "untrained": 9.7,
        "untrained_std": 0.005**0.5,
        "untrained_min": 9.65,
        "untrained_max": 9.75,
        "trainaccuracy": 48.5,
        "trainaccuracy_std": 0.125**0.5,
        "trainaccuracy_min": 48.25,
        "trainaccuracy_max": 48.75,
        "earlystop_at_end": 0,
        "pairs": 0,
    }
    assert {name: float(rows[0][name]) for name in expected} == pytest.approx(expected)


def test_tables_can_be_printed_in_ascii(experiment, undrawn, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))  # has no ±
    with utils.one_line_errors("combine_plots.py"):
        combine(experiment)
    sys.stdout.flush()
    assert rb"98.00 \xb1 0.71" in shown.getvalue()


def test_results_without_early_stopping_get_only_the_first_figure(tmp_path, figures, capsys):
    write_curve(tmp_path / "dumps/lt/fc1/mnist", "lt", [97, 98])
    combine(tmp_path)
    assert set(figures) == {"combined_fc1_mnist.png"}
    assert "97.00" in (output := capsys.readouterr().out)
    assert "nan" not in output


@pytest.mark.parametrize("value", ["", "-1", "1,", "1;2", "x"])
def test_invalid_rounds_are_one_line(value, capsys):
    with pytest.raises(SystemExit):
        combine_plots.parse_args([f"--rounds={value}"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--rounds" in error


def test_an_unwritable_table_is_one_line(experiment, undrawn, capsys):
    with pytest.raises(SystemExit) as stop, utils.one_line_errors("combine_plots.py"):
        combine(experiment, "--csv=/dev/null/table.csv")
    assert stop.value.code == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("combine_plots.py: error: /dev/null/table.csv cannot be written: ")


def test_two_processes_may_draw_at_once(experiment, monkeypatch):
    """While one writes a file, another writes the same one."""
    write, begun = utils.write, []

    def look(path, save, **options):
        def save_after_another(file):
            save(file)
            begun.append(path)
            write(path, save, **options)

        write(path, save_after_another, **options)

    monkeypatch.setattr(utils, "write", look)
    combine(experiment, f"--csv={experiment}/table.csv")
    assert {path.name for path in begun} == {
        "table.csv",
        "combined_fc1_mnist.png",
        "differences_fc1_mnist.png",
        "earlystop_fc1_mnist.png",
        "untrained_fc1_mnist.png",
        "training_fc1_mnist.png",
    }
    assert all(path.exists() for path in begun)
    assert not list(experiment.rglob("*.tmp"))


# Error barriers


def write_connected(folder, lines, seed=0, **settings):
    """Write a run with `--connect_to`, given the test errors on the line of each round."""
    barriers = [max(line) - (line[0] + line[-1]) / 2 for line in lines]
    settings |= {"connect_to": "first/saves/fc1/mnist", "order_seed": 1}
    dumps = write_run(folder, "lt", [100 - line[-1] for line in lines], seed, **settings)
    utils.write_array(dumps / "lt_barrier.dat", barriers)
    rows = []
    for round_, line in enumerate(lines):
        row = {"round": round_, "epoch": 1, "weights_remaining": 100 * 0.8**round_}
        row |= {"train_loss": 0.1, "test_accuracy": 100 - line[-1]}
        rows += [row | {"iteration": 5}, row | {"iteration": 10, "line_errors": line}]
    write_log(dumps, rows)


@pytest.fixture
def connected(tmp_path):
    """A folder with two seeds of a run with `--connect_to`."""
    write_connected(tmp_path, [[4, 8, 4], [2, 5, 3], [2, 2, 2]])
    write_connected(tmp_path, [[4, 6, 4], [2, 3, 3], [2, 4, 2]], seed=1)
    return tmp_path


def test_barriers_are_drawn_with_the_limit_of_stable_networks_above_test_accuracy(
    connected, figures
):
    combine(connected)
    panel, accuracy = figures["barrier_fc1_mnist.png"]
    assert panel["lines"] == {"lt": approx([(100, 3), (80, 1.5), (64, 1)])}
    assert panel["bars"] == approx([(100, 2, 4), (80, 0.5, 2.5), (64, 0, 2)])
    assert panel["dotted"] == {"stable below 2 points": 2}
    assert panel["legend"] == ["lt", "stable below 2 points", "lt, dense"]
    assert panel["title"] == "fc1, mnist: mean and range, 2 seeds"
    assert panel["label"] == "error barrier (points)"
    assert accuracy == figures["combined_fc1_mnist.png"][0] | {"legend": panel["legend"]}


def test_the_axis_of_barriers_begins_at_0(tmp_path, figures):
    write_connected(tmp_path, [[4, 8, 4], [4, 7, 4]])
    combine(tmp_path)
    panel, _ = figures["barrier_fc1_mnist.png"]
    assert panel["range"][0] == 0
    assert panel["range"][1] > 4


def test_errors_on_the_line_are_drawn_for_the_chosen_rounds(connected, figures, capsys):
    write_connected(connected / "b", [[5, 5, 5], [9, 9, 9], [1, 1, 1]], rewind_iter=5)
    folders = [connected, connected / "b"]
    combine_all(folders, "--rounds=0,2", f"--figures={connected}")
    above, below = figures["interpolation_fc1_mnist.png"]
    assert above["legend"] == ["100%", "64.0%"]
    assert above["heading"] == "lt, rewind_iter=0 (2 seeds)"
    assert below["heading"] == "lt, rewind_iter=5 (1 seed)"
    assert lines(above) == [approx([(0, 4), (0.5, 7), (1, 4)]), approx([(0, 2), (0.5, 3), (1, 2)])]
    assert lines(below) == [approx([(0, 5), (0.5, 5), (1, 5)]), approx([(0, 1), (0.5, 1), (1, 1)])]
    assert above["range"] == below["range"]
    assert above["range"][0] < 1
    assert above["range"][1] > 8
    assert "\n(0: first run, 1: run with --connect_to)" in below["xlabel"]
    path = connected / "interpolation_fc1_mnist.png"
    assert f"\n{path}: test error on the line between two networks; mean" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_barriers_are_printed_if_measured(connected, capsys):
    combine(connected)
    text = capsys.readouterr().out
    assert "early-stopping iteration; error barrier (points). Mean" in " ".join(text.split())
    assert re.search(r"^100% +0 .* 3\.00 ± 1\.41$", text, re.MULTILINE)
    combine(connected, "--columns", "barrier")
    assert "early-stopping" not in capsys.readouterr().out
    for path in connected.rglob("*_barrier.dat"):
        path.unlink()
    combine(connected)
    assert "barrier" not in capsys.readouterr().out


def test_runs_without_barriers_have_no_figures_of_them(experiment, figures):
    combine(experiment)
    assert not {"barrier_fc1_mnist.png", "interpolation_fc1_mnist.png"} & set(figures)


@pytest.mark.parametrize(
    "damage",
    ["7", '"7"', "null", '["x"]', "{}", "[NaN, 1]", "[5, Infinity]", "[[1, 2], [3, 4]]", "[5]"],
)
def test_a_damaged_line_is_left_out(damage, connected, figures):
    log = connected / "dumps/lt/fc1/mnist/lt_log.jsonl"
    log.write_text(log.read_text().replace("[4, 8, 4]", damage))
    combine(connected)
    (panel,) = figures["interpolation_fc1_mnist.png"]
    assert lines(panel)[0] == approx([(0, 4), (0.5, 6), (1, 4)])


# The figures of a run


def test_a_rounds_figure_has_losses_above_accuracies(small_args, figures):
    """Evaluations within an epoch have no training loss. The last epoch is incomplete."""
    args = small_args(max_iter=50, eval_iter=15, prune_iterations=2, seed=3)
    main.main(args)
    for round_ in range(2):
        above, below = figures[f"lt_LossVsAccuracy_{round_}.png"]
        assert (above["label"], below["label"]) == ("loss", "accuracy (%)")
        assert below["xlabel"] == "iteration"
        assert above["legend"] == [
            "training",
            "validation",
            "early stopping",
            "test",
            "best validation",
        ]
        logged = utils.trained(map(json.loads, utils.Files(args).log.open()))
        rows = [row for row in logged if row["round"] == round_]
        assert [row["iteration"] for row in rows] == [15, 20, 30, 40, 45, 50]
        losses = np.load(utils.Files(args).array(f"all_loss_{round_}")).tolist()
        assert above["lines"]["training"] == list(zip([20, 40, 50], losses, strict=True))
        for panel, label, name in (
            (above, "validation", "val_loss"),
            (below, "validation", "val_accuracy"),
            (below, "test", "test_accuracy"),
        ):
            assert panel["lines"][label] == [(row["iteration"], row[name]) for row in rows]
        best = utils.best(rows)
        assert below["lines"]["best validation"] == [(best["iteration"], best["test_accuracy"])]
        lowest = min(rows, key=lambda row: row["val_loss"])
        assert above["lines"]["early stopping"] == [(lowest["iteration"], lowest["val_loss"])]
        percent = ("100%", "80.0%")[round_]
        reported = np.load(utils.Files(args).array("bestaccuracy"))[round_]
        assert above["title"] == (
            f"lt, fc1, digits, seed 3, round {round_} ({percent})\n"
            f"test accuracy {reported:.2f}% at best validation"
        )
    (panel,) = figures["lt_AccuracyVsWeights.png"]
    assert panel["label"] == "test accuracy at best validation (%)"
    assert (panel["title"], panel["legend"]) == ("fc1, digits, seed 3", ["lt", "lt, dense"])
    accuracies = np.load(utils.Files(args).array("bestaccuracy"))
    assert panel["lines"] == {"lt": approx(zip([100, 80], accuracies, strict=True))}


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_a_rounds_figure_says_if_the_training_loss_has_smoothed_labels(
    smoothing, small_args, figures
):
    """It is then another loss than that of the validation examples."""
    main.main(small_args(prune_iterations=1, label_smoothing=smoothing))
    above, _ = figures["lt_LossVsAccuracy_0.png"]
    expected = "training, smoothed labels" if smoothing else "training"
    assert above["legend"][:2] == [expected, "validation"]


def test_a_round_is_drawn_only_if_its_figure_is_missing(small_args, figures):
    args = small_args(prune_iterations=2)
    main.main(args)
    found = utils.Files(args)
    figures.clear()
    combine_plots.draw_run(found)
    assert set(figures) == {"lt_AccuracyVsWeights.png"}, (
        "which a kill may have left without the last round"
    )
    found.figure("LossVsAccuracy_1").unlink()
    combine_plots.draw_run(found)
    assert set(figures) == {"lt_LossVsAccuracy_1.png", "lt_AccuracyVsWeights.png"}


@pytest.mark.parametrize(("evaluations", "visible"), [(1, True), (31, False)])
def test_a_single_evaluation_is_visible(evaluations, visible, tmp_path, figures):
    row = dict.fromkeys(combine_plots.LOGGED, 1.0) | {"round": 0}
    rows = pd.DataFrame([row | {"epoch": i} for i in range(evaluations)])
    combine_plots.draw_round(tmp_path / "round.png", rows, "title")
    for panel in figures["round.png"]:
        assert ("o" in panel["markers"]) is visible


def test_a_loss_of_zero_is_drawn(tmp_path, figures):
    row = dict.fromkeys(combine_plots.LOGGED, 1.0) | {"round": 0, "train_loss": 0.0}
    combine_plots.draw_round(tmp_path / "round.png", pd.DataFrame([row]), "title")
    assert figures["round.png"][0]["y"] == "linear"
    combine_plots.draw_round(
        tmp_path / "round.png", pd.DataFrame([row | {"train_loss": 1e-9}]), "title"
    )
    assert figures["round.png"][0]["y"] == "log"


@pytest.mark.parametrize(
    "name", ["lt, " + ", ".join(f"lr_milestones={n}00,{n}50" for n in range(1, 6)), "lt"]
)
def test_legends_and_titles_are_whole_and_shrink_no_panel(name, tmp_path, monkeypatch):
    """The renderer finds all texts within the figure that is saved."""
    rows = [{"curve": name, "round": r, "seed": "0"} for r in range(2)]
    rows = pd.DataFrame(rows).assign(iteration=100, weights_remaining=100.0, test_accuracy=90.0)
    sizes = {}

    def look(path, save, **_):
        figure = figure_of(save)
        with (tmp_path / path.name).open("wb") as file:
            save(file)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        sizes[path.name] = axes.get_window_extent().size
        (legend,) = figure.legends
        assert legend.get_window_extent().y0 >= axes.title.get_window_extent().y1
        width, height = (inches * 300 for inches in figure.get_tightbbox().size)
        saved = png_size(tmp_path / path.name)
        assert saved[0] + 1 >= width
        assert saved[1] + 1 >= height

    monkeypatch.setattr(utils, "write", look)
    combine_plots.plot_training(tmp_path / "long.png", rows, name)
    combine_plots.plot_training(tmp_path / "short.png", rows.assign(curve="lt"), "title")
    assert sizes["long.png"][0] >= 0.99 * sizes["short.png"][0]


def test_no_line_of_a_legend_ends_within_the_number_of_seeds():
    seeds = pd.Series([3, 2], index=pd.Index(["lt, lr_milestones=10,20", "lt"], name="curve"))
    _, names = combine_plots.over_seeds(seeds, "range", 2)
    for width in range(15, 40):
        lines = textwrap.wrap(names["lt, lr_milestones=10,20"], width)
        assert lines[-1].endswith("(3\N{NO-BREAK SPACE}seeds)")


# Runs with different settings


def record(folder, kind, **settings):
    defaults = {
        "end_iter": 100,
        "lr": 1.2e-3,
        "masks_from": None,
        "rewind_iter": 0,
        "prune_iterations": 35,
    }
    if "momentum" in settings:  # a flag that was added later
        defaults["momentum"] = 0.9
    content = {
        "settings": defaults | settings,
        "refused": [*main.refused(kind)] if kind in main.PRUNE_TYPES else [],
        "defaults": defaults,
    }
    (folder / f"{kind}_settings.json").write_text(json.dumps(content))


def test_seeds_with_different_settings_are_never_averaged(tmp_path, figures, capsys):
    dumps = tmp_path / "dumps/lt/fc1/mnist"
    for name, accuracy, settings in (
        ("", 46, {"end_iter": 1}),
        ("seed1", 86, {"end_iter": 5}),
        ("seed2", 88, {"end_iter": 5}),
    ):
        write_curve(dumps / name, "lt", [accuracy])
        record(dumps / name, "lt", **settings)
    combine(tmp_path, f"--csv={tmp_path / 'table.csv'}")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "runs with different settings are not averaged: lt, end_iter=1; lt, end_iter=5" in error
    (panel,) = figures["combined_fc1_mnist.png"]
    assert [[y for _, y in line] for line in lines(panel)] == [[46], [87]]
    assert panel["legend"] == [
        "lt, end_iter=1 (1 seed)",
        "lt, end_iter=5 (2 seeds)",
        "lt, end_iter=1, dense",
    ]
    rows = read_csv(tmp_path / "table.csv")
    columns = ("prune_type", "curve", "end_iter", "trials")
    assert [[row[name] for name in columns] for row in rows] == [
        ["lt", "lt, end_iter=1", "1", "1"],
        ["lt", "lt, end_iter=5", "5", "2"],
    ]
    assert [float(row["bestaccuracy"]) for row in rows] == [46, 87]


def test_curves_are_named_by_the_settings_that_differ(tmp_path, drawn, capsys):
    dumps = tmp_path / "dumps/lt/fc1/mnist"
    for kind, settings in (
        ("lt", {"rewind_iter": 500}),
        ("reinit", {"masks_from": "lt"}),
        ("random", {"lr": 0.1}),
    ):
        write_curve(dumps, kind, [97])
        record(dumps, kind, **settings)
    combine(tmp_path)
    names = [name for name, _, _ in drawn["fc1_mnist"]]
    assert names == [
        "lt, lr=0.0012, rewind_iter=500",
        "reinit, lt's masks, lr=0.0012",
        "random, lr=0.1, rewind_iter=0",
    ]
    assert f"averaged: {'; '.join(names)}\n" in capsys.readouterr().err


NETWORK = {"network": "Linear()", "data": "digest"}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (  # what a prune type does not have, it does not differ in
            [("lt", {"rewind_iter": 30}), ("reinit", {"masks_from": "lt"})],
            ["lt", "reinit, lt's masks"],
        ),
        (
            [("lt", {"rewind_iter": 30}), ("random", {})],
            ["lt, rewind_iter=30", "random, rewind_iter=0"],
        ),
        (
            [("lt", {"rewind_iter": 30}), ("random", {"rewind_iter": 30})],
            ["lt", "random"],
        ),
        (
            [("reinit", {"masks_from": "lt"}), ("random", {})],
            ["reinit, lt's masks", "random"],
        ),
        (  # the other rates follow from prune_percent
            [("lt", {"prune_percent": 20.0}), ("lt", {"prune_percent": 10.0})],
            ["lt, prune_percent=20", "lt, prune_percent=10"],
        ),
        (  # numbers are not rounded
            [("lt", {"lr": 0.1}), ("lt", {"lr": 0.10000001})],
            ["lt, lr=0.1", "lt, lr=0.10000001"],
        ),
        (
            [
                ("lt", {"prune_percent": 20, "prune_percent_output": 10}),
                ("lt", {"prune_percent": 20}),
            ],
            ["lt, prune_percent_output=10", "lt, prune_percent_output=20"],
        ),
        (
            [("lt", {"lr_milestones": [5, 6]}), ("lt", {})],
            ["lt, lr_milestones=5,6", "lt, lr_milestones=none"],
        ),
        (  # the masks of two runs, which differ
            [
                ("lt", {}),
                ("reinit", {"masks_from": "lt", "masks_from_settings": {"rewind_iter": 0}}),
                ("lt", {"rewind_iter": 50}),
                ("reinit", {"masks_from": "lt", "masks_from_settings": {"rewind_iter": 50}}),
            ],
            [
                "lt, rewind_iter=0",
                "reinit, lt's masks, lt's rewind_iter=0",
                "lt, rewind_iter=50",
                "reinit, lt's masks, lt's rewind_iter=50",
            ],
        ),
        (  # the masks of a run that was replaced
            [
                ("lt", {"rewind_iter": 50}),
                ("reinit", {"masks_from": "lt", "masks_from_settings": {"rewind_iter": 0}}),
            ],
            ["lt, rewind_iter=50", "reinit, lt's masks, lt's rewind_iter=0"],
        ),
        (
            [
                ("lt", {"rewind_iter": 50}),
                ("reinit", {"masks_from": "lt", "masks_from_settings": {"rewind_iter": 50}}),
                (
                    "random",
                    {
                        "masks_from": "lt",
                        "masks_from_settings": {"rewind_iter": 50},
                        "rewind_iter": 50,
                    },
                ),
            ],
            ["lt", "reinit, lt's masks", "random"],
        ),
        (  # the masks have the same settings as the run, apart from the rewinding
            [
                ("lt", {"lr": 0.1} | NETWORK),
                (
                    "reinit",
                    {
                        "lr": 0.1,
                        "masks_from": "lt",
                        "masks_from_settings": {"lr": 0.1, "rewind_iter": 0} | NETWORK,
                    }
                    | NETWORK,
                ),
                ("lt", NETWORK),
                (
                    "reinit",
                    {
                        "masks_from": "lt",
                        "masks_from_settings": {"lr": 1.2e-3, "rewind_iter": 0} | NETWORK,
                    }
                    | NETWORK,
                ),
            ],
            [
                "lt, lr=0.1",
                "reinit, lt's masks, lr=0.1",
                "lt, lr=0.0012",
                "reinit, lt's masks, lr=0.0012",
            ],
        ),
        (  # a flag without values is named if it is given
            [
                ("lt", {"amp": True, "lr": 0.1, "one_shot": False}),
                ("lt", {"amp": True, "lr": 0.1, "one_shot": True}),
                ("lt", {"amp": True, "lr": 0.2, "one_shot": True}),
            ],
            ["lt, lr=0.1", "lt, lr=0.1, one_shot", "lt, lr=0.2, one_shot"],
        ),
    ],
)
def test_a_curve_is_named_by_each_difference_once(runs, expected, tmp_path):
    found = []
    for number, (prune_type, settings) in enumerate(runs):
        args = argparse.Namespace(
            output_dir=tmp_path / str(number), arch_type="fc1", dataset="mnist", seed=0
        )
        files = utils.Files(args, prune_type)
        write_curve(files.dumps, prune_type, [number])
        rates = dict.fromkeys(
            (*utils.FOLLOWS, *utils.FOLLOWS.values()), settings.get("prune_percent", 10)
        )
        record(files.dumps, prune_type, **rates | {"lr_milestones": []} | settings)
        found.append(files)
    rounds, _ = combine_plots.read_runs(found)
    rounds = rounds.sort_values("bestaccuracy")  # as given
    assert list(rounds["curve"]) == expected


def test_settings_that_may_change_on_resume_and_new_defaults_do_not_split_curves(
    tmp_path, drawn, capsys
):
    dumps = tmp_path / "dumps/lt/fc1/mnist"
    for seed, settings in (
        (0, {"prune_iterations": 2}),
        (1, {"momentum": 0.9}),
        (2, {"momentum": 0.5}),
    ):
        folder = dumps / (f"seed{seed}" if seed else "")
        write_curve(folder, "lt", [97])
        record(folder, "lt", **settings)
    combine(tmp_path)
    assert [name for name, _, _ in drawn["fc1_mnist"]] == ["lt, momentum=0.9"] * 2 + [
        "lt, momentum=0.5"
    ]


def test_an_edited_network_is_another_curve(tmp_path, small_args, drawn, monkeypatch):
    for seed, activation in enumerate((nn.ReLU, nn.Tanh)):
        net = partial(nn.Sequential, nn.Flatten(), nn.Linear(784, 10), activation())
        monkeypatch.setattr(archs, "build", lambda *_, net=net: net())
        main.main(small_args(prune_iterations=1, end_iter=1, seed=seed))
    combine(small_args().output_dir)
    names = [name for name, _, _ in drawn["fc1_digits"]]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"lt, network=[0-9a-f]{8}", name) for name in names)


def test_only_folders_named_seed_and_a_number_are_seeds(tmp_path, drawn):
    dumps = tmp_path / "dumps/lt/fc1/mnist"
    for name in ("", "seed2", "seed10", "seeds", "seed", "seed1 (copy)", "seed01", "seed-1"):
        write_curve(dumps / name, "lt", [len(name)])
    combine(tmp_path)
    assert [accuracy for _, _, accuracy in drawn["fc1_mnist"]] == [0, 5, 6]


def test_seeds_are_averaged_even_if_their_percentages_differ_slightly(tmp_path, figures):
    """As with global pruning, which rounds the number of weights of each rate."""
    for seed, (remaining, accuracy) in enumerate([(34.448, 90), (34.446, 92), (34.444, 97)]):
        folder = tmp_path / "dumps/lt/fc1/mnist" / (f"seed{seed}" if seed else "")
        row = {"epoch": 1, "iteration": 100, "train_loss": 0.1, "test_accuracy": 90.0}
        rows = [
            row | {"round": r, "weights_remaining": percent}
            for r, percent in ((0, 100.0), (1, remaining))
        ]
        write_log(folder, rows)
        utils.write_array(folder / "lt_compression.dat", [100.0, remaining])
        utils.write_array(folder / "lt_bestaccuracy.dat", [97, accuracy])
    combine(tmp_path, "--rounds=0,1")
    (panel,) = figures["combined_fc1_mnist.png"]
    assert lines(panel) == [approx([(100, 97), (34.446, 93)])]
    assert panel["bars"] == approx([(100, 97, 97), (34.446, 90, 97)])
    assert figures["training_fc1_mnist.png"][0]["legend"] == ["100%", "34.4%"]


# Unusual logs


def write_log(folder, rows):
    write_curve(folder, "lt", [97] * (1 + rows[-1]["round"]))
    (folder / "lt_log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_log_rows_that_are_not_finite_are_left_out(tmp_path, figures):
    row = {
        "round": 0,
        "epoch": 1,
        "iteration": 1,
        "weights_remaining": 100.0,
        "train_loss": 0.1,
        "test_accuracy": 90.0,
    }
    write_log(
        tmp_path / "dumps/lt/fc1/mnist",
        [
            row,
            row | {"iteration": math.nan},
            row | {"test_accuracy": math.inf},
            row | {"masks": "none", "test_accuracy": 10.0},
            row | {"iteration": 10**400},
        ],
    )
    combine(tmp_path)
    (panel,) = figures["training_fc1_mnist.png"]
    assert lines(panel) == [[(1, 90)]]


def test_single_evaluations_are_visible_and_equal_labels_are_told_apart(tmp_path, figures):
    row = {"epoch": 1, "iteration": 100, "train_loss": 0.1}
    rows = [
        row | {"round": r, "weights_remaining": remaining, "test_accuracy": 90.0 + r}
        for r, remaining in ((0, 0.05121), (1, 0.05118), (3, 0.04))
    ]
    write_log(tmp_path / "dumps/lt/fc1/mnist", rows)
    combine(tmp_path, "--rounds=0,1,3")
    (panel,) = figures["training_fc1_mnist.png"]
    assert panel["legend"] == ["0.0512% (round 0)", "0.0512% (round 1)", "0.0400%"]
    assert lines(panel) == [[(100, 90)], [(100, 91)], [(100, 93)]]
    assert panel["markers"] >= {"o"}


def test_a_density_has_one_label_even_if_it_is_that_of_different_rounds(tmp_path, figures):
    """Two rounds of 20% leave as much as one of 36%."""
    for percent, rounds in ((20, 3), (36, 2)):
        row = {"epoch": 1, "iteration": 100, "train_loss": 0.1, "test_accuracy": 90.0}
        rows = [
            row | {"round": r, "weights_remaining": 100 * (1 - percent / 100) ** r}
            for r in range(rounds)
        ]
        folder = tmp_path / str(percent) / "dumps/lt/fc1/mnist"
        folder.mkdir(parents=True)
        write_log(folder, rows)
        record(folder, "lt", prune_percent=percent)
    folders = [tmp_path / "20", tmp_path / "36"]
    combine_all(folders, "--rounds=0,1,2", f"--figures={tmp_path}")
    first, second = figures["training_fc1_mnist.png"]
    assert first["legend"] == second["legend"] == ["100%", "80.0%", "64.0%"]
    assert (len(first["lines"]), len(second["lines"])) == (3, 2)


def test_results_without_a_recorded_network_join_others(tmp_path, drawn):
    for seed, more in enumerate(({}, {"network": "Linear()", "data": "60000"})):
        folder = tmp_path / "dumps/lt/fc1/mnist" / (f"seed{seed}" if seed else "")
        write_curve(folder, "lt", [90])
        record(folder, "lt", **more)
    combine(tmp_path)
    assert [name for name, _, _ in drawn["fc1_mnist"]] == ["lt", "lt"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("percents", "drawn"), [([0.0], {}), ([100, 0.0], {"lt": [(100, 97)]})])
def test_a_network_pruned_to_nothing_is_not_drawn(percents, drawn, tmp_path, figures):
    """A logarithmic axis has no 0."""
    folder = tmp_path / "dumps/lt/fc1/mnist"
    write_curve(folder, "lt", [97, 10][: len(percents)])
    utils.write_array(folder / "lt_compression.dat", percents)
    combine(tmp_path)
    assert figures["combined_fc1_mnist.png"][0]["lines"] == drawn


@pytest.mark.parametrize("content", [None, "[]", '{"settings": '])
def test_unreadable_settings_are_treated_as_equal_and_reported(content, tmp_path, drawn, capsys):
    dumps = tmp_path / "dumps/lt/fc1/mnist"
    for name in ("", "seed1", "seed2"):
        write_curve(dumps / name, "lt", [97])
        if content is not None:
            (dumps / name / "lt_settings.json").write_text(content)
    record(dumps, "lt", lr=0.1)
    combine(tmp_path)
    names = [name for name, _, _ in drawn["fc1_mnist"]]
    assert names == ["lt", "lt, settings=unknown", "lt, settings=unknown"]
    error = capsys.readouterr().err
    assert "settings that cannot be read are treated as equal" in error
    assert "seed2" in error


# Several folders


def write_run(folder, kind, accuracies, seed=0, percent=20, end=None, **settings):
    """Write a run with all arrays and its settings; return its folder.

    It also has a log if `end`, the iteration of the rounds' last evaluation, is given.
    """
    dumps = folder / "dumps/lt/fc1/mnist" / (f"seed{seed}" if seed else "")
    write_curve(dumps, kind, accuracies, percent)
    values = np.array(accuracies)
    utils.write_array(dumps / f"{kind}_earlystop.dat", 10 * values)
    utils.write_array(dumps / f"{kind}_earlystopaccuracy.dat", values / 2)
    utils.write_array(dumps / f"{kind}_finalaccuracy.dat", values / 4)
    utils.write_array(dumps / f"{kind}_untrained.dat", values / 8)
    utils.write_array(dumps / f"{kind}_trainaccuracy.dat", values)
    record(dumps, kind, prune_percent=percent, **settings)
    if end is not None:
        row = {"epoch": 1, "iteration": end, "train_loss": 0.1, "test_accuracy": 90.0}
        rows = [row | {"round": r, "weights_remaining": 100.0} for r in range(len(accuracies))]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (dumps / f"{kind}_log.jsonl").write_text(text)
    return dumps


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    """Two folders with runs of lt and reinit; the current folder is another one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, rewind_iter, gain in (("a", 0, 0), ("b", 500, 1)):
        for seed in range(2):
            write_run(tmp_path / name, "lt", [90 + seed, 91 + gain], seed, rewind_iter=rewind_iter)
    write_run(tmp_path / "a", "reinit", [90, 88], masks_from="lt")
    return [tmp_path / "a", tmp_path / "b"]


def measured(folder):
    """Return the columns of which a folder has arrays, in the order of tables."""
    return [name for name in combine_plots.COLUMNS if list(folder.rglob(f"lt_{name}.dat"))]


def combine_all(folders, *flags):
    flags = ["--output_dir", *map(str, folders), *flags]
    combine_plots.main(combine_plots.parse_args(flags))


def test_runs_of_several_folders_are_overlaid(two_folders, drawn, capsys):
    combine_all(two_folders, "--csv=table.csv", "--raw=new/raw.csv")
    points = drawn["fc1_mnist"]
    assert list(dict.fromkeys(curve for curve, _, _ in points)) == [
        "lt, rewind_iter=0",
        "lt, rewind_iter=500",
        "reinit, lt's masks",
    ]
    assert capsys.readouterr().err == ""
    assert Path("plots_a_b/combined_fc1_mnist.png").exists()
    assert not any((folder / "plots").exists() for folder in two_folders)

    rows = read_csv(Path("table.csv"))
    assert [(row["prune_type"], row["rewind_iter"], row["trials"]) for row in rows] == [
        ("lt", "0", "2"),
        ("lt", "0", "2"),
        ("lt", "500", "2"),
        ("lt", "500", "2"),
        ("reinit", "", "1"),
        ("reinit", "", "1"),
    ]
    rows = read_csv(Path("new/raw.csv"))
    columns = ("curve", "rewind_iter", "seed", "round", "bestaccuracy", "earlystop")
    assert len(rows) == 10
    assert [rows[7][name] for name in columns] == [
        "lt, rewind_iter=500",
        "500",
        "1",
        "1",
        "92.0",
        "920.0",
    ]


def test_one_folder_has_its_figures(two_folders):
    combine_all(two_folders[:1])
    assert (two_folders[0] / "plots/lt/combined_plots/combined_fc1_mnist.png").exists()


def test_seeds_may_be_in_several_folders(tmp_path, figures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write_run(tmp_path / str(seed), "lt", [90 + seed], seed)
    combine_plots.main(
        combine_plots.parse_args(["--output_dir", "0", "1", "--output_dir", "2", "--dataset=mnist"])
    )
    (panel,) = figures["combined_fc1_mnist.png"]
    assert panel["title"] == "fc1, mnist: mean and range, 3 seeds"
    assert panel["legend"] == ["lt", "lt, dense"]
    assert lines(panel) == [[(100, 91)]]


@pytest.mark.parametrize("flag", ["output_dir", "prune_type", "columns"])
def test_flags_with_several_values_may_be_repeated(flag):
    first, *others = ["barrier", "untrained", "earlystop"]
    args = combine_plots.parse_args([f"--{flag}", first, f"--{flag}", *others])
    assert getattr(args, flag) == [first, *others]


def test_a_folder_without_results_and_one_given_twice_are_one_line_each(two_folders, drawn, capsys):
    folders = [*two_folders, two_folders[0].parent / "here", two_folders[0] / "../a"]
    combine_all(folders)
    lt = f"lt in {folders[3]}/dumps/lt/fc1/mnist"
    assert capsys.readouterr().err.splitlines() == [
        f"combine_plots.py: {folders[2]} has no results",
        "combine_plots.py: left out, because another folder has the same runs: "
        f"{lt}; {lt}/seed1; rein{lt.replace('lt', 'it', 1)}",
    ]
    assert len(drawn["fc1_mnist"]) == 10


@pytest.mark.parametrize("order", [["a", "copy"], ["copy", "a"]])
def test_a_copy_of_a_run_is_left_out_even_if_it_is_older(order, tmp_path, drawn, capsys):
    for name, accuracies in (("a", [90, 91, 92]), ("copy", [90, 91])):
        write_run(tmp_path / name, "lt", accuracies)
        write_run(tmp_path / name, "reinit", accuracies)
    combine_all([tmp_path / name for name in order], f"--figures={tmp_path}")
    assert [y for _, _, y in drawn["fc1_mnist"]] == [90, 91, 92] * 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "left out, because another folder has the same runs: lt in" in error
    assert error.count(f"{tmp_path}/copy/dumps/lt/fc1/mnist") == 2


@pytest.mark.parametrize("settings", [True, False])
def test_runs_that_cannot_be_told_apart_are_refused(settings, tmp_path):
    for name, accuracies in (("a", [90, 91]), ("b", [90, 92])):
        dumps = write_run(tmp_path / name, "lt", accuracies)
        if not settings:
            (dumps / "lt_settings.json").unlink()
    with pytest.raises(utils.BadInput, match="same settings and seed but different results") as e:
        combine_all([tmp_path / "a", tmp_path / "b"])
    assert all(f"{tmp_path}/{name}/dumps/lt/fc1/mnist" in str(e.value) for name in "ab")


def test_a_dozen_curves_look_different():
    curves = [f"lt, lr={i}" for i in range(9)] + ["lt", "random", "reinit"]
    looks = combine_plots.styles(curves)
    assert set(looks) == set(curves)
    assert len({(look["color"], str(look["linestyle"])) for look in looks.values()}) == 12
    assert len({look["marker"] for look in looks.values()}) == len(combine_plots.MARKERS) == 11


@pytest.mark.parametrize("before", [[], ["reinit, lr=1", "reinit, lr=2", "mine", "lt, lr=2"]])
def test_the_first_curve_of_a_type_has_its_colour_and_settings_have_dashes(before):
    looks = combine_plots.styles([*before, "random, lr=1", "random, lr=2", "random, lr=3"])
    assert looks["random, lr=1"] == combine_plots.styles(["random"])["random"]
    assert looks["random, lr=1"]["linestyle"] == "-"
    assert len({str(looks[f"random, lr={i}"]["linestyle"]) for i in (1, 2, 3)}) == 3
    assert len({looks[f"random, lr={i}"]["marker"] for i in (1, 2, 3)}) == 3


def test_all_prune_types_look_different():
    known = combine_plots.PRUNE_TYPES
    assert set(known) <= set(main.PRUNE_TYPES)
    looks = combine_plots.styles(known)
    assert {look["color"] for look in looks.values()} == {f"C{i}" for i in range(10)}
    assert len({look["marker"] for look in looks.values()}) == len(known)


def test_prune_types_of_ones_own_are_drawn_with_the_next_free_colour(tmp_path, drawn, capsys):
    for kind in ("late_lt", "lt", "reinit", "reverse"):
        write_run(tmp_path, kind, [90, 91])
    combine(tmp_path)
    kinds = [kind for kind, _, _ in drawn["fc1_mnist"]]
    assert list(dict.fromkeys(kinds)) == [
        "lt",
        "reinit, own masks",
        "late_lt, own masks",
        "reverse, own masks",
    ]
    assert capsys.readouterr().err == ""
    found = combine_plots.styles(kinds)
    expected = ["lt", "reinit", "random", "shuffle"]  # whose colours are free
    assert list(found.values()) == list(combine_plots.styles(expected).values())


@pytest.mark.parametrize(("curves", "width"), [(6, 3.3), (7, 6.9)])
def test_many_curves_get_a_wide_figure(curves, width, tmp_path, monkeypatch):
    for i in range(curves):
        write_run(tmp_path / str(i), "lt", [90 + i, 91], end_iter=1 + i)
    widths = []
    monkeypatch.setattr(
        utils, "write", lambda path, save, **_: widths.append(figure_of(save).get_figwidth())
    )
    combine_all([tmp_path / str(i) for i in range(curves)], "--figures=f")
    assert set(widths) == {width}


def test_large_seeds_are_told_apart(tmp_path, drawn, capsys):
    for seed in (0, 2**64 - 1, 2**64 - 2):
        write_run(tmp_path, "lt", [90], seed)
    combine(tmp_path, f"--raw={tmp_path / 'raw.csv'}")
    assert "over 3 seeds." in " ".join(capsys.readouterr().out.split())
    seeds = [row["seed"] for row in read_csv(tmp_path / "raw.csv")]
    assert seeds == ["0", "18446744073709551614", "18446744073709551615"]


# Differences


def differences(folder, *flags):
    """Return the rows of a table that have a difference, {(curve, round): row}."""
    combine(folder, f"--csv={folder / 'table.csv'}", *flags)
    rows = read_csv(folder / "table.csv")
    return {
        (row["curve"], int(row["round"])): row for row in rows if row["bestaccuracy_difference"]
    }


def interval(row, name):
    parts = ("difference", "difference_low", "difference_high")
    return [float(row[f"{name}_{part}"]) for part in parts]


@pytest.mark.usefixtures("undrawn")
def test_differences_are_paired_by_seed_with_the_interval_of_a_paired_t_test(tmp_path, capsys):
    lt = {0: 90.0, 1: 95.0, 2: 91.0, 5: 50.0}
    reinit = {2: 90.0, 7: 10.0, 0: 88.5, 1: 94.5}
    for kind, accuracies in (("lt", lt), ("reinit", reinit)):
        for seed, accuracy in accuracies.items():
            write_run(tmp_path, kind, [80, accuracy], seed, end=2000)
    found = differences(tmp_path)
    curve = "reinit, own masks"
    assert set(found) == {(curve, 0), (curve, 1)}
    assert interval(found[curve, 0], "bestaccuracy") == [0, 0, 0]

    pairs = [reinit[seed] - lt[seed] for seed in (0, 1, 2)]
    test = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    row = found[curve, 1]
    assert row["pairs"] == "3"
    assert row["trials"] == "4"
    for name, factor in (
        ("bestaccuracy", 1),
        ("earlystop", 10),
        ("earlystopaccuracy", 1 / 2),
        ("finalaccuracy", 1 / 4),
    ):
        expected = [factor * value for value in (np.mean(pairs), *test)]
        assert interval(row, name) == pytest.approx(expected)
    output = " ".join(capsys.readouterr().out.split())
    assert "Differences from the baseline, lt, are paired by seed, with 95%" in output
    assert "-1.00 [-2.24, +0.24]" in output
    assert "-10 [-22, +2]" in output


@pytest.mark.parametrize(
    ("ends", "shown"),
    [((-0.3, -0.001), "-0.15 [-0.30, -0.00]"), ((-0.3, 0.001), "-0.15 [-0.30, +0.00]")],
)
def test_the_end_of_an_interval_near_zero_has_its_sign(ends, shown):
    difference = dict(zip(("_low", "_high"), ends, strict=True)) | {"": np.mean(ends)}
    row = {f"bestaccuracy_difference{part}": value for part, value in difference.items()}
    row |= {"same": False, "pairs": 3, "seeds": 3}
    assert combine_plots.difference_text(row, "bestaccuracy") == shown


def test_the_figure_of_differences_has_the_intervals_of_the_table(tmp_path, figures, capsys):
    for seed, (lt, reinit) in enumerate([(90, 88.5), (95, 94.5), (91, 90)]):
        write_run(tmp_path, "lt", [80, lt], seed, end=2000)
        write_run(tmp_path, "reinit", [80, reinit], seed, end=2000)
    row = differences(tmp_path)["reinit, own masks", 1]
    panels = figures["differences_fc1_mnist.png"]
    assert [panel["label"] for panel in panels] == [
        "difference in test accuracy (points)",
        "difference in early- stopping iteration",
    ]
    for panel, name in zip(panels, ("bestaccuracy", "earlystop"), strict=True):
        mean, low, high = interval(row, name)
        assert panel["lines"] == {"reinit, own masks": approx([(100, 0), (80, mean)])}
        assert panel["bars"] == approx([(100, 0, 0), (80, low, high)])
        assert panel["dotted"] == {"lt": 0}
        assert panel["title"] == "fc1, mnist: mean and 95% interval, 3 seeds"
        assert panel["legend"] == ["reinit, own masks", "lt"]
        assert panel["colours"] == {"reinit, own masks": "C1", "lt": "C0"}
    _, low, high = interval(row, "bestaccuracy")
    assert f"95% interval {low:+.2f} to {high:+.2f}" in " ".join(capsys.readouterr().out.split())


def test_differences_of_two_seeds_have_no_bars(tmp_path, figures):
    for seed in range(2):
        write_run(tmp_path, "lt", [90, 91 + seed], seed, end=2000)
        write_run(tmp_path, "reinit", [90, 89], seed, end=2000)
    write_run(tmp_path, "random", [90, 88], end=2000)
    combine(tmp_path)
    panel, _ = figures["differences_fc1_mnist.png"]
    assert panel["title"] == "fc1, mnist: mean over seeds"
    assert panel["legend"] == ["reinit, own masks (2 seeds)", "random (1 seed)", "lt"]
    assert panel["bars"] == []
    assert [[y for _, y in line] for line in lines(panel)] == [[0, -2.5], [0, -3]]


def test_curves_without_an_interval_say_so(tmp_path, figures):
    for seed in range(3):
        write_run(tmp_path, "lt", [90, 91 + seed, 90], seed)
        write_run(tmp_path, "reinit", [90, 89], seed)
        if seed < 2:
            write_run(tmp_path, "random", [90, 88], seed)
    combine(tmp_path)
    panel, _ = figures["differences_fc1_mnist.png"]
    assert panel["title"] == "fc1, mnist: mean and 95% interval over seeds"
    names = ["reinit, own masks (3 seeds)", "random (2 seeds, no interval)", "lt"]
    assert panel["legend"] == names
    assert (min(panel["ticks"]), max(panel["ticks"])) == (80, 100), "64% has no difference"


def test_without_a_baseline_there_is_no_figure_of_differences(two_folders, figures):
    combine_all(two_folders, "--figures=f")
    assert "combined_fc1_mnist.png" in figures
    assert "differences_fc1_mnist.png" not in figures


def test_bounds_are_triangles_and_unknown_differences_are_not_drawn(tmp_path, figures):
    """lt stops early at the last evaluation in the last two rounds, reinit in the last but one."""
    for kind, accuracies, at_end in (
        ("lt", [90, 80, 70, 60, 55], [0, 0, 0, 1, 1]),
        ("reinit", [90, 81, 75, 65, 50], [0, 0, 1, 1, 0]),
    ):
        dumps = write_run(tmp_path, kind, accuracies)
        row = {"epoch": 1, "train_loss": 0.1, "test_accuracy": 90.0, "weights_remaining": 100.0}
        rows = [
            row | {"round": r, "iteration": 10 * accuracy if at_end[r] else 2000}
            for r, accuracy in enumerate(accuracies)
        ]
        (dumps / f"{kind}_log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    combine(tmp_path)
    _, panel = figures["differences_fc1_mnist.png"]
    (line,) = lines(panel)
    assert [y for _, y in line[:3]] == [0, 10, 50]
    assert math.isnan(line[3][1])
    assert line[4][1] == -50
    assert [point[1:] for point in panel["triangles"]] == [(50, "up"), (-50, "down")]
    assert panel["legend"] == ["reinit, own masks", "lt", "mean is at least", "mean is at most"]
    drawn = [x for x, y in line if not math.isnan(y)]
    assert [point[0] for point in panel["triangles"]] == [drawn[2], drawn[3]]
    assert panel["marked"]["reinit, own masks"] == [True, True, False, True, False], (
        "the markers of bounds are triangles"
    )


@pytest.mark.usefixtures("undrawn")
def test_two_pairs_have_no_interval(tmp_path, capsys):
    for seed in range(2):
        write_run(tmp_path, "lt", [90 + seed], seed)
        write_run(tmp_path, "reinit", [89 + seed], seed)
    (row,) = differences(tmp_path).values()
    assert (row["bestaccuracy_difference"], row["bestaccuracy_difference_low"]) == ("-1.0", "")
    output = capsys.readouterr().out
    assert "[" not in output
    assert "confidence" not in output


@pytest.mark.usefixtures("undrawn")
def test_rounds_of_equal_density_are_compared(tmp_path):
    """Two rounds of 20% leave as much as one of 36%. Global pruning may differ by a few weights."""
    write_run(tmp_path, "lt", [90, 91, 92, 93], percent=20)
    dumps = write_run(tmp_path, "random", [80, 81, 82], percent=36)
    utils.write_array(dumps / "random_compression.dat", [100, 64.01, 40.9])
    found = differences(tmp_path, "--baseline=lt, prune_percent=20")
    curve = "random, prune_percent=36"
    assert set(found) == {(curve, 0), (curve, 1)}, "40.9% is not 40.96%"
    assert found[curve, 1]["bestaccuracy_difference"] == "-11.0"


@pytest.mark.usefixtures("undrawn")
def test_several_curves_of_lt_need_a_named_baseline(two_folders, capsys):
    flags = ("--csv=table.csv",)
    combine_all(two_folders, *flags)
    rows = read_csv(Path("table.csv"))
    assert not any(row["bestaccuracy_difference"] for row in rows)
    output = " ".join(capsys.readouterr().out.split())
    assert "For differences between curves, give --baseline the full name of one of them." in output
    assert "paired" not in output

    combine_all(two_folders, *flags, "--baseline=lt, rewind_iter=0")
    rows = read_csv(Path("table.csv"))
    found = [(row["curve"], row["bestaccuracy_difference"]) for row in rows if row["round"] == "1"]
    assert found == [
        ("lt, rewind_iter=0", ""),
        ("lt, rewind_iter=500", "1.0"),
        ("reinit, lt's masks", "-3.0"),
    ]

    with pytest.raises(utils.BadInput) as error:
        combine_all(two_folders, "--baseline=lt")
    assert str(error.value) == (
        "--baseline='lt' is not a curve: choose one of "
        "'lt, rewind_iter=0', 'lt, rewind_iter=500', \"reinit, lt's masks\""
    )


@pytest.mark.usefixtures("undrawn")
def test_experiments_without_the_named_baseline_have_their_only_curve_of_lt(two_folders, capsys):
    for kind, accuracies in (("lt", [90, 91]), ("reinit", [90, 89])):
        dumps = two_folders[0] / "dumps/lt/lenet5/mnist"
        write_curve(dumps, kind, accuracies)
        record(dumps, kind)
    combine_all(two_folders, "--baseline=lt, rewind_iter=0")
    *_, last = answers(capsys.readouterr().out)
    assert last.startswith("At 80.0% of the weights, reinit, own masks: 2.00 points below lt (1")


def test_a_difference_of_fewer_seeds_than_the_mean_says_so(tmp_path, figures, capsys):
    for seed, accuracy in enumerate((89, 85)):
        write_run(tmp_path, "reinit", [90, accuracy], seed, end=2000)
    write_run(tmp_path, "lt", [90, 91], 1, end=2000)
    combine(tmp_path, "--columns", "bestaccuracy")
    *_, last = printed(capsys.readouterr().out)
    assert last == "reinit, own masks 2 87.00 ± 2.83 -6.00 (1 seed)"
    assert figures["differences_fc1_mnist.png"][0]["title"] == "fc1, mnist: 1 seed"


# What is printed


@pytest.mark.parametrize(
    ("kind", "flags", "curve"),
    [
        ("lt", {}, "lt"),
        ("reinit", {}, "reinit, own masks"),
        ("reinit", {"masks_from": "lt"}, "reinit, lt's masks"),
        ("lr_rewind", {}, "lr_rewind, own masks"),
        ("reinit", {"one_shot": True}, "reinit"),
        ("signed_reinit", {"criterion": "snip"}, "signed_reinit"),
        ("reinit", {"criterion": "initial"}, "reinit, own masks"),
        ("random", {}, "random"),
        ("random", {"prune_scope": "erk"}, "random"),
        ("random", {"prune_scope": "global"}, "random, own densities"),
        ("random", {"prune_scope": "global", "criterion": "snip"}, "random, own densities"),
        ("random", {"prune_scope": "global", "masks_from": "lt"}, "random"),
    ],
)
def test_a_curve_says_whose_masks_it_has(kind, flags, curve, small_args, figures):
    flags = {"prune_iterations": 1, "end_iter": 1} | flags
    if "masks_from" in flags:
        main.main(small_args(**flags | {"masks_from": "none"}))
    args = small_args(prune_type=kind, **flags)
    main.main(args)
    assert figures[f"{kind}_AccuracyVsWeights.png"][0]["legend"] == [curve, f"{curve}, dense"]
    files = [found for found in utils.find_results(args.output_dir) if found.prune_type == kind]
    assert list(combine_plots.read_runs(files)[0]["curve"]) == [curve]


@pytest.mark.parametrize(
    ("ours", "lts", "text", "numbers"),
    [
        (1000, 1000, "+87 [+85, +89]", [87, 84.52, 89.48]),
        (587, 1000, ">= +87", None),
        (1000, 500, "<= +87", None),
        (587, 500, "-", None),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_differences_of_bounds_are_bounds_or_unknown(ours, lts, text, numbers, tmp_path, capsys):
    """Early stopping is at iterations 500 (lt) and 586 to 588. `ours` and `lts` are the last ones.

    It is enough if one seed stops early at the last evaluation.
    """
    for seed, accuracy in enumerate((58.7, 58.6, 58.8)):
        write_run(tmp_path, "lt", [90, 50], seed, end=lts if seed == 0 else 1000)
        write_run(tmp_path, "reinit", [90, accuracy], seed, end=ours if seed == 0 else 1000)
    found = differences(tmp_path, f"--latex={tmp_path / 'table.tex'}")
    cells = [row.split()[-1] for row in printed(capsys.readouterr().out) if "reinit" in row]
    assert cells[2] == "same"
    assert printed_difference(tmp_path, capsys) == text
    row = found["reinit, own masks", 1]
    if numbers:
        assert interval(row, "earlystop") == pytest.approx(numbers, abs=0.01)
    else:
        assert not any(row[f"earlystop_difference{part}"] for part in ("", "_low", "_high"))
        tex = text.replace(">=", r"$\geq$").replace("<=", r"$\leq$").replace("+", "$+$")
        assert rf" & {tex} \\" in (tmp_path / "table.tex").read_text()


def printed_difference(folder, capsys):
    """Return the last difference in early-stopping iterations that is printed."""
    combine(folder, "--columns", "earlystop")
    *_, last = printed(capsys.readouterr().out)
    return re.search(r"(?:(?:>= |<= )?\+.*|-)$", last)[0]


@pytest.mark.usefixtures("undrawn")
def test_a_lower_bound_of_dense_networks_is_the_same(tmp_path, capsys):
    """The networks of round 0 are the same, so their unknown early stopping is the same."""
    for seed in range(3):
        for kind in ("lt", "reinit"):
            write_run(tmp_path, kind, [90 + seed], seed, end=10 * (90 + seed))
    found = differences(tmp_path)
    assert printed(capsys.readouterr().out) == [
        "100% 0 lt 91.00 ± 1.00 - >= 910 -",
        "reinit, own masks 91.00 ± 1.00 same >= 910 same",
    ]
    assert interval(found["reinit, own masks", 0], "earlystop") == [0, 0, 0]


@pytest.mark.usefixtures("undrawn")
def test_results_are_the_same_only_if_all_are(tmp_path, capsys):
    for kind in ("lt", "reinit"):
        dumps = write_run(tmp_path, kind, [90, 80], end=2000)
    utils.write_array(dumps / "reinit_finalaccuracy.dat", [22.5, 21])
    combine(tmp_path)
    rows = [row for row in printed(capsys.readouterr().out) if "reinit" in row]
    assert rows == [
        "reinit, own masks 90.00 same 900 same",
        "reinit, own masks 80.00 +0.00 800 +0",
    ]


@pytest.mark.parametrize("missing", ["lt", "reinit"])
@pytest.mark.usefixtures("undrawn")
def test_without_a_log_early_stopping_is_a_lower_bound(missing, tmp_path, capsys):
    ends = {"lt": 1000, "reinit": 1000} | {missing: None}
    for kind, accuracies in (("lt", [90, 91]), ("reinit", [90, 85])):
        for seed in range(3):
            write_run(tmp_path, kind, accuracies, seed, end=ends[kind])
    found = differences(tmp_path, "--columns", "earlystop")
    assert (
        printed(capsys.readouterr().out)
        == {
            "lt": [
                "100% 0 lt >= 900 -",
                "reinit, own masks 900 ± 0 same",
                "80.0% 1 lt >= 910 -",
                "reinit, own masks 850 ± 0 <= -60",
            ],
            "reinit": [
                "100% 0 lt 900 ± 0 -",
                "reinit, own masks >= 900 same",
                "80.0% 1 lt 910 ± 0 -",
                "reinit, own masks >= 850 >= -60",
            ],
        }[missing]
    )
    row = found["reinit, own masks", 1]
    assert (row["bestaccuracy_difference"], row["earlystop_difference"]) == ("-6.0", "")
    assert row["earlystop_difference_low"] == ""


@pytest.mark.usefixtures("undrawn")
def test_a_log_that_ends_before_early_stopping_makes_it_a_bound(tmp_path, capsys):
    for seed in range(3):
        write_run(tmp_path, "lt", [90, 91], seed, end=2000 if seed else 700)
    combine(tmp_path, f"--raw={tmp_path / 'raw.csv'}")
    assert printed(capsys.readouterr().out)[0] == "100% 0 lt 90.00 ± 0.00 >= 900"
    assert pd.read_csv(tmp_path / "raw.csv")["earlystop_at_end"].isna().sum() == 2


@pytest.mark.usefixtures("undrawn")
def test_a_copied_folder_is_not_another_seed(tmp_path, capsys):
    for seed in range(2):
        write_run(tmp_path, "lt", [90, 91 + seed], seed, end=2000)
        record(tmp_path / "dumps/lt/fc1/mnist" / ("seed1" if seed else ""), "lt", seed=seed)
    shutil.copytree(tmp_path / "dumps/lt/fc1/mnist/seed1", tmp_path / "dumps/lt/fc1/mnist/seed2")
    combine(tmp_path, f"--raw={tmp_path / 'raw.csv'}")
    assert set(pd.read_csv(tmp_path / "raw.csv")["seed"]) == {0, 1}
    assert "mnist/seed2 has a run of --seed=1" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_missing_log_is_said(tmp_path, capsys):
    write_run(tmp_path, "lt", [90, 89], end=900)
    write_run(tmp_path, "reinit", [90, 91])
    combine(tmp_path, f"--csv={tmp_path / 'table.csv'}", f"--raw={tmp_path / 'raw.csv'}")
    assert "or its log is incomplete." in " ".join(capsys.readouterr().out.split())
    for name, values in (("table.csv", ["1", "0", "", ""]), ("raw.csv", ["True", "False", "", ""])):
        assert [row["earlystop_at_end"] for row in read_csv(tmp_path / name)] == values


@pytest.mark.usefixtures("undrawn")
def test_a_bound_is_shown_even_if_another_log_is_missing(tmp_path, capsys):
    write_run(tmp_path, "lt", [90], 0, end=900)
    write_run(tmp_path, "lt", [90], 1)
    combine(tmp_path, f"--csv={tmp_path / 'table.csv'}")
    assert printed(capsys.readouterr().out) == ["100% 0 lt 90.00 ± 0.00 >= 900"]
    assert read_csv(tmp_path / "table.csv")[0]["earlystop_at_end"] == ""


@pytest.mark.usefixtures("undrawn")
def test_curves_of_almost_equal_densities_stay_in_their_order(tmp_path, capsys):
    write_run(tmp_path, "lt", [90, 91])
    dumps = write_run(tmp_path, "reinit", [90, 89])
    utils.write_array(dumps / "reinit_compression.dat", [100, 80.001])
    combine(tmp_path, "--columns", "bestaccuracy")
    assert [row.partition(" ")[0] for row in printed(capsys.readouterr().out)] == [
        "100%",
        "reinit,",
        "80.0%",
        "reinit,",
    ]


def test_the_rounds_nearest_to_some_densities_are_shown(tmp_path, figures, capsys):
    write_run(tmp_path, "lt", [90] * 35, percent=10, end=1000)
    write_run(tmp_path, "reinit", [90] * 3, percent=60, end=1000)
    combine(tmp_path, "--baseline=lt, prune_percent=10", f"--latex={tmp_path / 'table.tex'}")
    output = capsys.readouterr().out
    shown = re.findall(r"^(\S+%) +(\d+) ", output, re.MULTILINE)
    expected = [
        ("100%", "0"),
        ("47.8%", "7"),
        ("40.0%", "1"),
        ("20.6%", "15"),
        ("16.0%", "2"),
        ("9.85%", "22"),
        ("5.23%", "28"),
        ("2.78%", "34"),
    ]
    assert shown == 2 * expected, "in each of two blocks"
    tex = (tmp_path / "table.tex").read_text().split(r"\begin{table}")[1]
    rows = re.findall(r"([\d.]+)\\% & ", tex.partition(r"\midrule")[2])
    assert rows == ["100", "47.8", "20.6", "9.85", "5.23", "2.78", "100", "40.0", "16.0"]
    lt, reinit = figures["training_fc1_mnist.png"]
    assert (len(lt["lines"]), len(reinit["lines"])) == (6, 3)

    combine(tmp_path, "--rounds=1,30")
    assert re.findall(r"^(\S+%) +(\d+) ", capsys.readouterr().out, re.MULTILINE)[:3] == [
        ("90.0%", "1"),
        ("40.0%", "1"),
        ("4.24%", "30"),
    ]


@pytest.mark.usefixtures("undrawn")
def test_all_columns_have_both_lines_of_their_headers(tmp_path, capsys):
    write_run(tmp_path, "lt", [90, 91], end=2000)
    columns = ["bestaccuracy", "earlystopaccuracy", "earlystopaccuracy"]
    combine(tmp_path, "--columns", *columns)
    output = capsys.readouterr().out
    assert re.search(r"^ +test accuracy at +test accuracy at$", output, re.MULTILINE)
    assert re.search(r"^ +best validation \(%\) +early stopping \(%\)$", output, re.MULTILINE)


@pytest.mark.parametrize("value", [math.nan, -1, 101])
@pytest.mark.parametrize("name", ["compression", "bestaccuracy"])
@pytest.mark.usefixtures("undrawn")
def test_rounds_that_are_not_percentages_are_left_out(name, value, tmp_path, capsys):
    write_run(tmp_path, "lt", [90, 91], 0, end=2000)
    dumps = write_run(tmp_path, "lt", [90, 91], 1, end=2000)
    utils.write_array(dumps / f"lt_{name}.dat", [80, value])
    combine(tmp_path)
    output, error = capsys.readouterr()
    assert "One seed." in output
    assert error.count("\n") == 1
    assert f"{dumps}/lt_compression.dat, or an array beside it, has no percentages" in error


@pytest.mark.parametrize("last", [100 / 2**9, 0.0])
def test_the_last_round_is_shown_even_if_none_of_the_densities_is_near(last):
    percents = [100 / 2**round_ for round_ in range(9)]
    runs = pd.DataFrame({"weights_remaining": [*percents, last], "curve": "lt"})
    runs["round"] = runs.index
    assert list(combine_plots.choose_rounds(runs, None)["round"]) == [0, 1, 2, 3, 4, 6, 7, 9]
    runs = pd.concat([runs, runs[-1:].assign(round=10)])  # with as many weights
    assert list(combine_plots.choose_rounds(runs, None)["round"]) == [0, 1, 2, 3, 4, 6, 7, 10]


@pytest.mark.parametrize("columns", [[], [*combine_plots.COLUMNS]])
@pytest.mark.usefixtures("undrawn")
def test_tables_fit_the_terminal_and_long_names_become_letters(
    columns, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(combine_plots, "draw_experiment", lambda *_: None)
    folders = [tmp_path / str(number) for number in range(30)]
    for number, folder in enumerate(folders):
        for seed in range(3):
            accuracies = [100 - number, 99.12 - 3 * number, 98.57 - number * seed]
            settings = {"rewind_iter": number, "lr": (1 + number // 2) / 1000, "lr_gamma": number}
            write_run(folder, "lt", accuracies, seed, end=1000, **settings)
    flags = ["--columns", *columns] if columns else []
    baseline = "lt, lr=0.001, rewind_iter=0, lr_gamma=0"
    figures = f"--figures={tmp_path}"
    combine_all(folders, figures, f"--baseline={baseline}", *flags)
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 100
    assert f"\nA: {baseline}\nB: " in table
    assert "\nD0: lt, lr=0.015, rewind_iter=29, lr_gamma=29\n" in table
    assert "Differences from the baseline, A, are paired" in " ".join(table.split())
    blocks = len(columns) or 1
    assert len(printed(table)) == 2 * len(folders) * blocks


@pytest.mark.usefixtures("undrawn")
def test_columns_choose_what_is_printed(experiment, capsys):
    combine(experiment, "--columns", "untrained")
    output = capsys.readouterr().out
    assert printed(output)[:2] == ["100% 0 lt 2 9.70 ± 0.07 -", "random 1 9.60 -0.15"]
    assert "test accuracy before training (%)" in output
    assert "fc1 on mnist: test accuracy before training (%). Mean" in output


def answers(output):
    """Return the sentences at the end of an output."""
    *_, last = output.strip().split("\n\n")
    title, last = last.split("\n", 1)
    assert title == "Differences in test accuracy at best validation:"
    return re.sub("\n(?=At |reinit, own masks: no)", "\0", last).replace("\n", " ").split("\0")


@pytest.mark.usefixtures("undrawn")
def test_the_last_lines_answer_whether_accuracies_differ(tmp_path, capsys):
    for seed, (dense, lt, reinit, shuffle) in enumerate(
        [(90, 91, 89, 91.5), (91, 92.5, 91.5, 92), (92, 93.2, 90.4, 93.4)]
    ):
        write_run(tmp_path, "lt", [dense, dense, lt], seed, percent=50)
        write_run(tmp_path, "reinit", [dense, dense, reinit], seed, percent=50, masks_from="lt")
        write_run(tmp_path, "shuffle", [dense, dense, shuffle], seed, percent=50)
    write_run(tmp_path, "lt", [80] * 4, 3, percent=50)  # more rounds than the others
    combine(tmp_path, f"--csv={tmp_path / 'table.csv'}")
    gain, loss, few = (
        stats.ttest_1samp(values, 0).confidence_interval(0.95)
        for values in ([1, 1.5, 1.2, 0], [2, 1, 2.8], [0.5, -0.5, 0.2])
    )
    assert answers(capsys.readouterr().out) == [
        "At 25.0% of the weights, lt: no clear difference from the dense network (+0.93 points, "
        f"95% interval {gain.low:+.2f} to {gain.high:+.2f}, 4 seeds)",
        "At 25.0% of the weights, reinit, lt's masks: no clear difference from lt (-1.93 points, "
        f"95% interval {-loss.high:+.2f} to {-loss.low:+.2f}, 3 seeds)",
        "At 25.0% of the weights, shuffle, own masks: no clear difference from lt (+0.07 points, "
        f"95% interval {few.low:+.2f} to {few.high:+.2f}, 3 seeds)",
    ]


@pytest.mark.parametrize(
    ("pairs", "answer"),
    [
        ([(91, 90), (92, 91.2), (93, 91.8)], "1.00 points below lt (95% interval 0.50 to 1.50, 3"),
        ([(90, 91), (91.2, 92), (91.8, 93)], "1.00 points above lt (95% interval 0.50 to 1.50, 3"),
        ([(91, 90), (92, 91.2)], "0.90 points below lt (2"),
        ([(91, 91.5)], "0.50 points above lt (1"),
        ([(91, 91)], "no clear difference from lt (+0.00 points, 1"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_an_answer_has_direction_interval_and_number_of_seeds(pairs, answer, tmp_path, capsys):
    for seed, (lt, reinit) in enumerate(pairs):
        write_run(tmp_path, "lt", [90, lt], seed)
        write_run(tmp_path, "reinit", [90, reinit], seed)
    combine(tmp_path)
    *_, last = answers(capsys.readouterr().out)
    seeds = {1: "seed, too few for an interval", 2: "seeds, too few for an interval", 3: "seeds"}
    assert last == f"At 80.0% of the weights, reinit, own masks: {answer} {seeds[len(pairs)]})"


@pytest.mark.usefixtures("undrawn")
def test_answers_without_a_baseline_are_about_dense_networks(two_folders, capsys):
    combine_all(two_folders)
    assert answers(capsys.readouterr().out) == [
        "At 80.0% of the weights, lt, rewind_iter=0: 0.50 points above the dense network "
        "(2 seeds, too few for an interval)",
        "At 80.0% of the weights, lt, rewind_iter=500: 1.50 points above the dense network "
        "(2 seeds, too few for an interval)",
        "At 80.0% of the weights, reinit, lt's masks: 2.00 points below the dense network "
        "(1 seed, too few for an interval)",
    ]


@pytest.mark.usefixtures("undrawn")
def test_an_answer_is_about_the_last_round_that_has_enough_seeds(tmp_path, capsys):
    """A fourth seed is still running, and a fifth round has only two seeds."""
    for seed, rounds in enumerate((5, 5, 4, 2)):
        write_run(tmp_path, "lt", [90, 91, 92, 93, 94][:rounds], seed)
    write_run(tmp_path, "reinit", [90])
    combine(tmp_path)
    lt, reinit = answers(capsys.readouterr().out)
    assert lt.startswith("At 51.2% of the weights, lt: 3.00 points above the dense network (95%")
    assert reinit == "reinit, own masks: no round after the first can be compared with lt"


@pytest.mark.usefixtures("undrawn")
def test_a_dense_network_alone_has_no_answer(tmp_path, capsys):
    write_run(tmp_path, "lt", [90])
    combine(tmp_path)
    assert answers(capsys.readouterr().out) == [
        "lt: no round after the first can be compared with the dense network"
    ]


@pytest.mark.usefixtures("undrawn")
def test_results_of_different_versions_are_noted_once(tmp_path, capsys):
    for kind, version, commit in (
        ("lt", "2.11", "a"),
        ("reinit", "2.15", "b"),
        ("random", "2.15", 0),
    ):
        dumps = write_run(tmp_path, kind, [90, 91], end=2000)
        path = dumps / f"{kind}_settings.json"
        made_by = {"code": "c0de", "torch": version, "commit": commit, "numpy": ["2"]}
        if kind == "random":  # an older run, which has not recorded it
            del made_by["torch"]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"made_by": made_by}))
    combine(tmp_path)
    assert capsys.readouterr().err == (
        "combine_plots.py: note: these results were made by different versions: torch 2.11, 2.15\n"
    )
    (dumps / "lt_compression.dat").unlink()
    combine(tmp_path)
    assert capsys.readouterr().err == ""


def test_masks_of_a_run_that_was_replaced_are_noted(small_args, undrawn, capsys):
    lt = small_args(end_iter=1)
    reinit = small_args(end_iter=1, prune_type="reinit", masks_from="lt")
    main.main(lt)
    main.main(reinit)
    capsys.readouterr()
    combine(lt.output_dir)
    assert capsys.readouterr().err == ""
    # Of the same settings, but with other masks, as on another machine.
    rows = [json.loads(line) for line in utils.Files(lt).log.read_text().splitlines()]
    for row in rows:
        row["masks"] += row["round"] == 2
    utils.Files(lt).log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    combine(lt.output_dir)
    assert capsys.readouterr().err == (
        "combine_plots.py: note: these runs have masks of a run that was replaced: reinit, lt's "
        f"masks in {utils.Files(lt).dumps}\n"
    )


# What is written, and where


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["a"], "a/plots/lt/combined_plots"),
        (["a", "./a"], "a/plots/lt/combined_plots"),
        (["a", "b"], "plots_a_b"),
        (["x/a", "x/b"], "plots_a_b"),
        (["x/a", "y/a"], "plots_x_a_y_a"),
        ([".", "k500"], "plots_here_k500"),
    ],
)
def test_figures_of_several_folders_go_to_a_folder_of_their_names(
    folders, expected, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert combine_plots.parse_args(["--output_dir", *folders]).figures == expected
    flags = ["--output_dir", *folders, "--figures=new"]
    assert combine_plots.parse_args(flags).figures == "new"


def test_so_many_folders_need_a_place_for_figures(capsys):
    folders = [f"criterion_{number:03}" for number in range(20)]
    with pytest.raises(SystemExit):
        combine_plots.parse_args(["--output_dir", *folders])
    assert "--figures=DIR" in capsys.readouterr().err
    assert combine_plots.parse_args(["--figures=f", "--output_dir", *folders]).figures == "f"


@pytest.mark.parametrize("flag", ["csv", "raw", "latex"])
def test_tables_follow_links_and_are_written_into_pipes(flag, experiment, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new/target")
    combine(experiment, f"--{flag}={tmp_path / 'link'}")
    assert (tmp_path / "link").is_symlink()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    combine(experiment, f"--{flag}={pipe}")
    assert pipe.is_fifo()
    assert os.read(reader, 2**20) == (tmp_path / "new/target").read_bytes() != b""
    os.close(reader)


@pytest.mark.parametrize(
    "name",
    ["lt_log.jsonl", "lt_settings.json", "lt_earlystop.dat", "0_model_lt.pth.tar", "a.png"],
)
def test_a_table_does_not_replace_what_a_run_wrote(name, capsys):
    with pytest.raises(SystemExit):
        combine_plots.parse_args([f"--csv={name}"])
    assert f"{name} cannot hold a table" in capsys.readouterr().err


def test_a_table_does_not_replace_the_file_of_the_output(experiment, tmp_path):
    script = 'import sys; sys.path.insert(0, "."); import combine_plots; combine_plots.parse_args()'
    with (tmp_path / "out.txt").open("w") as file:
        result = subprocess.run(
            [sys.executable, "-c", script, "--csv=/dev/stdout"],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert f"{tmp_path}/out.txt cannot hold a table" in result.stderr


def test_equal_seeds_can_be_drawn(tmp_path, figures):
    """Rounding puts percentiles of three equal numbers, or the mean of six, beside them."""
    equal = [30.21, 33.3, 22.32]
    for seed in range(6):
        write_run(tmp_path, "lt", equal, seed, end=2000)
    combine(tmp_path, f"--csv={tmp_path / 'table.csv'}")
    assert "earlystop_fc1_mnist.png" in figures
    for row in read_csv(tmp_path / "table.csv"):
        low, mean, high = (float(row[f"bestaccuracy{part}"]) for part in ("_min", "", "_max"))
        assert low <= mean <= high


# Papers


def test_early_stopping_at_the_last_evaluation_is_marked(tmp_path, figures, capsys):
    row = {"epoch": 1, "train_loss": 0.1, "test_accuracy": 90.0}
    for seed, end in enumerate((900, 1200)):
        dumps = write_run(tmp_path, "lt", [90, 90], seed)
        rows = [
            row | {"round": r, "iteration": i, "weights_remaining": 100 - 20 * r}
            for r in range(2)
            for i in (450, end if r == 0 else 1200)
        ]
        (dumps / "lt_log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    combine(tmp_path, f"--csv={tmp_path / 'table.csv'}", f"--latex={tmp_path / 'table.tex'}")
    output = " ".join(capsys.readouterr().out.split())
    assert "100% 0 lt 90.00 ± 0.00 >= 900 80.0% 1 lt 90.00 ± 0.00 900 ± 0" in output
    assert ">=: a lower bound. At least one seed stopped early at its last evaluation" in output
    rows = read_csv(tmp_path / "table.csv")
    assert [row["earlystop_at_end"] for row in rows] == ["1", "0"]
    assert r"lt & 100\% & $\geq$ 900 \\" in (tmp_path / "table.tex").read_text()
    panel, *_ = figures["earlystop_fc1_mnist.png"]
    assert panel["triangles"] == [(100, 900, "up")]
    assert panel["colours"]["lt"] == "C0"
    assert panel["legend"] == ["lt", "mean is at least", "lt, dense"]
    assert math.isnan(panel["dotted"]["lt, dense"]), "the iteration of the dense network is a bound"


@pytest.mark.usefixtures("undrawn")
def test_latex_is_escaped_and_has_headers_of_two_lines(two_folders):
    combine_all(two_folders, "--latex=table.tex", "--rounds=1", "--baseline=lt, rewind_iter=0")
    text = Path("table.tex").read_text()
    tables = text.split("\\begin{table}")[1:]
    for table, name in zip(tables, measured(two_folders[0]), strict=True):
        title = combine_plots.COLUMNS[name]
        assert f"\\caption{{fc1 on mnist: {title}".replace("%", r"\%") in table
        body = table.split(r"\toprule")[1]
        header, rows = body.split(r"\bottomrule")[0].split(r"\midrule")
        assert header.count(r"\\") == 3, "two lines and the names of the first columns"
        assert "multicolumn" not in header, "a line of a header belongs to two columns"
        assert rows.count(r"\\") == 3, "a row for each curve in round 1"
    assert r"lt, rewind\_iter=500 & 80.0\% & 2 & 92.00 $\pm$ 0.00 & $+$1.00 \\" in text
    assert r"from the baseline, lt, rewind\_iter=0, are" in text
    assert not re.search(r"(?<!\\)[%_#]|(?<!\$)[<>]|±", "".join(tables))


def test_special_characters_of_latex_are_escaped():
    text = combine_plots.as_tex(r"a & b # $1 50% x_1 {^~} \d: 1 ± 2, >= -3, <= 4, > 5, 1-6, lt-a")
    assert text == (
        r"a \& b \# \$1 50\% x\_1 \{\textasciicircum{}\textasciitilde{}\} \textbackslash{}d: "
        r"1 $\pm$ 2, $\geq$ $-$3, $\leq$ 4, $>$ 5, 1$-$6, lt-a"
    )


@pytest.mark.parametrize("seeds", ["equal", "different"])
def test_latex_tables_have_a_column_format_for_each_column(seeds, two_folders):
    if seeds == "equal":
        (two_folders[0] / "dumps/lt/fc1/mnist/reinit_compression.dat").unlink()
    combine_all(two_folders, "--latex=table.tex", "--baseline=lt, rewind_iter=0")
    tables = Path("table.tex").read_text().split("\\begin{table}")[1:]
    assert tables
    for table in tables:
        columns = re.search(r"\\begin\{tabular\}\{@\{\}(.*)@\{\}\}", table)[1]
        columns = columns.replace(r"@{\hspace{6pt}}", "")
        assert columns == ("lrrr" if seeds == "equal" else "lrrrr")
        rows = [line for line in table.splitlines() if line.endswith(r" \\")]
        assert {row.count("&") for row in rows} == {len(columns) - 1}


@pytest.mark.usefixtures("undrawn")
def test_latex_tables_have_labels_and_name_a_curve_once(two_folders):
    combine_all(two_folders, "--latex=table.tex", "--baseline=lt, rewind_iter=0")
    tables = Path("table.tex").read_text().split("\\begin{table}")[1:]
    for table, name in zip(tables, measured(two_folders[0]), strict=True):
        assert rf"\label{{tab:fc1-mnist-{name}}}" in table
        body = table.partition(r"\midrule")[2]
        assert body.count(r"lt, rewind\_iter=500") == 1
        assert re.search(r"^lt, rewind\\_iter=500 & 100\\% .*\n & 80.0\\% & ", body, re.MULTILINE)


@pytest.mark.parametrize("name", combine_plots.COLUMNS)
def test_headers_have_two_lines(name):
    title = combine_plots.COLUMNS[name]
    assert len(textwrap.wrap(title, combine_plots.LINE)) == 2


@pytest.mark.usefixtures("undrawn")
def test_rounds_without_results_leave_latex_empty(two_folders, capsys):
    combine_all(two_folders, "--latex=table.tex", "--rounds=7")
    output, error = capsys.readouterr()
    assert "--rounds: fc1 on mnist has no results of these rounds" in error
    assert "weights round curve" not in output
    assert "tabular" not in Path("table.tex").read_text()


def test_text_in_pdf_and_svg_stays_text(two_folders):
    for extension in ("pdf", "svg"):
        combine_all(two_folders, f"--format={extension}", "--figures=new/figures")
    folder = Path("new/figures")
    assert {path.name for path in folder.iterdir()} == {
        f"{name}_fc1_mnist.{extension}"
        for name in ("combined", "earlystop", "untrained")
        for extension in ("pdf", "svg")
    }
    pdf = (folder / "combined_fc1_mnist.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf, "the font is not embedded as TrueType"
    assert b"/Type3" not in pdf
    svg = (folder / "combined_fc1_mnist.svg").read_text()
    assert ">lt, rewind_iter=500 (2\N{NO-BREAK SPACE}seeds)</text>" in svg


@pytest.mark.parametrize(
    "flags", [["--csv=x", "--raw=x"], ["--raw=./x", "--latex=x"], ["--csv=link", "--latex=a/../x"]]
)
def test_two_tables_need_two_files(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("x")
    Path("a").mkdir()
    with pytest.raises(SystemExit):
        combine_plots.parse_args(flags)
    assert f"{tmp_path}/x cannot hold a table" in capsys.readouterr().err
