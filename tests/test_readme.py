"""README and docs are true: their code and commands work as printed, and they list every flag."""

import os
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

import archs
import combine_plots
import main
import utils
from conftest import ROOT, command

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README = PAGES[0].read_text()
DEVELOPMENT = (ROOT / "docs/development.md").read_text()


def block(language, page, after):
    """Return the first code block of a language after some text on a page."""
    return re.search(rf"```{language}\n(.*?)```", page[page.index(after) :], re.DOTALL)[1]


@pytest.fixture
def scratch(own, monkeypatch):
    """A copy of the code, as the current folder."""
    for name in ("main.py", "utils.py", "combine_plots.py"):
        shutil.copy(ROOT / name, own.parent)
    monkeypatch.chdir(own.parent)
    return own.parent


def run(*flags):
    main.main(main.parse_args(["--end_iter=1", "--gpu=cpu", *flags]))


def test_using_a_ticket(scratch):
    run("--dataset=digits", "--prune_percent=20", "--prune_iterations=16")
    use = block("python", README, "## Using a ticket")
    use_sparse = block("python", README, "use `sparsify`")
    train = block("python", README, "keeps the pruned weights at zero")
    measure = """
def training_loss():
    return torch.nn.functional.cross_entropy(model((images / 255 - mean) / std), labels).item()


hits = model((test[0] / 255 - mean) / std).argmax(1) == test[1]
print(100 * hits.double().mean().item() - ticket["test_accuracy"], training_loss())
torch.manual_seed(0)
"""
    start, loop = train.split("for batch", 1)
    count = """
print(training_loss())
for name, mask in ticket["masks"].items():
    layer = model.get_submodule(name.rpartition(".")[0])
    print(int((layer.weight != 0).sum() - mask.sum()), type(layer) is torch.nn.Linear)
"""
    results = []
    for code in (use, use + use_sparse):
        result = command("-c", f"{code}{start}{measure}for batch{loop}{count}", cwd=scratch)
        assert result.returncode == 0, result.stderr
        difference, before, after, *counts = result.stdout.split()
        results.append([float(before), float(after)])
        assert abs(float(difference)) < 0.3  # rounding may decide a tie differently
        assert float(after) < float(before)
        assert counts == ["0", str(code is use)] * 3
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_adding_an_architecture(scratch, capsys):
    code = block("python", README, "An architecture is one file")
    (scratch / "archs/common/wide.py").write_text(code)
    run("--dataset=digits", "--arch_type=wide", "--prune_iterations=2")
    assert "392000      352800    90.00" in capsys.readouterr().out
    assert "wide" in command("main.py", "--help", cwd=scratch).stdout


def test_initializing_an_architecture(scratch):
    network = block("python", README, "An architecture is one file")
    initialize = block("python", DEVELOPMENT, "To initialize a network")
    (scratch / "archs/common/wide.py").write_text(network + initialize)
    args = main.parse_args(["--dataset=digits", "--arch_type=wide"])
    for round_ in range(2):
        weight = main.new_model(args, round_).state_dict()["1.weight"]
        assert weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.01)  # by Kaiming


def test_adding_a_criterion(scratch):
    code = block("python", README, "A criterion is a function")
    program = scratch / "main.py"
    place = "\n# ---- Device and randomness"
    assert program.read_text().count(place) == 1
    program.write_text(program.read_text().replace(place, f"\n{code}\n{place}"))
    flags = ["--dataset=digits", "--end_iter=1", "--prune_iterations=2", "--criterion=growth"]
    result = command(program, *flags, cwd=scratch)
    assert result.returncode == 0, result.stderr
    args = main.parse_args(flags[:3])
    initial = torch.load(utils.Files(args).initial, weights_only=True)
    final = torch.load(utils.Files(args).ticket(0), weights_only=True)["final"]
    masks = torch.load(utils.Files(args).ticket(1), weights_only=True)["masks"]
    for name, mask in masks.items():
        growth = final[name].abs() / initial[name].abs()
        assert growth[~mask].max() <= growth[mask].min()
        assert (~mask).sum() == round(0.1 * mask.numel())


