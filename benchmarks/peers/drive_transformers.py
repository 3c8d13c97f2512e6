"""Hugging Face Transformers with torch's scaled dot product attention; a batch is static."""

from __future__ import annotations

from loop import serve


def open_engine(model, threads, kv_bytes):
    """Return what generates, and its settings."""
    assert not kv_bytes, "its KV memory cannot be bounded"
    import torch
    import transformers

    torch.set_num_threads(threads)
    options = {"attn_implementation": "sdpa"}
    decoder = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, **options).eval()

    def generate(prompts, n_out):
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = decoder.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=n_out,
                min_new_tokens=n_out,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, ids.shape[1] :].tolist()

    return generate, {"version": transformers.__version__, "dtype": "bfloat16", "threads": threads, **options}


if __name__ == "__main__":
    serve(open_engine)
