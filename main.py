"""The lottery ticket experiment: train, prune the smallest weights, reset the survivors, repeat.

Winning tickets, their control with new random weights, and the two curves in one figure:

    python3 main.py --prune_type=lt --arch_type=fc1 --dataset=mnist --prune_percent=10 --prune_iterations=35
    python3 main.py --prune_type=reinit --arch_type=fc1 --dataset=mnist --prune_percent=10 --prune_iterations=35
    python3 combine_plots.py

The same in a minute, without a download:

    python3 main.py --dataset=digits --prune_percent=20 --prune_iterations=16 --end_iter=20

To watch: tensorboard --logdir=runs

J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", ICLR 2019.
"""

import bisect
import copy
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import compress

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

import archs
import combine_plots
import utils

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)  # whose weights are pruned
EVAL_BATCH = {"cpu": 500, "cuda": 2000}  # small enough for a CPU's caches, large enough for a GPU to be busy


def main(args):
    """Run the trials of a command. Those that are finished only have their log, arrays and missing figures written again."""
    trials = utils.trials(args)
    device, model = pick_device(trials[0].gpu), new_model(args, round_=0)
    failures = []
    with utils.opened(trials, model, defaults(args)) as runs:
        unfinished = []
        for run in runs:
            rounds = run.finished_rounds()
            if rounds < args.prune_iterations:
                unfinished.append(run)
            else:
                run.write_results()
                combine_plots.draw_run(run.files)
                print(f"finished: {run.files.dumps} has {rounds} rounds; a larger --prune_iterations adds more")
        if unfinished:
            failures = run_trials(args, unfinished, model, device)
    utils.report(failures)


def run_trials(args, runs, model, device):
    """Run these trials, after every check that can be made before training. Returns what failed, a list of messages."""
    rates = percents(args, model)
    data = load_data(runs[0].args, device)
    for run in runs:
        run.check(data.digest, new_state(args, model))
    if args.overwrite:
        for run in runs:
            run.clear()
    print(plan(args, model, rates, data, len(runs)), flush=True)

    failures = []
    for run in runs:
        if run is not runs[0]:
            data = load_data(run.args, device)  # each trial holds out other examples
        try:
            experiment(run, data, rates, device)
        except utils.Failure as failure:
            failures.append(str(failure))
            if args.trials > 1:  # the others may take hours yet
                print(f"failed: {failure}", file=sys.stderr)
    return failures


def experiment(run, data, rates, device):
    """One trial: train, prune the smallest weights, reset the survivors, repeat."""
    args = run.args
    state = new_state(args, prepare(new_model(args, round_=0), args, device))
    with run:
        run.begin(state)
        if state.round >= run.files.rounds():  # a resumed run may be at the end of a round
            train(args, state, data, run)
        while state.round + 1 < args.prune_iterations:
            reset(args, state, next_masks(run, state, rates))
            train(args, state, data, run)


def plan(args, model, rates, data, runs):
    """A line that sums up the command, and one that names the parameters that are never pruned."""
    _, end = iterations(args, data)
    weights, rounds = prunable(model), args.prune_iterations
    total = sum(weight.numel() for weight in weights.values())
    left = sum(weight.numel() * (1 - rates[name] / 100) ** (rounds - 1) for name, weight in weights.items())
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    size = runs * (rounds * (2 * held + total + 1e5) + 2 * (5 * held + total) + held)  # tickets, checkpoints
    lines = [
        f"{f'{runs} trials of ' if runs > 1 else ''}{rounds} round{'s' if rounds > 1 else ''} of {end} iterations, down to "
        f"{100 * left / total:.2f}% of the {total} weights; about {size / 1e6:.0f} MB of results in {args.output_dir}"
    ]
    others = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1 and name not in weights}
    if others:
        lines.append("not pruned: " + ", ".join(f"{name} {shape}" for name, shape in others.items()))
    return "\n".join(lines)


