"""Everything once, in a second: prompts in, pages out to disk and back, the same bits as with room for all."""

from pathlib import Path

from fixtures_engine import assert_spilled, prompt, running, speak, tiny_model

DEVICE_PAGES = 4


def test_pages_on_disk_give_the_bits_of_pages_in_memory(tmp_path: Path) -> None:
    model = tiny_model()
    prompts = [prompt(100), prompt(37), prompt(3)]
    with running(model, tmp_path) as engine:
        roomy = speak(engine, prompts, max_tokens=20)
        assert engine.stats()["streamed_pages"] == 0
    with running(model, tmp_path, device_pages=DEVICE_PAGES) as engine:
        limited = speak(engine, prompts, max_tokens=20)
        assert_spilled(engine, model, DEVICE_PAGES)
    assert limited == roomy
    assert [len(one.tokens) for one in limited] == [20, 20, 20]
