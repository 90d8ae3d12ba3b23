"""README and docs are true: their code and commands work as printed, and they list every flag."""

import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import archs
import combine_plots
import main
import utils
from archs.sparse import WeightRead
from conftest import (
    ROOT,
    check_masks,
    code_blocks,
    command,
    needs_linux,
    read_raw,
    same,
    started,
    ticket,
    trial_data,
)

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
README = PAGES[0].read_text()
DEVELOPMENT = (ROOT / "docs/development.md").read_text()
USING = (ROOT / "docs/using.md").read_text()


def block(language, page, after):
    """Return the first code block of a language after some text on a page."""
    return re.search(rf"```{language}\n(.*?)```", page[page.index(after) :], re.DOTALL)[1]


@pytest.fixture
def scratch(own, monkeypatch):
    """A copy of the code, as the current folder."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, own.parent)
    monkeypatch.chdir(own.parent)
    return own.parent


def run(*flags):
    main.main(main.parse_args(["--end_iter=1", "--gpu=cpu", *flags]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder saves/ of a run of 16 rounds."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combine_plots, "draw_run", lambda _: None)
        run(
            "--dataset=digits",
            "--prune_percent=20",
            "--prune_iterations=16",
            f"--output_dir={folder}",
        )
    return folder / "saves"


def test_using_a_ticket(scratch, trained):
    shutil.copytree(trained, scratch / "saves")
    use = block("python", README, "## Using a ticket")
    use_sparse = block("python", USING, "## Faster on a CPU")
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
    is_dense = type(layer) is torch.nn.Linear
    weight = layer.weight if is_dense else layer.state_dict()["weight"]
    print(int((weight != 0).sum() - mask.sum()), is_dense)
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


def test_using_a_ticket_in_other_code(scratch, trained, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    shutil.copytree(trained, elsewhere / "saves")
    use = block("python", README, "## Using a ticket")
    path = block("python", USING, "## From another folder")
    path = path.replace("/path/to/this/repository", str(scratch))
    save = block("python", USING, "## In a small file")
    load = block("python", USING, "This loads them")
    result = command("-c", path + use + save + load, cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    found = torch.load(elsewhere / "saves/fc1/digits/15_model_lt.pth.tar", weights_only=True)
    torch.save(found["model"], "dense.pth")
    shown = re.findall(r"^\| .* \| (\d\.\d\d) \|$", USING, re.MULTILINE)
    for name, megabytes in zip(
        ("saves/fc1/digits/15_model_lt.pth.tar", "dense.pth", "small.pth"), shown, strict=True
    ):
        size = (elsewhere / name).stat().st_size / 1e6
        assert size == pytest.approx(float(megabytes), abs=0.01), name

    names = {}
    exec(use + load, names)
    assert same(dict(names["model"].state_dict()), found["model"])
    exec(use, names)
    x = torch.rand(2, 1, 28, 28)
    expected = names["model"](x)
    exec(block("python", USING, "## Export"), names)
    assert same(dict(names["model"].state_dict()), found["model"])
    program = torch.export.export(names["model"], (x,)).module()
    assert torch.equal(program(x), expected)
    exec(block("python", USING, "## Faster on a CPU"), names)
    with torch.no_grad(), pytest.raises(Exception, match=r"sparse_(compressed|csr)_tensor"):
        torch.export.save(torch.export.export(names["model"], (x,)), "network.pt2")
    with pytest.raises(WeightRead):
        torch.jit.trace(names["model"], (x,))
    names["densify"](names["model"])
    assert torch.equal(torch.export.export(names["model"], (x,)).module()(x), expected)


SHARED = """
from torch import nn


