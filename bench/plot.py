# SPDX-License-Identifier: Apache-2.0
"""Plots of a run, as SVG: `python -m bench.plot RESULTS FOLDER`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from . import plan, report
from .harness import Comparison
from .work import QUANTILES, Work, size_name

# Told apart by marker and line as well as by colour (which are Okabe and Ito's).
STYLES: Mapping[str, Mapping[str, Any]] = {
    "jumiks": {"color": "#000000", "marker": "o", "linestyle": "-", "linewidth": 2.5},
    "jumiks-framed": {"color": "#000000", "marker": "s", "linestyle": "--", "linewidth": 2},
    "jumiks-classic": {"color": "#000000", "marker": "o", "linestyle": ":", "fillstyle": "none"},
    "jumiks-views": {"color": "#000000", "marker": "^", "linestyle": "--", "fillstyle": "none"},
    "jumiks-reserve-views": {"color": "#000000", "marker": "v", "linestyle": "-.", "linewidth": 1},
    "pyzmq": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "pynng": {"color": "#CC79A7", "marker": "v", "linestyle": ":"},
    "zenoh": {"color": "#009E73", "marker": "D", "linestyle": "--"},
    "iceoryx2": {"color": "#0072B2", "marker": "P", "linestyle": "-"},
    "iceoryx2-views": {"color": "#0072B2", "marker": "P", "linestyle": ":", "fillstyle": "none"},
    "redis": {"color": "#882255", "marker": "X", "linestyle": ":"},
    "kickmsg": {"color": "#117733", "marker": ">", "linestyle": "-."},
    "subetha": {"color": "#332288", "marker": "h", "linestyle": "--"},
    "nats": {"color": "#56B4E9", "marker": "*", "linestyle": "--"},
    "mp-connection": {"color": "#E69F00", "marker": "<", "linestyle": "-."},
    "socket": {"color": "#666666", "marker": "d", "linestyle": "-."},
}
SIZES = (64, 1 << 10, 64 << 10, 1 << 20)
WHERE = (1, 8, 64)
GROWN = ("jumiks", "jumiks-framed", "pyzmq", "socket")

Found = Mapping[str, Comparison]


def whole(found: Found, work: str, name: str, figure: str) -> float | None:
    """Its median; None where it did not take part or lost something."""
    comparison = found.get(work)
    if comparison is None or not comparison.whole(name):
        return None
    return comparison.median(name, figure)


def line(axes: Axes, name: str, xs: Sequence[float], ys: Sequence[float | None]) -> None:
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=name, markersize=6, **STYLES[name])


def decorate(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)


def legend(*every: Axes) -> None:
    """One for all, beside the last."""
    found: dict[str, Artist] = {}
    for axes in every:
        handles, labels = axes.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    names = [name for name in STYLES if name in found]
    legend = every[-1].legend([found[name] for name in names], names, loc="center left")
    legend.set_bbox_to_anchor((1.02, 0.5))
    legend.set_frame_on(False)


def by_size(found: Found) -> None:
    figure, pair = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, clients in zip(pair, (1, 8), strict=True):
        for name in STYLES:
            rates = [whole(found, Work(size, clients).name, name, "rate") for size in SIZES]
            line(axes, name, SIZES, rates)
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(SIZES, [size_name(size) for size in SIZES])
        axes.minorticks_off()
        title = f"{clients} client{'s' * (clients > 1)}, batched"
        decorate(axes, title, "size of a message", "deliveries per second" if clients == 1 else "")
    legend(*pair)
    figure.suptitle("Throughput by size (what lost messages is left out)", y=1.02)


def by_clients(found: Found, key: str, title: str, unit: str) -> None:
    figure, axes = plt.subplots(figsize=(8.5, 4.5))
    growth = "64 B, batched, by clients"
    for name in STYLES:
        steps = plan.CLIENTS if name in GROWN else WHERE
        values = [
            whole(found, growth, f"{name}, {count} client{'s' * (count > 1)}", key)
            or whole(found, Work(64, count).name, name, key)
            for count in steps
        ]
        line(axes, name, steps, values)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(plan.CLIENTS, [str(count) for count in plan.CLIENTS])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    decorate(axes, title, "clients", unit)
    legend(axes)
    figure.tight_layout()


def latency(found: Found) -> None:
    works = [
        Work(latency=True, pace=1000).name,
        Work(latency=True, pace=10_000).name,
        "64 B, 1 client, half of its own saturation",
    ]
    titles = ("1 kHz", "10 kHz", "half of its own saturation")
    figure, three = plt.subplots(1, 3, figsize=(13, 4.5), sharey=True)
    for axes, work, title in zip(three, works, titles, strict=True):
        for name in STYLES:
            values = [whole(found, work, name, f"p{part:g}") for part in QUANTILES]
            line(axes, name, QUANTILES, values)
        axes.set(yscale="log")
        axes.set_xscale("function", functions=(tail, from_tail))
        shown = (25, 50, 90, 99, 99.9)
        axes.set_xlim(20, 99.95)
        axes.set_xticks(shown, [f"{part:g}" for part in shown])
        axes.minorticks_off()
        decorate(axes, title, "percentile", "one-way latency, us" if work == works[0] else "")
    legend(*three)
    figure.suptitle("Latency, 64 B, 1 client, one by one", y=1.02)


def one_by_one(found: Found) -> None:
    """Bars with the range of the rounds, of whoever lost nothing."""
    figure, pair = plt.subplots(1, 2, figsize=(11, 4.5))
    for axes, clients in zip(pair, (1, 8), strict=True):
        each = found.get(Work(64, clients, batched=False).name)
        names = [name for name in STYLES if each and each.whole(name)]
        for place, name in enumerate(reversed(names)):
            assert each is not None
            rates = [run.figures["rate"] for run in each.runs(name)]
            middle = each.median(name)
            spread = [[middle - min(rates)], [max(rates) - middle]]
            axes.barh(place, middle, xerr=spread, color=STYLES[name]["color"], capsize=3)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        title = f"{clients} client{'s' * (clients > 1)}"
        decorate(axes, title, "deliveries per second", "")
    figure.suptitle("One by one, 64 B: medians, and the range of the rounds", y=1.02)
    figure.tight_layout()


def caption(results: Path) -> str:
    """When it was measured, and on what."""
    run = json.loads(results.read_text())
    words = next((each["extra_info"].get("machine", "") for each in run["benchmarks"]), "")
    return f"{run['datetime'][:10]}, {', '.join(words.split(', ')[:3])}"


def tail(parts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Stretch percentiles towards 100."""
    return -np.log10(np.maximum(100.02 - np.asarray(parts), 1e-3))


def from_tail(places: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Undo `tail`."""
    return 100.02 - 10 ** -np.asarray(places)


def draw(results: Path, folder: Path) -> None:
    """All plots."""
    found = {each.work: each for each in report.read(results) if each.group != plan.C_TO_C}
    plots = {
        "throughput-by-size": lambda: by_size(found),
        "throughput-by-clients": lambda: by_clients(
            found, "rate", "Throughput by clients, 64 B, batched", "deliveries per second"
        ),
        "cpu-by-clients": lambda: by_clients(
            found, "cpu", "CPU of both ends, 64 B, batched", "CPU time per delivery, us"
        ),
        "latency": lambda: latency(found),
        "one-by-one": lambda: one_by_one(found),
    }
    mpl.rcParams.update({"svg.hashsalt": "jumiks", "svg.fonttype": "none", "font.size": 10})
    words = caption(results)
    for name, plot in plots.items():
        plot()
        plt.gcf().text(0.01, -0.04, words, fontsize=8, color="#666666")
        plt.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        plt.close("all")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
