"""Which value holds: task, weave, environment, ``wove.config``, built-in; the nearest wins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from wove.graph.options import MAPPED_ONLY, OPTIONS, DeliveryPolicy, names, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from wove.graph.options import ErrorMode
    from wove.graph.resources import Resources
    from wove.graph.rules import IdempotencyKey, RetryDelay
    from wove.settings.model import Configuration, Environment

__all__ = ["Resolver", "Setting", "TaskSettings", "WeaveSettings"]


class WeaveSettings(NamedTuple):
    """The effective settings of one weave.

    Attributes:
        max_workers: Maximum number of threads that run its sync tasks.
        background: Whether its tasks run in the background.
        fork: Whether background work gets a process of its own.
        error_mode: ``"raise"``, ``"return"`` or ``"continue"``.
        environment: The environment of tasks that name none.
        max_pending: Maximum number of items of a mapped task's source; ``None`` for no bound.
        store: Where results of tasks with ``cache`` are kept: a path or a store; ``None`` for nowhere.
    """

    max_workers: int
    background: bool
    fork: bool
    error_mode: ErrorMode
    environment: Environment
    max_pending: int | None
    store: Any


class TaskSettings(NamedTuple):
    """The effective settings of one task.

    Attributes:
        environment: The environment in which it runs.
        retries: How many more attempts follow a failed one.
        timeout: Seconds for one attempt; ``None`` for no limit.
        workers: Items at once; ``None`` for no bound, and for a task that is not mapped.
        limit_per_minute: Launches a minute; ``None`` for no pacing, and for a task that is not mapped.
        retry_delay: Seconds, ``"exponential"``, or a callable of the attempt that failed (from 1).
        retry_on: The exception types after which it is tried again.
        max_pending: Maximum number of items of its source; ``None`` for no bound.
        delivery: How its remote runs are handed over and watched.
        setup: What each worker process calls before its first task; ``None`` for nothing.
        keep: Whether its result is kept for ``w.result``.
        cache: Whether its results are kept in the weave's store.
        cache_key: What tells its results apart; ``None`` for the arguments themselves.
        cache_version: Another one makes every result anew; ``None`` for none.
        remote_logs: Whether the logs and prints of its remote runs come home.
        resources: What it asks its environment for; ``None``: it does not say.
        is_local: Whether it runs in this process.
    """

    environment: Environment
    retries: int = 0
    timeout: float | None = None
    workers: int | None = None
    limit_per_minute: float | None = None
    retry_delay: RetryDelay = 0.0
    retry_on: tuple[type[Exception], ...] = (Exception,)
    max_pending: int | None = None
    delivery: DeliveryPolicy = DeliveryPolicy()
    setup: str | None = None
    keep: bool = True
    cache: bool = False
    cache_key: IdempotencyKey | None = None
    cache_version: str | None = None
    remote_logs: bool = False
    resources: Resources | None = None

    @property
    def is_local(self) -> bool:
        return self.environment.is_local


class Setting(NamedTuple):
    """One effective value, and where it came from.

    Attributes:
        value: As Wove uses it.
        origin: ``"task"``, ``"weave"``, ``"environment 'reports'"``, ``"wove.config"``, ``"built-in"``, or the file or
            variable that set a default.
    """

    value: Any
    origin: str


CONFIG: Final = "wove.config"
"""The origin of what calls of ``wove.config`` set."""

_BUILT_IN: Final[Mapping[str, Any]] = {name: option.default for name, option in OPTIONS.items()}
# The settings of a task beside its environment's: its own options, and what its weave sets for it.
_OF_TASK: Final = tuple(
    n for n in OPTIONS if n in {*names("task"), "max_pending", "setup"} and n != "environment"
)
_OF_WEAVE: Final = tuple(n for n in names("weave") if n not in names("task"))
_POLICY_FIELDS: Final = {
    name: name.removeprefix("delivery_") for name in _OF_TASK if name.startswith("delivery_")
}


class _Base(NamedTuple):
    """The settings of a task in one environment before its own options, ready to be overlaid."""

    environment: Environment
    fields: dict[str, Any]
    policy: dict[str, Any]
    settings: TaskSettings


class Resolver:
    """The settings of one weave and of its tasks.

    Building one costs next to nothing. Without settings on the weave, what is worked out is kept with the
    configuration, so that the next weave finds it.

    Args:
        configuration: The configuration at the moment the weave runs.
        weave_options: As :func:`~wove.graph.options.check_weave_options` returned them.
    """

    __slots__ = ("_bases", "_configuration", "_mapped", "_options", "_unmapped", "_weave")

    def __init__(self, configuration: Configuration, weave_options: Mapping[str, Any]) -> None:
        self._configuration = configuration
        self._options = weave_options
        self._bases: dict[Any, Any] = {} if weave_options else configuration.resolved
        self._weave: WeaveSettings | None = None
        self._mapped: TaskSettings | None = None
        self._unmapped: TaskSettings | None = None

    def weave(self) -> WeaveSettings:
        """Return the settings of the weave itself.

        Raises:
            NameError: Its environment is not configured.
        """
        if self._weave is None:
            weave = self._bases.get("weave")
            if weave is None:
                environment = self._environment(None, "weave")
                values = {
                    name: value for name, (value, _) in self._found(_OF_WEAVE, {}, environment)
                }
                weave = self._bases["weave"] = WeaveSettings(environment=environment, **values)
            self._weave = cast("WeaveSettings", weave)

        return self._weave

    def task(self, options: Mapping[str, Any], mapped: bool, label: str = "task") -> TaskSettings:
        """Return the settings of a task.

        Args:
            options: As :func:`~wove.graph.options.check_task_options` returned them.
            mapped: Whether the task maps over something.
            label: What a message calls the task: ``"task 'pdf'"``.

        Raises:
            NameError: Its environment is not configured.
        """
        if not options:
            settings = self._mapped if mapped else self._unmapped
            if settings is None:
                settings = self._base(None, mapped, label).settings
                if mapped:
                    self._mapped = settings
                else:
                    self._unmapped = settings
            return settings

        base = self._base(options.get("environment"), mapped, label)
        fields, policy = base.fields.copy(), None

        for name, value in options.items():
            if name in fields:
                fields[name] = value
            elif name in _POLICY_FIELDS:
                policy = policy or base.policy.copy()
                policy[_POLICY_FIELDS[name]] = value

        if base.environment.is_local and options.get("resources") is not None:
            raise ValueError(
                f"{label}: resources are what a remote environment is asked for, and environment "
                f"{base.environment.name!r} runs tasks in this process. Choose another environment, or leave them out"
            )

        delivery = base.settings.delivery if policy is None else DeliveryPolicy(**policy)
        return TaskSettings(environment=base.environment, delivery=delivery, **fields)

    def explain(
        self, options: Mapping[str, Any], mapped: bool, label: str = "task"
    ) -> dict[str, Setting]:
        """Return every effective setting of a task with its origin; parameters and errors as :meth:`task`.

        ``workers`` and ``limit_per_minute`` are there for a mapped task only.
        """
        environment = self._environment(options.get("environment"), label)
        explained = {"environment": Setting(environment.name, self._environment_origin(options))}
        chosen = _OF_TASK if mapped else tuple(name for name in _OF_TASK if name not in MAPPED_ONLY)
        explained.update(self._found(chosen, options, environment))
        return explained

    def explain_weave(self) -> dict[str, Setting]:
        """Return every setting of the weave itself with its origin; errors as :meth:`weave`."""
        environment = self._environment(None, "weave")
        explained = {"environment": Setting(environment.name, self._environment_origin({}))}
        explained.update(self._found(_OF_WEAVE, {}, environment))
        return explained

    def _found(
        self, chosen: tuple[str, ...], options: Mapping[str, Any], environment: Environment
    ) -> Iterator[tuple[str, Setting]]:
        """Yield the nearest value of each of the options *chosen*. Only this method knows the order."""
        layers = (
            ("task", options),
            ("weave", self._options),
            (f"environment {environment.name!r}", environment.defaults),
            (CONFIG, self._configuration.defaults),
            ("built-in", _BUILT_IN),
        )
        origins = self._configuration.origins

        for name in chosen:
            for origin, layer in layers:
                if name in layer:
                    source = origins.get(name, origin) if origin is CONFIG else origin
                    yield name, Setting(layer[name], source)
                    break

    def _base(self, selected: str | None, mapped: bool, label: str) -> _Base:
        base = self._bases.get((selected, mapped))
        if base is None:
            environment = self._environment(selected, label)
            found = {name: value for name, (value, _) in self._found(_OF_TASK, {}, environment)}
            if not mapped:
                found.update(
                    dict.fromkeys(MAPPED_ONLY)
                )  # as defaults they concern mapped tasks alone
            policy = {field: found.pop(name) for name, field in _POLICY_FIELDS.items()}
            settings = TaskSettings(
                environment=environment, delivery=DeliveryPolicy(**policy), **found
            )
            base = self._bases[selected, mapped] = _Base(environment, found, policy, settings)

        return cast("_Base", base)

    def _environment(self, selected: str | None, label: str) -> Environment:
        configuration = self._configuration
        name = selected or self._options.get("environment")
        if name is None:
            name = configuration.default_environment
            label = (
                f"{configuration.origins.get('default_environment', CONFIG)}: default_environment"
            )
        environment = configuration.environments.get(name)
        if environment is None:
            known = configuration.environments
            raise NameError(
                f"{label}: environment {name!r} is not configured. Configured: "
                f"{', '.join(map(repr, sorted(known)))}.{suggest(name, known)}"
            )

        return environment

    def _environment_origin(self, options: Mapping[str, Any]) -> str:
        if options.get("environment"):
            return "task"
        if self._options.get("environment"):
            return "weave"
        return self._configuration.origins.get("default_environment", "built-in")
