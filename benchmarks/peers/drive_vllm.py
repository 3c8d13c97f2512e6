"""vLLM's CPU build, compiled, KV in memory."""

from __future__ import annotations

import os

from loop import serve


def open_engine(model, threads, kv_bytes):
    """Return what generates, and its settings."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import torch
    import vllm

    options = {"dtype": "bfloat16", "max_model_len": 8192, "max_num_seqs": 64}
    if kv_bytes:
        options["kv_cache_memory_bytes"] = kv_bytes
    llm = vllm.LLM(model, **options)

    def generate(prompts, n_out):
        params = vllm.SamplingParams(temperature=0, max_tokens=n_out, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    told = {name: value for name, value in os.environ.items() if name.startswith("VLLM_CPU")}
    return generate, {"version": vllm.__version__, "threads": torch.get_num_threads(), **options, **told}


if __name__ == "__main__":
    serve(open_engine)
