"""Types of environments and of each executor's ``executor_config``, for editors and type checkers.

``wove.config`` takes plain dicts, and checks them when they are used. With these types an editor completes the keys and
shows what they mean, and a type checker finds a misspelt one::

    from wove.settings.types import CeleryConfig

    queue: CeleryConfig = {"broker_url": "redis://redis:6379/0", "queue": "reports"}
    wove.config(environments={"reports": {"executor": "celery", "executor_config": queue}})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypeAlias, TypedDict

from wove.graph.options import DefaultOptions

__all__ = [
    "ARQConfig",
    "AWSBatchConfig",
    "CeleryConfig",
    "DaskConfig",
    "EnvironmentDefinition",
    "GrpcConfig",
    "HttpConfig",
    "KubernetesJobsConfig",
    "RQConfig",
    "RayConfig",
    "SecuritySettings",
    "SlurmConfig",
    "StdioConfig",
    "TaskiqConfig",
    "TemporalConfig",
    "WebSocketConfig",
]

SecuritySettings: TypeAlias = str | Mapping[str, Any] | None
"""``"env:VARIABLE"``, ``"none"``, or a dict with ``type`` (``"signed"``, ``"bearer"``, ``"none"``) and its settings."""

PEM: TypeAlias = str | bytes | PathLike[str]
"""PEM text or bytes, or the path of a PEM file."""

Command: TypeAlias = str | Sequence[str | PathLike[str]]
"""A command: a list, or text that is split as a shell does."""

Headers: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]


class ExecutorTimeouts(TypedDict, total=False):
    """The keys of every executor."""

    start_timeout: float | None
    """Seconds that the executor may take to start (60)."""
    send_timeout: float | None
    """Seconds that one hand-over of a run may take (60)."""
    stop_timeout: float | None
    """Seconds that the executor may take to stop (10)."""
    cancel_ack_timeout: float | None
    """Seconds to wait for the end of a cancelled run with ``delivery_cancel_mode="require_ack"`` (30)."""


class StdioConfig(ExecutorTimeouts, total=False):
    """The ``executor_config`` of ``stdio``: a pool of worker processes."""

    command: Command | None
    """The command that starts a worker process; Wove's own worker by default."""
    launcher: Command | None
    """A command that starts the worker elsewhere; the worker's command follows it."""
    python: Command | None
    """The interpreter of Wove's own worker; this one by default."""
    processes: int | None
    """Maximum number of worker processes; the number of CPUs by default."""
    min_processes: int
    """Number of worker processes that are started at once and kept."""
    idle_seconds: float | None
    """Seconds after which a worker process without a run ends."""
    terminate_on_cancel: bool
    """Whether a task that does not stop is ended with its process (true)."""


class NetworkConfig(ExecutorTimeouts, total=False):
    """The keys that ``http``, ``https``, ``grpc`` and ``websocket`` share."""

    security: SecuritySettings
    """How requests are authenticated: ``"env:VARIABLE"`` with the secret that both sides share."""
    insecure: bool
    """Allow a service on another machine without TLS or without security (false)."""
    max_message_bytes: int
    """Maximum bytes of one message (512 MiB)."""
    root_certificates: PEM | None
    """The authorities to trust: PEM text or the path of a PEM file; this machine's by default."""
    client_certificate: PEM | None
    """The certificate to present to the service."""
    client_key: PEM | None
    """The private key of the client certificate."""
    busy_timeout: float | None
    """Seconds for which a run is offered again to a service that is busy; ``None``: without limit."""
    reconnect_timeout: float | None
    """Seconds for which connecting to a service that was there before is tried again (5); ``None``: for ever."""


class HttpConfig(NetworkConfig, total=False):
    """The ``executor_config`` of ``http`` and ``https``."""

    url: str
    """The endpoint of the worker service. Required."""
    headers: Headers | None
    """Extra headers of every request."""
    timeout: float | None
    """Seconds from the moment a request gets a connection to the end of its answer; no limit by default."""
    max_connections: int
    """Maximum number of connections, and so of runs at once (100)."""
    connect_timeout: float | None
    """Seconds for connecting, TLS included (10)."""


