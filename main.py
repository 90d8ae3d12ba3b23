"""The lottery ticket experiment: train, prune the smallest weights, reset the survivors, repeat.

Winning tickets, their masks with new random weights as a control, and a figure with both curves:

    python3 main.py --prune_type=lt --arch_type=fc1 --dataset=mnist
    python3 main.py --prune_type=reinit --masks_from=lt --arch_type=fc1 --dataset=mnist
    python3 combine_plots.py

The same within a minute and without a download:

    python3 main.py --dataset=digits --prune_percent=20 --prune_iterations=16 --end_iter=20

To watch: tensorboard --logdir=runs

J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural
Networks", ICLR 2019.
"""

import argparse
import bisect
import copy
import dataclasses
import fnmatch
import math
import os
import random
import re
import shlex
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial, wraps
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd
from torch.utils.flop_counter import FlopCounterMode

import archs
import utils
from archs import sparse

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
LAYERS = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)  # their weights are pruned
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SEEDS = 2**64  # as many as torch has
EVAL_BATCH = {"cpu": 500, "cuda": 2000}  # fits a CPU's caches; keeps a GPU busy
POINTS = 30  # on the line between two networks, as many as Frankle et al. (2020) have
STATISTICS = 5000  # training examples from which batch norm's statistics are computed there
SPARSE_BELOW = 22.0  # percent of a layer's weights below which it is faster: docs/speed.md
# By how much a rehearsal of the fast way may differ from the plain way, relatively; 0.001 for what
# is not listed. Adam turns gradients that are rounding errors, such as those of a bias before batch
# norm, into full steps.
TOLERANCES = {"update": 0.1, "loss of an evaluation": 0.01}


# ---- The experiment ------------------------------------------------------------------------------


def main(args):
    """Run the trials of a command, after every check that can be made before training.

    Raises utils.BadInput if the input cannot be used, utils.Failure at the end if a trial failed,
    and utils.Stopped if a signal stopped the run.
    """
    trials = utils.trials(args)
    device = pick_device(trials[0].gpu)
    if device.type != "cpu":
        for trial in trials:
            trial.sparse_below = 0
    model = new_model(args, round_=0)
    runs = [new_run(trial, model) for trial in trials]
    failures = []
    with utils.lock(runs):
        if not args.overwrite:
            for run in runs:
                run.find_checkpoint()
        for run in runs:
            if run.is_finished():
                restore_results(run)
        runs = [run for run in runs if not run.is_finished()]
        if runs:
            data, percents = prepare(args, runs, model, device)
        for run in runs:
            try:
                experiment(run, data, percents)
            except RuntimeError as error:
                in_sparse_round = run.state and sparse.is_sparse(run.state.model)
                if utils.out_of_memory(error) or not in_sparse_round:
                    raise
                raise utils.Failure(  # other trials would fail, too
                    f"with sparse layers, {archs.one_line(error)}. To resume, add --sparse_below=0 "
                    "to the command, without --overwrite"
                ) from error
            except utils.Failure as failure:
                failures.append(str(failure))
                if args.trials > 1:  # the others may take hours
                    print(f"failed: {failure}", file=sys.stderr)
            run.state = None  # the next one needs the memory
    utils.wait_for_processes()
    if failures:
        raise utils.Failure("; ".join(failures))


def new_run(args, model):
    """Return the run of a trial, with its settings: flags, network, and the source of its tickets.

    Raises utils.BadInput if the source, of `--masks_from`, `--tickets_from` or `--connect_to`,
    cannot be used.
    """
    network = re.sub(r" at 0x[0-9a-f]+", "", str(model))  # addresses differ between processes
    rates = archs.layer_rates(args.dataset, args.arch_type)
    settings = vars(args) | {
        "network": network,
        "PRUNE_PERCENT": [f"{name}:{rate}" for name, rate in rates.items()],
    }
    run = utils.Run(
        args,
        settings,
        defaults(args) | {"PRUNE_PERCENT": []},
        refused(args.prune_type),
        CRITERIA[args.criterion].before_training,
    )
    if run.source:
        run.settings |= utils.record_source(run, model, dense_masks(model))
    return run


def restore_results(run):
    """Restore the log, arrays and figures of a finished run, and say that it is finished."""
    utils.write_results(run.files, run.saved["state"]["rows"])
    draw(run.files)
    utils.note_changes(
        f"{run.files.dumps} was finished before changes",
        run.saved["made_by"],
        utils.provenance(),
    )
    print(
        f"finished: {run.files.dumps} has {utils.plural(run.finished_rounds(), 'round')}; "
        "a larger --prune_iterations adds more"
    )


def prepare(args, runs, model, device):
    """Return the dataset and the percentages to prune, after all checks of unfinished runs.

    With `--overwrite`, the existing results of the runs are then deleted.
    """
    check_network(args, model)
    output, operations = inspect_network(args, model)
    percents = layer_percents(args, model, output)
    keep_output_dense(runs[0], model, output, percents)
    torch.set_num_threads(utils.pick_threads(args.threads, operations))
    data = load_data(args, device)
    state = new_state(args, model.to(device))
    for run in runs:
        run.record_data(data.digest)
        run.check_state(state)
        if args.connect_to and args.rewind_iter == 0:
            check_shared(run, first_model(run, device))
    check_training(args, state, data)
    if not runs[0].source:
        check_criterion(runs[0], state, data)
    reset(args, state, state.masks)  # a rehearsal: it raises if the prune type's function is wrong
    if args.connect_to:
        check_reset(args, state)
    if args.overwrite:
        for run in runs:
            run.clear()
    lines = describe_run(args, model, percents, data, len(runs)) + describe_source(runs[0])
    print("\n".join(lines), flush=True)
    return data, percents


def experiment(run, data, percents):
    """Run one trial: train, prune the smallest weights, reset the survivors, repeat."""
    args = run.args
    data = hold_out(args, data)  # each trial validates on other examples
    state = new_state(args, first_model(run, data.device))
    with run:
        run.start_or_resume(state)
        if not run.round_is_finished():  # it is if the run resumes between two rounds
            train(args, state, data, run)
        while state.round + 1 < args.prune_iterations:
            masks = next_masks(run, state, data, percents)
            reset(args, state, masks)
            train(args, state, data, run)


def train(args, state, data, run):
    """Train to the end of the round, evaluating and saving on the way, and save its results."""
    steps, end = iterations(args, len(data.train[1]))
    state.model.train()
    step = Step(args, state, data)
    step.speed_up()
    with utils.Log(run, steps, end) as log:
        if state.iteration == first_iteration(args, state.round):
            log.add(measure(args, state, data, steps, end))  # of the untrained ticket
        while state.iteration < end:
            step()

            # A step does not wait for the device. What follows does, if there is anything to do.
            if state.round == 0 and state.iteration == args.rewind_iter:
                check_shared(run, state.model)
                utils.restore(state.initial, state.model.state_dict())
                utils.restore(state.start, state.initial)  # where later rounds start, too
                utils.save_checkpoint(run.files.initial, state.initial)
            if row_due(args, state.iteration, steps, end):
                measured = measure(args, state, data, steps, end)
                if args.connect_to and state.iteration == end:
                    measured |= measure_barrier(run, state, data)
                row = log.add(measured)
                if row is utils.best(state.rows[-1]):
                    utils.restore(state.best, state.model.state_dict())
            log.step()
            run.checkpoint(now=state.iteration == end)
        utils.save_round(run, log)
    make_dense(state)
    draw(run.files)
    run.checkpoint()  # a signal may have arrived since


def draw(files):
    """Draw the figures of a run."""
    import combine_plots  # here, because its libraries take a second to import

    combine_plots.draw_run(files)


def first_iteration(args, round_):
    """Return the iteration at which a round starts: 0, or that of the weights it starts from."""
    return args.rewind_iter if round_ or args.tickets_from else 0


def row_due(args, iteration, steps, end):
    """Return whether the log gets a row: after each epoch and for each evaluation."""
    return iteration % steps == 0 or evaluation_due(args, iteration, steps, end)


def evaluation_due(args, iteration, steps, end):
    """Return whether an evaluation is due by `--valid_freq`, `--eval_iter` or the round's end."""
    if iteration == end:
        return True
    if args.eval_iter and iteration % args.eval_iter == 0:
        return True
    epoch, rest = divmod(iteration, steps)
    return rest == 0 and epoch % args.valid_freq == 0


# ---- Pruning -------------------------------------------------------------------------------------


def prune(scores, masks, percent, scope="layer"):
    """Return masks that drop the weights of lowest score: round(percent / 100 * n) of n survivors.

    Args:
        scores: {parameter name: tensor}.
        masks: {parameter name: bool tensor of the same shape}, true if a weight survives.
        percent: a number, or {parameter name: number}. Layers at 0 stay as they are.
        scope: one of SCOPES, which says how many weights each layer keeps.

    The count decides, never a threshold, so ties cannot remove more. Pruned weights are not
    candidates, so masks are nested. The arguments are not changed. Raises utils.Failure if a scope
    returns impossible counts.
    """
    percents = percent if isinstance(percent, dict) else dict.fromkeys(masks, percent)
    candidates = {name: masks[name] for name in masks if percents[name] > 0}
    pruned = dict(masks)
    for names, count in groups_of_layers(scope, scores, candidates, percents):
        alive = torch.cat([masks[name].flatten() for name in names])
        survivors = alive.nonzero().squeeze(1)
        ranked = torch.cat([scores[name].flatten() for name in names])[survivors]
        lowest = ranked.topk(len(survivors) - count, largest=False, sorted=False).indices
        alive[survivors[lowest]] = False
        sizes = [masks[name].numel() for name in names]
        for name, mask in zip(names, alive.split(sizes), strict=True):
            pruned[name] = mask.view_as(masks[name])
    return pruned


