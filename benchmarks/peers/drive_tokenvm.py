"""TokenVM, with room for everything."""

from __future__ import annotations

from loop import serve


def open_engine(model, threads):
    """Return what generates, and its settings."""
    import tokenvm

    options = {"dtype": "bfloat16", "max_num_seqs": 64, "threads": threads}
    llm = tokenvm.LLM(model, **options)

    def generate(prompts, n_out):
        params = tokenvm.SamplingParams(temperature=0, max_tokens=n_out, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate, {"version": tokenvm.__version__, **options}


if __name__ == "__main__":
    serve(open_engine)
