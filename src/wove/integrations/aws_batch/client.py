"""Calls of AWS Batch: with time limits, retries of throttled requests, and errors that say what to do."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final, cast

from wove.concurrency.backoff import Backoff
from wove.errors import DeliveryError

__all__ = ["Api", "DeniedError", "UnansweredError", "client_of"]

CONNECT_SECONDS: Final = 5
ANSWER_SECONDS: Final = 15
"""How long AWS may take to accept a connection, and to answer."""

RETRY_SECONDS: Final = 40.0
"""How long a throttled call is retried."""

THROTTLE: Final = Backoff(0.25, 8.0, least=0.0)
"""The delays between attempts of a throttled request (docs.aws.amazon.com/general/latest/gr/api-retries.html)."""

MAX_IDS: Final = 100
"""Maximum number of jobs in one DescribeJobs (docs.aws.amazon.com/batch/latest/APIReference/API_DescribeJobs.html)."""

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
"""Error codes of requests that were rejected before they were processed (botocore/retries/standard.py,
ThrottledRetryableChecker)."""

SERVER_ERROR: Final = "ServerException"
"""The error code of a fault in AWS Batch, which may have carried out the request."""

DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})


class DeniedError(DeliveryError):
    """The credentials do not allow the call."""


class UnansweredError(DeliveryError):
    """AWS Batch could not be reached, or its answer was lost.

    Attributes:
        sent: Whether the request may have been carried out.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


def client_of(options: Mapping[str, Any]) -> Any:
    """Return a new client.

    Args:
        options: Options of `boto3.client`.
    """
    session: Any = importlib.import_module("boto3.session")
    config: Any = importlib.import_module("botocore.config")
    # One attempt: `Api` decides what is retried, since a repeated SubmitJob that was carried out is a second job.
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
    """Makes the calls. May be used from several threads, as clients of boto3 may.

    Args:
        client: A client of boto3 for Batch.
        label: What messages begin with.
    """

    def __init__(self, client: Any, *, label: str) -> None:
        exceptions: Any = importlib.import_module("botocore.exceptions")
        self.client = client
        self._label = label
        self._answered: type[Exception] = exceptions.ClientError
        self._invalid: type[Exception] = exceptions.ParamValidationError
        self._unsent: tuple[type[Exception], ...] = (
            exceptions.EndpointConnectionError,
            exceptions.ConnectTimeoutError,
        )
        self._unanswered: tuple[type[Exception], ...] = (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
        )
        self._unreached: type[Exception] = exceptions.BotoCoreError

    def submit(self, request: Mapping[str, Any]) -> str:
        """Submit a job, and return its id."""
        answer = self._call(f"submit job {request['jobName']}", self.client.submit_job, **request)
        return str(answer["jobId"])

    def terminate(self, job: str, reason: str) -> None:
        """End a job in any state. CancelJob has no effect on jobs that start or run."""
        self._call(f"terminate job {job}", self.client.terminate_job, jobId=job, reason=reason)

    def describe(self, jobs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the descriptions of jobs, by id. Jobs that Batch does not know are left out."""
        ids, found = list(jobs), dict[str, dict[str, Any]]()
        for first in range(0, len(ids), MAX_IDS):
            some = ids[first : first + MAX_IDS]
            answer = self._call(f"describe {len(some)} jobs", self.client.describe_jobs, jobs=some)
            found.update((each["jobId"], each) for each in answer.get("jobs", ()))
        return found

    def named(self, queue: str, name: str) -> list[dict[str, Any]]:
        """Return summaries of the jobs with that name."""
        filters = [{"name": "JOB_NAME", "values": [name]}]
        answer = self._call("list jobs", self.client.list_jobs, jobQueue=queue, filters=filters)
        listed = cast("list[dict[str, Any]]", answer.get("jobSummaryList") or [])
        return [each for each in listed if each.get("jobName") == name]

    def queue(self, name: str) -> dict[str, Any] | None:
        """Return the description of a job queue; ``None``: it does not exist."""
        answer = self._call(
            f"describe job queue {name}", self.client.describe_job_queues, jobQueues=[name]
        )
        return next(iter(answer.get("jobQueues") or ()), None)

    def definition(self, name: str) -> dict[str, Any] | None:
        """Return the active revision of a job definition, given by name, ``name:revision`` or ARN; ``None``: none
        exists."""
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
                    # A request that was not sent is retried once, since idle connections may have been closed.
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
            text = (
                f"{self._label}: AWS Batch refused to {doing}: {_message(error)} ({code}){remedy}"
            )
            if code == SERVER_ERROR:
                raise UnansweredError(text, sent=True) from error
            raise kind(text) from error
        except self._invalid as error:
            raise ValueError(
                f"{self._label}: this is not a request that AWS Batch takes: {error}"
            ) from error
        except self._unanswered as error:
            raise UnansweredError(
                f"{self._label}: AWS Batch could not be asked to {doing}: {type(error).__name__}: {error}",
                sent=not isinstance(error, self._unsent),
            ) from error
        except self._unreached as error:  # credentials or a region are missing
            raise DeliveryError(
                f"{self._label}: AWS Batch could not be asked to {doing}: {type(error).__name__}: {error}"
            ) from error


def _error(error: Any) -> Any:
    return getattr(error, "response", {}).get("Error", {})


def _code(error: Any) -> str:
    return str(_error(error).get("Code", ""))


def _message(error: Any) -> str:
    return str(_error(error).get("Message") or error)