class Network(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.first = nn.Linear(inputs, 60)
        self.a = nn.Linear(60, 60)
        self.b = nn.Linear(60, 60)
        self.b.weight = self.a.weight
        self.again = self.first
        self.out = nn.Linear(60, classes)

    def forward(self, x):
        return self.out(self.b(self.a(self.again(x.flatten(1)).relu()).relu()).relu())


def build(channels, size, classes):
    return Network(channels * size * size, classes)
"""


def test_using_a_ticket_of_layers_that_share_weights(scratch, undrawn):
    (scratch / "archs/common/shared.py").write_text(SHARED)
    flags = ["--dataset=digits", "--arch_type=shared", "--prune_percent=60"]
    run(*flags, "--prune_iterations=3")
    use = block("python", README, "## Using a ticket")
    use = use.replace('"fc1"', '"shared"').replace("fc1/digits/15", "shared/digits/2")
    train = block("python", README, "keeps the pruned weights at zero")
    names = {}
    exec(use + train, names)
    model, masks = names["model"], names["ticket"]["masks"]
    assert list(masks) == [f"{name}.weight" for name in ("first", "a", "b", "again", "out")]
    for name, mask in masks.items():
        weight = model.get_submodule(name.rpartition(".")[0]).weight
        assert not weight[~mask].any()
        assert weight[mask].all()

    # Shared weights are counted once.
    sizes = [784 * 60, 60 * 60, 600]
    survivors = [int(masks[f"{name}.weight"].sum()) for name in ("first", "a", "out")]
    remaining = 100 * sum(survivors) / sum(sizes)
    assert names["ticket"]["weights_remaining"] == pytest.approx(remaining)

    untrained = torch.load("saves/shared/digits/initial_state_dict_lt.pth.tar", weights_only=True)
    for name, mask in masks.items():
        untrained[name] *= mask
    model = names["archs"].build("digits", "shared")
    model.load_state_dict(untrained)
    images, labels = names["test"]
    hits = model((images / 255 - names["mean"]) / names["std"]).argmax(1) == labels
    expected = np.load("dumps/lt/shared/digits/lt_untrained.dat")[2]
    assert 100 * hits.double().mean().item() == pytest.approx(expected, abs=0.3)

    run(*flags, "--prune_iterations=3", "--prune_type=reinit", "--masks_from=lt")
    path = "saves/shared/digits/2_model_reinit.pth.tar"
    assert same(torch.load(path, weights_only=True)["masks"], masks)


def test_adding_an_architecture(scratch, undrawn, capsys):
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


def test_a_recipe_of_an_architecture(scratch, capsys):
    network = block("python", README, "An architecture is one file")
    paper = block("python", DEVELOPMENT, "To give an architecture settings")
    (scratch / "archs/common/wide.py").write_text(network + paper)
    args = main.parse_args(["--arch_type=wide", "--paper"])
    assert (args.dataset, args.optimizer, args.lr_schedule) == ("cifar10", "adamw", "cosine")
    assert (args.weight_decay, args.label_smoothing, args.augment) == (0.05, 0.1, True)
    flags = " ".join(paper.split('"""')[1].split())
    assert capsys.readouterr().out == f"--paper sets {flags}\n"


def test_rates_of_single_layers(scratch, undrawn):
    network = block("python", README, "An architecture is one file")
    rates = block("python", DEVELOPMENT, "To give layers rates of their own")
    (scratch / "archs/common/wide.py").write_text(network + rates)
    run("--dataset=digits", "--arch_type=wide", "--prune_iterations=2")
    masks = torch.load("saves/wide/digits/1_model_lt.pth.tar", weights_only=True)["masks"]
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert kept == {"1.weight": 784 * 500, "3.weight": 4750}


@pytest.fixture
def recipe(small_args, starts, undrawn, monkeypatch):
    """A function that trains with a block of README in main.py: recipe(text before it, **flags).

    Returns the settings.
    """
    for table in ("CRITERIA", "SCOPES", "PRUNE_TYPES"):
        monkeypatch.setattr(main, table, dict(getattr(main, table)))

    def train(after, **flags):
        exec(block("python", README, after), dict(vars(main)))
        args = small_args(prune_iterations=2, **flags)
        main.main(args)
        return args

    return train


def test_adding_a_criterion(recipe, starts):
    args = recipe("A criterion is a function", criterion="growth")
    (initial, before), (_, after) = starts
    final = ticket(args, 0)["final"]
    scores = {name: (final[name].abs() / initial[name].abs()).numpy() for name in before}
    check_masks(scores, before, after, "layer")


def test_adding_a_criterion_with_gradients(recipe, starts):
    args = recipe("A criterion that needs more", criterion="gradient", prune_scope="global")
    (_, before), (_, after) = starts
    data = trial_data(args)
    model = archs.build("digits", "fc1").double()
    model.load_state_dict(ticket(args, 0)["final"])
    x = data.normalize(data.train[0][:1000]).double()
    F.cross_entropy(model(x), data.train[1][:1000]).backward()
    weights = main.prunable(model)
    scores = {name: (w * w.grad).abs().detach().numpy() for name, w in weights.items()}
    check_masks(scores, before, after, "global", tolerance=1e-7)


def test_adding_a_scope(recipe, starts):
    args = recipe("A scope is a function", prune_scope="floor", prune_percent=99.9)
    (_, before), (_, after) = starts
    scores = {name: ticket(args, 0)["final"][name].abs() for name in before}
    across = main.prune(scores, before, 99.9, "global")
    assert min(int(mask.sum()) for mask in across.values()) < 100
    for name, mask in after.items():
        assert int(mask.sum()) == max(100, int(across[name].sum()))


def test_adding_a_prune_type(recipe, starts):
    recipe("A prune type is a function", prune_type="reverse")
    (initial, _), (state, masks) = starts
    for name, tensor in state.items():
        assert torch.equal(tensor, -initial[name] * masks[name] if name in masks else initial[name])


def test_adding_a_dataset(scratch, undrawn):
    folder = scratch / "archs/letters"
    folder.mkdir(exist_ok=True)
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


def entries(parse_args, monkeypatch, capsys):
    """Return what `--help` says of each flag, {"--flag": "VALUE meaning (default: X)"}."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = capsys.readouterr().out
    found = re.findall(r"^  (--\w+)(.*(?:\n {5,}.*)*)", text, re.MULTILINE)
    return {flag: " ".join(rest.replace(", --no-", " --no-").split()) for flag, rest in found}


def choices(text):
    """Return text without the choices of a flag, "{a,b}", and the choices as a set."""
    names = re.match(r"\{(.*?)\}", text)
    return (text[names.end() :], set(names[1].split(","))) if names else (text, set())


@pytest.mark.parametrize("program", [main, combine_plots])
def test_the_page_of_flags_is_true(program, monkeypatch, capsys):
    page = (ROOT / "docs/flags.md").read_text()
    section = page.partition(f"\n## {program.__name__}.py\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `--.*", section, re.MULTILINE)
    assert rows
    helped = entries(program.parse_args, monkeypatch, capsys)
    for row in rows:
        flag, values, default, meaning = row.replace("`", "").strip("| ").split(" | ")
        flag, _, negation = flag.partition(", ")
        if values.islower():
            values = f"{{{values.replace(', ', ',')}}}"
        default = "False" if default == "off" else default
        shown = " ".join(f"{negation} {values} {meaning} (default: {default})".split())
        (text, names), (actual, allowed) = choices(shown), choices(helped[flag])
        assert text == actual
        assert names <= allowed


@pytest.mark.parametrize("heading", ["Prune types", "Criteria"])
def test_the_page_of_flags_has_meanings_of_the_help(heading, capsys):
    page = (ROOT / "docs/flags.md").read_text().partition(f"\n#### {heading}\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.partition("\n- ")[0], re.MULTILINE)
    assert rows
    with pytest.raises(SystemExit):
        main.parse_args(["--help"])
    text = capsys.readouterr().out
    for name, meaning in rows:
        line = f"  {name:15}  {meaning}".replace(r"\|", "|")
        assert f"\n{line}\n" in text


def test_the_readme_has_defaults_and_names_of_the_code():
    rows = re.findall(r"^\| `--(\w+)` \| `(.*?)` \| (.*) \|$", README, re.MULTILINE)
    assert rows
    defaults = vars(main.parse_args([]))
    for flag, shown, _ in rows:
        assert type(defaults[flag])(shown) == defaults[flag], flag
    known = {
        "dataset": archs.datasets(),
        "arch_type": archs.architectures(),
        "prune_type": main.PRUNE_TYPES,
    }
    for flag, _, meaning in rows:
        if flag in known:
            names = re.findall(r"`(\w+)`", meaning)
            assert names
            assert set(names) <= set(known[flag])


def test_the_readme_has_the_rounds_for_wanted_percentages():
    header = re.search(r"^\| to keep at most .*", README, re.MULTILINE)[0]
    wanted = [float(percent) for percent in re.findall(r"(\d+)%", header)]
    rows = re.findall(r"^\| `--prune_percent=(\d+)` \| (.*) \|$", README, re.MULTILINE)
    assert rows
    for percent, cells in rows:
        percent = float(percent)
        rounds = map(int, cells.split(" | "))
        for remaining, n in zip(wanted, rounds, strict=True):
            left = 100 * (1 - percent / 100) ** (n - 1)
            assert left <= remaining < left / (1 - percent / 100)


def test_all_flags_in_the_text_exist():
    known = {*vars(main.parse_args([])), *vars(combine_plots.parse_args([]))}
    known |= {"paper", "no-augment", "no-nesterov"}
    known |= {"help", "logdir"}  # of argparse, of TensorBoard
    known |= {"device", "repeats", "kills"}  # of the tests
    known |= {"standalone", "nproc-per-node", "max-restarts", "nnodes"}  # of torchrun
    known |= {"array", "cpus-per-task", "gres", "time", "signal", "requeue"}  # of Slurm
    known |= {"parsable", "dependency"}  # of Slurm
    known |= {"process-slot-var", "system-site-packages", "resolution"}  # of xargs, venv, uv
    for page in PAGES:
        found = set(re.findall(r"--([a-z][\w-]*)", page.read_text()))
        assert found <= known, page


@needs_linux
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_valid(page):
    for script in code_blocks(page, "sh"):
        commands = started(script)
        assert commands, script
        for name, *args in commands:
            if "main.py" in args:
                assert name in ("python3", "torchrun")
                main.parse_args(args[args.index("main.py") + 1 :])
            elif name == "sbatch":
                main.parse_args(args[args.index("lottery.sh") + 1 :])
            elif args[0] in ("combine_plots.py", "../combine_plots.py"):
                combine_plots.parse_args(args[1:])
            elif name == "tar":
                assert args == ["-xf", "docs/results/*/runs.tar.xz", "-C", "stored"]  # without any
            elif args[0] == "-c":
                compile(args[1], page.name, "exec")
            else:
                assert " ".join([name, *args]) in (
                    "python3 -m venv .venv",
                    "python3 -m venv --system-site-packages .venv",
                    "pip install -r requirements.txt",
                    "pip install -r requirements.txt -c tests/constraints.txt",
                    "python3 -m pytest",
                )


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


def test_paper_sets_the_schedule_of_lenet():
    flags = (
        "--prune_percent=20 --prune_percent_output=10 --prune_iterations=17 --max_iter=50000 "
        "--eval_iter=100 --valid_freq=1000"
    )
    assert main.parse_args(["--paper"]) == main.parse_args(flags.split())


def test_the_questions_have_valid_commands():
    section = README.partition("\n## Questions and commands\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^\| .*? \| `(--.*?)`", section, re.MULTILINE)
    assert commands
    for flags in commands:
        main.parse_args(flags.split())
    alternatives = re.findall(r", or (`\w+`(?:, `\w+`)*)", section)
    for name in re.findall(r"\w+", " ".join(alternatives)):
        assert name in {*main.PRUNE_TYPES, *main.SCOPES, *main.CRITERIA}


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


def test_the_example_has_the_numbers_of_its_file():
    runs = read_raw(ROOT / "docs/mnist_lenet5.csv")
    baseline = "lt, rewind_iter=0"
    table = combine_plots.summary(runs, baseline)
    shown = table.merge(combine_plots.choose_rounds(runs, None))
    columns = combine_plots.measured(table, combine_plots.PRINTED)
    text = combine_plots.as_text(shown, baseline, columns)
    printed = "\n".join([text, *combine_plots.answers(table, baseline)]).splitlines()
    page = (ROOT / "docs/comparing.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    outputs = [block for language, block in blocks if not language]
    assert len(outputs) == 2
    for block in outputs:
        lines = block.splitlines()
        assert any(printed[i : i + len(lines)] == lines for i in range(len(printed))), block


def test_the_readme_has_the_ratios_of_the_page_on_speed():
    """A row of README has cells of a row on the page, without the ranges in brackets there."""

    def rows(text):
        lines = re.findall(r"^\| .*\d.*", re.sub(r" \(.*?\)", "", text), re.MULTILINE)
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    shown = rows(README.partition("\n## Speed\n")[2].partition("\n## ")[0])
    assert shown
    page = rows((ROOT / "docs/speed.md").read_text())
    for network, *cells in shown:
        name = "the same with `--amp`" if "--amp" in network else network
        numbers = {cell for cell in cells if cell not in ("1", "2")}  # threads
        assert any(row[0] == name and numbers <= set(row) for row in page), (network, numbers)