def test_adding_a_dataset(scratch):
    folder = scratch / "archs/letters"
    folder.mkdir()
    (folder / "__init__.py").write_text(block("python", DEVELOPMENT, "A dataset is one folder"))
    (scratch / "data").mkdir()
    random, parts = np.random.default_rng(0), {}
    for part, n in (("train", 300), ("test", 50)):
        parts[f"{part}_images"] = random.integers(256, size=(n, 1, 28, 28), dtype=np.uint8)
        parts[f"{part}_labels"] = random.integers(26, size=n)
    with pytest.raises(utils.BadInput, match=r"letters\.npz"):
        run("--dataset=letters")
    np.savez(scratch / "data/letters.npz", **parts)
    for arch_type in ("fc1", "lenet5"):
        run("--dataset=letters", f"--arch_type={arch_type}", "--prune_iterations=2")
    statistics = re.search(
        r'python3 (-c) "(.*?)"', block("sh", DEVELOPMENT, "This prints the mean")
    )
    result = command(*statistics.groups(), cwd=scratch)
    mean, std = re.findall(r"tensor\(\[([\d.]+)\]\)", result.stdout)
    assert float(mean) == pytest.approx(0.5, abs=0.01)
    assert float(std) == pytest.approx(0.29, abs=0.01)


def help_text(parse_args, monkeypatch, capsys):
    """Return all flags as `--help` shows them, in one line."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = capsys.readouterr().out
    flags = text[text.index("\n  --") :].partition("\n\nprune types")[0].splitlines()
    return " ".join(" ".join(line for line in flags if line.startswith("  ")).split())


@pytest.mark.parametrize("program", [main, combine_plots])
def test_the_page_of_flags_is_equal_to_the_help(program, monkeypatch, capsys):
    page = (ROOT / "docs/flags.md").read_text()
    section = page.partition(f"\n## {program.__name__}.py\n")[2].partition("\n## ")[0]
    shown = []
    for row in re.findall(r"^\| `--.*", section, re.MULTILINE):
        flag, values, default, meaning = row.replace("`", "").strip("| ").split(" | ")
        if values.islower():  # choices
            values = f"{{{values.replace(', ', ',')}}}"
        default = "False" if default == "off" else default
        shown += [flag, *values.split(), meaning, f"(default: {default})"]
    assert " ".join(shown) == help_text(program.parse_args, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("heading", "meanings"),
    [
        ("Prune types", {name: kind.meaning for name, kind in utils.PRUNE_TYPES.items()}),
        ("Criteria", {name: criterion.formula for name, criterion in main.CRITERIA.items()}),
    ],
)
def test_the_page_of_flags_has_the_tables_of_the_help(heading, meanings, capsys):
    page = (ROOT / "docs/flags.md").read_text().partition(f"\n#### {heading}\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.partition("\n- ")[0], re.MULTILINE)
    assert [(name, meaning.replace(r"\|", "|")) for name, meaning in rows] == [*meanings.items()]
    with pytest.raises(SystemExit):
        main.parse_args(["--help"])
    text = capsys.readouterr().out
    for name, meaning in meanings.items():
        assert f"\n  {name:15}  {meaning}\n" in text


def test_the_readme_has_the_defaults_and_all_names():
    rows = re.findall(r"^\| `--(\w+)` \| `(.*?)` \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 10
    defaults = vars(main.parse_args([]))
    for flag, shown, _ in rows:
        assert type(defaults[flag])(shown) == defaults[flag], flag
    meanings = {flag: re.findall(r"`(\w+)`", meaning) for flag, _, meaning in rows}
    assert sorted(meanings["dataset"]) == archs.datasets()
    assert sorted(meanings["arch_type"]) == archs.architectures()
    assert set(meanings["prune_type"]) == set(utils.PRUNE_TYPES)


def test_the_readme_has_the_rounds_for_wanted_percentages():
    header = re.search(r"^\| to keep at most .*", README, re.MULTILINE)[0]
    wanted = [float(percent) for percent in re.findall(r"(\d+)%", header)]
    rows = re.findall(r"^\| `--prune_percent=(\d+)` \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 3
    for percent, cells in rows:
        percent = float(percent)
        rounds = map(int, cells.split(" | "))
        for remaining, n in zip(wanted, rounds, strict=True):
            left = 100 * (1 - percent / 100) ** (n - 1)
            assert left <= remaining < left / (1 - percent / 100)


def test_all_flags_in_the_text_exist():
    known = {*vars(main.parse_args([])), *vars(combine_plots.parse_args([]))}
    known |= {"paper", "no-augment"}
    known |= {"help", "logdir"}  # of argparse, of TensorBoard
    known |= {"device", "repeats", "kills"}  # of the tests
    known |= {"standalone", "nproc-per-node", "max-restarts", "nnodes"}  # of torchrun
    known |= {"array", "cpus-per-task", "signal"}  # of Slurm
    for page in PAGES:
        found = set(re.findall(r"--([a-z][\w-]*)", page.read_text()))
        assert found <= known, page


# A program that does nothing but write its name and its arguments to a file, in one line.
STUB = r"""#!/bin/sh
line=$(printf '%s\037' "${0##*/}" "$@")
printf '%s\n' "$line" >> "$STARTED"
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A function that runs a shell script and returns the commands it starts, without effects."""
    for name in ("python3", "pip", "torchrun"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("I", "1")

    def run(script):
        (tmp_path / "started").write_text("")
        subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=60)
        lines = (tmp_path / "started").read_text().splitlines()
        return [line.rstrip("\x1f").split("\x1f") for line in lines]

    return run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_valid(page, started):
    expected = {
        "README.md": 9,
        "comparing.md": 3,
        "results.md": 27,
        "running.md": 22,
        "speed.md": 2,
    }.get(page.name, 0)
    runs = 0
    for script in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        commands = started(script)
        assert commands, script
        for name, *args in commands:
            if "main.py" in args:
                assert name in ("python3", "torchrun")
                main.parse_args(args[args.index("main.py") + 1 :])
                runs += 1
            elif args[0] == "combine_plots.py":
                combine_plots.parse_args(args[1:])
            elif args[0] == "-c":
                compile(args[1], page.name, "exec")
            else:
                assert " ".join([name, *args]) in (
                    "python3 -m venv .venv",
                    "pip install -r requirements.txt",
                    "python3 -m pytest",
                )
    assert runs == expected


def test_paper_has_the_papers_settings():
    """They are in the paper's Figure 2 and, for the deep networks, in its Section 4."""
    rows = re.findall(
        r"^\| ([\w-]+) \| `(--arch_type=\w+)` \| `(\w+)` \| (\d+) \| (\d+) \|$",
        README,
        re.MULTILINE,
    )
    found = {}
    for name, flag, *shown in rows:
        args = main.parse_args(["--paper", flag])
        assert shown == [args.dataset, str(args.prune_iterations), str(args.max_iter)]
        assert (args.eval_iter, args.momentum, args.lr_gamma, args.val_size) == (
            100,
            0.9,
            0.1,
            5000,
        )
        assert args.valid_freq > args.max_iter * args.batch_size / 45000, "extra evaluations"
        assert (args.trials, args.masks_from, args.seed) == (1, None, 0)
        assert args.prune_percent_downsample == (
            0 if name == "Resnet-18" else args.prune_percent_conv
        )
        rates = [args.prune_percent_conv, args.prune_percent, args.prune_percent_output]
        found[name] = (
            args.arch_type,
            args.dataset,
            args.optimizer,
            args.lr,
            args.max_iter,
            args.batch_size,
            rates,
        )
        deep = (
            args.warmup_iter,
            args.lr_milestones,
            args.weight_decay,
            args.augment,
            args.prune_scope,
        )
        assert deep == {
            "Resnet-18": (20000, [20000, 25000], 1e-4, True, "global"),
            "VGG-19": (10000, [56000, 84000], 1e-4, True, "global"),
        }.get(name, (0, [], 0, False, "layer"))
    assert found == {
        "Lenet": ("fc1", "mnist", "adam", 1.2e-3, 50000, 60, [20, 20, 10]),
        "Conv-2": ("conv2", "cifar10", "adam", 2e-4, 20000, 60, [10, 20, 10]),
        "Conv-4": ("conv4", "cifar10", "adam", 3e-4, 25000, 60, [10, 20, 10]),
        "Conv-6": ("conv6", "cifar10", "adam", 3e-4, 30000, 60, [15, 20, 10]),
        "Resnet-18": ("resnet20", "cifar10", "sgd", 0.03, 30000, 128, [20, 20, 0]),
        "VGG-19": ("vgg19", "cifar10", "sgd", 0.1, 112000, 64, [20, 20, 0]),
    }
    assert {args[0] for args in found.values()} == {
        name for name in archs.architectures() if archs.paper_flags("cifar10", name)
    }


