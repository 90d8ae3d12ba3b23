"""The paper's controls and recipes: random masks, masks of another run, layer rates, rewinding."""

import itertools
import json
import math
import re
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import archs
import combine_plots
import main
import utils
from conftest import (
    finished_rounds,
    log_rows,
    same,
    small_data,
    small_network,
    ticket,
    train_plainly,
    trial_data,
)

pytestmark = pytest.mark.usefixtures("undrawn")


def rows(args):
    """Return the rows of a run's log, without those of untrained tickets."""
    return utils.trained(log_rows(args))


def arrays(args):
    """Return the bytes of a run's arrays, by name without the prune type."""
    folder = utils.Files(args).dumps
    return {
        path.name.partition("_")[2]: path.read_bytes()
        for path in folder.glob(f"{args.prune_type}_*.dat")
    }


# Random masks


def counts(starts):
    """Return how many weights each layer has in each round, a list of dicts."""
    return [{name: int(mask.sum()) for name, mask in masks.items()} for _, masks in starts]


@pytest.mark.parametrize(
    "more", [{}, {"prune_scope": "global"}, {"prune_scope": "global", "masks_from": "lt"}]
)
def test_random_masks_keep_as_many_weights_with_original_values(more, small_args, starts):
    if more.get("masks_from"):
        # Global pruning gives layers other sizes than the percentage does.
        main.main(small_args(prune_scope="global"))
        expected = counts(starts)
        starts.clear()
    args = small_args(prune_type="random", **more)
    main.main(args)
    original = main.new_model(args, 0).state_dict()
    for round_ in (1, 2):
        (_, before), (state, masks) = starts[round_ - 1 : round_ + 1]
        if "masks_from" not in more:
            final = ticket(args, round_ - 1)["final"]
            magnitude = main.prune(
                {name: final[name].abs() for name in masks}, before, 20, args.prune_scope
            )
            expected = {round_: {name: int(mask.sum()) for name, mask in magnitude.items()}}
            for name in masks:
                different = (magnitude[name] ^ masks[name]).double().mean()
                assert different > 0.05, "the smallest weights were pruned"
        for name, mask in masks.items():
            assert int(mask.sum()) == expected[round_][name]
            assert not (mask & ~before[name]).any(), "a pruned weight was revived"
            assert torch.equal(state[name], original[name] * mask)
            # Pruned weights are as large as the others, on average.
            pruned = before[name] & ~mask
            a = original[name][pruned].abs()
            b = original[name][mask].abs()
            assert abs(a.mean() - b.mean()) < 5 * b.std() / math.sqrt(min(len(a), len(b)))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("layer", [(11760, 1500, 50), (588, 75, 2)]),
        # Erdős-Rényi: 1084, 400 and 110 of 1594 parts
        ("erk", [(9051, 3340, 919), (453, 167, 46)]),
    ],
)
def test_random_masks_have_the_counts_of_lt(scope, expected, small_args, starts):
    for kind in ("lt", "random"):
        main.main(small_args(prune_type=kind, prune_scope=scope, prune_percent=95, end_iter=1))
        assert [tuple(of_round.values()) for of_round in counts(starts)[1:]] == expected
        if kind == "lt":
            winning = [masks for _, masks in starts]
            starts.clear()
    for round_ in (1, 2):
        for name, mask in starts[round_][1].items():
            assert not torch.equal(mask, winning[round_][name])


def test_with_global_pruning_random_masks_have_counts_of_their_own(small_args, starts):
    for kind in ("lt", "random"):
        main.main(small_args(prune_type=kind, prune_scope="global"))
    winning, own = counts(starts[:3]), counts(starts[3:])
    assert own[1] == winning[1]  # the dense network is the same
    assert own[2] != winning[2]


def test_random_masks_with_the_counts_of_another_criterion(small_args, starts):
    """As in sanity checks of pruning before training."""
    for kind, masks_from in (("lt", "none"), ("random", "lt")):
        main.main(
            small_args(
                prune_type=kind, masks_from=masks_from, criterion="grasp", prune_scope="global"
            )
        )
    assert counts(starts[3:]) == counts(starts[:3])
    assert not same(starts[4][1], starts[1][1])