def groups_of_layers(scope, scores, masks, percents):
    """Return the layers that are compared, and how many weights they keep: [(names, count), ...].

    Raises utils.Failure if the function of a scope returns something impossible.
    """
    groups = []
    known = set(masks)
    for names, count in SCOPES[scope](scores, masks, percents).items():
        names = (names,) if isinstance(names, str) else names
        for name in names:
            if name not in known:
                raise utils.Failure(
                    f"--prune_scope={scope}: its function names {name} twice, or it is no layer "
                    "that is pruned. Correct it, and run the same command to resume"
                )
            known.remove(name)
        survivors = sum(int(masks[name].sum()) for name in names)
        if not 0 <= count <= survivors or count != int(count):
            raise utils.Failure(
                f"--prune_scope={scope}: its function keeps {count} of the {survivors} survivors "
                f"of {', '.join(names)}. Let it return a whole number of them, and run the same "
                "command to resume"
            )
        groups.append((names, int(count)))
    return groups


# A scope(scores, masks, percents) returns {name: count}: how many weights each layer keeps.
# With a tuple of names as a key, layers keep so many together, and their scores are compared. It
# gets the layers whose percentage is not 0. Those that it leaves out stay as they are.


def layer_scope(scores, masks, percents):
    """Prune the percentage within each layer."""
    return {name: number_kept({name: mask}, percents) for name, mask in masks.items()}


def global_scope(scores, masks, percents):
    """Prune across layers, those of the lowest scores."""
    return {tuple(masks): number_kept(masks, percents)}


def erk_scope(scores, masks, percents):
    """Prune as many weights as global_scope does, to Erdős-Rényi-kernel densities.

    What a layer keeps is in proportion to the sum of its dimensions. Layers that would keep more
    than their survivors keep them all, and the others share the rest.

    U. Evci, T. Gale, J. Menick, P. S. Castro and E. Elsen, "Rigging the Lottery: Making All Tickets
    Winners", ICML 2020.
    """
    left = number_kept(masks, percents)
    survivors = {name: int(mask.sum()) for name, mask in masks.items()}
    shares = {name: sum(mask.shape) for name, mask in masks.items()}
    full = set()
    while True:
        rest = left - sum(survivors[name] for name in full)
        others = [name for name in masks if name not in full]
        total = sum(shares[name] for name in others)
        # Whole numbers are compared: rounding errors could change which layers are full.
        more = {name for name in others if rest * shares[name] > survivors[name] * total}
        if not more:
            break
        full |= more

    quotients = {name: divmod(rest * shares[name], total) for name in others}
    counts = {name: survivors[name] for name in full}
    counts |= {name: quotients[name][0] for name in others}
    by_remainder = sorted(others, key=lambda name: quotients[name][1], reverse=True)
    for name in by_remainder[: left - sum(counts.values())]:
        counts[name] += 1
    return counts


def number_kept(masks, percents):
    """Return how many weights layers keep together."""
    survivors_by_rate = Counter()
    for name, mask in masks.items():
        survivors_by_rate[percents[name]] += int(mask.sum())
    return survivors_by_rate.total() - count_to_prune(survivors_by_rate)


def count_to_prune(survivors_by_rate):
    """Return how many weights to prune, given the number of survivors of each rate in percent.

    Layers with the same rate are counted together: rounding errors in a sum of their shares could
    change the count by one.
    """
    return round(sum(rate / 100 * n for rate, n in survivors_by_rate.items()))


SCOPES = {"layer": layer_scope, "global": global_scope, "erk": erk_scope}


# ---- Masks and resetting -------------------------------------------------------------------------


def layer_percents(args, model, output):
    """Return the percentage that each round prunes of each layer, {parameter name: percent}.

    Percentages in the architecture's file count before those of flags. `output` is the output
    layer, or None. Raises utils.BadInput if the layers that a rate is for cannot be found, or if
    nothing would be pruned.
    """
    weights = prunable(model)
    others = {args.prune_percent, args.prune_percent_conv, args.prune_percent_downsample}
    if output is None and others != {args.prune_percent_output}:
        raise utils.BadInput(
            f"--prune_percent_output={args.prune_percent_output}: the layer that {args.arch_type} "
            "calls last does not have as many outputs as there are classes. Call the output layer "
            "as a module, or give all layers the same percentage"
        )
    shortcuts = {name for name in weights if "downsample" in name.split(".")}
    if args.prune_percent_downsample != args.prune_percent_conv and not shortcuts:
        raise utils.BadInput(
            f"--prune_percent_downsample={args.prune_percent_downsample}: {args.arch_type} has no "
            "layers in modules named downsample"
        )

    convolutions = {
        id(module.weight) for module in model.modules() if isinstance(module, CONVOLUTIONS)
    }
    percents = {}
    for name, weight in weights.items():
        if output is not None and weight is output.weight:
            percents[name] = args.prune_percent_output
        elif name in shortcuts:
            percents[name] = args.prune_percent_downsample
        elif id(weight) in convolutions:
            percents[name] = args.prune_percent_conv
        else:
            percents[name] = args.prune_percent
    for pattern, percent in archs.layer_rates(args.dataset, args.arch_type).items():
        matched = fnmatch.filter(weights, pattern)
        if not matched:
            raise bad_network(
                args,
                f"PRUNE_PERCENT: the pattern {pattern!r} matches none of the weights that can be "
                f"pruned, which are {', '.join(weights)}",
            )
        percents |= dict.fromkeys(matched, percent)
    masks = dense_masks(model)
    if any(percents.values()):
        magnitudes = {name: weight.detach().abs() for name, weight in weights.items()}
        masks = prune(magnitudes, masks, percents, args.prune_scope)
    if all(mask.all() for mask in masks.values()):
        raise utils.BadInput(
            f"nothing of {args.arch_type} would be pruned by --prune_scope={args.prune_scope}: "
            "it has no convolution or linear layer, or the percentages are too small"
        )
    return percents


def keep_output_dense(run, model, output, percents):
    """Set the percentage of the output layer to 0 if the run's tickets have none of its size.

    Raises utils.BadInput if they have none for another layer.
    """
    of_output = {
        name
        for name, parameter in model.named_parameters()
        if output is not None and (parameter is output.weight or parameter is output.bias)
    }
    if others := run.own_output - of_output:
        raise utils.bad_source(
            run, f"the shape of {', '.join(sorted(others))} differs, which is not the output layer"
        )
    for name in run.own_output & percents.keys():
        percents[name] = 0.0


def next_masks(run, state, data, percents):
    """Return the masks of the next round, {parameter name: bool tensor}.

    They follow from this round's masks and `--criterion`, or from the tickets of another run, whose
    output layer stays dense if it has another number of outputs there.
    """
    args = run.args
    next_round = state.round + 1
    if run.source:
        dense = dense_masks(state.model)
        masks = dense | utils.read_source(run, next_round, state.model, dense)["masks"]
    else:
        scores = score_weights(run, state, data)
        masks = prune(scores, state.masks, percents, args.prune_scope)
    if args.prune_type == "random" and not args.connect_to:  # which has the masks of random
        seed_torch(args.seed, next_round, 0)
        masks = random_masks(masks, state.masks)
    emptied = [name for name, mask in state.masks.items() if mask.any() and not masks[name].any()]
    if emptied:
        print(f"note: round {next_round} has no weights left in {', '.join(emptied)}")
    return masks


def dense_masks(model):
    """Return masks that keep all weights, {parameter name: bool tensor}."""
    weights = prunable(model)
    return {name: torch.ones_like(weights[name], dtype=torch.bool) for name in weights}


def random_masks(masks, current):
    """Return masks that keep as many weights per layer as `masks`, chosen at random.

    Weights are chosen from those that the `current` masks keep.
    """
    chosen = {}
    for name, mask in current.items():
        survivors = mask.flatten().nonzero().squeeze(1)
        order = torch.randperm(len(survivors)).to(mask.device)  # the same on every device
        kept = survivors[order[: int(masks[name].sum())]]
        chosen[name] = torch.zeros_like(mask).flatten().index_fill(0, kept, True).view_as(mask)
    return chosen


@torch.no_grad()
def reset(args, state, masks):
    """Start the next round with these masks: reset the network and the optimizer.

    Raises utils.BadInput if the prune type's function does not only change `state.model`.
    """
    state.round += 1
    state.iteration = first_iteration(args, state.round)
    state.seconds = 0.0
    state.rows.append([])
    utils.restore(state.masks, masks)
    seed_torch(args.seed, state.round, 0)
    # A function that changes these tensors, or lets the network share them, cannot spoil ours.
    initial, masks = copy.deepcopy((state.initial, state.masks))
    copied = dataclasses.replace(state, initial=initial, masks=masks)
    returned = PRUNE_TYPES[args.prune_type].reset(args, copied)
    if returned is not None or copied.model is not state.model:
        raise utils.BadInput(
            f"the function of --prune_type={args.prune_type} returns something or replaces "
            "state.model, which has no effect: let it change state.model in place and return None"
        )
    apply_masks(state.model, state.masks)
    utils.restore(state.start, state.model.state_dict())
    utils.restore(state.optimizer_state, new_optimizer_state(args, state.model))
    state.loss.zero_()


@torch.no_grad()
def apply_masks(model, masks):
    """Set the pruned weights of a model to zero."""
    for name, weight in prunable(model).items():
        weight.masked_fill_(~masks[name], 0)


# ---- Prune types ---------------------------------------------------------------------------------

# A reset(args, state) changes the trained network, state.model, into that of the next round. Then
# the masks are applied. state.initial and state.masks are copies. Torch is seeded; draws on the CPU
# are the same for every device.


def lt(args, state):
    """Reset the whole network to its initial state (Frankle & Carbin, ICLR 2019)."""
    state.model.load_state_dict(state.initial)


def reinit(args, state):
    """Draw a new initial state of the whole network (Frankle & Carbin, ICLR 2019)."""
    state.model.load_state_dict(new_model(args, state.round).state_dict())


def shuffle(args, state):
    """Let the initial values of each layer's survivors change places at random.

    H. Zhou, J. Lan, R. Liu and J. Yosinski, "Deconstructing Lottery Tickets: Zeros, Signs, and the
    Supermask", NeurIPS 2019, which calls this and the next four "mask-1 actions".
    """
    lt(args, state)
    for name, weight in prunable(state.model).items():
        permute(weight, state.masks[name])


