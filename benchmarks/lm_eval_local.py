"""GSM8K by lm-eval against our own server, as it would be run against any other: `--model local-completions`.

    python -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install "lm-eval[api]"
    PYTHONPATH=src python benchmarks/lm_eval_local.py gsm8k_test.jsonl --lm-eval /tmp/lm-eval/bin/lm_eval --limit 50

The task is a local file and nothing is downloaded. 256 requests are in flight at once.
"""

# ruff: noqa: T201 - it prints its findings
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenvm.bench.served_process import served_process

TASK = """\
task: gsm8k_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer.split('### ')[-1].strip()}}}}"
generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {tokens}
num_fewshot: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
filter_list:
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"
      - function: take_first
metadata:
  version: 1.0
"""


def run(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    """Run the task and return lm-eval's results, with the seconds it took."""
    (folder / "gsm8k_local.yaml").write_text(TASK.format(data=options.data.resolve(), tokens=options.tokens))
    arguments = f"base_url={url}/v1/completions,model=default,num_concurrent={options.concurrent},"
    arguments += "tokenized_requests=False,tokenizer_backend=None,max_retries=3,timeout=600"
    command = [options.lm_eval, "run", "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", "gsm8k_local", "--include_path", str(folder), "--output_path", str(folder / "out")]
    command += ["--limit", str(options.limit)] if options.limit else []
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    began_s = time.monotonic()
    ended = subprocess.run(
        command, env={**os.environ, **offline}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if ended.returncode:
        raise SystemExit(f"lm_eval failed:\n{ended.stdout[-3000:]}")
    (found,) = (folder / "out").rglob("results_*.json")
    return {"seconds": time.monotonic() - began_s, **json.loads(found.read_text())["results"]["gsm8k_local"]}


def main() -> None:
    """Serve a model, let lm-eval ask it, and print what it found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lm-eval", default="lm_eval", help="lm-eval's command")
    parser.add_argument("--limit", type=int, default=0, help="so many questions; 0 is all")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--concurrent", type=int, default=256)
    options = parser.parse_args()
    if shutil.which(options.lm_eval) is None:
        print(f"skipped: there is no {options.lm_eval}: install it as above, in an environment of its own")
        sys.exit(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        served_process(options.model, ["--no-log-requests"]) as served,
    ):
        found = run(options, served.url, Path(folder))
    print(json.dumps({"bench": "lm_eval_local", "model": options.model, **found}))


if __name__ == "__main__":
    main()