def pick_device(gpu):
    """The torch.device that `--gpu` names; the CPU where there is no GPU at all. Sets up its arithmetic for speed."""
    torch.set_flush_denormal(True)  # Adam's moments of weights without gradient get there, and are ten times slower then
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu == "cpu" or gpu == count == 0:
        if gpu != "cpu":
            print("no GPU found: running on the CPU")
        return torch.device("cpu")
    if gpu >= count:
        raise utils.BadInput(f"there is no GPU {gpu}: " + (f"choose one of 0 to {count - 1}" if count else "use --gpu=cpu"))
    torch.cuda.set_device(gpu)
    torch.set_float32_matmul_precision("high")  # TF32
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", gpu)


def seeds(count, seed, *key):
    """`count` seeds for torch that follow from `seed` and `key` (round, epoch) alone; a larger count begins with the same."""
    return np.random.SeedSequence(seed, spawn_key=key).generate_state(count, np.uint64).tolist()


def seed_torch(seed, *key):
    """Make what torch draws next follow from `seed` and `key` (round, epoch) alone, not from what was drawn before."""
    torch.manual_seed(seeds(1, seed, *key)[0])


@dataclass
class Data:
    """A dataset on the device. Each part is a pair: uint8 images (N, C, H, W) and int64 labels (N,)."""

    train: list
    val: list  # the test part itself where nothing is held out
    test: list
    normalize: Callable  # uint8 images -> float images of mean 0 and standard deviation 1
    digest: str = ""  # tells other data from these


def load_data(args, device):
    """The dataset on `device`, as Data. Raises BadInput where it is not there or does not go with the settings."""
    try:
        facts = archs.facts(args.dataset)
        images, labels = archs.load(args.dataset, args.data_dir, train=True)
        test = archs.load(args.dataset, args.data_dir, train=False)
    except (OSError, ValueError) as error:
        raise utils.BadInput(error) from error

    val_size, train_size = args.val_size, len(labels) - args.val_size
    if train_size <= 0:
        raise utils.BadInput(f"--val_size={val_size} leaves nothing of the {len(labels)} training examples to train on")
    if args.batch_size > train_size:
        raise utils.BadInput(f"--batch_size={args.batch_size} is larger than the {train_size} training examples")
    crc = zlib.crc32(f"{facts.MEAN} {facts.STD}".encode())
    for tensor in (images, labels, *test):
        crc = zlib.crc32(tensor.numpy(), crc)
    digest = f"{len(labels)} + {len(test[1])} examples, digest {crc:08x}"
    seed_torch(args.seed)
    train, val = torch.randperm(len(labels)).split([train_size, val_size])
    if val_size == 0:
        print("--val_size=0: the best epoch is selected on the test set")

    mean, std = (255 * torch.tensor(x, device=device).view(-1, 1, 1) for x in (facts.MEAN, facts.STD))
    parts = [(images[train], labels[train]), (images[val], labels[val]), test]
    train, val, test = ([x.to(device), y.to(device)] for x, y in parts)
    data = Data(train, val if val_size else test, test, lambda images: images.float().sub_(mean).div_(std), digest)
    _, end = iterations(args, data)
    if args.rewind_iter >= end:
        raise utils.BadInput(f"--rewind_iter={args.rewind_iter} is not within a round, which has {end} iterations")
    return data


def iterations(args, data):
    """The iterations of an epoch, which has full batches only, and those of a round."""
    steps = len(data.train[1]) // args.batch_size
    return steps, args.max_iter or args.end_iter * steps


def new_model(args, round_):
    """The model with random weights that follow from the seed and the round: Gaussian Glorot weights, zero biases.

    Batch norm stays as it is built, at its identity.
    """
    seed_torch(args.seed, round_, 0)  # epoch 0, as training counts from 1
    model = archs.build(args.dataset, args.arch_type)
    for module in model.modules():
        if isinstance(module, LAYERS) and module.weight.requires_grad:
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def prepare(model, args, device):
    """The model on `device`, in the memory format and precision that it trains in."""
    if all(parameter.dim() != 5 for parameter in model.parameters()):  # Conv3d has a format of its own
        model = model.to(memory_format=torch.channels_last)
    model = model.to(device)
    if args.amp:
        model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)
    return model


