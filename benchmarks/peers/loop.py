"""What every driver does: open its engine once, then answer jobs line by line. Needs nothing but Python.

A job is {"prompts": [[token ids], ...], "n_out": count}; the answer is {"seconds": s, "tokens": [[token ids], ...]}.
The first line says {"ready": settings}. What a library prints goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time


def serve(open_engine) -> None:
    """Read the command line and answer until the input ends.

    `open_engine(folder, threads, kv_bytes)` returns a function from (prompts, n_out) to tokens, and the settings it
    chose; kv_bytes is 0 where nothing bounds its KV memory.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--kv-bytes", type=int, default=0)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate, settings = open_engine(options.model, options.threads, options.kv_bytes)
    _say(answers, {"ready": settings})
    for line in sys.stdin:
        job = json.loads(line)
        began_s = time.perf_counter()
        tokens = generate(job["prompts"], job["n_out"])
        seconds = time.perf_counter() - began_s
        lengths = {len(one) for one in tokens}
        assert lengths == {job["n_out"]}, f"{job['n_out']} tokens were asked for, lengths are {lengths}"
        _say(answers, {"seconds": seconds, "tokens": tokens})


def _say(answers, message) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