def constant(args, state):
    """Set each weight to + or - the standard deviation of its layer's initial weights."""
    lt(args, state)
    for weight in prunable(state.model).values():
        signs = 1 - 2 * torch.randint(2, weight.shape)
        weight.copy_(weight.std(correction=0) * signs.to(weight.device))


def signed_reinit(args, state):
    """Give each weight the magnitude that reinit draws, and its initial sign."""
    drawn = new_model(args, state.round, state.loss.device).state_dict()
    lt(args, state)
    for name, weight in prunable(state.model).items():
        weight.copy_(drawn[name].abs() * weight.sign())


def signed_shuffle(args, state):
    """Let each layer's positive survivors change places, and its negative ones."""
    lt(args, state)
    for name, weight in prunable(state.model).items():
        permute(weight, state.masks[name] & (weight > 0))
        permute(weight, state.masks[name] & (weight < 0))


def signed_constant(args, state):
    """Set each weight to the standard deviation of its layer, with its initial sign."""
    lt(args, state)
    for weight in prunable(state.model).values():
        weight.copy_(weight.std(correction=0) * weight.sign())


def lr_rewind(args, state):
    """Keep the trained network, so that only the learning-rate schedule starts again.

    A. Renda, J. Frankle and M. Carbin, "Comparing Rewinding and Fine-tuning in Neural Network
    Pruning", ICLR 2020, which is also the source of `finetune`.
    """


def permute(weight, chosen):
    """Let the chosen weights of a layer change places at random; `chosen` is a bool tensor."""
    values = weight[chosen]
    weight[chosen] = values[torch.randperm(len(values))]


class PruneType(NamedTuple):
    """What the network becomes between two rounds."""

    meaning: str  # of the survivors, for the help
    reset: Callable


PRUNE_TYPES = {
    "lt": PruneType("their initial weights", lt),
    "reinit": PruneType("new random weights", reinit),
    "random": PruneType("as lt, but the survivors are chosen at random", lt),  # in next_masks
    "shuffle": PruneType("their initial weights, permuted in each layer", shuffle),
    "constant": PruneType("+ or - the standard deviation of the layer's initial weights", constant),
    "signed_reinit": PruneType("as reinit, with their initial signs", signed_reinit),
    "signed_shuffle": PruneType("as shuffle, with their initial signs", signed_shuffle),
    "signed_constant": PruneType("as constant, with their initial signs", signed_constant),
    "lr_rewind": PruneType("their trained weights", lr_rewind),
    # Its rate is in learning_rate.
    "finetune": PruneType("as lr_rewind, at the schedule's last learning rate", lr_rewind),
}


def refused(prune_type):
    """Return the flags that a prune type does not have, and why: {flag: reason}."""
    reasons = {}
    if PRUNE_TYPES[prune_type].reset is lr_rewind:
        reasons["connect_to"] = "its rounds start from trained weights, which two runs do not share"
    if prune_type == "lt":
        reasons["masks_from"] = "lt makes the masks for the other prune types"
    if PRUNE_TYPES[prune_type].reset is not lt:
        reasons["rewind_iter"] = "only lt and random reset to weights from early in training"
    return reasons


# ---- Criteria ------------------------------------------------------------------------------------

# A score(args, model, initial, masks, data) returns {parameter name: tensor}. Of its arguments,
# - model is a copy of the network at the end of the round (with --one_shot, of the first round), or
#   with the weights that lt resets to, as CRITERIA says;
# - initial is the state dict from which the round started. With --rewind_iter=K, that of the first
#   round is from iteration K. With --one_shot, it is always that of the first round.
# Torch is seeded.


def score_weights(run, state, data):
    """Return the scores by which `--criterion` ranks the weights, {parameter name: tensor}.

    Raises utils.Failure if the score of a survivor is not finite.
    """
    args = run.args
    weights, initial = state.model.state_dict(), state.start
    if CRITERIA[args.criterion].before_training:
        weights = state.initial
    elif args.one_shot:
        weights, initial = utils.first_weights(run, state.model), state.initial
    scores = apply_criterion(args, state, weights, initial, data)
    for name, mask in state.masks.items():
        if not scores[name][mask].isfinite().all():
            raise utils.Failure(
                f"--criterion={args.criterion}: a score of {name} is not finite in round "
                f"{state.round} of seed {args.seed}. Use another criterion, with --overwrite or "
                "another --output_dir"
            )
    return scores


def apply_criterion(args, state, weights, initial, data):
    """Return the scores of the network with these weights, {parameter name: tensor}.

    `weights` and `initial` are state dicts. Raises utils.Failure if a layer has no scores.
    """
    model = new_model(args, 0, data.device)
    model.load_state_dict(weights)
    initial, masks = copy.deepcopy((initial, state.masks))  # a criterion may change what it gets
    seed_torch(args.seed, state.round, 0, 0)
    scores = CRITERIA[args.criterion].score(args, model, initial, masks, data)
    for name, mask in state.masks.items():
        found = scores.get(name) if isinstance(scores, dict) else None
        if not isinstance(found, torch.Tensor) or found.shape != mask.shape:
            raise utils.Failure(
                f"--criterion={args.criterion}: its function returns no scores of shape "
                f"{tuple(mask.shape)} for {name}. Let it return {{name: tensor}} for all names in "
                "masks, and run the same command to resume"
            )
    return scores


def elementwise(score):
    """Make a criterion of a function that scores weights by their values w_f and w_i."""

    @wraps(score)
    def criterion(args, model, initial, masks, data):
        final = model.state_dict()
        return {name: score(final[name], initial[name]) for name in masks}

    return criterion


@elementwise
def magnitude(final, initial):
    """Score weights by |w_f|, as Frankle & Carbin do ("large final" of Zhou et al., see below)."""
    return final.abs()


@elementwise
def increase(final, initial):
    """Score weights by |w_f| - |w_i|, "magnitude increase".

    H. Zhou, J. Lan, R. Liu and J. Yosinski, "Deconstructing Lottery Tickets: Zeros, Signs, and the
    Supermask", NeurIPS 2019, which is also the source of the next three.
    """
    return final.abs() - initial.abs()


@elementwise
def movement(final, initial):
    """Score weights by |w_f - w_i|, "movement"."""
    return (final - initial).abs()


@elementwise
def initial_magnitude(final, initial):
    """Score weights by |w_i|, "large init"."""
    return initial.abs()


@elementwise
def same_sign(final, initial):
    """Score weights by w_f * sign(w_i), "large final, same sign".

    The paper scores all weights that changed their sign by 0. Here the largest of them go first.
    """
    return final * initial.sign()


def snip(args, model, initial, masks, data):
    """Score weights by |w * dL/dw|, where L is the loss of the network.

    L is the mean over 100 training examples for each class there is, or fewer if there are not as
    many. The seed chooses them from all classes together. They come in batches of 100.

    N. Lee, T. Ajanthan and P. Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", ICLR 2019.
    """
    images, labels = data.train
    size = min(100, len(labels))
    seed_torch(args.seed, 0, 0, 0)  # not as the weights; dropout needs a seed, too
    order = torch.randperm(len(labels)).to(labels.device)
    batches = order.unfold(0, size, size)[: archs.facts(args.dataset).CLASSES]  # full ones only
    model.double()  # in float32, rounding errors decide about some weights of deep networks
    model.train()

    def losses():
        for batch in utils.progress(batches, "scoring weights"):
            logits = model(data.normalize(images[batch]).double())
            yield F.cross_entropy(logits, labels[batch]) / len(batches)

    return sensitivity(model, losses())


def grasp(args, model, initial, masks, data):
    """Score weights by w * Hg, where g and H are gradient and Hessian of the network's loss.

    Pruning the weights of the lowest scores makes the gradient longest. The loss is the mean over
    ten training examples of each class, or fewer if there are not as many. The seed chooses them.
    They come in batches of at most 100. As in the authors' code, the logits are divided by 200.

    C. Wang, G. Zhang and R. Grosse, "Picking Winning Tickets Before Training by Preserving Gradient
    Flow", ICLR 2020.
    """
    images, labels = data.train
    seed_torch(args.seed, 0, 0, 0)
    order = torch.randperm(len(labels)).to(labels.device)
    classes = range(archs.facts(args.dataset).CLASSES)
    chosen = torch.cat([order[labels[order] == label][:10] for label in classes])
    batches = order[torch.isin(order, chosen)].chunk(math.ceil(len(chosen) / 100))
    model.double()
    model.train()
    weights = prunable(model)

    def losses():
        seed_torch(args.seed, 0, 0, 0)  # dropout draws the same for g and for Hg
        for batch in utils.progress(batches, "scoring weights"):
            logits = model(data.normalize(images[batch]).double()) / 200
            loss = F.cross_entropy(logits, labels[batch], reduction="sum")
            yield loss / len(chosen)

    def products(gradients):
        """Yield the scalar product of g and the gradient of each loss."""
        for loss in losses():
            parts = torch.autograd.grad(
                loss, weights.values(), create_graph=True, materialize_grads=True
            )
            pairs = zip(gradients.values(), parts, strict=True)
            yield sum((gradient * part).sum() for gradient, part in pairs)

    hessian_products = total_gradients(model, products(total_gradients(model, losses())))
    return {name: (weights[name] * hessian_products[name]).detach() for name in weights}


def synflow(args, model, initial, masks, data):
    """Score weights by |w * dR/dw|, where R is the output of the pruned network.

    R is the sum of the outputs for an input of ones. All parameters and buffers are replaced by
    their absolute values.

    H. Tanaka, D. Kunin, D. Yamins and S. Ganguli, "Pruning neural networks without any data by
    iteratively conserving synaptic flow", NeurIPS 2020.
    """
    apply_masks(model, masks)
    model.double().eval()  # the products of many layers exceed float32
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.abs_()
    images, _ = data.train
    ones = torch.ones_like(images[:1], dtype=torch.float64)
    return sensitivity(model, [model(ones).sum()])


def sensitivity(model, terms):
    """Return |w * dS/dw| for the prunable weights, {parameter name: tensor}.

    S is the sum of the terms, an iterable of tensors of shape ().
    """
    weights = prunable(model)
    gradients = total_gradients(model, terms)
    return {name: (weights[name] * gradients[name]).abs().detach() for name in weights}