def new_state(args, model):
    """A run at its beginning, with the network as it is."""
    return utils.State(
        masks={name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()},
        model=model,
        initial=copy.deepcopy(model.state_dict()),
        best=copy.deepcopy(model.state_dict()),
        moments=new_moments(args, model),
        loss=torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device),
    )


def new_moments(args, model):
    """The memory of a fresh optimizer, {name: {parameter name: tensor}}."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    if args.optimizer == "sgd":
        return {"momentum": zeros}
    steps = {name: torch.zeros((), device=parameter.device) for name, parameter in zeros.items()}
    return {"average": zeros, "square": copy.deepcopy(zeros), "step": steps}


def prunable(model):
    """The weights of the model's convolutions and linear layers that are not frozen, {parameter name: parameter}.

    By the layer's type, since batch norm calls its scale "weight" too.
    """
    weights = {id(module.weight) for module in model.modules() if isinstance(module, LAYERS)}
    return {name: p for name, p in model.named_parameters() if id(p) in weights and p.requires_grad and p.numel()}


def prune(weights, masks, percent, scope="layer"):
    """Masks without the smallest weights: of the n that `masks` keep, exactly round(percent / 100 * n) go.

    `weights` and `masks` ({parameter name: tensor}, the masks bool and true where a weight survives) stay as they are.
    `percent` is a number, or {parameter name: number}. `scope` "layer" counts and compares within each layer, "global"
    over all layers together; a layer at 0 percent stays out of that. The count decides, never a threshold: equal
    magnitudes cannot remove more, and what is pruned is no candidate any more, so that masks are nested.
    """
    percents = percent if isinstance(percent, dict) else dict.fromkeys(masks, percent)
    names = [name for name in masks if percents[name] > 0]
    pruned = dict(masks)
    for group in [[name] for name in names] if scope == "layer" else [names]:
        alive = torch.cat([masks[name].flatten() for name in group])
        magnitude = torch.cat([weights[name].detach().abs().flatten() for name in group])
        survivors = alive.nonzero().squeeze(1)
        counts = Counter()
        for name in group:
            counts[percents[name]] += int(masks[name].sum())
        count = round(sum(percent / 100 * n for percent, n in counts.items()))
        smallest = magnitude[survivors].topk(count, largest=False, sorted=False).indices
        alive[survivors[smallest]] = False
        for name, mask in zip(group, alive.split([masks[name].numel() for name in group]), strict=True):
            pruned[name] = mask.view_as(masks[name])
    return pruned


def next_masks(run, state, rates):
    """The masks of the next round, from the masks and the trained weights of this one, or from another run."""
    args, round_ = run.args, state.round + 1
    if args.masks_from:
        wanted = utils.read_masks(run, round_, state.masks)
    else:
        wanted = prune(prunable(state.model), state.masks, rates, args.prune_scope)
    if args.prune_type == "random":
        seed_torch(args.seed, round_, 0)
        return random_masks(wanted, state.masks)
    return wanted


def percents(args, model):
    """What percentage of each layer goes in a round, {parameter name: percent}."""
    last = last_layer(args, model)
    convolutions = {id(module.weight) for module in model.modules() if isinstance(module, CONVOLUTIONS)}
    found = {}
    for name, weight in prunable(model).items():
        found[name] = args.prune_percent_conv if id(weight) in convolutions else args.prune_percent
        if "downsample" in name.split("."):
            found[name] = args.prune_percent_downsample
        if last is not None and weight is last.weight:
            found[name] = args.prune_percent_output
    if not any(found.values()):
        raise utils.BadInput(
            f"nothing of {args.arch_type} would be pruned: it has no convolution or linear layer, or all of them are at 0%"
        )
    return found


def last_layer(args, model):
    """The layer that runs last in a forward pass, which is the output; None where there is no such layer.

    Raises BadInput where the network cannot be trained on images of this shape, or gives no logits.
    """
    facts, ran = archs.facts(args.dataset), []
    images = torch.zeros(min(2, args.batch_size), facts.CHANNELS, facts.SIZE, facts.SIZE)
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    try:
        shape = tuple(model(images).shape)
    except (RuntimeError, ValueError) as error:  # such as that of batch norm for a single example
        reason = archs.one_line(error)
        raise utils.BadInput(f"{args.arch_type} cannot be trained on batches of {tuple(images.shape)}: {reason}") from error
    for hook in hooks:
        hook.remove()
    if shape != (len(images), facts.CLASSES):
        raise utils.BadInput(f"{args.arch_type} gives {shape}, not logits of shape {(len(images), facts.CLASSES)}")
    return ran[-1] if ran else None


def random_masks(wanted, masks):
    """Masks that keep as many weights in each layer as `wanted` does, drawn at random from those that `masks` keep."""
    drawn = {}
    for name, mask in masks.items():
        survivors = mask.flatten().nonzero().squeeze(1)
        order = torch.randperm(len(survivors)).to(mask.device)  # the same on every device
        chosen = survivors[order[: int(wanted[name].sum())]]
        drawn[name] = torch.zeros_like(mask).flatten().index_fill(0, chosen, True).view_as(mask)
    return drawn


def reset(args, state, masks):
    """Start the next round under `masks`, with a fresh optimizer, and the network as it was at first (reinit: a new one)."""
    state.round += 1
    state.iteration = args.rewind_iter  # a rewound network goes on from there
    state.seconds = 0.0
    state.rows.append([])
    utils.fill(state.masks, masks)
    state.model.load_state_dict(new_model(args, state.round).state_dict() if args.prune_type == "reinit" else state.initial)
    apply_masks(state.model, state.masks)
    utils.fill(state.moments, new_moments(args, state.model))
    state.loss.zero_()


@torch.no_grad()
def apply_masks(model, masks):
    for name, weight in prunable(model).items():
        weight.masked_fill_(~masks[name], 0)


def train(args, state, data, run):
    """Train from `state` to the end of its round, evaluating on the way, and write the round's results."""
    steps, end = iterations(args, data)
    start, device = state.iteration, data.train[1].device
    random = torch.cuda.default_generators[torch.cuda.current_device()] if device.type == "cuda" else torch.default_generator
    epoch = Epoch(args, steps, device)
    state.model.train()
    step = graphed(make_step(args, state, data, epoch), state, epoch)
    with utils.Log(args, state, steps, end) as log:
        while state.iteration < end:
            index = state.iteration % steps
            if index == 0 or state.iteration == start:
                epoch.begin(args, state, len(data.train[1]))
            random.manual_seed(epoch.seeds[index])
            step()
            state.iteration += 1
            log.tick()

            # A step waits for nothing on the device; what follows does, when there is something to do.
            if state.round == 0 and state.iteration == args.rewind_iter:
                utils.fill(state.initial, state.model.state_dict())
                utils.save_checkpoint(run.files.initial, state.initial)
            due = evaluation_due(args, state.iteration, steps, end)
            if due or index + 1 == steps:
                row = log.add(**measure(args, state, data, steps, due))
                if utils.best(state.rows[-1]) is row:
                    utils.fill(state.best, state.model.state_dict())
            run.checkpoint(state, now=state.iteration == end)
        utils.end_round(run, state, log)
    combine_plots.draw_run(run.files)
    run.checkpoint(state)  # where a signal came since


