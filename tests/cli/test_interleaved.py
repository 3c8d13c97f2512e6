"""Streams and batches of one LLM may be driven in turn; nobody loses a token to somebody else's step."""

from tokenvm import LLM, SamplingParams


def test_streams_and_batches_take_turns(model_folder):
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    first, second = [5, 6, 7, 8], [9, 10, 11]
    with LLM(model_folder) as llm:
        alone = [out.outputs[0].token_ids for out in llm.generate([ids(first), ids(second)], params)]
        stream = llm.stream(ids(first), params)
        chunks = [next(stream), next(stream)]
        other = llm.stream(ids(second), params)
        chunks_of_other = [next(other)]
        assert llm.generate([ids(second)], params)[0].outputs[0].token_ids == alone[1]
        chunks += list(stream)
        chunks_of_other += list(other)
    assert chunks[-1].output.outputs[0].token_ids == alone[0]
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].output.outputs[0].text
    assert chunks_of_other[-1].output.outputs[0].token_ids == alone[1]
    assert llm.engine.scheduler.has_work is False


def ids(tokens):
    return {"prompt_token_ids": tokens}
