"""A stdio worker written from the description of the protocol alone: it does not know Wove.

One JSON frame a line; base64 of cloudpickle in the ``*_pickle`` fields; the fields of `run_task`,
`cancel_task` and `shutdown` that are documented, and no others.
"""

import base64
import json
import os
import sys
import threading
import traceback

import cloudpickle

lock = threading.Lock()
out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
cancelled: set[str] = set()


def tell(**event: object) -> None:
    with lock:
        out.write(json.dumps(event) + "\n")
        out.flush()


def dump(value: object) -> str:
    return base64.b64encode(cloudpickle.dumps(value)).decode()


def run(frame: dict) -> None:
    names = {"run_id": frame["run_id"], "task_id": frame["task_id"]}
    tell(type="task_started", **names)
    try:
        function = cloudpickle.loads(base64.b64decode(frame["callable_pickle"]))
        value = function(**cloudpickle.loads(base64.b64decode(frame["args_pickle"])))
        if hasattr(value, "__await__"):
            import asyncio

            async def wait() -> object:
                return await value

            value = asyncio.run(wait())
    except BaseException as error:
        report = {
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
            "retryable": True,
            "source": "task",
        }
        try:
            tell(type="task_error", exception_pickle=dump(error), error=report, **names)
        except Exception:
            tell(type="task_error", error=report, **names)
        return
    with lock:
        stopped = frame["run_id"] in cancelled
    if stopped:
        tell(type="task_cancelled", **names)
    else:
        tell(type="task_result", result_pickle=dump(value), **names)


for line in sys.stdin:
    frame = json.loads(line)
    if frame["type"] == "run_task":
        threading.Thread(target=run, args=(frame,), daemon=True).start()
    elif frame["type"] == "cancel_task":
        cancelled.add(frame["run_id"])
    elif frame["type"] == "shutdown":
        break
