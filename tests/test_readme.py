"""The README is true: its recipes work as printed, and it lists every flag with its default."""

import re
import shutil

import numpy as np
import pytest

import combine_plots
import main
import utils
from conftest import ROOT, command

README = (ROOT / "README.md").read_text()


def block(language, after):
    """Return the first code block of a language after some text in README."""
    return re.search(rf"```{language}\n(.*?)```", README[README.index(after) :], re.DOTALL)[1]


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
    run("--dataset=digits", "--prune_iterations=8")
    more = """
kept = {name: int(mask.sum()) for name, mask in ticket["masks"].items()}
images, labels = archs.load("digits", "data", train=False)
facts = archs.facts("digits")
mean = torch.tensor(facts.MEAN).view(-1, 1, 1)
x = (images / 255 - mean) / torch.tensor(facts.STD).view(-1, 1, 1)
print(100 * (model.eval()(x).argmax(1) == labels).double().mean().item() - ticket["test_accuracy"])
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(3):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), labels).backward()
    optimizer.step()
model(x)
layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in kept}
print([int((layers[name].weight != 0).sum()) - n for name, n in kept.items()])
"""
    result = command("-c", block("python", "## Use a ticket") + more, cwd=scratch)
    assert result.returncode == 0, result.stderr
    difference, counts = result.stdout.splitlines()
    assert abs(float(difference)) < 0.3  # rounding may decide a tie differently
    assert counts == "[0, 0, 0]"


def test_adding_an_architecture(scratch, capsys):
    (scratch / "archs/common/wide.py").write_text(block("python", "An architecture is one file"))
    run("--dataset=digits", "--arch_type=wide", "--prune_iterations=2")
    assert "392000      352800    90.00" in capsys.readouterr().out
    assert "wide" in command("main.py", "--help", cwd=scratch).stdout


def test_initializing_an_architecture(scratch):
    text = block("python", "An architecture is one file") + block("python", "define `initialize(")
    (scratch / "archs/common/wide.py").write_text(text)
    args = main.parse_args(["--dataset=digits", "--arch_type=wide"])
    for round_ in range(2):
        weight = main.new_model(args, round_).state_dict()["1.weight"]
        assert weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.01)  # by Kaiming


def test_adding_a_dataset(scratch):
    folder = scratch / "archs/letters"
    folder.mkdir()
    (folder / "__init__.py").write_text(block("python", "A dataset is one folder"))
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
    statistics = re.search(r'python3 (-c) "(.*?)"', block("sh", "This prints the mean"))
    result = command(*statistics.groups(), cwd=scratch)
    mean, std = re.findall(r"tensor\(\[([\d.]+)\]\)", result.stdout)
    assert float(mean) == pytest.approx(0.5, abs=0.01)
    assert float(std) == pytest.approx(0.29, abs=0.01)


def test_the_table_has_every_flag_with_its_default():
    table = dict(re.findall(r"^\| `--(\w+)` \| (.*?) \|", README, re.MULTILINE))
    defaults = vars(main.parse_args([]))
    assert set(table) == set(defaults)
    words = {"val_size": "the dataset's", "masks_from": "none", "lr_milestones": "none"}
    words["threads"] = "OMP_NUM_THREADS"
    words |= {f"prune_percent_{layer}": "--prune_percent" for layer in ("conv", "output")}
    words["prune_percent_downsample"] = "--prune_percent_conv"
    for flag, default in defaults.items():
        shown = table[flag].strip("`")
        if flag in words or default is False:
            assert shown == words.get(flag, "off")
        else:
            assert type(default)(shown) == default, flag


def test_every_main_command_is_valid():
    commands = re.findall(r"(?:python3|torchrun .*) main\.py ([^&\n`]*)", README)
    recipes = re.findall(r"^\| .* \| (?:the same and )?`(--.*)` \|$", README, re.MULTILINE)
    assert len(commands) >= 4
    assert len(recipes) == 8
    for flags in commands + recipes:
        main.parse_args(
            flags.replace("$type", "lt").replace("$seed", "1").replace("$((8 * I))", "8").split()
        )


def test_the_recipes_have_the_papers_percentages_and_learning_rates():
    """They are in the paper's Figure 2 and, for the deep networks, in its Section 4."""
    found = {}
    for name, flags in re.findall(r"^\| ([\w-]+).* \| `(--.*)` \|$", README, re.MULTILINE):
        args = main.parse_args(flags.split())
        assert (args.eval_iter, args.trials, args.momentum, args.lr_gamma, args.val_size) == (
            100,
            5,
            0.9,
            0.1,
            5000,
        )
        assert args.prune_percent_downsample == (
            0 if name == "Resnet-18" else args.prune_percent_conv
        )
        rates = [args.prune_percent_conv, args.prune_percent, args.prune_percent_output]
        found[name] = (
            args.arch_type,
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
        "Lenet": ("fc1", "adam", 1.2e-3, 50000, 60, [20, 20, 10]),
        "Conv-2": ("conv2", "adam", 2e-4, 20000, 60, [10, 20, 10]),
        "Conv-4": ("conv4", "adam", 3e-4, 25000, 60, [10, 20, 10]),
        "Conv-6": ("conv6", "adam", 3e-4, 30000, 60, [15, 20, 10]),
        "Resnet-18": ("resnet20", "sgd", 0.03, 30000, 128, [20, 20, 0]),
        "VGG-19": ("vgg19", "sgd", 0.1, 112000, 64, [20, 20, 0]),
    }


def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_figures_and_links_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for mark, link in re.findall(r"(!?)\[[^\]]*\]\((?!http)(.*?)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
            assert not mark or target.read_bytes().startswith(b"\x89PNG")


def test_the_commands_in_the_results_are_valid():
    page = (ROOT / "docs/results.md").read_text()
    (common,) = re.findall(r'^flags="(.*)"$', page, re.MULTILINE)
    commands = re.findall(r"python3 main\.py (.*)", page)
    assert len(commands) == 4
    for flags in commands:
        for name, value in (("$flags", common), ("$type", "lt"), ("$seed", "1")):
            flags = flags.replace(name, value)
        main.parse_args(flags.split())
    for flags in re.findall(r"python3 combine_plots\.py (.*)", page):
        combine_plots.parse_args(flags.split())
