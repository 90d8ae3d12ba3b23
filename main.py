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

import argparse
import bisect
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

import archs
import utils

EVAL_BATCH = 500  # small enough for a CPU's caches


def main(args):
    device = pick_device(args.gpu)
    with utils.Log(args) as log:
        if log.finished:
            return
        data = load_data(args, device)
        model = prepare(new_model(args, round_=0), args, device)
        masks, rates = dense_masks(model), percents(args, model)
        first = take_up(log.saved, model, masks) if log.saved else 0
        log.begin(model)

        for round_ in range(first, args.prune_iterations):
            if round_ > first:  # the network is neither new nor taken up within a round
                masks = next_masks(args, model, masks, rates, round_, log)
                model.load_state_dict(new_model(args, round_).state_dict() if args.prune_type == "reinit" else log.initial)
                apply_masks(model, masks)
            best = train(args, model, masks, data, round_, log)
            log.ticket(round_, model, masks, best)


def pick_device(gpu):
    """The torch.device that `--gpu` names; the CPU where there is no GPU at all. Sets up its arithmetic for speed."""
    torch.set_flush_denormal(True)  # Adam's moments of weights without gradient get there, and are ten times slower then
    if gpu == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if gpu < count:
        torch.cuda.set_device(gpu)
        torch.set_float32_matmul_precision("high")  # TF32
        return torch.device("cuda", gpu)
    if gpu == count == 0:
        print("no GPU found: running on the CPU")
        return torch.device("cpu")
    raise utils.BadInput(f"--gpu={gpu} is not here: {f'0 to {count - 1} are' if count else 'use --gpu=cpu'}")


def seed_torch(seed, *key):
    """Make what torch draws next follow from `seed` and `key` (round, epoch) alone, not from what was drawn before."""
    torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0]))


def load_data(args, device):
    """The dataset on `device`: .train, .val and .test, each uint8 images and int64 labels, and .normalize for the images."""
    facts = archs.facts(args.dataset)
    try:
        images, labels = archs.load(args.dataset, args.data_dir, train=True)
        test = archs.load(args.dataset, args.data_dir, train=False)
    except (OSError, ValueError) as error:
        raise utils.BadInput(error) from error

    val_size = args.val_size
    train_size = len(labels) - val_size
    if train_size <= 0:
        raise utils.BadInput(f"--val_size={val_size} leaves nothing of the {len(labels)} training examples to train on")
    if args.batch_size > train_size:
        raise utils.BadInput(f"--batch_size={args.batch_size} is larger than the {train_size} training examples")
    _, end = iterations(args, train_size)
    if args.rewind_iter >= end:
        raise utils.BadInput(f"--rewind_iter={args.rewind_iter} is not within a round, which has {end} iterations")
    seed_torch(args.seed)
    train, val = torch.randperm(len(labels)).split([train_size, val_size])
    if val_size == 0:
        print("--val_size=0: the best epoch is selected on the test set")

    mean, std = (255 * torch.tensor(x, device=device).view(-1, 1, 1) for x in (facts.MEAN, facts.STD))
    test = [tensor.to(device) for tensor in test]
    return SimpleNamespace(
        train=[images[train].to(device), labels[train].to(device)],
        val=[images[val].to(device), labels[val].to(device)] if val_size else test,
        test=test,
        normalize=lambda images: images.float().sub_(mean).div_(std),
    )


def iterations(args, examples):
    """The iterations of an epoch, which has full batches only, and those of a round."""
    steps = examples // args.batch_size
    return steps, args.max_iter or args.end_iter * steps


def new_model(args, round_):
    """The model with random weights that follow from the seed and the round: Gaussian Glorot weights, zero biases.

    Batch norm stays as it is built, at its identity.
    """
    seed_torch(args.seed, round_, 0)  # epoch 0, as training counts from 1
    model = archs.build(args.dataset, args.arch_type)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def prepare(model, args, device):
    """The model on `device`, in the memory format and precision that it trains in."""
    model = model.to(device, memory_format=torch.channels_last)
    if args.amp:
        model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)
    return model


