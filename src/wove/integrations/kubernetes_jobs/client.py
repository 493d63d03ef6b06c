"""Calls to the API of a cluster: with time limits, retries, and errors that say what to do."""

from __future__ import annotations

import contextlib
import importlib
import json
import socket
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final, cast

from wove.concurrency.backoff import Backoff
from wove.errors import DeliveryError

__all__ = ["Api", "RefusedError", "batch_api", "default_namespace", "hang_up", "lines_of"]

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
"""How long the API server may take to accept a connection, and to answer."""

RETRY_SECONDS: Final = 20.0
"""How long a call is retried while the server is too busy."""

BUSY: Final = Backoff(0.2, 5.0, most=1.5)
"""The delays between attempts while the server is too busy, if it does not say how long to wait."""

PASSING: Final = (429, 500, 502, 503, 504)
"""Statuses of answers that are worth a retry (kubernetes.io/docs/concepts/cluster-administration/flow-control)."""

QUOTA: Final = "exceeded quota"
"""Part of the message of a call that a quota refuses (apiserver/pkg/admission/plugin/resourcequota/controller.go)."""

NAMESPACE_FILE: Final = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
"""The file with a pod's own namespace (kubernetes.io/docs/tasks/run-application/access-api-from-pod)."""

REMEDIES: Final = (
    (401, "", "the credentials of this process are not (or no longer) valid"),
    (403, " cannot ", "a Role must allow it: docs/kubernetes.md has one with the least rights"),
    (403, QUOTA, "'workers' of a mapped task bounds how many Jobs it has at a time"),
)
"""Status and part of the text of an answer, and what to do about it. Not only the authorizer answers 403
(apiserver/pkg/endpoints/handlers/responsewriters/errors.go): quotas and webhooks do, too."""