def total_gradients(model, terms):
    """Return dS/dw for the prunable weights, {parameter name: tensor}, with S as above."""
    weights = prunable(model)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    for term in terms:
        term.backward()
    return {name: weight.grad for name, weight in weights.items()}


class Criterion(NamedTuple):
    """A score of the weights, of which the lowest are pruned."""

    formula: str
    score: Callable
    before_training: bool = False  # whether `model` has the weights that lt resets to


CRITERIA = {
    "magnitude": Criterion("|w_f|", magnitude),
    "increase": Criterion("|w_f| - |w_i|", increase),
    "movement": Criterion("|w_f - w_i|", movement),
    "initial": Criterion("|w_i|", initial_magnitude),
    "same_sign": Criterion("w_f * sign(w_i)", same_sign),
    "snip": Criterion(
        "|w * dL/dw| before training, L: loss of the dense network", snip, before_training=True
    ),
    "grasp": Criterion(
        "w * Hg before training, g and H: gradient and Hessian of the dense network's loss",
        grasp,
        before_training=True,
    ),
    "synflow": Criterion(
        "|w * dR/dw| before training, R: output of the pruned network",
        synflow,
        before_training=True,
    ),
}


# ---- Device and randomness -----------------------------------------------------------------------


def pick_device(gpu):
    """Return the torch.device for `--gpu`, set up for speed.

    Without any GPU, `--gpu=0` is the CPU. Raises utils.BadInput for other GPUs that do not exist.
    """
    # Adam's averages of weights without gradients become denormal numbers: ten times slower.
    torch.set_flush_denormal(True)
    # NumPy before 2.4 would tell.
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu == "cpu":
        return torch.device("cpu")
    if gpu == count == 0:
        print("no GPU found: running on the CPU")
        return torch.device("cpu")
    if gpu >= count:
        advice = f"choose one of 0 to {count - 1}" if count else "use --gpu=cpu"
        raise utils.BadInput(f"there is no GPU {gpu}: {advice}")
    device = torch.device("cuda", gpu)
    check_gpu(device)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32
    torch.backends.cudnn.benchmark = True
    return device


def check_gpu(device):
    """Raise utils.BadInput if this build of torch cannot compute on a GPU, such as an old one."""
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as error:
        raise utils.BadInput(
            f"GPU {device.index} cannot be used ({archs.one_line(error)}). Install a torch that is "
            "built for it, or choose another --gpu, such as cpu"
        ) from error


def seeds(count, seed, *key):
    """Return `count` seeds for torch, which depend on `seed` and `key` (round, epoch) only.

    A larger count begins with the same seeds.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return sequence.generate_state(count, np.uint64).tolist()


def seed_torch(seed, *key):
    """Seed torch from `seed` and `key` (round, epoch), whatever was drawn before."""
    torch.manual_seed(seeds(1, seed, *key)[0])


# ---- Data ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Data:
    """A dataset on the device.

    Each part is a pair: uint8 images (N, C, H, W) and int64 labels (N,).
    """

    train: tuple
    val: tuple  # the same object as `test` if no examples are held out
    test: tuple
    mean: torch.Tensor  # of the training images' pixels in 0..255, (C, 1, 1)
    std: torch.Tensor
    digest: str = ""  # a resumed run must find the same

    @property
    def device(self):
        return self.mean.device

    def normalize(self, images):
        """Return float32 images of mean 0 and standard deviation 1 for uint8 images."""
        return images.float().sub_(self.mean).div_(self.std)


def load_data(args, device):
    """Return the dataset on `device`, with all training examples in `train`.

    Raises utils.BadInput if it cannot be loaded or does not fit the settings.
    """
    try:
        facts = archs.facts(args.dataset)
        train = archs.load(args.dataset, args.data_dir, train=True)
        test = archs.load(args.dataset, args.data_dir, train=False)
    except (OSError, ValueError) as error:
        raise utils.BadInput(error) from error

    examples = len(train[1])
    check_iterations(args, examples)
    normalization = zlib.crc32(f"{facts.MEAN} {facts.STD}".encode())
    checksum = utils.checksum((*train, *test), normalization)
    test = tuple(tensor.to(device) for tensor in test)
    return Data(
        train=tuple(tensor.to(device) for tensor in train),
        val=test,
        test=test,
        mean=255 * torch.tensor(facts.MEAN, device=device).view(-1, 1, 1),
        std=255 * torch.tensor(facts.STD, device=device).view(-1, 1, 1),
        digest=f"{examples} + {len(test[1])} examples, digest {checksum:08x}",
    )


def check_iterations(args, examples):
    """Raise utils.BadInput if flags do not fit the number of training examples."""
    train_size = examples - args.val_size
    if train_size <= 0:
        raise utils.BadInput(
            f"--val_size={args.val_size} leaves none of the {examples} training examples"
        )
    if args.batch_size > train_size:
        raise utils.BadInput(
            f"--batch_size={args.batch_size} is larger than the {train_size} training examples"
        )
    _, end = iterations(args, train_size)
    within = f"is not within a round, which has {end} iterations"
    if args.rewind_iter >= end:
        raise utils.BadInput(f"--rewind_iter={args.rewind_iter} {within}")
    if args.warmup_iter > end or (args.warmup_iter == end and args.lr_schedule == "cosine"):
        raise utils.BadInput(f"--warmup_iter={args.warmup_iter} {within}")
    for milestone in args.lr_milestones:
        if milestone >= end:
            raise utils.BadInput(f"--lr_milestones={milestone} {within}")


def hold_out(args, data):
    """Return the data of a trial: its seed chooses `--val_size` training examples for `val`."""
    train, val, _ = archs.split(data.train, data.test, args.seed, args.val_size)
    return dataclasses.replace(data, train=train, val=val)


def iterations(args, examples):
    """Return the iterations per epoch, which has full batches only, and per round."""
    steps = examples // args.batch_size
    return steps, args.max_iter or args.end_iter * steps


# ---- Model and state -----------------------------------------------------------------------------


@torch.enable_grad()  # an architecture's initialize may need it
def new_model(args, round_, device="cpu"):
    """Return the network with random weights that depend on the seed and the round.

    The architecture's file may define how they are drawn: initialize(model). The default is glorot.
    Raises utils.BadInput if its `build` returns no network with weights.
    """
    seed_torch(args.seed, round_, 0)  # epoch 0: training counts from 1
    model = archs.build(args.dataset, args.arch_type)
    if not isinstance(model, nn.Module):
        raise bad_network(args, f"build returns {type(model).__name__}, not an nn.Module")
    if any(map(is_lazy, model.parameters())):
        raise bad_network(args, "lazy layers have no weights yet: run the network once in build")
    initialize = archs.initializer(args.dataset, args.arch_type) or glorot
    initialize(model)
    if all(parameter.dim() != 5 for parameter in model.parameters()):  # of Conv3d
        model = model.to(memory_format=torch.channels_last)  # faster convolutions
    return model.to(device)


def first_model(run, device):
    """Return the network at the start of the first round.

    With `--tickets_from`, lt and random start from the weights of that run. If its output layer has
    another number of outputs, that layer keeps its own initialization.
    """
    model = new_model(run.args, 0, device)
    if utils.takes_weights(run.settings, run.refused):
        found = utils.read_source(run, 0, model, dense_masks(model))
        model.load_state_dict(model.state_dict() | found["weights"])
    return model


def check_shared(run, model):
    """Raise utils.Failure if the network has other weights than the run of `--connect_to` at K.

    K is `--rewind_iter`. From there on, only the order of examples may differ.
    """
    args = run.args
    if not args.connect_to:
        return
    weights = utils.read_source(run, 0, model, dense_masks(model))["weights"]
    if not utils.same_bits(model.state_dict(), weights):
        raise utils.Failure(
            f"at iteration {args.rewind_iter}, the network of seed {args.seed} is not that in "
            f"{run.source.initial}. Use the same code, versions, device and --threads for both "
            "runs, with --overwrite; on a GPU, only --rewind_iter=0 is sure to work"
        )


def glorot(model):
    """Draw weights from the Gaussian Glorot distribution, and set biases to zero.

    Batch norm keeps the identity that it is built with. Frozen layers stay as they are built.
    """
    for module in model.modules():
        if isinstance(module, LAYERS) and module.weight.requires_grad:
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def prunable(model):
    """Return the prunable weights, {parameter name: parameter}: of convolutions and linear layers.

    The layer's type decides, because batch norm calls its scale "weight" too. Frozen weights are
    not prunable. A SparseLinear has none: it is pruned already.
    """
    weights = set()
    for module in model.modules():
        if isinstance(module, LAYERS) and not isinstance(module, sparse.SparseLinear):
            weights.add(id(module.weight))
    found = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in weights and parameter.requires_grad and parameter.numel():
            found[name] = parameter
    return found


def bad_network(args, problem):
    """Return the error that a network cannot be used, which names its file."""
    return utils.BadInput(f"{archs.architecture(args.dataset, args.arch_type).__file__}: {problem}")


def check_network(args, model):
    """Raise utils.BadInput if the network has something that cannot be trained, saved or reset."""
    if any(map(parametrize.is_parametrized, model.modules())):
        raise bad_network(
            args,
            "parametrized layers, such as those of spectral or weight norm, may change when they "
            "are read: build the network without them",
        )
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    if any(module.sparse for module in model.modules() if isinstance(module, embeddings)):
        raise bad_network(args, "sparse gradients are not supported: embed without sparse=True")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise bad_network(args, f"{name} is {parameter.dtype}, not torch.float32")

    state = model.state_dict()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    if unsaved := buffers.keys() - state.keys():
        raise bad_network(
            args,
            "some buffers are neither saved nor reset: register "
            f"{', '.join(sorted(unsaved))} without persistent=False",
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if others := state.keys() - parameters.keys() - buffers.keys():
        raise bad_network(
            args,
            f"the state dict has {', '.join(sorted(others))}, which cannot be reset: keep such "
            "state in buffers, without get_extra_state",
        )
    expanded = [name for name, tensor in state.items() if 0 in tensor.stride()]
    if expanded:
        raise bad_network(
            args,
            f"elements of {', '.join(expanded)} share memory and cannot be reset: add .clone() "
            "after expand",
        )


def inspect_network(args, model):
    """Run the network; return its output layer and the operations of a batch's forward pass.

    The output layer is the layer that is called last, if it has an output for each class; otherwise
    it is None. Only floating-point operations of convolutions and matrix products count. Raises
    utils.BadInput if the network, in evaluation or in training, does not return logits for the
    dataset's images.
    """
    facts = archs.facts(args.dataset)
    images = torch.zeros(min(2, args.batch_size), facts.CHANNELS, facts.SIZE, facts.SIZE)
    expected = (len(images), facts.CLASSES)
    names = model.state_dict().keys()
    called = []
    hooks = []
    for module in model.modules():
        if isinstance(module, LAYERS):
            hook = module.register_forward_hook(lambda layer, *_: called.append(layer))
            hooks.append(hook)
    for mode in ("evaluation", "training"):
        model.train(mode == "training")
        try:
            with FlopCounterMode(display=False) as counter:
                logits = model(images)
        except (RuntimeError, ValueError) as error:  # such as batch norm on a single example
            raise bad_network(
                args,
                f"{mode} fails on images of shape {tuple(images.shape)}: {archs.one_line(error)}",
            ) from error
        is_tensor = torch.is_tensor(logits)
        if not is_tensor or logits.shape != expected:
            found = f"shape {tuple(logits.shape)}" if is_tensor else type(logits).__name__
            raise bad_network(
                args, f"forward returns {found} in {mode}, not logits of shape {expected}"
            )
    for hook in hooks:
        hook.remove()
    if added := model.state_dict().keys() - names:
        raise bad_network(
            args, f"forward adds {', '.join(sorted(added))}: create all layers in build"
        )

    last = called[-1] if called else None
    outputs = getattr(last, "out_features", None) or getattr(last, "out_channels", None)
    output = last if outputs == facts.CLASSES else None
    return output, counter.get_total_flops() / len(images) * args.batch_size


def check_training(args, state, data):
    """Run an iteration and an evaluation, and undo them.

    Raises utils.BadInput if the network cannot be trained, evaluated, saved or restored.
    """
    generators = (random.getstate(), str(np.random.get_state()))
    try:
        before = utils.snapshot(vars(state))
        Step(args, state, data)()
        evaluate(args, state.model, data, evaluation_batch(data))
        if args.connect_to:
            recompute_statistics(args, state.model, hold_out(args, data))
        utils.restore(vars(state), before)
    except (RuntimeError, ValueError) as error:
        if utils.out_of_memory(error):
            raise
        raise bad_network(
            args, f"the network cannot be trained and restored: {archs.one_line(error)}"
        ) from error
    if generators != (random.getstate(), str(np.random.get_state())):
        raise bad_network(
            args, "forward draws from Python's or NumPy's generator: use torch's, which is seeded"
        )


def check_criterion(run, state, data):
    """Score the network before training, and forget the scores.

    Raises utils.BadInput if `--criterion` cannot score it: some layers have no second derivatives,
    for example, and some networks cannot compute in double precision. Raises utils.Failure if the
    scores cannot be used.
    """
    args = run.args
    data = hold_out(args, data)
    try:
        if CRITERIA[args.criterion].before_training:
            score_weights(run, state, data)
        else:
            apply_criterion(args, state, state.initial, state.start, data)
    except (RuntimeError, ValueError) as error:
        if utils.out_of_memory(error):
            raise
        raise utils.BadInput(
            f"--criterion={args.criterion} cannot score {args.arch_type}: "
            f"{archs.one_line(error)}. Use another criterion"
        ) from error


def check_reset(args, state):
    """Raise utils.BadInput if the next round would start from anything that was trained.

    `state` was reset from an untrained network, and cannot be used afterwards.
    """
    start = utils.snapshot(state.start)
    state.round -= 1
    trained = [state.model.state_dict(), state.best, *state.optimizer_state.values()]
    for tensors in trained:
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.add_(1)
    reset(args, state, state.masks)
    if not utils.same_bits(start, state.start):
        raise utils.BadInput(
            f"--connect_to is not for --prune_type={args.prune_type}: its function gives other "
            "weights after other training, or each time, so two runs do not share them"
        )


def new_state(args, model):
    """Return the state of a new run, with the network as it is."""
    return utils.State(
        iteration=first_iteration(args, round_=0),
        masks=dense_masks(model),
        model=model,
        initial=copy.deepcopy(model.state_dict()),
        start=copy.deepcopy(model.state_dict()),
        best=copy.deepcopy(model.state_dict()),
        optimizer_state=new_optimizer_state(args, model),
        loss=torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device),
    )


def new_optimizer_state(args, model):
    """Return the state of a fresh optimizer, {name: {parameter name: tensor}}."""
    parameters = dict(model.named_parameters())
    zeros = {name: torch.zeros_like(parameters[name]) for name in parameters}
    if args.optimizer == "sgd":
        return {"momentum": zeros}
    steps = {name: torch.zeros((), device=zeros[name].device) for name in zeros}
    return {"average": zeros, "square": copy.deepcopy(zeros), "step": steps}


def make_sparse(args, state, contiguous):
    """Make linear layers with less than `--sparse_below` percent of their weights sparse.

    The optimizer's state of their weights becomes sparse, too.
    """
    sparse.sparsify(state.model, state.masks, args.sparse_below, contiguous)
    for name, layer in state.model.named_modules():
        if isinstance(layer, sparse.SparseLinear):
            weight = f"{name}.weight"
            for tensors in state.optimizer_state.values():
                if tensors[weight].dim():  # the number of steps has none
                    tensors[weight] = layer.pattern.matrix(tensors[weight][layer.pattern.mask])


def make_dense(state):
    """Make the sparse layers of the network dense again, and the optimizer's state."""
    sparse.densify(state.model)
    for tensors in state.optimizer_state.values():
        for name, tensor in tensors.items():
            tensors[name] = tensor.to_dense()


