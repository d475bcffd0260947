"""The harness's side of bench/harness.py: runs in a Python that has lm-evaluation-harness, and imports nothing of ours.

    HARNESS_PYTHON bench/harness_side.py '{"model": FOLDER, "tasks": FOLDER}'

Reads jobs from standard input, one JSON object a line: task, samples (numbers of rows), batch. Answers each with one
line. Timed is the harness's own call of the model (`loglikelihood` or `generate_until`, with its tokenising), not its
reading of the task, building of requests or its metrics.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

PACKAGES = ("lm_eval", "torch", "transformers", "datasets")
Answer = dict[str, Any]


class Watch:
    """Seconds that the harness spends in its model, and the token ids that it scores and gets."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.wall = self.processor = 0.0
        self.scored: dict[str, list[list[list[int]]]] = {}
        self.written: dict[str, list[int]] = {}
        lm.loglikelihood = self._timed(lm.loglikelihood)
        lm.generate_until = self._timed(lm.generate_until)
        self._tokens, self._generate = lm._loglikelihood_tokens, lm._model_generate
        lm._loglikelihood_tokens, lm._model_generate = self._see_tokens, self._see_generated

    def clear(self) -> None:
        """For the next job."""
        self.wall = self.processor = 0.0
        self.scored, self.written = {}, {}

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            started, used = time.perf_counter(), time.process_time()
            found = work(*given, **named)
            self.wall += time.perf_counter() - started
            self.processor += time.process_time() - used
            return found

        return timed

    def _see_tokens(self, requests: Any, *given: Any, **named: Any) -> Any:
        for (prompt, _), context, continuation in requests:
            self.scored.setdefault(prompt, []).append([list(context), list(continuation)])
        return self._tokens(requests, *given, **named)

    def _see_generated(self, context: Any, *given: Any, **named: Any) -> Any:
        found = self._generate(context, *given, **named)
        for row, ids in zip(context.tolist(), found.tolist(), strict=True):
            self.written[json.dumps(row)] = ids[len(row) :]
        return found


def answer(lm: Any, watch: Watch, manager: Any, job: dict[str, Any]) -> Answer:
    """One evaluation by the harness: its accuracy, and of each row what it found."""
    from lm_eval import simple_evaluate

    lm.batch_size_per_gpu = job["batch"]
    watch.clear()
    name = job["task"]
    found = simple_evaluate(
        lm, tasks=[name], samples={name: job["samples"]}, bootstrap_iters=0, log_samples=True, task_manager=manager
    )
    rows = []
    for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"]):
        prompt = sample["arguments"][0][0]
        row = {"id": sample["doc"]["id"]}
        if job["kind"] == "ranked":
            row |= {"scores": [float(one[0]) for one in sample["filtered_resps"]], "tokens": watch.scored[prompt]}
            row["right"] = bool(sample["acc"])
        else:
            context = lm.tok_encode(prompt)
            row |= {"text": sample["resps"][0][0], "prompt": context, "right": bool(sample["exact_match"])}
            row["tokens"] = watch.written.get(json.dumps(context))  # None where a batch was filled up
        rows.append(row)
    metrics = found["results"][name]
    metric = "acc" if job["kind"] == "ranked" else "exact_match"
    accuracy = next(value for key, value in metrics.items() if key.split(",")[0] == metric)
    return {"wall": watch.wall, "processor": watch.processor, "accuracy": float(accuracy), "rows": rows}


def main() -> None:
    """Load the model once, then do one job a line."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the harness prints is no answer
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    lm = HFLM(pretrained=given["model"], dtype="float32", batch_size=1, device="cpu")
    watch, manager = Watch(lm), TaskManager(include_path=given["tasks"], include_defaults=False)
    print(json.dumps({name: importlib.metadata.version(name) for name in PACKAGES}), file=told, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(lm, watch, manager, json.loads(line))), file=told, flush=True)


if __name__ == "__main__":
    main()