class RefusedError(DeliveryError):
    """The API server refused the call.

    Attributes:
        status: The HTTP status.
        passes: Whether the same call may succeed later: the server is away, too busy, or a quota is used up.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.passes = status in PASSING or (status == 403 and QUOTA in message)


class Api:
    """Makes the calls. May be used from several threads.

    Args:
        batch: A `kubernetes.client.BatchV1Api`.
        namespace: The namespace of all calls.
        label: What messages begin with.
    """

    def __init__(self, batch: Any, namespace: str, *, label: str) -> None:
        client: Any = importlib.import_module("kubernetes.client")
        urllib3: Any = importlib.import_module("urllib3.exceptions")
        self.namespace = namespace
        self._label = label
        self.batch: Any = batch
        self.core: Any = client.CoreV1Api(batch.api_client)
        self._access: Any = client.AuthorizationV1Api(batch.api_client)
        self._refused: type[Exception] = client.ApiException
        self._unreached: type[Exception] = urllib3.HTTPError
        self._broken: type[Exception] = urllib3.ProtocolError
        self.sanitized: Callable[[object], Any] = batch.api_client.sanitize_for_serialization

    # ------------------------------------------------------------------ calls

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Create a Job. Unknown fields are an error if the server checks them (from 1.25 on)."""
        create = self.batch.create_namespaced_job
        doing = f"create Job {job['metadata']['name']}"

        try:
            return self._answer(doing, create, self.namespace, job, field_validation="Strict")
        except ValueError as error:  # newer versions of the client check the fields with pydantic
            raise ValueError(
                f"{self._label}: this is not a Job that the Kubernetes API takes: {_fields(error)}"
            ) from None

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the Job *name*; ``None``: it does not exist."""
        try:
            return self._answer(
                f"read Job {name}", self.batch.read_namespaced_job, name, self.namespace
            )
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    def delete(self, name: str, uid: str) -> None:
        """Delete the Job with that uid, if it exists, and its pods."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}

        try:
            self._answer(
                f"delete Job {name}",
                self.batch.delete_namespaced_job,
                name,
                self.namespace,
                body=body,
            )
        except RefusedError as error:
            if error.status not in (404, 409):  # 409: another Job has taken the name
                raise

    def listed(self, function: Callable[..., Any], kind: str, selector: str) -> dict[str, Any]:
        """Return all *kind* that *selector* matches."""
        return self._answer(f"list {kind}", function, self.namespace, label_selector=selector)

    def follow(
        self, function: Callable[..., Any], selector: str, version: str, seconds: int
    ) -> Any:
        """Return a response whose lines are the changes since *version*. It lasts *seconds*.

        Raises:
            RefusedError: The server refused; 410: *version* is too old.
            DeliveryError: The server was not reached.
        """
        options = {
            "label_selector": selector,
            "resource_version": version,
            "watch": True,
            "timeout_seconds": seconds,
            "allow_watch_bookmarks": True,  # so that the version of an idle watch stays recent
        }
        limits = (CONNECT_SECONDS, seconds + ANSWER_SECONDS)
        with self._explained("watch for changes"):
            return function(
                self.namespace, **options, _preload_content=False, _request_timeout=limits
            )

    def events(self, reason: str) -> list[dict[str, Any]]:
        """Return the events about Jobs with this *reason*.

        Raises:
            RefusedError: They may not be listed.
        """
        chosen = f"involvedObject.kind=Job,reason={reason}"
        listed = self._answer(
            "list events", self.core.list_namespaced_event, self.namespace, field_selector=chosen
        )
        return cast("list[dict[str, Any]]", listed.get("items") or [])

    def log(self, pod: str, container: str, *, lines: int, seconds: float) -> str:
        """Return the last lines of a container's log; ``""`` if they cannot be read."""
        read = self.core.read_namespaced_pod_log
        options: dict[str, Any] = {"container": container} if container else {}

        with contextlib.suppress(self._refused, self._unreached):
            response = read(
                pod,
                self.namespace,
                tail_lines=lines,
                _preload_content=False,
                _request_timeout=seconds,
                **options,
            )
            return bytes(response.data).decode("utf-8", "replace").strip()

        return ""

    def may(self, verb: str, group: str, resource: str) -> str | None:
        """Return why this is not allowed; ``None``: it is, or this cannot be found out."""
        attributes = {
            "namespace": self.namespace,
            "verb": verb,
            "group": group,
            "resource": resource,
        }
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}

        try:
            create = self._access.create_self_subject_access_review
            answer = self._answer(
                "ask", create, {**review, "spec": {"resourceAttributes": attributes}}
            )
        except RefusedError:
            return None

        status: dict[str, Any] = answer.get("status") or {}
        return (
            None
            if status.get("allowed", True)
            else str(status.get("reason") or "no rule allows it")
        )

    # ------------------------------------------------------------------ how

    def _answer(
        self, doing: str, function: Callable[..., Any], *args: Any, **options: Any
    ) -> dict[str, Any]:
        """Return the answer of *function*, which is retried while the server is too busy."""
        began, failures, broken = time.monotonic(), 0, False

        while True:
            try:
                with self._explained(doing):
                    limits = (CONNECT_SECONDS, ANSWER_SECONDS)
                    response = function(
                        *args, **options, _preload_content=False, _request_timeout=limits
                    )
                    return cast("dict[str, Any]", json.loads(response.data))
            except RefusedError as error:
                cause: Any = error.__cause__
                failures += 1
                wait = _seconds(cause.headers, BUSY.delay(failures))
                if error.status not in PASSING or time.monotonic() - began + wait > RETRY_SECONDS:
                    raise
                time.sleep(wait)
            except DeliveryError as error:
                # The server had closed an idle connection. A Job is not created twice, since its name is then taken.
                if broken or not isinstance(error.__cause__, self._broken):
                    raise
                broken = True

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Generator[None]:
        try:
            yield
        except self._refused as error:
            answer: Any = error
            if not answer.status:  # an error of TLS
                raise DeliveryError(
                    f"{self._label}: the Kubernetes API could not be asked to {doing}: {answer.reason}"
                ) from error
            said = _message(answer)
            remedies = [
                text
                for status, words, text in REMEDIES
                if status == answer.status and words in said
            ]
            raise RefusedError(
                f"{self._label}: the Kubernetes API refused to {doing} in namespace {self.namespace!r}: "
                f"{said}{f' ({remedies[0]})' if remedies else ''}",
                answer.status,
            ) from error
        except self._unreached as error:
            host = getattr(self.batch.api_client.configuration, "host", "?")
            raise DeliveryError(
                f"{self._label}: the Kubernetes API at {host} could not be asked to {doing}: "
                f"{type(error).__name__}: {error}"
            ) from error


