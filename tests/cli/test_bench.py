"""Each measurement ends with a card and one JSON line. What it says of time is nobody's business here."""

import json

import pytest

from tokenvm.bench import floor


@pytest.fixture
def bench(tokenvm, model_folder, monkeypatch, tmp_path):
    """Run a measurement with little of everything; return its figures."""
    monkeypatch.setattr(floor, "FILE_BYTES", 1 << 20)
    monkeypatch.setattr("tokenvm.bench.disk.FILE_BYTES", 1 << 20)
    monkeypatch.setattr(floor, "_RAM_BYTES", 1 << 20)
    monkeypatch.setattr(floor, "_PEAK_ROUNDS", 100)

    def run(question, *more, model=True):
        chosen = ("--model", model_folder) if model else ()
        code, out, err = tokenvm("bench", question, *chosen, "--json", "--lock", tmp_path / "lock", *more)
        assert (code, err) == (0, ""), err
        card, line = out.rstrip("\n").rsplit("\n", 1)
        assert len(card.splitlines()) > 2
        figures = json.loads(line)
        assert figures["bench"] == question
        return figures

    return run


def test_decode(bench):
    figures = bench("decode", "--context", "600", "--kv-fraction", "1,0.3", "--tokens", "8")
    whole, limited = figures["rows"]
    assert whole["streamed_bytes_per_token"] == 0 < limited["streamed_bytes_per_token"]
    assert limited["kv_fraction"] == 0.3
    assert min(row["floor_ms"] for row in figures["rows"]) > 0


def test_prefill(bench):
    figures = bench("prefill", "--context", "300", "--kv-fraction", "1,0.5", "--rounds", "2")
    assert [row["kv_fraction"] for row in figures["rows"]] == [1.0, 0.5]
    assert figures["rows"][0]["against_first"] == [1.0, 1.0, 1.0]
    assert figures["operations"] > 0


def test_stream(bench):
    fractions = ("--context", "600", "--kv-fraction", "1,0.5,0.3", "--codecs", "none", "--tokens", "8")
    figures = bench("stream", *fractions, "--link-bandwidth", "4GB/s")
    disk, link = figures["lines"]
    assert [point["below"] for point in disk["points"]] == pytest.approx([0.5, 0.7])
    assert disk["emulated_link_bytes_per_s"] is None
    assert link["emulated_link_bytes_per_s"] == 4e9
    assert "emulated" in link["title"]
    assert all(point["streamed_bytes_per_token"] > 0 for line in (disk, link) for point in line["points"])
    assert [found["slowdown"] for found in link["passes"]] == [1.3, 2.0]


def test_context(bench):
    figures = bench("context", "--contexts", "300,21000", "--kv-limit", "600kB", "--tokens", "2")
    assert [row["context"] for row in figures["rows"]] == [300, 21000]
    assert figures["trained_for_tokens"] == 20000, "contexts beyond the model's training are measured, too"


def test_codec(bench):
    figures = bench("codec", "--context", "600", "--rounds", "1")
    assert {row["codec"] for row in figures["rows"]} >= {"none", "bitpack"}


def test_disk(bench):
    figures = bench("disk", "--rounds", "1")
    assert {row["what"].split(",")[0] for row in figures["rows"]} == {"read", "write"}


def test_memory(bench):
    figures = bench("memory", "--size", "4MiB", "--rounds", "2", model=False)
    assert {(row["what"], row["pages"]) for row in figures["rows"]} == {
        (what, pages) for what in ("read", "copy") for pages in ("4 KiB", "huge")
    }


def test_schedule(bench):
    figures = bench("schedule", "--running", "2,5", "--waiting", "7", "--steps", "3", model=False)
    assert [row["asked"] for row in figures["rows"]] == [2, 5]
    assert all(row["most_ms"] >= row["p95_ms"] >= row["median_ms"] > 0 for row in figures["rows"])


def test_tables_go_into_a_document(bench, tmp_path):
    document = tmp_path / "figures.md"
    document.write_text("# Memory\n\n<!-- memory --><!-- /memory -->\n")
    bench("memory", "--size", "4MiB", "--rounds", "1", "--write", document, model=False)
    text = document.read_text()
    assert "`tokenvm bench memory --size 4MiB --rounds 1`" in text
    assert "| read, huge pages |" in text
    assert json.loads((tmp_path / "figures" / "memory.json").read_text())["bench"] == "memory"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("context", "--contexts", "1k"), ("--contexts", "1024,8000")),
        (("context", "--contexts", "0"), ("--contexts",)),
        (("context", "--kv-limit", "much"), ("kv_limit", "512MiB")),
        (("stream", "--codecs", "rle"), ('"rle"', "none")),
        (("stream", "--link-bandwidth", "fast"), ("link_bandwidth",)),
        (("stream", "--link-bandwidth", "0GB/s"), ("8GB/s",)),
        (("decode", "--kv-fraction", "1,2"), ("--kv-fraction 2", "0.1")),
        (("prefill", "--context", "20000"), ("--context 19998",)),
    ],
)
def test_bad_input_is_one_line(tokenvm, model_folder, arguments, words):
    code, _, err = tokenvm("bench", *arguments, "--model", model_folder)
    assert code == 2
    assert err.count("\n") == 1
    for word in words:
        assert word in err