class GrpcConfig(NetworkConfig, total=False):
    """The ``executor_config`` of ``grpc``."""

    target: str
    """The worker service, such as ``"workers.internal:9000"``. Required."""
    method: str
    """The method path (``"/wove.network_executor.WorkerService/Send"``)."""
    secure: bool
    """Whether the channel uses TLS."""
    metadata: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]] | None
    """Extra metadata of every call."""
    timeout: float | None
    """Seconds that one call may take; no limit by default."""
    max_concurrent_calls: int
    """Maximum number of calls at once."""
    channel_options: Mapping[str, Any] | Sequence[tuple[str, Any]] | None
    """Options of the gRPC channel."""


class WebSocketConfig(NetworkConfig, total=False):
    """The ``executor_config`` of ``websocket``."""

    url: str
    """The ``ws://`` or ``wss://`` endpoint. Required."""
    headers: Headers | None
    """Extra headers of the handshake."""
    open_timeout: float | None
    """Seconds for opening the connection."""


class BackendConfig(ExecutorTimeouts, total=False):
    """The keys that all backend adapters share."""

    callback_host: str
    """The address on which Wove listens for events (``"127.0.0.1"``)."""
    callback_port: int | str
    """The port for that: a number, 0 for any (default), or a range such as ``"9010-9019"``."""
    callback_url: str
    """The address that workers call; may contain ``{port}`` and ``{token}``."""
    callback_token: str
    """The last part of the path, which only workers know; a random one by default."""
    callback_retry_seconds: float
    """Seconds for which a worker tries to report an event (60)."""
    security: SecuritySettings
    """Signs payloads and events: ``"env:VARIABLE"`` with the secret that workers have too."""
    insecure: bool
    """Allow a callback receiver for other machines without TLS or security (false)."""
    max_message_bytes: int
    """Maximum bytes of one event (512 MiB)."""
    watch_seconds: float | None
    """Maximum seconds between two questions to the backend about the jobs that have not ended."""
    payload_max_age: float | None
    """Seconds after which a payload is not run any more; needs ``security``."""


class PatientBackendConfig(BackendConfig, total=False):
    """The keys of backends whose controller or API server is waited for while it is away."""

    submit_patience_seconds: float
    """Seconds for which a submission waits for it (60)."""


class CeleryConfig(BackendConfig, total=False):
    """The ``executor_config`` of ``celery``."""

    app: Any
    """A Celery app; or give ``broker_url``."""
    broker_url: str
    """The broker, such as ``"redis://redis:6379/0"``."""
    result_backend: str
    """The result backend, which tells of jobs that failed; not needed for results."""
    backend_url: str
    """Another name of ``result_backend``."""
    app_name: str
    """The name of the app that is made for ``broker_url`` (``"wove"``)."""
    task_name: str
    """The task that workers have registered (``"wove.run_backend_payload"``)."""
    queue: str
    """The queue; Celery's routing decides by default."""
    send_task_options: Mapping[str, Any]
    """More arguments of ``Celery.send_task``."""
    terminate_on_cancel: bool
    """Whether a cancel ends the worker's child process (false)."""


class TemporalConfig(BackendConfig, total=False):
    """The ``executor_config`` of ``temporal``."""

    client: Any
    """A connected ``temporalio`` client; or give ``target_host``."""
    target_host: str
    """The server (``"localhost:7233"``)."""
    connect_options: Mapping[str, Any]
    """More arguments of ``Client.connect``."""
    workflow: Any
    """The workflow, by name or as a class; Wove's own by default."""
    task_queue: str
    """The task queue that workers poll. Required."""
    workflow_id_prefix: str
    """How the ids of workflows begin."""
    start_options: Mapping[str, Any]
    """More arguments of ``Client.start_workflow``."""


class RayConfig(BackendConfig, total=False):
    """The ``executor_config`` of ``ray``."""

    address: str | None
    """The cluster, such as ``"ray://head:10001"`` or ``"auto"``."""
    init: bool
    """Whether Wove calls ``ray.init`` if the program has not (true)."""
    init_options: Mapping[str, Any]
    """More arguments of ``ray.init``."""
    remote_options: Mapping[str, Any]
    """Options of the remote function: ``num_cpus``, ``num_gpus``, ``resources``, ..."""
    force_cancel: bool
    """Whether a cancel kills the worker process."""