def _message(error: Any) -> str:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        said: str = json.loads(error.body)["message"]
        return f"{said} ({error.status} {error.reason})"
    return f"{error.status} {error.reason}"


def _fields(error: ValueError) -> str:
    errors: Any = getattr(error, "errors", None)
    listed: Any = errors() if errors is not None else ()
    return "; ".join(
        f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in listed
    ) or str(error)


def _seconds(headers: Any, default: float) -> float:
    """Return the seconds of ``Retry-After``."""
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        return max(default, float(headers.get("Retry-After")))
    return default


def lines_of(response: Any) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of *response* as they arrive."""
    rest = b""
    for piece in response.stream(amt=None, decode_content=False):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


def hang_up(response: Any) -> None:
    """End *response* while another thread reads it."""
    connection = getattr(response, "connection", None) or getattr(response, "_connection", None)
    held = getattr(connection, "sock", None)
    if held is not None:
        with contextlib.suppress(OSError):
            held.shutdown(socket.SHUT_RDWR)


# --- the client -------------------------------------------------------------------------------------------


def batch_api(*, load: bool, in_cluster: bool | None, options: dict[str, Any]) -> Any:
    """Return a new `BatchV1Api`.

    Args:
        load: Whether to read a configuration; otherwise the process's default configuration of Kubernetes is used.
        in_cluster: Whether to use the pod's service account; ``None``: if there is no kubeconfig.
        options: Options of `kubernetes.config.load_kube_config` or ``load_incluster_config``.
    """
    client: Any = importlib.import_module("kubernetes.client")
    config: Any = importlib.import_module("kubernetes.config")
    settings: Any

    if not load:
        settings = client.Configuration.get_default_copy()
    else:
        settings = client.Configuration()
        if in_cluster:
            config.load_incluster_config(client_configuration=settings, **options)
        elif (
            in_cluster is None
            and not options
            and Path(NAMESPACE_FILE).exists()
            and not _has_kubeconfig()
        ):
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(client_configuration=settings, **options)

    settings.retries = (
        False  # urllib3 would otherwise wait four times for a server that does not answer
    )
    return client.BatchV1Api(client.ApiClient(settings))


def _has_kubeconfig() -> bool:
    settings: Any = importlib.import_module("kubernetes.config.kube_config")
    places = str(settings.KUBE_CONFIG_DEFAULT_LOCATION).split(":")
    return any(Path(place).expanduser().exists() for place in places if place)


def default_namespace(*, load: bool, in_cluster: bool | None, options: dict[str, Any]) -> str:
    """Return the namespace of the kubeconfig's context, or of the pod; otherwise ``"default"``."""
    config: Any = importlib.import_module("kubernetes.config")

    if load and not in_cluster:
        with contextlib.suppress(config.ConfigException, OSError, KeyError, TypeError):
            contexts, active = config.list_kube_config_contexts(
                config_file=options.get("config_file")
            )
            if context := options.get("context"):
                active = next(each for each in contexts if each["name"] == context)
            if namespace := active["context"].get("namespace"):
                return str(namespace)
            return "default"

    with contextlib.suppress(OSError):
        return Path(NAMESPACE_FILE).read_text().strip() or "default"
    return "default"