def test_paper_has_the_settings_of_the_results():
    page = (ROOT / "docs/results.md").read_text()
    flags = re.search(r'flags="(.*)"', page)[1]
    assert main.parse_args(["--paper"]) == main.parse_args(flags.split())


def test_the_questions_have_valid_commands():
    section = README.partition("\n## Questions and commands\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^\| .*? \| `(--.*?)`", section, re.MULTILINE)
    assert len(commands) == 12
    asked = [main.parse_args(flags.split()) for flags in commands]
    named = set(re.findall(r"`(\w+)`", section))
    assert named | {args.prune_type for args in asked} >= set(utils.PRUNE_TYPES)
    assert named | {args.criterion for args in asked} >= set(main.CRITERIA)


def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_figures_and_links_exist():
    for page in PAGES:
        for mark, link in re.findall(r"(!?)\[[^\]]*\]\((?!http)(.*?)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
            assert not mark or target.read_bytes().startswith(b"\x89PNG")
        for figure in re.findall(r'<img src="(.*?)"', page.read_text()):
            assert (page.parent / figure).read_bytes().startswith(b"\x89PNG")


def mean_and_range(mean, low, high, digits):
    text = f"{mean:.{digits}f}"
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})" if low < high else text


def test_the_results_are_those_of_the_file():
    table = pd.read_csv(ROOT / "docs/mnist_fc1.csv").set_index(["curve", "round"])

    def shown(curve, column, percent):
        rows = table.loc[curve]
        row = rows.loc[(rows["weights_remaining"] - float(percent)).abs().idxmin()]
        digits = 0 if column == "earlystop" else 2
        values = row[[column, f"{column}_min", f"{column}_max"]]
        return mean_and_range(*values, digits)

    section = README.partition("\n## Results\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d.]+)% \| (.*) \|$", section, re.MULTILINE)
    assert len(rows) == 6
    for percent, cells in rows:
        expected = [shown(curve, "earlystop", percent) for curve in ("lt", "reinit")]
        for curve in ("lt", "reinit", "random"):
            expected.append(shown(curve, "earlystopaccuracy", percent))
        assert cells.split(" | ") == expected
    for column, place in (
        ("bestaccuracy", "best validation"),
        ("earlystopaccuracy", "early stopping"),
    ):
        assert f"{shown('lt', column, 100)[:5]}% at {place}" in " ".join(section.split())

    page = (ROOT / "docs/results.md").read_text().partition("\n### All rounds\n")[2]
    rows = re.findall(r"^\| ([\d.]*)%? \| (early|test).*? \| (.* \| .* \| .*) \|$", page, re.M)
    assert len(rows) == 3 * 17
    for i, (_, _, cells) in enumerate(rows):
        percent = rows[i - i % 3][0]
        column = ("earlystop", "earlystopaccuracy", "finalaccuracy")[i % 3]
        assert cells.split(" | ") == [shown(c, column, percent) for c in ("lt", "reinit", "random")]


