"""TokenVM; where its KV memory is bounded, the rest lies on disk."""

from __future__ import annotations

from loop import serve


def open_engine(model, threads, kv_bytes):
    """Return what generates, and its settings."""
    import tokenvm

    options = {"dtype": "bfloat16", "max_num_seqs": 64, "threads": threads}
    memory = tokenvm.MemoryConfig(kv_limit=kv_bytes) if kv_bytes else None
    llm = tokenvm.LLM(model, memory=memory, **options)

    def generate(prompts, n_out):
        params = tokenvm.SamplingParams(temperature=0, max_tokens=n_out, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate, {"version": tokenvm.__version__, "kv_limit": kv_bytes or "auto", **options}


if __name__ == "__main__":
    serve(open_engine)