# ---- The step ------------------------------------------------------------------------------------


class Step:
    """One training iteration on the device: forward, backward, optimizer, masks.

    On a GPU, `speed_up` captures the iteration as a CUDA graph, which is then replayed. What
    changes from one iteration to the next (batch, learning rate, position in the epoch) is
    therefore read from tensors that stay in place.
    """

    def __init__(self, args, state, data):
        self.args = args
        self.state = state
        self.data = data
        self.steps, self.end = iterations(args, len(data.train[1]))

        device = state.loss.device
        self.on_gpu = device.type == "cuda"
        precision = torch.float32 if self.on_gpu else torch.float64
        self.batches = torch.zeros(self.steps, args.batch_size, dtype=torch.int64, device=device)
        self.rates = torch.zeros(self.steps, dtype=precision, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # in the epoch
        self.seeds = []  # for dropout and augmentation, one per iteration of the epoch
        self.generator = torch.default_generator
        if self.on_gpu:
            self.generator = torch.cuda.default_generators[device.index]
        self.graph = None
        self.gather()

    def gather(self):
        """List the tensors that an iteration updates. Sparse layers have others than dense ones."""
        state = self.state
        self.parameters = list(state.model.parameters())
        self.optimizer_state = {
            name: [sparse.survivors(tensor) for tensor in tensors.values()]
            for name, tensors in state.optimizer_state.items()
        }
        self.masks = []
        for name, weight in prunable(state.model).items():
            mask = torch.empty_like(weight).copy_(state.masks[name])  # bool is ten times slower
            self.masks.append((weight, mask))

    def __call__(self):
        """Train on the next batch."""
        index = self.state.iteration % self.steps
        new_order = self.state.iteration == self.args.rewind_iter
        if index == 0 or new_order or not self.seeds:  # which the first call does not have
            self.begin_epoch()
        self.generator.manual_seed(self.seeds[index])
        if self.graph:
            self.graph.replay()
        else:
            self.iterate()
        self.state.iteration += 1

    def begin_epoch(self):
        """Draw the batches and seeds of the state's epoch, and set its learning rates.

        From iteration K of `--rewind_iter` on, they depend on `--order_seed`, too.
        """
        epoch, index = divmod(self.state.iteration, self.steps)
        key = [self.state.round, epoch + 1]
        before_k = self.state.round == 0 and self.state.iteration < self.args.rewind_iter
        if self.args.order_seed and not before_k:
            key.append(self.args.order_seed)
        permutation_seed, *self.seeds = seeds(1 + self.steps, self.args.seed, *key)
        torch.manual_seed(permutation_seed)
        order = torch.randperm(len(self.data.train[1]))  # on the CPU: the same for every device
        self.batches.copy_(order[: self.batches.numel()].view_as(self.batches))

        numbers = range(epoch * self.steps, (epoch + 1) * self.steps)
        rates = [learning_rate(self.args, self.state.round, i, self.end) for i in numbers]
        self.rates.copy_(torch.tensor(rates, dtype=torch.float64))
        self.position.fill_(index)
        if index == 0:
            self.state.loss.zero_()

    def iterate(self):
        """Run one iteration without waiting for the device."""
        images, labels = self.data.train
        batch = self.batches.index_select(0, self.position).squeeze(0)
        x = images.index_select(0, batch)
        if self.args.augment:
            x = augment(x)
        logits = forward(self.args, self.state.model, self.data, x)
        targets = labels.index_select(0, batch)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.args.label_smoothing)

        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            rate = self.rates.index_select(0, self.position).squeeze(0)
            update(self.args, self.parameters, self.optimizer_state, rate)
            for weight, mask in self.masks:
                weight.mul_(mask)  # momentum and weight decay would revive pruned weights

        self.state.loss.add_(loss.detach())
        self.position.add_(1)

    def speed_up(self):
        """Take a fast way for the rest of the round, if it is seen to compute the same.

        This is a CUDA graph, or sparse layers on a CPU. The first iterations of the round are
        rehearsed the plain way and the fast way, and undone: the state stays as it is. So a run
        that resumes within a round takes the same way again.
        """
        name, ways = self.fast_ways()
        if not ways:
            return
        state = self.state
        before = utils.snapshot(vars(state))
        start = before | {
            "model": before["start"],
            "optimizer_state": new_optimizer_state(self.args, state.model),
            "iteration": first_iteration(self.args, state.round),
        }
        try:
            expected = self.rehearse(start)
            if self.has_drawn():  # dropout draws in the order of memory
                ways = ways[-1:]
            for take in ways:
                problem = self.problem_of(take, start, expected)
                if not problem:
                    break
                self.take_plain_way()
        finally:
            self.rewind(before)
        if problem:
            print(f"running without {name}: {problem}")

    def fast_ways(self):
        """Return what the fast way is called, and functions that take it, to be tried in turn."""
        if self.on_gpu:
            return "a CUDA graph", [self.capture]
        args = self.args
        if not sparse.layers_below(self.state.model, self.state.masks, args.sparse_below):
            return None, []
        return "sparse layers", [
            partial(self.take_sparse_layers, contiguous=False),  # faster
            partial(self.take_sparse_layers, contiguous=True),
        ]

    def capture(self):
        """Capture the iteration as a CUDA graph. A capture needs eager iterations first."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side_stream()):
            self.iterate()
        self.graph = graph

    def take_sparse_layers(self, contiguous):
        make_sparse(self.args, self.state, contiguous)
        self.gather()

    def take_plain_way(self):
        self.graph = None
        make_dense(self.state)
        self.gather()

    def has_drawn(self):
        """Return whether random numbers were drawn since the generator was seeded."""
        state = self.generator.get_state()
        self.generator.manual_seed(self.generator.initial_seed())
        return not torch.equal(state, self.generator.get_state())

    def problem_of(self, take, start, expected):
        """Take a fast way; return in words why it cannot be used, or "" if it can."""
        try:
            take()
            return mismatch(self.rehearse(start), expected)
        except Exception as error:  # whatever a network raises that needs the plain way
            if self.on_gpu:
                torch.cuda.synchronize()
            while error.__context__:  # leaving a failed capture raises an error of its own
                error = error.__context__
            if utils.out_of_memory(error):
                raise error from None
            reason = str(error).partition("\n")[0]
            return f"{type(error).__name__}: {reason}"

    def rehearse(self, start):
        """Train for three iterations from the state `start`; return what they computed.

        This is {name: tensor}: the sum of the losses, the first gradient of each prunable weight,
        the length of the parameters' change, and then the loss of a batch in an evaluation.
        """
        self.rewind(start)
        before = [parameter.detach().clone() for parameter in self.parameters]
        loss = 0.0
        gradients = {}
        with self.on_side_stream():
            for _ in range(3):
                self.state.loss.zero_()
                self()
                loss = loss + self.state.loss
                gradients = gradients or self.gradients()
        changes = [new.detach() - old for new, old in zip(self.parameters, before, strict=True)]
        batch = evaluation_batch(self.data)
        evaluated, _ = evaluate(self.args, self.state.model, self.data, batch)
        return {
            "loss": loss,
            **gradients,
            "update": nn.utils.get_total_norm(changes),
            "loss of an evaluation": torch.tensor(evaluated),
        }

    def gradients(self):
        """Return the gradients of the survivors of prunable weights, {name: 1-D tensor}.

        Each counts by itself: in a deep network with few weights, the gradient of the last bias
        is longer than all others by orders of magnitude.
        """
        found = {}
        for name, weight in self.state.model.named_parameters():
            mask = self.state.masks.get(name)
            if mask is not None and weight.grad is not None:
                # That of a sparse layer has the survivors only, in the same order.
                is_dense = weight.grad.shape == mask.shape
                gradient = weight.grad[mask] if is_dense else weight.grad.clone()
                found[f"gradient of {name}"] = gradient
        return found

    def rewind(self, saved):
        """Return to a saved state."""
        utils.restore(vars(self.state), saved)
        self.state.model.train()
        self.seeds = []  # the next call begins its epoch

    @contextmanager
    def on_side_stream(self):
        """Run on the stream that captures, which waits for the current one and vice versa."""
        if not self.on_gpu:
            yield
            return
        stream = side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)


@cache  # each stream has its own memory, so a new one per round would use more and more
def side_stream():
    """Return the stream on which CUDA graphs are captured."""
    return torch.cuda.Stream()


def mismatch(found, expected):
    """Return in words what differs from what is expected, {name: finite tensor}; or ""."""
    for name, tensor in expected.items():
        if name not in found:
            return f"there is no {name}"
        length = torch.linalg.vector_norm(tensor, dtype=torch.float64)
        difference = torch.linalg.vector_norm(found[name] - tensor, dtype=torch.float64)
        if not difference <= TOLERANCES.get(name, 1e-3) * length:  # so that NaN differs
            return f"the {name} changes by {100 * difference / length:.2g}%"
    return ""


def forward(args, model, data, images):
    """Return the float32 logits (N, classes) for uint8 images (N, C, H, W)."""
    x = data.normalize(images)
    if not args.amp:
        return model(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x).float()


def learning_rate(args, round_, iteration, end):
    """Return the rate after `iteration` of `end` iterations.

    It rises linearly in the warm-up. Then it falls along a cosine from `--lr` to 0, or it drops at
    milestones. After the first round, finetune uses the last rate of this schedule only.

    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    is the source of the cosine.
    """
    if round_ and args.prune_type == "finetune":
        iteration = end - 1
    rate = args.lr
    after_warmup = iteration - args.warmup_iter
    if after_warmup < 0:
        rate *= (iteration + 1) / args.warmup_iter
    elif args.lr_schedule == "cosine":
        rate *= (1 + math.cos(math.pi * after_warmup / (end - args.warmup_iter))) / 2
    return rate * args.lr_gamma ** bisect.bisect(args.lr_milestones, iteration)


def update(args, parameters, optimizer_state, lr):
    """Take one step of Adam, AdamW or SGD along the gradients, with torch.optim's functions.

    Its classes compute the same, but their bookkeeping makes this half as slow again for a small
    network. Parameters without a gradient stay as they are, as with the classes.

    Args:
        parameters: a list of tensors.
        optimizer_state: {name: list of tensors, one per parameter}.
        lr: the learning rate, a tensor of shape ().
    """
    has_gradient = [parameter.grad is not None for parameter in parameters]
    if not all(has_gradient):
        parameters = list(compress(parameters, has_gradient))
        optimizer_state = {
            name: list(compress(tensors, has_gradient)) for name, tensors in optimizer_state.items()
        }
    gradients = [parameter.grad for parameter in parameters]
    settings = {"lr": lr, "weight_decay": args.weight_decay, "maximize": False, "fused": True}
    if args.optimizer == "sgd":
        sgd(
            parameters,
            gradients,
            optimizer_state["momentum"],
            momentum=args.momentum,
            dampening=0,
            nesterov=args.nesterov,
            **settings,
        )
    else:
        function = {"adam": adam, "adamw": adamw}[args.optimizer]
        function(
            parameters,
            gradients,
            optimizer_state["average"],
            optimizer_state["square"],
            [],
            optimizer_state["step"],
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            amsgrad=False,
            **settings,
        )


def augment(images):
    """Flip each image (N, C, H, W) or not, and shift it by up to four pixels, over black."""
    n, _, height, width = images.shape
    across, down = torch.randint(9, (2, n, 1), device=images.device)
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device) + across
    flip = torch.rand(n, 1, device=images.device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)

    examples = torch.arange(n, device=images.device).view(n, 1, 1)
    pixels = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return pixels[examples, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


# ---- Evaluation ----------------------------------------------------------------------------------


def measure(args, state, data, steps, end):
    """Return the measurements of a log row, {name: number}.

    These are the mean training loss of the epoch so far, an evaluation before the first iteration
    and whenever it is due, and the training accuracy at the end of the round. Raises utils.Failure
    if a loss is not finite.
    """
    row = {}
    trained = state.iteration - first_iteration(args, state.round)
    if trained:
        trained = min(trained, (state.iteration - 1) % steps + 1)  # in this epoch
        row["train_loss"] = state.loss.item() / trained
    if not trained or evaluation_due(args, state.iteration, steps, end):
        val_loss, val_accuracy = evaluate(args, state.model, data, data.val)
        test_accuracy = val_accuracy
        if data.val is not data.test:
            _, test_accuracy = evaluate(args, state.model, data, data.test)
        row |= {
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "test_accuracy": test_accuracy,
        }
    if state.iteration == end:
        _, row["train_accuracy"] = evaluate(args, state.model, data, data.train)

    if not all(map(math.isfinite, row.values())):
        epoch = math.ceil(state.iteration / steps)
        advice = f"use a lower --lr than {args.lr}, with --overwrite or another --output_dir"
        if sparse.is_sparse(state.model):
            advice += "; or resume with --sparse_below=0, if forward uses weights of other layers"
        raise utils.Failure(
            f"the loss is not finite in round {state.round}, epoch {epoch} of seed {args.seed}: "
            f"{advice}"
        )
    return row


def evaluation_batch(data):
    """Return the first batch of an evaluation of the validation examples: images and labels."""
    size = EVAL_BATCH[data.device.type]
    return tuple(part[:size] for part in data.val)


@torch.no_grad()
def evaluate(args, model, data, examples):
    """Return the mean loss and the accuracy in percent over all examples, a part of `data`.

    The model is in training mode afterwards.
    """
    model.eval()
    images, labels = examples
    loss, correct = torch.zeros(2, dtype=torch.float64, device=labels.device)
    size = EVAL_BATCH[labels.device.type]
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        logits = forward(args, model, data, x)
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    model.train()
    loss, correct = torch.stack([loss, correct]).tolist()
    return loss / len(labels), 100 * correct / len(labels)


@torch.no_grad()
def measure_barrier(run, state, data):
    """Return the test errors between the network of `--connect_to` and this one, and the barrier.

    `line_errors` are those at POINTS evenly spaced points of the line from that run's network at
    the end of the round to this run's, in percent. `barrier` is their maximum minus the mean of
    both ends, in percentage points. Raises utils.Failure if a loss is not finite.

    J. Frankle, G. K. Dziugaite, D. M. Roy and M. Carbin, "Linear Mode Connectivity and the Lottery
    Ticket Hypothesis", ICML 2020.
    """
    args = run.args
    model = new_model(args, 0, data.device)
    there = utils.read_source(run, state.round, model, dense_masks(model))["final"]
    here = utils.snapshot(state.model)
    errors = []
    for point in utils.progress(range(POINTS), "measuring the barrier"):
        between = dict(here)
        for name, tensor in here.items():
            # Equal ones may be infinite, as in an attention's mask.
            if tensor.is_floating_point() and not torch.equal(there[name], tensor):
                between[name] = there[name].lerp(tensor, point / (POINTS - 1))
        model.load_state_dict(between)
        recompute_statistics(args, model, data)
        loss, accuracy = evaluate(args, model, data, data.test)
        if not math.isfinite(loss):
            raise utils.Failure(
                f"the barrier of round {state.round} of seed {args.seed} cannot be measured: the "
                "loss is not finite on the line between the two networks"
            )
        errors.append(100 - accuracy)
    return {"barrier": max(errors) - (errors[0] + errors[-1]) / 2, "line_errors": errors}


def recompute_statistics(args, model, data):
    """Replace batch norm's running statistics by those of STATISTICS training examples.

    The seed chooses the examples. Only batch norm is in training mode, so that there is no dropout.
    The mean of two networks' statistics is not that of a network between them. Batch norm that a
    network keeps in evaluation mode stays as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    model.train()
    norms = [module for module in norms if module.training]
    model.eval()
    if not norms:
        return
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean over all batches
        module.train()
    images, _ = data.train
    seed_torch(args.seed, 0, 0, 1)  # not as snip
    chosen = torch.randperm(len(images))[:STATISTICS].to(images.device)
    for batch in chosen.split(EVAL_BATCH["cpu"]):  # the same on every device
        if len(batch) > 1:  # a single one has no variance
            forward(args, model, data, images[batch])


