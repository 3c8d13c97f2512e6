"""OpenVINO GenAI's continuous batching on the CPU. MODEL is a folder that OpenVINO has converted."""

from __future__ import annotations

from loop import serve


def open_engine(model, threads, kv_bytes):
    """Return what generates, and its settings."""
    assert not kv_bytes, "its KV memory cannot be bounded"
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.enable_prefix_caching = 2, 64, True
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )

    def generate(prompts, n_out):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = n_out
        config.ignore_eos, config.do_sample = True, False
        tensors = [openvino.Tensor(np.array([p])) for p in prompts]
        outputs = pipeline.generate(tensors, [config] * len(prompts))
        return [list(output.m_generation_ids[0]) for output in outputs]

    return generate, {"version": openvino.__version__, "threads": threads, "cache_size_gb": 2}


if __name__ == "__main__":
    serve(open_engine)