def test_random_masks_are_uniform_and_follow_from_the_seed(small_args):
    masks = {"weight": torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) < 0.5}
    wanted = {"weight": torch.arange(2000).view(40, 50) < 300}
    drawn = []
    for seed in (0, 0, *range(1, 200)):
        main.seed_torch(seed, 1, 0)
        drawn.append(main.random_masks(wanted, masks)["weight"])
        assert drawn[-1].sum() == 300
        assert not (drawn[-1] & ~masks["weight"]).any()
    assert torch.equal(drawn[0], drawn[1])
    share = torch.stack(drawn[1:]).double().mean(0)[masks["weight"]]
    # Five standard deviations of 200 draws.
    assert abs(share - 300 / int(masks["weight"].sum())).max() < 0.2
    assert not torch.equal(drawn[1], drawn[2])


# Masks of other runs


def test_reinit_with_masks_from_lt_gives_its_tickets_new_weights(small_args, starts):
    lt, reinit = small_args(), small_args(prune_type="reinit", masks_from="lt")
    main.main(lt)
    found = list(starts)
    starts.clear()
    main.main(reinit)
    assert len(starts) == 3
    for round_, ((winning, masks), (state, kept)) in enumerate(zip(found, starts, strict=True)):
        for name, mask in masks.items():
            assert torch.equal(mask, kept[name])
            assert torch.equal(ticket(reinit, round_)["masks"][name], mask)
            assert (round_ == 0) == torch.equal(state[name], winning[name])
            assert torch.equal(
                state[name], main.new_model(reinit, round_).state_dict()[name] * mask
            )
    assert arrays(lt)["compression.dat"] == arrays(reinit)["compression.dat"]
    assert arrays(lt)["all_loss_0.dat"] == arrays(reinit)["all_loss_0.dat"]


@pytest.mark.parametrize(
    ("change", "shown", "remedy"),
    [
        ({"lr": 0.01}, "lr=0.0012, not 0.01", "Give --lr=0.0012"),
        ({"prune_percent": 30}, "prune_percent=20, not 30", "Give --prune_percent=20"),
        ({"prune_percent_output": 5}, "=20, not 5", "Give --prune_percent_output=20"),
        ({"lr_milestones": "5,9"}, "lr_milestones=none, not 5,9", "Give --lr_milestones=none"),
        ({"augment": True}, "augment=False, not True", "Leave out --augment"),
    ],
)
def test_masks_from_other_settings_are_refused_with_advice_that_works(
    change, shown, remedy, small_args
):
    main.main(small_args(end_iter=1))
    flags = {"prune_type": "reinit", "masks_from": "lt", "end_iter": 1}
    with pytest.raises(utils.BadInput, match=r"0_model_lt.pth.tar was made with") as error:
        main.main(small_args(**flags | change))
    assert str(error.value).endswith(
        f"{shown}. {remedy}, or use another --output_dir for both runs"
    )
    given = re.findall(r"Give --(\w+)=(.*)", remedy)
    main.main(small_args(**flags | dict(given)))


def test_masks_from_a_run_with_a_flag_say_so(small_args):
    main.main(small_args(end_iter=1, augment=True))
    with pytest.raises(utils.BadInput, match=r"=True, not False\. Give --augment, or use another"):
        main.main(small_args(end_iter=1, prune_type="reinit", masks_from="lt"))


def test_masks_from_other_data_are_refused(small_args, monkeypatch):
    main.main(small_args(end_iter=1))
    load = archs.load

    def relabelled(*args, **options):
        images, labels = load(*args, **options)
        return images, labels.roll(1)

    monkeypatch.setattr(archs, "load", relabelled)
    monkeypatch.setattr(main, "experiment", None)
    with pytest.raises(utils.BadInput, match=r"0_model_lt.pth.tar was made with other data"):
        main.main(small_args(prune_type="reinit", masks_from="lt", end_iter=1))


@pytest.mark.parametrize("rounds", [0, 2])
def test_missing_masks_say_what_to_run_first(rounds, small_args, monkeypatch):
    if rounds:
        main.main(small_args(prune_iterations=rounds))
    monkeypatch.setattr(main, "train", None)
    for kind in ("reinit", "random"):
        args = small_args(prune_type=kind, masks_from="lt")
        with pytest.raises(
            utils.BadInput,
            match=rf"/{2 if rounds else 0}_model_lt.pth.tar is missing\. Run the same command with "
            "--prune_type=lt and without --masks_from first, or use another --output_dir for both",
        ):
            main.main(args)
        assert not (utils.Files(args).saves / f"checkpoint_{kind}.pth.tar").exists()