# ---- The description of a run, and its flags -----------------------------------------------------


def describe_run(args, model, percents, data, trials):
    """Return lines to print before training: work, disk space, rates, and what is not pruned."""
    weights = prunable(model)
    rounds = args.prune_iterations
    _, end = iterations(args, len(data.train[1]) - args.val_size)
    total = sum(weight.numel() for weight in weights.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())

    work = f"{utils.plural(rounds, 'round')} of {end} iterations"
    if trials > 1:
        work = f"{trials} trials of {work}"
    if data.device.type == "cpu":
        work += f" on {utils.plural(torch.get_num_threads(), 'thread')}"
    network = sum(tensor.nbytes for tensor in model.state_dict().values())
    ticket = 2 * network + total + 1e5  # two state dicts, the masks, figures and logs
    checkpoint = 6 * network + total
    size = trials * (rounds * ticket + 2 * checkpoint + network)
    lines = [
        f"{work}; about {size / 1e6:.0f} MB of results in {args.output_dir}",
        f"{total} of {parameters} parameters are prunable weights",
    ]
    remaining = last_survivors(args, weights, percents)
    if remaining is not None:
        lines[-1] += (
            f"; {100 * remaining / total:.2f}% of them remain in the last round "
            f"({100 * (remaining + parameters - total) / parameters:.2f}% of all parameters)"
        )

    if set(percents.values()) != {args.prune_percent} and not args.tickets_from:
        rates = "; ".join(
            f"{rate:g}% for {', '.join(name for name in percents if percents[name] == rate)}"
            for rate in dict.fromkeys(percents.values())
        )
        lines.append(f"pruning rates: {rates}")
    if args.optimizer == "adamw" and args.weight_decay == 0:
        lines.append("--optimizer=adamw without --weight_decay is the same as adam")
    if args.val_size == 0:
        lines.append("--val_size=0: the best evaluation is selected on the test set")
    others = []
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name not in weights:
            others.append(f"{name} {tuple(parameter.shape)}")
    if others:
        lines.append(f"not pruned: {', '.join(others)}")
    return lines


