"""Overlay winning tickets and their controls: accuracy against the percentage of weights remaining, for every experiment.

    python3 combine_plots.py

finds what `main.py` wrote under `dumps/`, of whatever length and of however many seeds, and draws one figure for each
architecture and dataset. Several seeds give their mean, with a band from the lowest to the highest.
"""

import argparse
import sys
from pathlib import Path

import utils


def main(args):
    dumps = Path(args.output_dir) / "dumps" / "lt"
    found = 0
    for place in sorted(dumps.glob("*/*")):
        arch_type, dataset = place.parts[-2:]
        if args.arch_type not in (None, arch_type) or args.dataset not in (None, dataset):
            continue
        curves = {kind: runs for kind in utils.PRUNE_TYPES if (runs := read_runs(place, kind))}
        if not curves:
            continue
        path = Path(args.output_dir, "plots", "lt", "combined_plots", f"combined_{arch_type}_{dataset}.png")
        utils.plot_accuracy(path, curves, title=f"{arch_type}, {dataset}")
        print(f"{path}: {', '.join(map(describe, curves, curves.values()))}{missing(curves)}")
        found += 1
    if not found:
        wanted = f"{dumps}/{args.arch_type or '<arch>'}/{args.dataset or '<dataset>'}/<prune_type>_bestaccuracy.dat"
        raise utils.BadInput(f"nothing to draw: no results at {wanted}. Run main.py first, or choose another --output_dir")


def read_runs(place, kind):
    """The runs of one prune type: [(percents remaining, test accuracies), ...], one for each seed that has any."""
    runs = []
    for folder in [place, *sorted(place.glob("seed*"))]:
        files = [folder / f"{kind}_{name}.dat" for name in ("compression", "bestaccuracy")]
        if not all(file.exists() for file in files):
            continue
        try:
            percents, accuracies = map(utils.read_array, files)
            if not all(0 <= value <= 100 for value in (*percents, *accuracies)):
                raise utils.BadInput(f"{files[0]} or {files[1].name} has values that are no percentages")
        except utils.BadInput as error:
            print(f"combine_plots.py: left out: {error}", file=sys.stderr)
            continue
        rounds = min(len(percents), len(accuracies))  # a run may be between its two files just now
        if rounds and percents[0] > 0:
            runs.append((percents[:rounds], accuracies[:rounds]))
    for percents, _ in runs:
        if any(abs(x - y) > 1e-6 for x, y in zip(percents, runs[0][0], strict=False)):
            print(f"combine_plots.py: the seeds of {kind} in {place} were pruned by different percentages", file=sys.stderr)
            break
    return runs


def describe(kind, runs):
    lengths = sorted({len(percents) for percents, _ in runs})
    rounds = " to ".join(map(str, dict.fromkeys([lengths[0], lengths[-1]])))
    return f"{kind} with {rounds} rounds" + (f" and {len(runs)} seeds" if len(runs) > 1 else "")


def missing(curves):
    absent = [kind for kind in utils.PRUNE_TYPES if kind not in curves]
    return f" ({' and '.join(absent)} not run yet)" if absent else ""


def parse_args(argv=None):
    parser = utils.Parser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--arch_type", metavar="NAME", help="this architecture alone (default: all%(default).0s)")
    parser.add_argument("--dataset", metavar="NAME", help="this dataset alone (default: all%(default).0s)")
    parser.add_argument("--output_dir", default=".", type=utils.folder, metavar="DIR", help="where main.py put its results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with utils.one_line_errors("combine_plots.py"):
        main(parse_args())