class RQConfig(BackendConfig, total=False):
    """The ``executor_config`` of ``rq``."""

    queue: Any
    """An ``rq.Queue``; or give ``redis_url``."""
    redis_url: str
    """The Redis server (``"redis://localhost:6379/0"``)."""
    queue_name: str
    """The queue that workers listen to (``"default"``)."""
    enqueue_options: Mapping[str, Any]
    """More arguments of ``Queue.enqueue_call``."""


class TaskiqConfig(BackendConfig, total=False):
    """The ``executor_config`` of ``taskiq``."""

    task: Any
    """The task that ``wove.integrations.taskiq.register`` returned; or give ``broker``."""
    broker: Any
    """A Taskiq broker."""
    task_name: str
    """The task that workers have registered (``"wove.run_backend_payload"``)."""


class ARQConfig(BackendConfig, total=False):
    """The ``executor_config`` of ``arq``."""

    pool: Any
    """An ``ArqRedis``; or give ``redis_settings``."""
    redis_settings: Any
    """A URL, or ARQ's ``RedisSettings``."""
    function_name: str
    """The function that workers have (``"wove_run_backend_payload"``)."""
    queue_name: str
    """The queue that workers poll."""
    enqueue_options: Mapping[str, Any]
    """More arguments of ``enqueue_job``."""


class DaskConfig(BackendConfig, total=False):
    """The ``executor_config`` of ``dask``."""

    client: Any
    """A ``distributed.Client``; or give ``address``."""
    address: str
    """The scheduler, such as ``"tcp://scheduler:8786"``."""
    client_options: Mapping[str, Any]
    """More arguments of ``Client``."""
    submit_options: Mapping[str, Any]
    """More arguments of ``Client.submit``: ``resources``, ``workers``, ``priority``, ..."""


class KubernetesJobsConfig(PatientBackendConfig, total=False):
    """The ``executor_config`` of ``kubernetes_jobs``."""

    namespace: str
    """The namespace of the Jobs."""
    image: str
    """The image of the pods, with Wove in it."""
    command: Command
    """The command of the container (``python -m wove.backend_worker``)."""
    job_factory: Callable[..., Any]
    """Makes the whole manifest instead."""
    batch_api: Any
    """A ``BatchV1Api`` of yours."""
    load_config: bool
    """Whether Wove loads the configuration of the cluster."""
    in_cluster: bool | None
    """Whether this process runs in the cluster; found out by default."""
    load_config_options: Mapping[str, Any]
    """More arguments of the function that loads it."""
    backoff_limit: int
    """How often Kubernetes itself starts a failed pod again (0)."""
    job_name_prefix: str
    """How the names of Jobs begin."""
    container: Mapping[str, Any]
    """More fields of the container: ``resources``, ``env``, ..."""
    pod_spec: Mapping[str, Any]
    """More fields of the pod: ``nodeSelector``, ``serviceAccountName``, ..."""
    job_spec: Mapping[str, Any]
    """More fields of the Job."""
    labels: Mapping[str, str]
    """Labels of Jobs and pods."""
    annotations: Mapping[str, str]
    """Annotations of Jobs and pods."""


class AWSBatchConfig(PatientBackendConfig, total=False):
    """The ``executor_config`` of ``aws_batch``."""

    client: Any
    """A ``boto3`` client of Batch."""
    client_options: Mapping[str, Any]
    """More arguments of ``boto3.client``: ``region_name``, ..."""
    job_queue: str
    """The job queue. Required."""
    job_definition: str
    """The job definition. Required."""
    container_overrides: Mapping[str, Any]
    """More of ``containerOverrides``: ``resourceRequirements``, ..."""
    command: Command
    """The command of the container."""
    submit_job_options: Mapping[str, Any]
    """More arguments of ``submit_job``."""
    job_name_prefix: str
    """How the names of jobs begin."""


