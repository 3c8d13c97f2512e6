"""Draws the charts of the documentation from the figures beside it.

    PYTHONPATH=src python benchmarks/charts.py docs/benchmarks

Every NAME.json of the folder that has a chart becomes NAME.svg, and is shown in section NAME of the document beside the
folder. Needs matplotlib: pip install "tokenvm[bench]".
"""

# ruff: noqa: T201 - it prints its findings
# ruff: noqa: E402 - the backend is chosen first
from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "tokenvm"  # the same figures make the same file
matplotlib.rcParams["svg.fonttype"] = "none"

import matplotlib.pyplot as plt

from tokenvm.bench.charts import CHARTS, Chart, chart_of
from tokenvm.bench.report import add_chart

COLOURS = ("#1f6f8b", "#c8553d", "#5b8e3e", "#7d5ba6", "#b8860b")


def draw(chart: Chart, target: Path, source: str) -> None:
    """Write one chart as SVG; `source` says below it where the figures come from."""
    figure, axes = plt.subplots(figsize=(7.2, 4.0))
    if chart.bars:
        _bars(axes, chart)
    else:
        _curves(axes, chart)
    for level in chart.levels:
        axes.axhline(level, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_title(chart.title, loc="left", fontsize=11)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.01, 0.005, source, fontsize=7, color="#666666")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(target, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _curves(axes, chart: Chart) -> None:
    for curve, colour in zip(chart.curves, COLOURS * 2, strict=False):
        style = "--" if curve.dashed else "-"
        axes.plot(curve.x, curve.y, style, marker="o", markersize=4, color=colour, label=curve.title)
        if curve.low:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    if chart.logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)


def _bars(axes, chart: Chart) -> None:
    values = [bar.value for bar in chart.bars]
    reach = [[bar.value - bar.low for bar in chart.bars], [bar.high - bar.value for bar in chart.bars]]
    places = range(len(values))
    axes.bar(places, values, yerr=reach, color=COLOURS[0], width=0.6, capsize=3)
    axes.set_xticks(places, [bar.title for bar in chart.bars], fontsize=7 if len(values) > 6 else 9)
    for place, value in zip(places, values, strict=True):
        axes.text(
            place, value / 2, f"{value:.2f}" if value < 10 else f"{value:.0f}", ha="center", color="white"
        )


def main() -> None:
    """Draw everything there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name in CHARTS:
        source = folder / f"{name}.json"
        if not source.exists():
            print(f"{name}: skipped, there is no {source}")
            continue
        figures = json.loads(source.read_text("utf-8"))
        facts = figures["taken_on"]
        words = f"{facts['date']}, {facts['cores']} cores of {facts['processor']}, {facts['kernels']} kernels"
        chart = chart_of(figures)
        draw(chart, folder / f"{name}.svg", words)
        document = folder.with_suffix(".md")
        text = document.read_text("utf-8")
        document.write_text(add_chart(text, name, f"{folder.name}/{name}.svg", chart.title), "utf-8")
        print(f"{name}: {folder / name}.svg")


if __name__ == "__main__":
    main()