@pytest.mark.parametrize("harm", ["gone", "damaged", "another network", "other shapes"])
def test_unusable_masks_are_refused_before_training(harm, small_args, monkeypatch):
    main.main(small_args())
    monkeypatch.setattr(main, "train", None)
    path = utils.Files(small_args()).saves / "1_model_lt.pth.tar"
    content = torch.load(path, weights_only=True)
    if harm == "gone":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(path.read_bytes()[:-500])
    elif harm == "another network":
        torch.save(content | {"masks": {"weight": torch.ones(3, dtype=torch.bool)}}, path)
    else:
        torch.save(content | {"masks": {name: torch.ones(3, 3) for name in content["masks"]}}, path)
    with pytest.raises(
        utils.BadInput, match=r"1_model_lt.pth.tar.* --output_dir for both"
    ) as error:
        main.main(small_args(prune_type="reinit", masks_from="lt"))
    assert "--overwrite" not in str(error.value), "advice that deletes the tickets"


@pytest.fixture
def pair(small_args):
    """A function that returns the settings of lt and of reinit with its masks, each an epoch long.

    pair(lt={flag: value}, reinit={flag: value})
    """

    def make(lt=(), reinit=()):
        flags = {"end_iter": 1, "prune_type": "reinit", "masks_from": "lt"}
        return small_args(end_iter=1, **dict(lt)), small_args(**flags | dict(reinit))

    return make


def change_masks(args, round_, change):
    """Replace the first mask in a run's ticket by change(mask)."""
    path = utils.Files(args).ticket(round_)
    content = torch.load(path, weights_only=True)
    name = next(iter(content["masks"]))
    content["masks"][name] = change(content["masks"][name])
    torch.save(content, path)


def drop_one(mask):
    """Return a mask that keeps one weight less, so that masks stay nested up to this round."""
    changed = mask.clone()
    row, column = mask.nonzero()[0]
    changed[row, column] = False
    return changed


@pytest.mark.parametrize("arch_type", ["fc1", "lenet5"])
def test_a_run_records_the_settings_and_checksums_of_its_masks(arch_type, pair):
    lt, reinit = pair({"arch_type": arch_type}, {"arch_type": arch_type})
    main.main(lt)
    main.main(reinit)
    files = utils.Files(reinit)
    settings = json.loads(files.settings.read_text())["settings"]
    records = [torch.load(files.checkpoint, weights_only=True)["args"], settings]
    records += [ticket(reinit, round_)["args"] for round_ in range(3)]
    checksums = [
        zlib.crc32(b"".join(mask.numpy().tobytes() for mask in ticket(lt, r)["masks"].values()))
        for r in range(3)
    ]
    source = ticket(lt, 0)["args"]
    changeable = {"seed", *utils.MAY_CHANGE_ON_RESUME}
    for record in records:
        assert record["masks_from_checksums"] == checksums
        expected = {name: source[name] for name in source if name not in changeable}
        assert record["masks_from_settings"] == expected
    for args in (lt, reinit):
        assert {(row["round"], row["masks"]) for row in log_rows(args)} == {*enumerate(checksums)}
    assert {"lr", "rewind_iter", "prune_type", "network", "data"} < expected.keys()
    assert len(set(checksums)) == 3


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("settings", r"has results with tickets of a run with --rewind_iter=0, not 5\. Choose"),
        ("masks", r"has results with other tickets than there are now in .*/fc1/digits\. Choose"),
        ("missing", r"0_model_lt\.pth\.tar is missing\. Run the same command with"),
    ],
)
def test_masks_of_a_replaced_run_are_refused(harm, message, finished, pair, monkeypatch):
    lt, reinit = pair()
    main.main(lt)
    if finished:
        main.main(reinit)
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(main, "next_masks", interrupt)
            main.main(reinit)
    before = arrays(reinit)
    if harm == "settings":
        replaced, _ = pair(lt={"rewind_iter": 5})
        replaced.overwrite = True
        main.main(replaced)
    elif harm == "masks":
        change_masks(lt, 2, drop_one)
    else:
        for round_ in range(3):
            utils.Files(lt).ticket(round_).unlink()
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=message):
        main.main(reinit)
    assert arrays(reinit) == before


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["reinit", "random"])
@pytest.mark.parametrize("round_", [1, 2])
def test_masks_that_change_during_a_run_are_refused(kind, round_, pair, monkeypatch):
    lt, other = pair(reinit={"prune_type": kind})
    main.main(lt)
    train = main.train

    def change_after_training(args, state, *rest):
        train(args, state, *rest)
        if state.round + 1 == round_:
            change_masks(lt, round_, drop_one)

    monkeypatch.setattr(main, "train", change_after_training)
    with pytest.raises(utils.Failure, match=r"digits have changed since this run started\."):
        main.main(other)
    assert finished_rounds(other) == round_


