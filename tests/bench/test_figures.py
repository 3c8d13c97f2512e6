"""Statistics, operation counts, tables and sections: the pure half of the measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tokenvm.bench.figures import (
    Crossing,
    crossing,
    matrix_parameters,
    paired_ratios,
    percentile,
    prefill_operations,
    seen_tokens,
    spread,
    step_bytes,
)
from tokenvm.bench.report import (
    Grid,
    Report,
    add_chart,
    replace_section,
    typed,
    without_destination,
    write_report,
)
from tokenvm.errors import ConfigError
from tokenvm.models.spec import AttentionSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec


def spec() -> ModelSpec:
    return ModelSpec(
        architecture="llama",
        layers=30,
        hidden=576,
        vocab_size=49152,
        max_model_len=8192,
        attention=AttentionSpec(9, 3, 64, 0.125),
        rope=RopeSpec(1e5),
        mlp=MlpSpec(1536),
        norm=NormSpec(1e-5),
        tied_embeddings=True,
        eos_token_ids=(2,),
        bos_token_ids=(1,),
    )


def test_spread_and_paired_ratios() -> None:
    assert spread([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)
    assert spread([5.0]) == (5.0, 5.0, 5.0)
    assert paired_ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError):
        paired_ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.05, 1), (0.5, 10), (0.51, 11), (0.95, 19), (0.951, 20), (1.0, 20)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile(list(range(20, 0, -1)), share) == expected
    assert percentile([7.0], share) == 7.0


def test_crossing_is_found_between_points() -> None:
    points = [(0.0, 1.0), (0.5, 1.2), (0.9, 3.2)]
    assert crossing(points, 2.2) == Crossing(True, pytest.approx(0.7))
    assert crossing(points, 3.2) == Crossing(False, 0.9)
    assert crossing(points, 0.5) == Crossing(True, 0.0)
    assert crossing([(0.0, 1.0), (0.2, 3.0), (0.4, 0.5)], 2.0) == Crossing(True, pytest.approx(0.1))


def test_operations_are_counted_matrix_by_matrix() -> None:
    model = spec()
    shapes = [(960, 576), (576, 576), (3072, 576), (576, 1536)]
    assert matrix_parameters(model) == 30 * sum(n * k for n, k in shapes) == 106_168_320
    for tokens in (1, 2, 7):
        pairs = sum(range(1, tokens + 1))
        attention = sum(2 * 64 * 2 for _ in range(9)) * pairs * 30  # q·k and p·v of each head
        matrices = 2 * 106_168_320 * tokens + 2 * 576 * 49152
        assert prefill_operations(model, tokens) == matrices + attention
    assert prefill_operations(model, 8000) / 1e12 == pytest.approx(3.9, abs=0.05)


def test_bytes_of_a_step() -> None:
    assert step_bytes(270_000_000, 23_040, 8000) == 270_000_000 + 184_320_000


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 40])
def test_windowed_layers_see_less(tokens: int) -> None:
    full = spec()
    windowed = replace(full, attention=replace(full.attention, window=8), windowed=(1,))
    assert seen_tokens(full, tokens) == full.layers * tokens
    assert seen_tokens(windowed, tokens) == (full.layers - 1) * tokens + min(tokens, 8)
    spared = sum(row - min(row, 8) for row in range(1, tokens + 1)) * 4 * full.attention.out_columns
    assert prefill_operations(full, tokens) - prefill_operations(windowed, tokens) == spared


def test_a_grid_as_markdown() -> None:
    grid = Grid(("KV", "ms"), [["all", "49"], ["10 %", "272"]])
    assert grid.markdown() == "| KV | ms |\n| --- | ---: |\n| all | 49 |\n| 10 % | 272 |"


def test_a_section_is_replaced_and_nothing_else() -> None:
    text = "# A\n<!-- decode -->\nold\n<!-- /decode -->\nb <!-- disk --><!-- /disk -->\n"
    new = replace_section(text, "decode", "new")
    assert new == "# A\n<!-- decode -->\nnew\n<!-- /decode -->\nb <!-- disk --><!-- /disk -->\n"
    assert replace_section(new, "decode", "new") == new


def test_a_chart_is_shown_once_below_its_table() -> None:
    text = replace_section("<!-- decode --><!-- /decode -->", "decode", "| table |")
    once = add_chart(text, "decode", "figures/decode.svg", "Steps")
    assert once == "<!-- decode -->\n| table |\n\n![Steps](figures/decode.svg)\n<!-- /decode -->"
    assert add_chart(once, "decode", "figures/decode.svg", "Steps") == once


@pytest.mark.parametrize("text", ["", "<!-- decode -->", "<!-- /decode --> <!-- decode -->"])
def test_a_document_without_the_marks_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="<!-- decode -->"):
        replace_section(text, "decode", "new")


def test_a_report_is_written_with_its_figures_beside_it(tmp_path: Path) -> None:
    document = tmp_path / "figures.md"
    document.write_text("<!-- decode --><!-- /decode -->\n")
    write_report(Report("decode", {"rows": [1, 2]}, [Grid(("a",), [["1"]])], ["note"]), document)
    assert "| a |\n| --- |\n| 1 |\n\nnote" in document.read_text()
    assert '"rows"' in (tmp_path / "figures" / "decode.json").read_text()
    with pytest.raises(ConfigError, match="name a Markdown file"):
        write_report(Report("decode", {}, []), tmp_path / "none.md")


def test_the_command_is_shown_without_where_its_results_go() -> None:
    words = [
        "bench",
        "decode",
        "--json",
        "--write",
        "docs/b.md",
        "--lock",
        "/tmp/l",
        "--write=x.md",
        "--tokens",
        "9",
    ]
    assert without_destination(words) == ["bench", "decode", "--tokens", "9"]
    assert typed(["/x/bin/tokenvm", *words]) == ["tokenvm", "bench", "decode", "--tokens", "9"]
    assert typed(["benchmarks/compare.py", "--json"]) == ["python", "benchmarks/compare.py"]