def describe_source(run):
    """Return lines to print before training about the run whose tickets are used, if any."""
    args = run.args
    lines = []
    if args.tickets_from:
        source = run.settings["masks_from_settings"]
        lines.append(f"tickets: those of lt on {source['dataset']}, in {args.tickets_from}")
    if run.own_output:
        lines.append(
            f"{', '.join(sorted(run.own_output))}: dense and from its own initialization, because "
            "the tickets have another number of outputs"
        )
    if args.connect_to:
        lines.append(
            f"connected to the run in {args.connect_to}: its masks, its weights at iteration "
            f"{args.rewind_iter}, and from there on --order_seed={args.order_seed}"
        )
        if run.settings["first_order_seed"] == args.order_seed:
            lines.append("note: both runs have the same order, so the barrier should be 0")
    return lines


def last_survivors(args, weights, percents):
    """Return the number of prunable weights in the last round; None if it is not known before.

    Across layers, it depends on training if they have different rates or if another run's tickets,
    of which the output layer may not be used, are trained. A run that is connected to one with such
    tickets does not know that layer.
    """
    scope = SCOPES[args.prune_scope]
    rates = set(filter(None, percents.values()))
    follows = scope in (global_scope, erk_scope) and len(rates) == 1 and not args.tickets_from
    if scope is not layer_scope and not follows:
        return None
    if args.connect_to and args.tickets_from:
        return None
    groups = Counter()
    for name, weight in weights.items():
        layer = name if scope is layer_scope else None
        groups[layer, percents[name]] += weight.numel()
    remaining = 0
    for (_, percent), n in groups.items():
        for _ in range(args.prune_iterations - 1):
            n -= count_to_prune({percent: n})
        remaining += n
    return remaining


def closing(args, argv):
    """Return a run's last lines: its figure, and the command that comes next."""
    which = f"figure of seed {args.seed}" if args.trials > 1 else "figure"
    figure = utils.Files(args).figure("AccuracyVsWeights")
    if args.prune_type == "lt" and not args.connect_to:
        flags = [text for text in argv if text not in ("--prune_type=lt", "--overwrite")]
        flags.append("--prune_type=reinit")
        if not args.one_shot and not args.tickets_from:  # which have the masks of lt anyway
            flags.append("--masks_from=lt")
        if args.rewind_iter:
            flags.append("--rewind_iter=0")  # reinit refuses others
        command = ["python3", "main.py", *flags]
    else:
        command = ["python3", "combine_plots.py"]
        if args.output_dir != ".":
            command.append(f"--output_dir={args.output_dir}")
    return f"\n{which}: {figure}\nnext: {shlex.join(command)}"


def parse_args(argv=None):
    """Return the settings from the command line. Exits with status 2 if they are unusable."""
    argv = sys.argv[1:] if argv is None else argv
    prune_types = [f"  {name:15}  {kind.meaning}" for name, kind in PRUNE_TYPES.items()]
    criteria = [f"  {name:15}  {criterion.formula}" for name, criterion in CRITERIA.items()]
    epilog = [
        "prune types, and what the survivors of a round become:",
        *prune_types,
        "",
        "criteria, and the scores by which they rank the weights; the lowest are pruned",
        "(w_f: weights at the end of the round, w_i: at its start):",
        *criteria,
        "Use --prune_scope=global with snip, grasp and synflow, as their papers do.",
        "",
        "Example: %(prog)s --dataset=digits --prune_percent=20 --prune_iterations=16 --end_iter=20",
    ]
    parser = utils.Parser(__doc__, epilog="\n".join(epilog))
    add_flags(parser)
    args = parser.parse_args(argv)
    check_architecture(parser, args)
    if args.paper:
        args = parse_with_paper(parser, args, argv)
        check_architecture(parser, args)
    del args.paper  # what it stands for is recorded

    if args.masks_from == "none":
        args.masks_from = None
    if args.order_seed is None:
        args.order_seed = 1 if args.connect_to else 0
    if not re.fullmatch(r"(?!before_)\w+", args.prune_type):  # as previous checkpoints are called
        parser.error(
            f"--prune_type={args.prune_type}: its name is part of file names, so use letters, "
            "digits and underscores, and do not begin it with before_"
        )
    if args.masks_from and args.tickets_from:
        parser.error(
            "--masks_from is not for --tickets_from, which says whose masks to use: leave it out"
        )
    if args.seed + args.trials > SEEDS:
        parser.error(f"--trials={args.trials} needs seeds beyond {SEEDS - 1}")
    check_training_flags(parser, args)
    for name, reason in refused(args.prune_type).items():
        if getattr(args, name):
            parser.error(f"--{name} is not for --prune_type={args.prune_type}: {reason}")
    check_one_shot(parser, args)

    if args.val_size is None:
        args.val_size = int(archs.facts(args.dataset).VAL_SIZE)
    for name, other in utils.FOLLOWS.items():
        if getattr(args, name) is None:
            setattr(args, name, getattr(args, other))
    if args.amp and args.sparse_below:
        parser.error("--sparse_below is not for --amp: sparse layers do not compute in bfloat16")
    if args.sparse_below is None:
        # Sparse products were measured with MKL only.
        args.sparse_below = 0 if args.amp or not torch.backends.mkl.is_available() else SPARSE_BELOW
    args.lr_milestones.sort()
    return args


def check_architecture(parser, args):
    """Exit with status 2 if the architecture is not for the dataset, or if a file is wrong."""
    names = archs.architectures(args.dataset)
    if args.arch_type not in names:
        parser.error(
            f"--arch_type={args.arch_type} does not support --dataset={args.dataset}; "
            f"these do: {', '.join(names)}"
        )
    module = archs.architecture(args.dataset, args.arch_type)
    if not hasattr(module, "build"):
        parser.error(f"{module.__file__} has no function build(channels, size, classes)")
    try:
        archs.facts(args.dataset)
        archs.layer_rates(args.dataset, args.arch_type)
    except ValueError as error:
        parser.error(str(error))