def test_masks_that_are_not_nested_are_refused(pair, monkeypatch):
    lt, reinit = pair()
    main.main(lt)
    change_masks(lt, 1, drop_one)
    monkeypatch.setattr(main, "train", None)
    message = r"2_model_lt\.pth\.tar keeps weights that an earlier round has pruned\. Use another"
    with pytest.raises(utils.BadInput, match=message):
        main.main(reinit)


def test_more_rounds_use_more_masks(pair, tmp_path):
    for rounds in (2, 4):
        for args in pair({"prune_iterations": rounds}, {"prune_iterations": rounds}):
            main.main(args)
    at_once = {"prune_iterations": 4, "output_dir": tmp_path / "at once"}
    for args in pair(at_once, at_once):
        main.main(args)
    assert arrays(pair()[1]) == arrays(args)
    assert len(ticket(args, 0)["args"]["masks_from_checksums"]) == 4
    main.main(pair(reinit={"prune_iterations": 2})[1])


def test_curves_with_the_masks_of_different_runs_are_told_apart(pair):
    for seed, rewind_iter in ((0, 0), (1, 0), (10, 5), (11, 5)):
        for args in pair({"seed": seed, "rewind_iter": rewind_iter}, {"seed": seed}):
            main.main(args)
    runs, _ = combine_plots.read_runs(list(utils.find_results(pair()[0].output_dir)))
    assert runs.groupby("curve")["seed"].unique().apply(list).to_dict() == {
        "lt, rewind_iter=0": ["0", "1"],
        "lt, rewind_iter=5": ["10", "11"],
        "reinit, lt's masks, lt's rewind_iter=0": ["0", "1"],
        "reinit, lt's masks, lt's rewind_iter=5": ["10", "11"],
    }


def test_masks_made_by_other_code_are_noted_once(pair, monkeypatch, capsys):
    lt, reinit = pair()
    main.main(lt)
    made = utils.provenance()
    monkeypatch.setattr(utils, "provenance", lambda: made | {"code": "edited"})
    main.main(pair(reinit={"prune_iterations": 2})[1])
    note = f"note: {utils.Files(lt).ticket(0)} was made before changes: code "
    error = capsys.readouterr().err
    assert f"{note}{made['code']}, now edited\n" in error
    assert error.count("note: ") == 1
    main.main(reinit)
    assert "note: " not in capsys.readouterr().err


# Rates by layer

PAPER = [  # network, flags, prunings, percent of the weights remaining in the paper
    (
        "fc1",
        ["--prune_percent=20", "--prune_percent_output=10"],
        {3: 51.28, 7: 21.07, 9: 13.52, 15: 3.58, 16: 2.87},
    ),
    (
        "conv2",
        ["--prune_percent=20", "--prune_percent_conv=10", "--prune_percent_output=10"],
        {11: 8.81, 14: 4.57},
    ),
    (
        "conv4",
        ["--prune_percent=20", "--prune_percent_conv=10", "--prune_percent_output=10"],
        {11: 11.06, 12: 9.18},
    ),
    (
        "resnet20",
        [
            "--prune_scope=global",
            "--prune_percent=20",
            "--prune_percent_output=0",
            "--prune_percent_downsample=0",
        ],
        {2: 64.4, 4: 41.7, 6: 27.1, 8: 17.8, 10: 11.8},
    ),
]


@pytest.mark.parametrize(("arch_type", "flags", "expected"), PAPER)
def test_the_papers_rates_give_the_papers_percentages(arch_type, flags, expected):
    dataset = "mnist" if arch_type == "fc1" else "cifar10"
    args = main.parse_args([f"--arch_type={arch_type}", f"--dataset={dataset}", *flags])
    model = archs.build(dataset, arch_type)
    masks = main.new_state(args, model).masks
    for prunings in range(1, max(expected) + 1):
        masks = main.prune(
            main.prunable(model),
            masks,
            main.layer_percents(args, model, main.inspect_network(args, model)[0]),
            args.prune_scope,
        )
        if prunings in expected:
            digits = 1 if arch_type == "resnet20" else 2
            assert round(utils.density(masks.values()), digits) == expected[prunings]


