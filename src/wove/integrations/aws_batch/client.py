"""Calls to AWS Batch with the user's client: bounded in time, patient with throttling, and with errors that help."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final, cast

from wove.concurrency.backoff import Backoff
from wove.errors import DeliveryError

__all__ = ["Api", "DeniedError", "client_of"]

CONNECT_SECONDS: Final = 5
ANSWER_SECONDS: Final = 15
"""How long AWS may take to accept a connection, and to answer."""

RETRY_SECONDS: Final = 40.0
"""For how long a call that is throttled is made again."""

THROTTLE: Final = Backoff(0.25, 8.0, least=0.0)
"""Between two attempts of a request that AWS throttles (docs.aws.amazon.com/general/latest/gr/api-retries.html)."""

MAX_IDS: Final = 100
"""Of one DescribeJobs (docs.aws.amazon.com/batch/latest/APIReference/API_DescribeJobs.html)."""

THROTTLED: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "429",
    }
)
"""Error codes that mean that a request was not looked at (botocore/retries/standard.py, ThrottledRetryableChecker)."""

DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})


class DeniedError(DeliveryError):
    """The credentials do not allow it."""


def client_of(options: Mapping[str, Any]) -> Any:
    """A client of our own.

    Args:
        options: Of `boto3.client`.
    """
    session: Any = importlib.import_module("boto3.session")
    config: Any = importlib.import_module("botocore.config")
    # Tried once: what is to be tried again is decided here, since a SubmitJob that was heard would be a second job.
    ours = config.Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=ANSWER_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=16,
    )
    given = dict(options)
    if given.get("config") is not None:
        ours = ours.merge(given["config"])
    return session.Session().client("batch", **{**given, "config": ours})


class Api:
    """The calls. May be used from several threads, as clients of boto3 may.

    Args:
        client: A client of boto3 for Batch.
        label: What messages begin with.
    """

    def __init__(self, client: Any, *, label: str) -> None:
        exceptions: Any = importlib.import_module("botocore.exceptions")
        self.client = client
        self._what = label
        self._answered: type[Exception] = exceptions.ClientError
        self._invalid: type[Exception] = exceptions.ParamValidationError
        self._unsent: tuple[type[Exception], ...] = (
            exceptions.EndpointConnectionError,
            exceptions.ConnectTimeoutError,
        )
        self._unreached: type[Exception] = exceptions.BotoCoreError

    def submit(self, request: Mapping[str, Any]) -> str:
        """Submit a job; its id."""
        answer = self._call(f"submit job {request['jobName']}", self.client.submit_job, **request)
        return str(answer["jobId"])

    def terminate(self, job: str, reason: str) -> None:
        """End a job, whatever state it is in. CancelJob would do nothing for one that starts or runs."""
        self._call(f"terminate job {job}", self.client.terminate_job, jobId=job, reason=reason)

    def describe(self, jobs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the descriptions of jobs, by id, without those that Batch does not know."""
        ids, found = list(jobs), dict[str, dict[str, Any]]()
        for first in range(0, len(ids), MAX_IDS):
            some = ids[first : first + MAX_IDS]
            answer = self._call(f"describe {len(some)} jobs", self.client.describe_jobs, jobs=some)
            found.update((each["jobId"], each) for each in answer.get("jobs", ()))
        return found

    def named(self, queue: str, name: str) -> list[dict[str, Any]]:
        """Summaries of the jobs of that name."""
        filters = [{"name": "JOB_NAME", "values": [name]}]
        answer = self._call("list jobs", self.client.list_jobs, jobQueue=queue, filters=filters)
        listed = cast("list[dict[str, Any]]", answer.get("jobSummaryList") or [])
        return [each for each in listed if each.get("jobName") == name]

    def queue(self, name: str) -> dict[str, Any] | None:
        """The job queue; ``None``: there is none."""
        answer = self._call(
            f"describe job queue {name}", self.client.describe_job_queues, jobQueues=[name]
        )
        return next(iter(answer.get("jobQueues") or ()), None)

    def definition(self, name: str) -> dict[str, Any] | None:
        """The active revision of a job definition that a name, ``name:revision`` or ARN means; ``None``: none."""
        describe = self.client.describe_job_definitions
        options: dict[str, Any] = (
            {"jobDefinitions": [name]} if ":" in name else {"jobDefinitionName": name}
        )
        answer = self._call(f"describe job definition {name}", describe, status="ACTIVE", **options)
        found = cast("list[dict[str, Any]]", answer.get("jobDefinitions") or [])
        return max(found, key=lambda each: int(each.get("revision") or 0), default=None)

    # ------------------------------------------------------------------ how

    def _call(self, doing: str, function: Callable[..., Any], **options: Any) -> dict[str, Any]:
        began, failures = time.monotonic(), 0

        while True:
            with self._explained(doing):
                try:
                    return cast("dict[str, Any]", function(**options))
                except (self._answered, *self._unsent) as error:
                    failures += 1
                    wait = THROTTLE.delay(failures)
                    late = time.monotonic() - began + wait > RETRY_SECONDS
                    # A request that was never sent is worth one more try: kept connections end.
                    if late or not (
                        _code(error) in THROTTLED or (_code(error) == "" and failures == 1)
                    ):
                        raise
                    time.sleep(wait)

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Generator[None]:
        try:
            yield
        except self._answered as error:
            code = _code(error)
            kind = DeniedError if code in DENIED else DeliveryError
            remedy = (
                " (docs/aws-batch.md has a policy with the least rights)"
                if kind is DeniedError
                else ""
            )
            raise kind(
                f"{self._what}: AWS Batch refused to {doing}: {_message(error)} ({code}){remedy}"
            ) from error
        except self._invalid as error:
            raise ValueError(
                f"{self._what}: this is not a request that AWS Batch takes: {error}"
            ) from error
        except self._unreached as error:  # no credentials, no region, no connection: it says which
            raise DeliveryError(
                f"{self._what}: AWS Batch could not be asked to {doing}: {type(error).__name__}: {error}"
            ) from error


def _error(error: Any) -> Any:
    return getattr(error, "response", {}).get("Error", {})


def _code(error: Any) -> str:
    return str(_error(error).get("Code", ""))


def _message(error: Any) -> str:
    return str(_error(error).get("Message") or error)
