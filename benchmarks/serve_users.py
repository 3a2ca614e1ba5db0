"""The users of `python -m benchmarks.serve`, for locust: each asks, compares what it is told with what it should be, and asks again.

    BENCHMARK_CASES=cases.json BENCHMARK_FOUND=found.json locust -f benchmarks/serve_users.py --headless -u 200 --host http://127.0.0.1:8000

`cases.json` is a list of requests with their expected answers, as the benchmark writes it. A connection that ends without an answer is
counted, and the same request is sent again until it has one.
"""

from __future__ import annotations

import base64
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant, events, task

TOLERANCE = 1e-4  # of a probability
PAUSE, ATTEMPTS = 0.5, 120
CASES: list[dict[str, Any]] = json.loads(Path(os.environ["BENCHMARK_CASES"]).read_text()) if "BENCHMARK_CASES" in os.environ else []
for _case in CASES:
    _case["body"] = base64.b64decode(_case["body"])
COUNTS: Counter[str] = Counter()
ENDING = {"now": False}
WEIGHTS = [case["weight"] for case in CASES]


class User(FastHttpUser):
    """Asks without a pause, good and bad requests mixed."""

    wait_time = constant(0)
    connection_timeout = network_timeout = 120.0

    @task
    def ask(self) -> None:
        case = random.choices(CASES, WEIGHTS)[0]
        for attempt in range(ATTEMPTS):
            if ENDING["now"]:
                return
            with self.client.post(
                case["path"], data=case["body"], headers=case["headers"], name=case["kind"], catch_response=True
            ) as answer:
                answer.success()  # what is wrong is counted here, not by locust
                status = answer.status_code
                if status and status != 429:
                    COUNTS["answers"] += 1
                    COUNTS["asked again and answered"] += attempt > 0
                    self.compare(case, status, answer.text or "")
                    return
            COUNTS["429" if status else "connections that ended without an answer"] += 1
            gevent.sleep(PAUSE)
        COUNTS["never answered"] += 1

    def compare(self, case: dict[str, Any], status: int, text: str) -> None:
        """Count whether the answer is what it should be."""
        try:
            right = status == case["status"] and same(json.loads(text), case["expected"])
        except (ValueError, KeyError, TypeError):
            right = False
        COUNTS["good, right" if right and status == 200 else "bad, refused as they should" if right else "wrong"] += 1
        if not right:
            print(f"wrong: {case['kind']}: {status} {text[:300]}")


def same(answer: Any, expected: dict[str, float] | None) -> bool:
    """Whether an answer has the expected probabilities; for what is to be refused, whether it is an error in one line."""
    if expected is None:
        return list(answer) == ["error"]
    if isinstance(answer, dict):  # KServe's
        names, values = (each["data"] for each in answer["outputs"])
        answer = [{"label": name, "score": value} for name, value in zip(names, values)]
    found = {each["label"]: each["score"] for each in answer}
    return found.keys() == expected.keys() and all(abs(found[name] - value) < TOLERANCE for name, value in expected.items())


@events.test_stopping.add_listener
def _stopping(environment: Any, **more: Any) -> None:
    ENDING["now"] = True


@events.quitting.add_listener
def _write(environment: Any, **more: Any) -> None:
    good = [each for (name, _), each in environment.stats.entries.items() if name.startswith("good")]
    times: Counter[int] = Counter()
    for each in good:
        times.update(each.response_times)
    Path(os.environ["BENCHMARK_FOUND"]).write_text(json.dumps({"counts": COUNTS, "ms": sorted(times.items())}))