@pytest.mark.parametrize(
    "arch_type",
    [
        "fc1",
        "lenet5",
        "conv2",
        "alexnet",
        "vgg16",
        "resnet8",
        "resnet18",
        "resnet20",
        "densenet121",
    ],
)
def test_each_type_of_layer_has_its_rate(arch_type):
    flags = ["--prune_percent=20", "--prune_percent_conv=15", "--prune_percent_output=0"]
    if arch_type.startswith("resnet"):
        flags.append("--prune_percent_downsample=5")
    args = main.parse_args([f"--arch_type={arch_type}", "--dataset=cifar10", *flags])
    model = archs.build("cifar10", arch_type)
    modules, found = (
        dict(model.named_modules()),
        main.layer_percents(args, model, main.inspect_network(args, model)[0]),
    )
    *others, output = found
    assert modules[output.removesuffix(".weight")].out_features == 10
    assert found[output] == 0
    for name in others:
        layer = modules[name.removesuffix(".weight")]
        shortcut = (
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1)
            and arch_type.startswith("resnet")
        )
        assert found[name] == (20 if isinstance(layer, nn.Linear) else 5 if shortcut else 15)
    shortcuts = [name for name in others if found[name] == 5]
    assert len(shortcuts) == {"resnet8": 2, "resnet18": 3, "resnet20": 2}.get(arch_type, 0)


@pytest.mark.parametrize("scope", main.SCOPES)
def test_rates_of_0_percent_everywhere_are_refused(scope, small_args, monkeypatch):
    monkeypatch.setattr(main, "train", None)
    monkeypatch.setattr(main, "load_data", lambda *_: None)
    args = small_args(
        arch_type="resnet20", prune_scope=scope, prune_percent_conv=0, prune_percent_output=0
    )
    with pytest.raises(utils.BadInput, match="nothing of resnet20 would be pruned"):
        main.main(args)


@pytest.mark.parametrize("scope", main.SCOPES)
@pytest.mark.parametrize("percent", [1e-4, 1e-300])
def test_a_percentage_too_small_to_prune_a_weight_is_refused(
    percent, scope, small_args, monkeypatch
):
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=r"nothing of fc1 .* the percentages are too small"):
        main.main(small_args(prune_percent=percent, prune_scope=scope))


@pytest.mark.parametrize(
    ("scope", "percent"),
    [("layer", 100 / 235_200), ("global", 100 / 266_200), ("global", 52 / 266_200)],
)
def test_one_weight_per_round_is_enough(scope, percent, small_args):
    args = small_args(prune_scope=scope, prune_percent=percent, end_iter=1)
    main.main(args)
    masks = ticket(args, 2)["masks"]
    assert sum(int(mask.sum()) for mask in masks.values()) == 266_198
    if scope == "layer":
        assert int(masks["1.weight"].sum()) == 235_198


def test_a_rate_for_shortcuts_that_the_network_does_not_have_is_refused(small_args, monkeypatch):
    monkeypatch.setattr(main, "train", None)
    message = "--prune_percent_downsample=0.0: vgg16 has no layers in modules named downsample"
    with pytest.raises(utils.BadInput, match=message):
        main.main(small_args(arch_type="vgg16", prune_percent_downsample=0))


def test_missing_rates_default_to_more_general_ones():
    args = main.parse_args(["--prune_percent=30"])
    assert (args.prune_percent_conv, args.prune_percent_downsample, args.prune_percent_output) == (
        30,
        30,
        30,
    )
    args = main.parse_args(["--prune_percent=30", "--prune_percent_conv=0"])
    assert (args.prune_percent_conv, args.prune_percent_downsample, args.prune_percent_output) == (
        0,
        0,
        30,
    )


def test_layers_at_0_percent_stay_dense(small_args):
    args = small_args(prune_percent_output=0, prune_scope="global", end_iter=1)
    main.main(args)
    masks = ticket(args, 2)["masks"]
    assert masks["5.weight"].all()
    total = sum(mask.numel() for name, mask in masks.items() if name != "5.weight")
    left = total - round(0.2 * total)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert ticket(args, 2)["weights_remaining"] == pytest.approx(100 * kept / 266_200, abs=1e-9)
    assert (
        np.load(utils.Files(args).dumps / "lt_compression.dat")[2]
        == ticket(args, 2)["weights_remaining"]
    )
    assert sum(
        int(mask.sum()) for name, mask in masks.items() if name != "5.weight"
    ) == left - round(0.2 * left)