# What combine_plots.summary adds to the name of an array.
SUMMARY = ("", "_std", "_difference", "_difference_low", "_difference_high")


def test_the_answers_about_survivors_are_those_of_the_file():
    table = pd.read_csv(ROOT / "docs/mnist_fc1_resets.csv").set_index(["curve", "round"])
    page = (ROOT / "docs/results.md").read_text().partition("\n## What the survivors become\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(utils.PRUNE_TYPES)
    for name, cells in rows:
        values = table.loc[name].loc[[7, 10, 13], ["untrained", "bestaccuracy"]].to_numpy()
        assert cells.split(" | ") == [f"{value:.2f}" for value in values.flatten()]
    for text, column in (("before training", "untrained"), ("at best validation", "bestaccuracy")):
        assert f"{table.loc[('lt', 0), column]:.2f}% {text}" in page


def test_the_answers_about_criteria_are_those_of_the_file():
    table = pd.read_csv(ROOT / "docs/mnist_fc1_criteria.csv")
    name = table["criterion"].where(~table["one_shot"], "one_shot")
    table = table.set_index([name, "round"])
    page = (ROOT / "docs/results.md").read_text().partition("\n## Which weights survive\n")[2]
    rows = re.findall(r"^\| `--(?:criterion=)?(\w+)` \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == [*main.CRITERIA, "one_shot"]
    for name, cells in rows:
        values = table.loc[name]["bestaccuracy"][[0, 7, 10, 13]]
        assert cells.split(" | ") == [f"{value:.2f}" for value in values]
    for name in ("same_sign", "magnitude"):
        untrained = table.loc[name]["untrained"][[7, 10, 13]]
        low, high = f"{untrained.min():.0f}", f"{untrained.max():.0f}"
        assert f"`{name}` have {low} to {high}%" in page or f"`{name}` {low} to {high}%" in page


def test_the_example_has_the_numbers_of_its_file():
    table = pd.read_csv(ROOT / "docs/mnist_lenet5.csv", dtype=str, keep_default_na=False)
    known = table.columns.get_loc("round")
    numbers = table[table.columns[known:]].apply(pd.to_numeric)
    table = pd.concat([table[table.columns[:known]], numbers], axis=1)
    absent = [f"{name}{part}" for name in ("untrained", "trainaccuracy") for part in SUMMARY]
    table = table.assign(**dict.fromkeys(absent, np.nan))  # they were not measured yet
    printed = combine_plots.as_text(table, "lt, rewind_iter=0").splitlines()
    page = (ROOT / "docs/comparing.md").read_text()
    shown = page.partition("begin:\n\n```\n")[2].partition("\n```")[0].splitlines()
    assert len(shown) == 2 + 3
    for line in shown:
        assert any(other.startswith(line) for other in printed), line
    for text in ("+0.07", "-0.19 to +0.33", "-0.52 to -0.05"):
        assert all(part in "\n".join(shown) for part in text.split(" to "))
        assert text in page


def test_the_readme_has_the_ratios_of_the_page_on_speed():
    section = README.partition("\n## Speed\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| \d \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", section, re.M)
    _, _, page = (ROOT / "docs/speed.md").read_text().partition("\n## Compared with what\n")
    cell = r"([\d.]+)(?: \(.*?\))?"
    measured = re.findall(rf"^\| .* \| ([\d.]+) \| {cell} \| {cell} \| {cell} \|$", page, re.M)
    assert rows == [row[:3] for row in measured[:5]]
    assert len(rows) == 5


def test_the_readme_has_the_ratios_of_sparse_layers_on_the_page_on_speed():
    number = r"([\d.]+)"
    section = README.partition("\n## Speed\n")[2].partition("\n## ")[0]
    rows = re.findall(rf"^\| `(\w+)`, .* \| {number}% \| {number} \| {number} \|$", section, re.M)
    page = (ROOT / "docs/speed.md").read_text().partition("\n## Compared with what\n")[0]
    times = rf"{number} \| {number} \| {number}"  # sparse, dense, and their ratio
    columns = rf"^\| `(\w+)`, .* \| (\d) \| {number}% \| {times} \| {number} \| {times} \|$"
    measured = re.findall(columns, page, re.M)
    ratios = [(row[0], row[2], row[5], row[9]) for row in measured if row[1] == "1"]
    assert rows == [row for row in ratios if row[1] != "100"]
    for *_, sparse, dense, ratio, _, sparse_eval, dense_eval, ratio_eval in measured:
        assert float(sparse) / float(dense) == pytest.approx(float(ratio), abs=0.006)
        assert float(sparse_eval) / float(dense_eval) == pytest.approx(float(ratio_eval), abs=0.006)