def prunable(model):
    """The weights of the model's convolutions and linear layers, {parameter name: parameter}.

    By the layer's type, since batch norm calls its scale "weight" too.
    """
    weights = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in weights}


def dense_masks(model):
    """Masks of the unpruned network, {parameter name: bool tensor}, true where a weight survives."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}


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


def next_masks(args, model, masks, rates, round_, log):
    """The masks of `round_`, from the masks and the trained weights of the round before it, or from another run."""
    if args.masks_from:
        wanted = log.masks_of(args.masks_from, round_, masks)
    else:
        wanted = prune(prunable(model), masks, rates, args.prune_scope)
    if args.prune_type == "random":
        seed_torch(args.seed, round_, 0)
        return random_masks(wanted, masks)
    return wanted


def percents(args, model):
    """What percentage of each layer goes in a round, {parameter name: percent}; the last layer is the output."""
    weights = prunable(model)
    found = {name: args.prune_percent_conv if weight.dim() == 4 else args.prune_percent for name, weight in weights.items()}
    found |= {name: args.prune_percent_downsample for name in weights if "downsample" in name.split(".")}
    found |= {list(weights)[-1]: args.prune_percent_output}
    if not any(found.values()):
        raise utils.BadInput(
            f"nothing of {args.arch_type} would be pruned, by the percentages of its layers: change one from 0"
        )
    return found


def random_masks(wanted, masks):
    """Masks that keep as many weights in each layer as `wanted` does, drawn at random from those that `masks` keep."""
    drawn = {}
    for name, mask in masks.items():
        survivors = mask.flatten().nonzero().squeeze(1)
        order = torch.randperm(len(survivors)).to(mask.device)  # the same on every device
        drawn[name] = torch.zeros_like(mask).flatten()
        drawn[name][survivors[order[: int(wanted[name].sum())]]] = True
        drawn[name] = drawn[name].view_as(mask)
    return drawn


@torch.no_grad()
def apply_masks(model, masks):
    for name, weight in prunable(model).items():
        weight.masked_fill_(~masks[name], 0)


def take_up(saved, model, masks):
    """Put the model and the masks where a checkpoint says that they were; returns the round."""
    with utils.fitting():
        model.load_state_dict(saved["model"])
        for name, mask in masks.items():
            mask.copy_(saved["masks"][name])
    return saved["round"]


def train(args, model, masks, data, round_, log):
    """Train for one round, evaluating as it goes, from its beginning or from where the log's checkpoint left it.

    Leaves the final weights in `model`, returns those at best validation.
    """
    utils.keep_freed_memory()  # not before, as no step could use what loading the data leaves
    examples, device = len(data.train[1]), data.train[1].device
    steps, end = iterations(args, examples)
    begin = args.rewind_iter if round_ else 0  # a rewound network goes on from there
    run = new_run(args, model, steps, device)
    start, best, best_accuracy = begin, None, -1
    saved = log.round(round_, masks, steps, begin, end)
    if saved:
        start, best, best_accuracy = (saved[name] for name in ("iteration", "best", "best_accuracy"))
        with utils.fitting():
            for name, tensors in run.moments.items():
                for tensor, value in zip(tensors, saved["moments"][name], strict=True):
                    tensor.copy_(value)
    model.train()
    step = graphed(make_step(args, model, masks, data, run), model, run)

    for iteration in range(start + 1, end + 1):
        epoch, index = (iteration - 1) // steps + 1, (iteration - 1) % steps
        if index == 0 or iteration == start + 1:
            begin_epoch(args, run, examples, round_, epoch, index)
            if index and saved:
                run.loss.copy_(saved["loss"])
                if device.type in saved["random"]:  # the checkpoint may be of another device
                    run.random.set_rng_state(saved["random"][device.type])
        step()
        log.bar.update()

        # A step waits for nothing on the device; what follows does, when there is something to do.
        if round_ == 0 and iteration == args.rewind_iter:
            log.keep(model)
        epoch_ends, measured = index + 1 == steps or iteration == end, evaluation_due(args, iteration, steps, end)
        if epoch_ends or measured:
            loss = run.loss.item() / min(index + 1, iteration - begin)
            row = {"epoch": epoch, "iteration": iteration, "train_loss": loss} | (measure(model, data) if measured else {})
            if not math.isfinite(loss + row.get("val_loss", 0)):
                raise utils.Failure(
                    f"the loss is not finite in round {round_}, epoch {epoch} of seed {args.seed}: "
                    f"start anew with a lower --lr than {args.lr}, and --overwrite or another --output_dir"
                )
            if measured and row["val_accuracy"] > best_accuracy:
                best, best_accuracy = utils.copy_state(model), row["val_accuracy"]
            log.add(row, measured, epoch_ends)
            model.train()
        if iteration == end or log.checkpoint_due():
            log.checkpoint(
                round=round_,
                iteration=iteration,
                model=model.state_dict(),
                masks=masks,
                moments=run.moments,
                loss=run.loss,
                random={device.type: run.random.get_rng_state()},
                best=best,
                best_accuracy=best_accuracy,
            )
    return best


def evaluation_due(args, iteration, steps, end):
    epoch, rest = divmod(iteration, steps)
    at_epoch, at_iteration = rest == 0 and epoch % args.valid_freq == 0, args.eval_iter and iteration % args.eval_iter == 0
    return at_epoch or at_iteration or iteration == end


def new_run(args, model, steps, device):
    """What a round's steps read and write besides the model.

    .batches (steps, batch size) has the numbers of an epoch's examples, .rates (steps,) its learning rates, .done counts
    its steps, .loss adds up their losses, .moments is the optimizer's memory, {name: [tensor for each parameter]}; .random is
    where the device's random numbers come from.
    """
    parameters = list(model.parameters())
    names = ["average", "square"] if args.optimizer == "adam" else ["momentum"]
    moments = {name: [torch.zeros_like(parameter) for parameter in parameters] for name in names}
    if args.optimizer == "adam":
        moments["step"] = [torch.zeros((), device=device) for _ in parameters]
    return SimpleNamespace(
        batches=torch.zeros(steps, args.batch_size, dtype=torch.int64, device=device),
        rates=torch.zeros(steps, dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device),
        done=torch.zeros(1, dtype=torch.int64, device=device),
        loss=torch.zeros((), dtype=torch.float64, device=device),
        moments=moments,
        random=torch.cuda if device.type == "cuda" else torch,
    )


def begin_epoch(args, run, examples, round_, epoch, index):
    """Set what is random in an epoch, and its tables, for a beginning at its step `index`."""
    seed_torch(args.seed, round_, epoch)
    order = torch.randperm(examples)  # the same on every device; its last, incomplete batch is left out
    steps = len(run.rates)
    run.batches.copy_(order[: run.batches.numel()].view_as(run.batches))
    run.rates.copy_(torch.tensor([learning_rate(args, (epoch - 1) * steps + i) for i in range(steps)], dtype=torch.float64))
    run.done.fill_(index)
    run.loss.zero_()


def learning_rate(args, iteration):
    """Of the step after `iteration` steps: a linear warmup, then a drop by the factor --lr_gamma at each milestone."""
    warmup = min(1, (iteration + 1) / args.warmup_iter) if args.warmup_iter else 1
    return args.lr * warmup * args.lr_gamma ** bisect.bisect(args.lr_milestones, iteration)


def make_step(args, model, masks, data, run):
    """A function that does one iteration, all of it on the device, so that it can be captured once and replayed."""
    images, labels = data.train
    parameters = list(model.parameters())
    kept = [(weight, torch.empty_like(weight).copy_(masks[name])) for name, weight in prunable(model).items()]

    def step():
        batch = run.batches.index_select(0, run.done).squeeze(0)
        x = images.index_select(0, batch)
        logits = model(data.normalize(augment(x) if args.augment else x))
        loss = F.cross_entropy(logits.float(), labels.index_select(0, batch))
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            update(args, parameters, run.moments, run.rates.index_select(0, run.done).squeeze(0))
            for weight, mask in kept:  # momentum and weight decay would bring pruned weights back
                weight.mul_(mask)
        run.loss.add_(loss.detach())
        run.done.add_(1)

    return step


def update(args, parameters, moments, lr):
    """One step of Adam or SGD down the gradients, by torch.optim's functions.

    Its classes do the same, but take half as long again on a small network for their bookkeeping.
    """
    gradients = [parameter.grad for parameter in parameters]
    settings = {"lr": lr, "weight_decay": args.weight_decay, "maximize": False, "fused": True}
    if args.optimizer == "sgd":
        sgd(parameters, gradients, moments["momentum"], momentum=args.momentum, dampening=0, nesterov=False, **settings)
    else:
        averages, squares, steps = moments["average"], moments["square"], moments["step"]
        constants = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
        adam(parameters, gradients, averages, squares, [], steps, **constants, **settings)


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


def graphed(step, model, run):
    """On a GPU, `step` captured once as a CUDA graph, which is replayed without work for the host; elsewhere `step` itself.

    Before a capture come some steps for real. What they change is put back.
    """
    if not run.done.is_cuda:
        return step
    changed = [run.done, run.loss, *model.state_dict().values(), *itertools.chain(*run.moments.values())]
    before = [tensor.clone() for tensor in changed]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run.done.zero_()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        step = graph.replay
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"no CUDA graph, each step is launched anew: {str(error).splitlines()[0]}")
        torch.cuda.synchronize()
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    return step


def measure(model, data):
    """An evaluation's part of a row of the log."""
    val_loss, val_accuracy = evaluate(model, data.val, data.normalize)
    test_accuracy = val_accuracy if data.val is data.test else evaluate(model, data.test, data.normalize)[1]
    return {"val_loss": val_loss, "val_accuracy": val_accuracy, "test_accuracy": test_accuracy}