class SlurmConfig(PatientBackendConfig, total=False):
    """The ``executor_config`` of ``slurm``."""

    submit: Command | Callable[..., Any]
    """A command or a function of yours that submits a job script, instead of ``sbatch``."""
    command: Command
    """The command that a job runs (``python -m wove.backend_worker``)."""
    sbatch: Command
    """The command ``sbatch``."""
    scancel: Command
    """The command ``scancel``."""
    squeue: Command
    """The command ``squeue``."""
    sacct: Command
    """The command ``sacct``."""
    sinfo: Command
    """The command ``sinfo``."""
    job_name_prefix: str
    """How the names of jobs begin."""
    sbatch_options: Mapping[str, Any] | str | Sequence[str]
    """Options of ``sbatch``: ``partition``, ``gres``, ``time``, ..."""
    output: str
    """The file of a job's output."""
    export: Mapping[str, str] | str | Sequence[str]
    """Environment variables that jobs get: names, a dict of values, ``"ALL"`` or ``"NONE"``."""


# ------------------------------------------------------------------ environments


class LocalEnvironment(DefaultOptions, total=False):
    """Tasks run in this process."""

    executor: Literal["local"]


class StdioEnvironment(DefaultOptions, total=False):
    """Tasks run in a pool of processes."""

    executor: Literal["stdio"]
    executor_config: StdioConfig


class HttpEnvironment(DefaultOptions, total=False):
    """Tasks run in a worker service over HTTP."""

    executor: Literal["http", "https"]
    executor_config: HttpConfig


class GrpcEnvironment(DefaultOptions, total=False):
    """Tasks run in a worker service over gRPC."""

    executor: Literal["grpc"]
    executor_config: GrpcConfig


class WebSocketEnvironment(DefaultOptions, total=False):
    """Tasks run in a worker service over a WebSocket."""

    executor: Literal["websocket"]
    executor_config: WebSocketConfig


class CeleryEnvironment(DefaultOptions, total=False):
    """Tasks run in Celery's workers."""

    executor: Literal["celery"]
    executor_config: CeleryConfig


class TemporalEnvironment(DefaultOptions, total=False):
    """Tasks run in activities of Temporal."""

    executor: Literal["temporal"]
    executor_config: TemporalConfig


class RayEnvironment(DefaultOptions, total=False):
    """Tasks run on a Ray cluster."""

    executor: Literal["ray"]
    executor_config: RayConfig


class RQEnvironment(DefaultOptions, total=False):
    """Tasks run in RQ's workers."""

    executor: Literal["rq"]
    executor_config: RQConfig


class TaskiqEnvironment(DefaultOptions, total=False):
    """Tasks run in Taskiq's workers."""

    executor: Literal["taskiq"]
    executor_config: TaskiqConfig


class ARQEnvironment(DefaultOptions, total=False):
    """Tasks run in ARQ's workers."""

    executor: Literal["arq"]
    executor_config: ARQConfig


class DaskEnvironment(DefaultOptions, total=False):
    """Tasks run on a Dask cluster."""

    executor: Literal["dask"]
    executor_config: DaskConfig


class KubernetesJobsEnvironment(DefaultOptions, total=False):
    """Tasks run in pods of Kubernetes."""

    executor: Literal["kubernetes_jobs"]
    executor_config: KubernetesJobsConfig


class AWSBatchEnvironment(DefaultOptions, total=False):
    """Tasks run as jobs of AWS Batch."""

    executor: Literal["aws_batch"]
    executor_config: AWSBatchConfig


class SlurmEnvironment(DefaultOptions, total=False):
    """Tasks run as jobs of Slurm."""

    executor: Literal["slurm"]
    executor_config: SlurmConfig


EnvironmentDefinition: TypeAlias = (
    LocalEnvironment
    | StdioEnvironment
    | HttpEnvironment
    | GrpcEnvironment
    | WebSocketEnvironment
    | CeleryEnvironment
    | TemporalEnvironment
    | RayEnvironment
    | RQEnvironment
    | TaskiqEnvironment
    | ARQEnvironment
    | DaskEnvironment
    | KubernetesJobsEnvironment
    | AWSBatchEnvironment
    | SlurmEnvironment
    | Mapping[str, Any]
)
"""One environment, as `wove.config` takes it. The mapping is for custom executors and for definitions made at run
time."""