def check_training_flags(parser, args):
    """Exit with status 2 if flags of the optimizer or of the schedule exclude each other."""
    if args.nesterov and (args.optimizer != "sgd" or args.momentum == 0):
        parser.error(
            "--nesterov needs --optimizer=sgd and a --momentum above 0; --no-nesterov turns it off"
        )
    if args.lr_schedule == "cosine" and args.lr_milestones:
        parser.error(
            "--lr_milestones is not for --lr_schedule=cosine, which has no drops: leave out one of "
            "them"
        )
    if args.prune_type == "finetune" and args.lr_schedule == "cosine":
        parser.error(
            "--lr_schedule=cosine is not for --prune_type=finetune, which trains at the schedule's "
            "last rate, and a cosine ends at 0: give --lr_milestones instead, or use lr_rewind"
        )
    if args.prune_type == "finetune" and not args.lr_milestones and args.warmup_iter <= 1:
        parser.error(
            "--prune_type=finetune equals lr_rewind if the learning rate is constant: "
            "give --lr_milestones or --warmup_iter"
        )


def check_one_shot(parser, args):
    """Exit with status 2 if other flags leave no meaning to `--one_shot`."""
    if not args.one_shot:
        return
    if CRITERIA[args.criterion].before_training:
        parser.error(
            f"--one_shot is not for --criterion={args.criterion}, which uses no trained weights"
        )
    if PRUNE_TYPES[args.prune_type].reset is lr_rewind:
        parser.error(
            f"--one_shot is not for --prune_type={args.prune_type}, which starts rounds from "
            "trained weights"
        )
    if args.masks_from:
        parser.error(
            "--one_shot is not for --masks_from: without it, all prune types have the same ranking,"
            " because they share the first round"
        )


def parse_with_paper(parser, args, argv):
    """Return the settings from the command line, with the paper's settings as the defaults.

    `args` are the settings without them. Print the flags of the paper that `argv` does not have.
    """
    flags = archs.paper_flags(args.dataset, args.arch_type)
    if not flags:
        names = archs.architectures(args.dataset)
        known = [name for name in names if archs.paper_flags(args.dataset, name)]
        parser.error(
            f"--paper: the file of {args.arch_type} does not define PAPER; "
            f"those of {', '.join(known)} do"
        )
    if args.prune_type in ("reinit", "random") and not args.one_shot and not args.tickets_from:
        flags.append("--masks_from=lt")
    papers = {flag_name(flag): flag for flag in flags}  # a later flag replaces an earlier one
    given = {flag_name(text) for text in argv}
    if "--end_iter" in given:
        given.add("--max_iter")  # which would take precedence
    # One schedule replaces the other.
    if args.lr_schedule == "cosine":
        given.add("--lr_milestones")
    if args.lr_milestones:
        given.add("--lr_schedule")
    flags = [flag for name, flag in papers.items() if name not in given]
    print(f"--paper sets {' '.join(flags)}")
    return parser.parse_args([*flags, *argv])


def flag_name(text):
    """Return the name of a flag on the command line; that of --no-augment is --augment."""
    return text.partition("=")[0].replace("--no-", "--")


def defaults(args):
    """Return {flag: default} for this dataset, architecture and pruning rates.

    The defaults of some flags depend on these.
    """
    decisive = ("dataset", "arch_type", "prune_percent", "prune_percent_conv")
    return vars(parse_args([f"--{name}={getattr(args, name)}" for name in decisive]))


def add_flags(parser):
    """Add all flags. A default that depends on another flag is None here; parse_args sets it."""
    number = utils.number
    count = number(int, "[1, 1e9)")
    size = number(int, "[0, 1e9)")
    rate = number(float, "(0, inf)")
    share = number(float, "[0, 100)")

    # fmt: off
    add = parser.add_argument_group("experiment").add_argument
    add("--prune_type", default="lt", choices=PRUNE_TYPES, metavar="NAME",
        help="what the survivors of a round are reset to, see below")
    add("--dataset", default="mnist", choices=archs.datasets(),
        help="digits comes with the code, the others are downloaded")
    add("--arch_type", default="fc1", choices=archs.architectures(),
        help="network")
    add("--paper", action="store_true",
        help="use the paper's settings for the architecture, unless other flags are given")
    add("--seed", default=0, type=number(int, f"[0, {SEEDS})"), metavar="N",
        help="seeds all randomness")
    add("--trials", default=1, type=number(int, "[1, 1000)"), metavar="N",
        help="number of seeds, starting at --seed")

    add = parser.add_argument_group("pruning").add_argument
    add("--prune_percent", default=10.0, type=number(float, "(0, 100)"), metavar="P",
        help="percent of the surviving weights pruned per round")
    add("--prune_percent_conv", type=share, metavar="P",
        help="the same for convolutions; 0 leaves them dense"
             " (default: --prune_percent%(default).0s)")
    add("--prune_percent_downsample", type=share, metavar="P",
        help="the same for layers in modules named downsample, which are the shortcuts of residual"
             " networks (default: --prune_percent_conv%(default).0s)")
    add("--prune_percent_output", type=share, metavar="P",
        help="the same for the output layer (default: --prune_percent%(default).0s)")
    add("--prune_iterations", default=35, type=number(int, "[1, 10000)"), metavar="N",
        help="number of rounds; the first is dense")
    add("--prune_scope", default="layer", choices=SCOPES,
        help="prune the percentage within each layer, or across all layers: the lowest scores"
             " (global), or to Erdos-Renyi-kernel densities (erk)")
    add("--criterion", default="magnitude", choices=CRITERIA, metavar="NAME",
        help="what ranks the weights, see below")
    add("--one_shot", action="store_true",
        help="in all rounds, rank by the weights at the end of the first round")
    add("--masks_from", choices=["lt", "none"],
        help="use the masks of the lt run with the same seed (default: none%(default).0s)")
    add("--tickets_from", type=utils.folder_or_none, metavar="DIR",
        help="use the tickets of another lt run, of which DIR is the folder saves/<arch>/<dataset>"
             " (default: none%(default).0s)")
    add("--rewind_iter", default=0, type=size, metavar="K",
        help="reset to the weights after K iterations of the first round")

    add = parser.add_argument_group("stability").add_argument
    add("--order_seed", type=number(int, f"[0, {SEEDS})"), metavar="N",
        help="another order of examples, augmentation and dropout for each seed, from iteration K"
             " on; 0: the usual one (default: 0, with --connect_to 1%(default).0s)")
    add("--connect_to", type=utils.folder_or_none, metavar="DIR",
        help="repeat the run of the same prune type in DIR, its folder saves/<arch>/<dataset>, in"
             " another order, and measure the error barrier between both (default:"
             " none%(default).0s)")

    add = parser.add_argument_group("training").add_argument
    add("--optimizer", default="adam", choices=["adam", "adamw", "sgd"],
        help="optimizer; constants without a flag are torch's defaults")
    add("--lr", default=1.2e-3, type=rate, metavar="X",
        help="learning rate")
    add("--momentum", default=0.9, type=number(float, "[0, 1)"), metavar="X",
        help="momentum of SGD")
    add("--nesterov", default=False, action=argparse.BooleanOptionalAction,
        help="Nesterov's momentum, for SGD")
    add("--weight_decay", default=0.0, type=number(float, "[0, inf)"), metavar="X",
        help="factor of the L2 penalty; with adamw, of decoupled weight decay")
    add("--lr_schedule", default="step", choices=["step", "cosine"],
        help="drops at --lr_milestones, or a cosine from --lr to 0 after the warm-up")
    add("--lr_milestones", default=[], type=utils.numbers("[1, 1e9)"), metavar="N,...",
        help="comma-separated iterations after which the learning rate is multiplied by --lr_gamma"
             " (default: none%(default).0s)")
    add("--lr_gamma", default=0.1, type=number(float, "(0, 1)"), metavar="X",
        help="factor of the learning rate at each milestone")
    add("--warmup_iter", default=0, type=size, metavar="N",
        help="iterations in which the learning rate rises linearly to --lr")
    add("--batch_size", default=60, type=count, metavar="N",
        help="examples per iteration")
    add("--end_iter", default=100, type=count, metavar="N",
        help="epochs per round")
    add("--max_iter", default=0, type=size, metavar="N",
        help="iterations per round, instead of --end_iter epochs; 0: off")
    add("--label_smoothing", default=0.0, type=number(float, "[0, 1)"), metavar="X",
        help="in the training loss, share of each label that is spread evenly over all classes")
    add("--augment", default=False, action=argparse.BooleanOptionalAction,
        help="randomly flip images and shift them by up to 4 pixels")
    add("--val_size", type=size, metavar="N",
        help="held-out training examples, used to select the best evaluation; 0 selects on the"
             " test set (default: the dataset's, usually 5000%(default).0s)")
    add("--valid_freq", default=1, type=count, metavar="N",
        help="epochs between evaluations; the end of a round is always evaluated")
    add("--eval_iter", default=0, type=size, metavar="N",
        help="also evaluate every N iterations; 0: off")

    add = parser.add_argument_group("machine").add_argument
    add("--gpu", default=0, type=number(int, "[0, inf)", "cpu"), metavar="N",
        help="index of the GPU, or cpu; without a GPU, the CPU is used")
    add("--threads", type=number(int, "[1, 1024)"), metavar="N",
        help="CPU threads (default: OMP_NUM_THREADS if set, else one for small networks and all"
             " cores for large ones%(default).0s)")
    add("--sparse_below", type=share, metavar="P",
        help="on a CPU, linear layers with less than P percent of their weights compute with only"
             f" these; 0: off (default: {SPARSE_BELOW}, with --amp 0%(default).0s)")
    add("--amp", action="store_true",
        help="bfloat16 in the forward pass")
    add("--data_dir", default="data", type=utils.folder, metavar="DIR",
        help="where datasets are, or are downloaded to")
    add("--output_dir", default=".", type=utils.folder, metavar="DIR",
        help="where results go")
    add("--overwrite", action="store_true",
        help="delete existing results and start over")
    add("--print_freq", default=1, type=count, metavar="N",
        help="epochs between progress updates")
    # fmt: on


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend works only in its own process
    with utils.one_line_errors("main.py"):
        args = parse_args()
        main(args)
        if utils.from_torchrun("RANK", 0) == 0:
            print(closing(args, sys.argv[1:]))