@pytest.mark.parametrize(
    ("arch_type", "convolutions", "all_weights"),
    [
        ("conv2", 38_592, 4_300_992),  # 38K, 4.3M
        ("conv4", 259_776, 2_425_024),  # 260K, 2.4M
        ("conv6", 1_144_512, 2_261_184),  # 1.1M, and not 1.7M
        ("resnet20", 270_256, 270_896),  # 270K; 274K with all that batch norm holds
        ("vgg19", 20_018_880, 20_024_000),  # 20.0M
    ],
)
def test_the_papers_networks_have_the_papers_number_of_weights(
    arch_type, convolutions, all_weights
):
    model = archs.build("cifar10", arch_type)
    weights = main.prunable(model).values()
    assert sum(weight.numel() for weight in weights if weight.dim() == 4) == convolutions
    assert sum(weight.numel() for weight in weights) == all_weights
    if arch_type == "resnet20":
        assert (
            sum(
                tensor.numel()
                for name, tensor in model.state_dict().items()
                if "num_batches" not in name
            )
            == 274_042
        )


# Rewinding


@pytest.mark.parametrize("kind", ["lt", "random"])
@pytest.mark.parametrize("rewind_iter", [7, 20, 33])
def test_rewinding_resets_to_the_state_after_k_iterations_of_round_0(
    kind, rewind_iter, small_args, starts, monkeypatch
):
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(rewind_iter=rewind_iter, prune_type=kind)
    main.main(args)
    # As in a run of only rewind_iter iterations, including batch norm's statistics.
    short = small_args(
        max_iter=rewind_iter, prune_iterations=1, output_dir=f"{args.output_dir}/short"
    )
    main.main(short)
    rewound = ticket(short, 0, "lt")["final"]
    assert len(starts) == 4
    for state, masks in starts[1:3]:
        for name, tensor in state.items():
            assert torch.equal(
                tensor, rewound[name] * masks[name] if name in masks else rewound[name]
            ), name
    saved = torch.load(
        utils.Files(args).saves / f"initial_state_dict_{kind}.pth.tar", weights_only=True
    )
    assert all(torch.equal(saved[name], rewound[name]) for name in rewound)


def test_rewound_rounds_train_from_k(small_args, starts):
    """They have the schedule and the arrays of a whole round, with NaN before K."""
    args = small_args(rewind_iter=33, end_iter=3, lr_milestones="40")
    main.main(args)
    assert [(row["round"], row["iteration"]) for row in rows(args)] == [
        *((0, iteration) for iteration in (20, 40, 60)),
        *((round_, iteration) for round_ in (1, 2) for iteration in (40, 60)),
    ]
    losses = [np.load(utils.Files(args).dumps / f"lt_all_loss_{round_}.dat") for round_ in range(3)]
    assert [np.isnan(loss).tolist() for loss in losses] == [
        [False] * 3,
        [True, False, False],
        [True, False, False],
    ]
    data, last = trial_data(args), 33
    for round_, (state, masks) in list(enumerate(starts))[1:]:
        model, seen = train_plainly(
            args,
            state,
            masks,
            data,
            round_,
            lambda parameters: torch.optim.Adam(parameters, fused=True),
            range(last, 60),
            lambda iteration: 1.2e-3 if iteration < 40 else 1.2e-4,
        )
        final = ticket(args, round_)["final"]
        assert all(torch.equal(final[name], tensor) for name, tensor in model.items())
        assert losses[round_][1:] == pytest.approx([np.mean(seen[:7]), np.mean(seen[7:])])


def test_rewinding_to_0_changes_nothing(small_args, tmp_path):
    one, other = small_args(rewind_iter=0), small_args(output_dir=tmp_path / "other")
    main.main(one)
    main.main(other)
    assert arrays(one) == arrays(other)


# Evaluations


def test_evaluating_every_n_iterations_changes_nothing_else(small_args, tmp_path):
    plain, fine = (
        small_args(prune_iterations=2),
        small_args(prune_iterations=2, eval_iter=7, output_dir=tmp_path / "fine"),
    )
    main.main(plain)
    main.main(fine)
    assert [row["iteration"] for row in rows(fine) if row["round"] == 1] == [
        7,
        14,
        20,
        21,
        28,
        35,
        40,
    ]
    a, b = arrays(plain), arrays(fine)
    for name in ("all_loss_0.dat", "all_loss_1.dat", "all_accuracy_0.dat", "all_accuracy_1.dat"):
        assert a[name] == b[name]
    assert not np.isnan(np.load(utils.Files(fine).dumps / "lt_all_loss_0.dat")).any()
    for round_ in range(2):
        here = [row for row in rows(fine) if row["round"] == round_]
        early = min(here, key=lambda row: row["val_loss"])
        best = max(here, key=lambda row: row["val_accuracy"])
        for name, value in (
            ("earlystop", early["iteration"]),
            ("earlystopaccuracy", early["test_accuracy"]),
            ("bestaccuracy", best["test_accuracy"]),
        ):
            assert np.load(utils.Files(fine).dumps / f"lt_{name}.dat")[round_] == value
    coarse = {(row["round"], row["iteration"]): row for row in rows(plain)}
    for row in rows(fine):
        if (row["round"], row["iteration"]) in coarse:
            other = coarse[row["round"], row["iteration"]]
            assert all(row[name] == other[name] for name in row if name != "seconds")