@torch.no_grad()
def evaluate(model, examples, normalize):
    """Mean loss and accuracy (percent) of `model` over all `examples`, in eval mode."""
    model.eval()
    images, labels = examples
    loss, correct = torch.zeros(2, dtype=torch.float64, device=labels.device)
    for x, y in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True):
        logits = model(normalize(x)).float()
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    loss, correct = torch.stack([loss, correct]).tolist()
    return loss / len(labels), 100 * correct / len(labels)


def parse_args(argv=None):
    parser = utils.Parser(
        description=__doc__.split("\n\n")[0],
        epilog="Example: %(prog)s --dataset=digits --prune_percent=20 --prune_iterations=16 --end_iter=20",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    number = utils.number
    count = number(int, "a whole number above 0", lambda value: value > 0)
    seed = number(int, "a whole number from 0 to 2**64 - 1", lambda value: 0 <= value < 2**64)
    percent = number(float, "a percentage between 0 and 100, both excluded", lambda value: 0 < value < 100)
    share = number(float, "a percentage from 0 to 100, which is excluded", lambda value: 0 <= value < 100)
    rate = number(float, "a finite number above 0", lambda value: value > 0)
    decay = number(float, "a finite number, 0 or more", lambda value: value >= 0)
    momentum = number(float, "a number from 0 to 1, which is excluded", lambda value: 0 <= value < 1)
    size = number(int, "a whole number, 0 or more", lambda value: value >= 0)
    milestones = utils.numbers("whole numbers above 0 with commas between them", lambda value: value > 0)

    group = parser.add_argument_group("experiment")
    add = group.add_argument
    add("--prune_type", default="lt", choices=utils.PRUNE_TYPES, help="lt: reset the survivors to the original weights;"
        " reinit: to new ones; random: to the original ones, but let chance choose the survivors")  # fmt: skip
    add("--dataset", default="mnist", choices=archs.datasets(), help="digits comes with the code")
    add("--arch_type", default="fc1", choices=archs.architectures(), help="network")
    add("--seed", default=0, type=seed, metavar="N", help="decides everything random")
    add("--trials", default=1, type=count, metavar="N", help="run so many seeds, from --seed on")

    group = parser.add_argument_group("pruning")
    add = group.add_argument
    add("--prune_percent", default=10.0, type=percent, metavar="P", help="percent of the surviving weights pruned per round")
    add("--prune_percent_conv", type=share, metavar="P", help="the same for convolutions; 0 leaves them dense"
        " (default: --prune_percent%(default).0s)")  # fmt: skip
    add("--prune_percent_downsample", type=share, metavar="P", help="the same for the convolutions on the shortcuts of residual"
        " networks (default: --prune_percent_conv%(default).0s)")  # fmt: skip
    add("--prune_percent_output", type=share, metavar="P", help="the same for the last layer"
        " (default: --prune_percent%(default).0s)")  # fmt: skip
    add("--prune_iterations", default=35, type=count, metavar="N", help="rounds, the first of them dense")
    add("--prune_scope", default="layer", choices=["layer", "global"], help="prune within each layer or over all together")
    add("--masks_from", choices=["lt"], help="prune as the lt run of the same seed did, round by round"
        " (default: none%(default).0s)")  # fmt: skip
    add("--rewind_iter", default=0, type=size, metavar="K", help="reset to the weights after K iterations of the first round")

    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--optimizer", default="adam", choices=["adam", "sgd"], help="with torch's usual constants")
    add("--lr", default=1.2e-3, type=rate, metavar="X", help="learning rate")
    add("--momentum", default=0.9, type=momentum, metavar="X", help="SGD's momentum")
    add("--weight_decay", default=0.0, type=decay, metavar="X", help="L2 penalty")
    add("--lr_milestones", default=[], type=milestones, metavar="N,...", help="iterations after which the learning rate drops"
        " (default: none%(default).0s)")  # fmt: skip
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

    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--gpu", default=0, type=gpu, metavar="N", help="index of the GPU, or cpu")
    add("--amp", action="store_true", help="bfloat16 in the forward pass")
    add("--data_dir", default="data", type=utils.folder, metavar="DIR", help="where datasets are, or are downloaded to")
    add("--output_dir", default=".", type=utils.folder, metavar="DIR", help="where results go")
    add("--overwrite", action="store_true", help="start anew where results exist")
    add("--print_freq", default=1, type=count, metavar="N", help="epochs between changes of the progress line")

    args = parser.parse_args(argv)
    if args.arch_type not in archs.architectures(args.dataset):
        names = ", ".join(archs.architectures(args.dataset))
        parser.error(f"--arch_type={args.arch_type} is not for --dataset={args.dataset}, which has {names}")
    if args.prune_type == "lt" and args.masks_from:
        parser.error("--masks_from=lt is for the other prune types, as lt makes these masks")
    if args.prune_type == "reinit" and args.rewind_iter:
        parser.error("--rewind_iter is not for --prune_type=reinit, which resets to new weights")
    if args.seed + args.trials > 2**64:
        parser.error(f"--trials={args.trials} from --seed={args.seed} on goes beyond the last seed, 2**64 - 1")
    if args.val_size is None:
        args.val_size = archs.facts(args.dataset).VAL_SIZE
    for name, above in (("conv", "percent"), ("output", "percent"), ("downsample", "percent_conv")):
        if getattr(args, f"prune_percent_{name}") is None:
            setattr(args, f"prune_percent_{name}", getattr(args, f"prune_{above}"))
    args.lr_milestones.sort()
    return args


def gpu(text):
    """The type of `--gpu`: "cpu" or an index."""
    return text if text == "cpu" else utils.number(int, "the index of a GPU, or cpu", lambda value: value >= 0)(text)


if __name__ == "__main__":
    with utils.one_line_errors("main.py"):
        for trial in utils.trials(parse_args()):
            main(trial)
