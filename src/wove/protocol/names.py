"""Names that both sides of a wire must agree on: environment variables, headers, methods and media types."""

from __future__ import annotations

from typing import Final

PAYLOAD_VARIABLE: Final = "WOVE_BACKEND_PAYLOAD"
"""The environment variable from which `wove.backend_worker` takes its payload."""

SECRET_VARIABLE: Final = "WOVE_WORKER_SECRET"
"""The environment variable with the secret of a worker that is configured with none."""

ENVIRONMENT_VARIABLE: Final = "WOVE_WORKER_ENVIRONMENT"
"""The environment variable with the names of the environments whose payloads a backend's worker accepts, separated by
commas; all of them if it is not set."""

WORKER_HEADER: Final = "X-Wove-Worker"
"""Of a request to the callback receiver: the process that posts, as ``host/pid/`` and a random part."""

UNAWAITED_HEADER: Final = "X-Wove-Gone"
"""Of a response of the callback receiver: the runs of the request that nobody waits for, if there are others in it."""

CANCELLED_HEADER: Final = "X-Wove-Cancelled"
"""Of a response of the callback receiver: the runs that were told to end, detached ones among them."""

EVENT_METHOD: Final = "POST"
"""How events are sent to the callback receiver."""

CLAIM_METHOD: Final = "GET"
"""How a claim is fetched from the callback receiver."""

JSON_TYPE: Final = "application/json"
"""Media type of a command, an event, or a list of events."""

LINES_TYPE: Final = "application/x-ndjson"
"""Media type of events that are streamed: one JSON object a line."""

SIGNED_LINES_TYPE: Final = "application/x-wove-signed-ndjson"
"""Media type of streamed events in signed replies: before each line with an event, a line with its signature."""

STREAM_METADATA: Final = "x-wove-stream"
"""gRPC metadata with which each side says that it knows replies of several messages."""

RESUME_HEADER: Final = "X-Wove-Resume"
"""Of a response of a worker service: it keeps runs whose connection is lost, and takes ``resume_task`` for them."""

GRPC_METHOD: Final = "/wove.network_executor.WorkerService/Send"
"""Default full path of the gRPC method that takes commands."""