def test_max_iter_ends_a_round_within_an_epoch(small_args, starts):
    args = small_args(max_iter=50, prune_iterations=2)
    main.main(args)
    assert [row["iteration"] for row in rows(args)] == [20, 40, 50] * 2
    assert [row["epoch"] for row in rows(args)] == [1, 2, 3] * 2
    for name in ("all_loss_1", "all_accuracy_1"):
        values = np.load(utils.Files(args).dumps / f"lt_{name}.dat")
        assert len(values) == 3
        assert not np.isnan(values).any()
    assert rows(args)[2]["train_loss"] == np.load(utils.Files(args).dumps / "lt_all_loss_0.dat")[2]
    whole = small_args(end_iter=3, prune_iterations=1, output_dir=f"{args.output_dir}/whole")
    main.main(whole)
    assert arrays(whole)["all_loss_0.dat"][:-8] == arrays(args)["all_loss_0.dat"][:-8]


# Augmentation


def test_augmented_images_are_flipped_and_shifted_by_up_to_four_pixels():
    torch.manual_seed(0)
    image = torch.randint(1, 256, (3, 12, 12), dtype=torch.uint8)
    found = main.augment(image.expand(4000, 3, 12, 12))
    assert found.shape == (4000, 3, 12, 12)
    assert found.dtype == torch.uint8
    variants = {}
    for flipped, down, across in itertools.product((False, True), range(9), range(9)):
        padded = np.zeros((3, 20, 20), dtype=np.uint8)
        padded[:, 4:16, 4:16] = image.numpy()
        crop = padded[:, down : down + 12, across : across + 12]
        variants[np.ascontiguousarray(crop[:, :, ::-1] if flipped else crop).tobytes()] = (
            flipped,
            down,
            across,
        )
    counts = dict.fromkeys(variants.values(), 0)
    for one in found:
        counts[variants[one.contiguous().numpy().tobytes()]] += 1
    assert len(counts) == 162
    assert min(counts.values()) > 4000 / 162 / 4, "not all alike"
    assert max(counts.values()) < 4000 / 162 * 2.5


def test_images_are_augmented_independently_and_only_in_training(small_args, train_round):
    args = small_args(augment=True)
    seen = []
    data, model = small_data(480), main.new_model(args, 0)
    normalize = data.normalize
    data.normalize = lambda images: (
        seen.append((model.training, images.clone())),
        normalize(images),
    )[1]
    train_round(args, model, data)
    whole = {image.numpy().tobytes() for image in data.train[0]} | {
        image.numpy().tobytes() for image in data.test[0]
    }
    for training, images in seen:
        as_they_are = sum(image.contiguous().numpy().tobytes() in whole for image in images)
        assert as_they_are < len(images) / 4 if training else as_they_are == len(images)
    first, second = [images for training, images in seen if training][:2]
    assert not torch.equal(first, second)


def test_augmentation_follows_from_the_seed(small_args, tmp_path):
    runs = [small_args(output_dir=tmp_path / name, prune_iterations=1) for name in "abc"]
    for args, augment in zip(runs, (True, True, False), strict=True):
        args.augment = augment
        torch.rand(3)
        main.main(args)
    a, b, c = (arrays(args)["all_loss_0.dat"] for args in runs)
    assert a == b != c


# The paper's settings


MINE = """
from torch import nn

PAPER = "--dataset=digits --max_iter=20 --prune_percent=30 --prune_iterations=2 --augment --lr=0.01"


def build(channels, size, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes))
"""


@pytest.mark.parametrize("paper_first", [True, False])
def test_paper_and_the_flags_it_stands_for_are_the_same_run(paper_first, own, tmp_path, capsys):
    """Also for an architecture of one's own."""
    (own / "common/mine.py").write_text(MINE)
    flags = ["--dataset=digits", "--max_iter=20", "--prune_percent=30", "--augment", "--lr=0.01"]
    for paper in (paper_first, not paper_first):
        given = ["--paper"] if paper else [*flags, "--prune_iterations=2"]
        args = main.parse_args(["--arch_type=mine", f"--output_dir={tmp_path}", *given])
        main.main(args)
        recorded = json.loads(utils.Files(args).settings.read_text())["settings"]
        assert "paper" not in recorded
        assert recorded["lr"] == 0.01
    assert "has 2 rounds; a larger --prune_iterations adds more" in capsys.readouterr().out


