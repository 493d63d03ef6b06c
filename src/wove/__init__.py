"""Wove: declare tasks inline, run each where it belongs.

The names below are imported on first use, so that ``import wove`` costs next to nothing.
"""

# No import at all: not even `typing` or `__future__`. Type checkers take this constant for typing's.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from wove import (
        backend as backend,
        cache as cache,
        environment as environment,
        errors as errors,
        integrations as integrations,
    )
    from wove.block import weave
    from wove.delivery import shutdown
    from wove.diagnosis import doctor
    from wove.errors import (
        CacheError,
        DeliveryError,
        DeliveryOrphanedError,
        DeliveryTimeoutError,
        EnvironmentExecutionError,
        MissingDependencyError,
        MissingDispatchFeatureError,
        ResultNotKeptError,
        SerializationError,
        TaskCancelledError,
        TaskTimeoutError,
        UnresolvedSignatureError,
        WeaveStateError,
        WorkerLostError,
        WorkerSetupError,
        WoveError,
        WoveWarning,
    )
    from wove.executors.backend.executor import BackendAdapterEnvironmentExecutor
    from wove.executors.base import EnvironmentExecutor
    from wove.executors.grpc.executor import GrpcEnvironmentExecutor
    from wove.executors.http.executor import HttpEnvironmentExecutor
    from wove.executors.websocket.executor import WebSocketEnvironmentExecutor
    from wove.helpers import batch, denone, flatten, fold, redict, sync_to_async, undict
    from wove.integrations.base import BackendAdapter
    from wove.merging import merge
    from wove.observe.dashboard import dashboard
    from wove.observe.otel import instrument
    from wove.observe.reports import progress
    from wove.protocol.carried import carry
    from wove.result import WoveResult
    from wove.security import NetworkExecutorSecurity
    from wove.settings import config
    from wove.workflow import Weave

__version__ = "3.0.0.dev0"

__all__ = [
    "BackendAdapter",
    "BackendAdapterEnvironmentExecutor",
    "CacheError",
    "DeliveryError",
    "DeliveryOrphanedError",
    "DeliveryTimeoutError",
    "EnvironmentExecutionError",
    "EnvironmentExecutor",
    "GrpcEnvironmentExecutor",
    "HttpEnvironmentExecutor",
    "MissingDependencyError",
    "MissingDispatchFeatureError",
    "NetworkExecutorSecurity",
    "ResultNotKeptError",
    "SerializationError",
    "TaskCancelledError",
    "TaskTimeoutError",
    "UnresolvedSignatureError",
    "Weave",
    "WeaveStateError",
    "WebSocketEnvironmentExecutor",
    "WorkerLostError",
    "WorkerSetupError",
    "WoveError",
    "WoveResult",
    "WoveWarning",
    "__version__",
    "batch",
    "carry",
    "config",
    "dashboard",
    "denone",
    "doctor",
    "flatten",
    "fold",
    "instrument",
    "merge",
    "progress",
    "redict",
    "shutdown",
    "sync_to_async",
    "undict",
    "weave",
]

# Where each public name lives; what is not listed lives in `errors`.
_HOMES = {
    "BackendAdapter": "wove.integrations.base",
    "BackendAdapterEnvironmentExecutor": "wove.executors.backend.executor",
    "EnvironmentExecutor": "wove.executors.base",
    "GrpcEnvironmentExecutor": "wove.executors.grpc.executor",
    "HttpEnvironmentExecutor": "wove.executors.http.executor",
    "NetworkExecutorSecurity": "wove.security",
    "Weave": "wove.workflow",
    "WebSocketEnvironmentExecutor": "wove.executors.websocket.executor",
    "WoveResult": "wove.result",
    "batch": "wove.helpers",
    "carry": "wove.protocol.carried",
    "config": "wove.settings",
    "dashboard": "wove.observe.dashboard",
    "denone": "wove.helpers",
    "doctor": "wove.diagnosis",
    "flatten": "wove.helpers",
    "fold": "wove.helpers",
    "instrument": "wove.observe.otel",
    "merge": "wove.merging",
    "progress": "wove.observe.reports",
    "redict": "wove.helpers",
    "shutdown": "wove.delivery",
    "sync_to_async": "wove.helpers",
    "undict": "wove.helpers",
    "weave": "wove.block",
}

# Submodules that are documented import paths: `wove.errors.WorkerLostError` works after `import wove`.
_MODULES = ("backend", "cache", "environment", "errors", "integrations")


# Hidden from type checkers, which would otherwise believe in every misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return __import__(f"wove.{name}", None, None, (name,))
        if name not in __all__:
            raise AttributeError(f"module 'wove' has no attribute {name!r}")
        value = getattr(__import__(_HOMES.get(name, "wove.errors"), None, None, (name,)), name)
        globals()[name] = value  # from now on an ordinary attribute
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