def evaluation_due(args, iteration, steps, end):
    epoch, rest = divmod(iteration, steps)
    at_epoch, at_iteration = rest == 0 and epoch % args.valid_freq == 0, args.eval_iter and iteration % args.eval_iter == 0
    return at_epoch or at_iteration or iteration == end


class Epoch:
    """What the steps of an epoch read: batches, learning rates, seeds. Its tensors are never replaced, for a CUDA graph."""

    def __init__(self, args, steps, device):
        self.batches = torch.zeros(steps, args.batch_size, dtype=torch.int64, device=device)  # the numbers of the examples
        self.rates = torch.zeros(steps, dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
        self.done = torch.zeros(1, dtype=torch.int64, device=device)  # how many of the steps
        self.seeds = [0] * steps  # of what is random in each

    def begin(self, args, state, examples):
        """Set what is random, and the learning rates, in the epoch that `state` is in, or is about to begin."""
        steps = len(self.seeds)
        number, index = divmod(state.iteration, steps)
        of_order, *self.seeds = seeds(1 + steps, args.seed, state.round, number + 1)
        torch.manual_seed(of_order)
        order = torch.randperm(examples)  # the same on every device; its last, incomplete batch is left out
        self.batches.copy_(order[: self.batches.numel()].view_as(self.batches))
        self.rates.copy_(torch.tensor([learning_rate(args, number * steps + i) for i in range(steps)], dtype=torch.float64))
        self.done.fill_(index)
        if index == 0:
            state.loss.zero_()


def learning_rate(args, iteration):
    """Of the step after `iteration` steps: a linear warmup, then a drop by the factor --lr_gamma at each milestone."""
    warmup = min(1, (iteration + 1) / args.warmup_iter) if args.warmup_iter else 1
    return args.lr * warmup * args.lr_gamma ** bisect.bisect(args.lr_milestones, iteration)


def make_step(args, state, data, epoch):
    """A function that does one iteration, all of it on the device, so that it can be captured once and replayed."""
    images, labels = data.train
    model, parameters = state.model, list(state.model.parameters())
    moments = {name: list(tensors.values()) for name, tensors in state.moments.items()}
    kept = [(weight, torch.empty_like(weight).copy_(state.masks[name])) for name, weight in prunable(model).items()]

    def step():
        batch = epoch.batches.index_select(0, epoch.done).squeeze(0)
        x = images.index_select(0, batch)
        logits = model(data.normalize(augment(x) if args.augment else x))
        loss = F.cross_entropy(logits.float(), labels.index_select(0, batch))
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            update(args, parameters, moments, epoch.rates.index_select(0, epoch.done).squeeze(0))
            for weight, mask in kept:  # momentum and weight decay would bring pruned weights back
                weight.mul_(mask)
        state.loss.add_(loss.detach())
        epoch.done.add_(1)

    return step


def update(args, parameters, moments, lr):
    """One step of Adam or SGD down the gradients, by torch.optim's functions.

    Its classes do the same, but take half as long again on a small network for their bookkeeping.
    """
    moved = [parameter.grad is not None for parameter in parameters]
    if not all(moved):  # as with its classes, what is frozen or not used stays as it is
        parameters = list(compress(parameters, moved))
        moments = {name: list(compress(tensors, moved)) for name, tensors in moments.items()}
    gradients = [parameter.grad for parameter in parameters]
    settings = {"lr": lr, "weight_decay": args.weight_decay, "maximize": False, "fused": True}
    if args.optimizer == "sgd":
        sgd(parameters, gradients, moments["momentum"], momentum=args.momentum, dampening=0, nesterov=False, **settings)
    else:
        constants = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
        adam(parameters, gradients, moments["average"], moments["square"], [], moments["step"], **constants, **settings)


def augment(images):
    """Each of the images (N, C, H, W) flipped or not, and moved by up to four pixels, over black, in both directions."""
    n, _, height, width = images.shape
    across, down = torch.randint(9, (2, n, 1), device=images.device)
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device) + across
    columns = torch.where(torch.rand(n, 1, device=images.device) < 0.5, columns.flip(1), columns)
    examples = torch.arange(n, device=images.device).view(n, 1, 1)
    pixels = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return pixels[examples, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def graphed(step, state, epoch):
    """On a GPU, `step` captured once as a CUDA graph, which is replayed without work for the host; elsewhere `step` itself.

    Before a capture come some steps for real. What they change is put back.
    """
    if not epoch.done.is_cuda:
        return step
    before, stream = utils.copied(vars(state)), side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            epoch.done.zero_()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        step = graph.replay
    except RuntimeError as error:
        while error.__context__:  # leaving a capture that failed raises an error of its own
            error = error.__context__
        if isinstance(error, torch.OutOfMemoryError):
            raise error from None
        print(f"no CUDA graph, each step is launched anew: {' '.join(str(error).splitlines()[:1])}")
        torch.cuda.synchronize()
    utils.fill(vars(state), before)
    return step


@cache
def side_stream():
    """The stream for warm-up and capture of every round."""
    return torch.cuda.Stream()


def measure(args, state, data, steps, due):
    """The values of a log row: the epoch's mean training loss so far and, if one is due, an evaluation."""
    begin = args.rewind_iter if state.round else 0
    found = {"train_loss": state.loss.item() / min((state.iteration - 1) % steps + 1, state.iteration - begin)}
    if due:
        val_loss, val_accuracy = evaluate(state.model, data.val, data.normalize)
        test_accuracy = val_accuracy if data.val is data.test else evaluate(state.model, data.test, data.normalize)[1]
        state.model.train()
        found |= {"val_loss": val_loss, "val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
    if not math.isfinite(found["train_loss"] + found.get("val_loss", 0)):
        where = f"round {state.round}, epoch {math.ceil(state.iteration / steps)} of seed {args.seed}"
        advice = f"start anew with a lower --lr than {args.lr}, and --overwrite or another --output_dir"
        raise utils.Failure(f"the loss is not finite in {where}: {advice}")
    return found


@torch.no_grad()
def evaluate(model, examples, normalize):
    """Mean loss and accuracy (percent) of `model` over all `examples`, in eval mode, which it is left in."""
    model.eval()
    images, labels = examples
    loss, correct = torch.zeros(2, dtype=torch.float64, device=labels.device)
    size = EVAL_BATCH[labels.device.type]
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        logits = model(normalize(x)).float()
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    loss, correct = torch.stack([loss, correct]).tolist()
    return loss / len(labels), 100 * correct / len(labels)


def parse_args(argv=None):
    example = "Example: %(prog)s --dataset=digits --prune_percent=20 --prune_iterations=16 --end_iter=20"
    parser = utils.Parser(description=__doc__.split("\n\n")[0], epilog=example)
    number = utils.number
    count, size = number(int, "[1, inf)"), number(int, "[0, inf)")
    rate, decay = number(float, "(0, inf)"), number(float, "[0, inf)")
    percent, share = number(float, "(0, 100)"), number(float, "[0, 100)")

    add = parser.add_argument_group("experiment").add_argument
    add("--prune_type", default="lt", choices=utils.PRUNE_TYPES, help="lt: reset the survivors to the original weights;"
        " reinit: to new ones; random: to the original ones, but let chance choose the survivors")  # fmt: skip
    add("--dataset", default="mnist", choices=archs.datasets(), help="digits comes with the code")
    add("--arch_type", default="fc1", choices=archs.architectures(), help="network")
    add("--seed", default=0, type=number(int, f"[0, {2**64})"), metavar="N", help="decides everything random")
    add("--trials", default=1, type=count, metavar="N", help="run so many seeds, from --seed on")

    add = parser.add_argument_group("pruning").add_argument
    add("--prune_percent", default=10.0, type=percent, metavar="P", help="percent of the surviving weights pruned per round")
    add("--prune_percent_conv", type=share, metavar="P", help="of convolutions (default: --prune_percent%(default).0s)")
    add("--prune_percent_downsample", type=share, metavar="P", help="of the convolutions on the shortcuts of residual networks"
        " (default: --prune_percent_conv%(default).0s)")  # fmt: skip
    add("--prune_percent_output", type=share, metavar="P", help="of the last layer (default: --prune_percent%(default).0s)")
    add("--prune_iterations", default=35, type=count, metavar="N", help="rounds, the first of them dense")
    add("--prune_scope", default="layer", choices=["layer", "global"], help="prune within each layer or over all together")
    add("--masks_from", choices=["lt"], help="prune as the seed's lt run did, round by round (default: none%(default).0s)")
    add("--rewind_iter", default=0, type=size, metavar="K", help="reset to the weights after K iterations of the first round")

    add = parser.add_argument_group("training").add_argument
    add("--optimizer", default="adam", choices=["adam", "sgd"], help="with torch's usual constants")
    add("--lr", default=1.2e-3, type=rate, metavar="X", help="learning rate")
    add("--momentum", default=0.9, type=number(float, "[0, 1)"), metavar="X", help="SGD's momentum")
    add("--weight_decay", default=0.0, type=decay, metavar="X", help="L2 penalty")
    milestones = utils.numbers("[1, inf)")
    add("--lr_milestones", default=[], type=milestones, metavar="N,...", help="iterations after which the learning rate drops,"
        " with commas between them (default: none%(default).0s)")  # fmt: skip
    add("--lr_gamma", default=0.1, type=rate, metavar="X", help="the factor of each drop")
    add("--warmup_iter", default=0, type=size, metavar="N", help="iterations in which the learning rate rises from 0 to --lr")
    add("--batch_size", default=60, type=count, metavar="N", help="examples per iteration")
    add("--end_iter", default=100, type=count, metavar="N", help="epochs per round")
    add("--max_iter", default=0, type=size, metavar="N", help="iterations per round, instead of epochs; 0 for none")
    add("--augment", action="store_true", help="flip images and move them by up to 4 pixels, at random")
    add("--val_size", type=size, metavar="N", help="training examples held out to select the best epoch;"
        " 0 selects on the test set (default: the dataset's, as a rule 5000%(default).0s)")  # fmt: skip
    add("--valid_freq", default=1, type=count, metavar="N", help="epochs between evaluations")
    add("--eval_iter", default=0, type=size, metavar="N", help="evaluate every N iterations as well; 0 for none")

    add = parser.add_argument_group("machine").add_argument
    add("--gpu", default=0, type=number(int, "[0, inf)", "cpu"), metavar="N", help="a GPU's index, or cpu")
    add("--amp", action="store_true", help="bfloat16 in the forward pass")
    add("--data_dir", default="data", type=utils.folder, metavar="DIR", help="where datasets are, or are downloaded to")
    add("--output_dir", default=".", type=utils.folder, metavar="DIR", help="where results go")
    add("--overwrite", action="store_true", help="start anew where results exist")
    add("--print_freq", default=1, type=count, metavar="N", help="epochs between changes of the progress line")

    args = parser.parse_args(argv)
    try:
        facts = archs.facts(args.dataset)
    except ValueError as error:
        parser.error(str(error))
    if args.arch_type not in archs.architectures(args.dataset):
        names = ", ".join(archs.architectures(args.dataset))
        parser.error(f"--arch_type={args.arch_type} is not for --dataset={args.dataset}, which has {names}")
    if args.prune_type == "lt" and args.masks_from:
        parser.error("--masks_from=lt is for the other prune types, as lt makes these masks")
    if args.prune_type == "reinit" and args.rewind_iter:
        parser.error("--rewind_iter is not for --prune_type=reinit, which resets to new weights")
    if args.val_size is None:
        args.val_size = facts.VAL_SIZE
    for name, above in (("conv", "percent"), ("output", "percent"), ("downsample", "percent_conv")):
        if getattr(args, f"prune_percent_{name}") is None:
            setattr(args, f"prune_percent_{name}", getattr(args, f"prune_{above}"))
    args.lr_milestones.sort()
    return args


def defaults(args):
    """The defaults of all flags for this dataset, architecture and pruning rate, on which some of them depend."""
    shared = ("dataset", "arch_type", "prune_percent", "prune_percent_conv")
    return vars(parse_args([f"--{name}={getattr(args, name)}" for name in shared]))


if __name__ == "__main__":
    with utils.one_line_errors("main.py"):
        main(parse_args())