def parse_paper(capsys, *flags):
    """Return the settings, and the flags that the printed line has."""
    args = main.parse_args(["--paper", *flags])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("--paper sets --")
    return args, line.removeprefix("--paper sets ").split()


def test_the_printed_flags_are_equal_to_paper(capsys):
    for arch_type in ("fc1", "conv2", "conv4", "conv6", "resnet20", "vgg19"):
        args, flags = parse_paper(capsys, f"--arch_type={arch_type}")
        assert len({flag.partition("=")[0] for flag in flags}) == len(flags)
        assert args == main.parse_args([f"--arch_type={arch_type}", *flags])


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--dataset=digits", "dataset", "digits"),
        ("--optimizer=adam", "optimizer", "adam"),
        ("--momentum=0", "momentum", 0),
        ("--weight_decay=0", "weight_decay", 0),
        ("--batch_size=60", "batch_size", 60),
        ("--no-augment", "augment", False),
        ("--lr=0.0012", "lr", 0.0012),
        ("--warmup_iter=0", "warmup_iter", 0),
        ("--lr_milestones=none", "lr_milestones", []),
        ("--lr_milestones=7", "lr_milestones", [7]),
        ("--max_iter=0", "max_iter", 0),
        ("--eval_iter=0", "eval_iter", 0),
        ("--valid_freq=1", "valid_freq", 1),
        ("--prune_scope=layer", "prune_scope", "layer"),
        ("--prune_percent=10", "prune_percent", 10),
        ("--prune_percent_output=5", "prune_percent_output", 5),
        ("--prune_percent_downsample=5", "prune_percent_downsample", 5),
        ("--prune_iterations=35", "prune_iterations", 35),
        ("--masks_from=none", "masks_from", None),
    ],
)
def test_flags_that_are_given_override_paper(flag, name, value, capsys):
    """Even if they have the value of the usual default."""
    known = ["--arch_type=resnet20", "--prune_type=reinit"]
    paper, all_flags = parse_paper(capsys, *known)
    args, flags = parse_paper(capsys, *known, flag)
    assert getattr(args, name) == value
    assert getattr(paper, name) != value
    assert len(flags) == len(all_flags) - 1
    assert f"--{name}" not in [flag.partition("=")[0] for flag in flags]
    for other in ("val_size", "prune_percent_conv", name):  # the first two follow from others
        delattr(args, other)
        delattr(paper, other)
    assert args == paper


def test_epochs_that_are_given_override_papers_iterations(capsys):
    args, flags = parse_paper(capsys, "--end_iter=3")
    assert (args.end_iter, args.max_iter) == (3, 0)
    assert not any(flag.startswith("--max_iter") for flag in flags)


@pytest.mark.parametrize("kind", main.PRUNE_TYPES)
def test_papers_controls_have_the_masks_of_lt(kind, capsys):
    args, _ = parse_paper(capsys, "--arch_type=vgg19", f"--prune_type={kind}")
    assert args.masks_from == ("lt" if kind in ("reinit", "random") else None)
    if kind not in ("lr_rewind", "finetune"):
        args, _ = parse_paper(capsys, "--arch_type=vgg19", f"--prune_type={kind}", "--one_shot")
        assert args.masks_from is None


def test_the_first_line_of_a_run_says_what_paper_sets(tmp_path, capsys):
    flags = ["--dataset=digits", "--max_iter=20", "--prune_iterations=1"]
    main.main(main.parse_args(["--paper", *flags, f"--output_dir={tmp_path}"]))
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "--paper sets --optimizer=adam --lr=1.2e-3 --batch_size=60 --eval_iter=100 "
        "--valid_freq=1000 --prune_percent=20 --prune_percent_output=10"
    )


@pytest.mark.parametrize(
    ("place", "old", "new", "advice"),
    [
        ("common", "--lr", "--learning_rate", "--learning_rate=0.01"),
        ("mnist", "", "", "--arch_type=mine does not support --dataset=digits"),
    ],
)
def test_unusable_flags_in_an_architectures_file_are_one_line(place, old, new, advice, own, capsys):
    (own / place / "mine.py").write_text(MINE.replace(old, new) if old else MINE)
    with pytest.raises(SystemExit) as stop:
        main.parse_args(["--paper", "--arch_type=mine"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert advice in error
