"""The contents of ``wove.config``: environments and defaults, immutable and picklable.

A call lays what it was given over what was there, key by key: :func:`overlaid`. Nothing here knows
which executors there are; an unknown name is found before the first task runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, cast

from wove.graph.options import OPTIONS, check_defaults, names, shown, suggest, unknown_option

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "KEYS",
    "Configuration",
    "Environment",
    "check_default_kept",
    "overlaid",
]

DEFAULT: Final = "default"
"""The name of the environment that always exists."""

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def _read_only(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping)) if mapping else _NOTHING


@dataclass(frozen=True, slots=True)
class Environment:
    """A named place where tasks run.

    Attributes:
        name: The name that tasks select it by.
        executor: The name of a built-in executor, or the user's own executor object.
        executor_config: What the executor is started with. Not shown in the ``repr``: it may hold secrets.
        defaults: Checked options for the tasks that run here.
        origins: Where ``"executor"``, ``"executor_config.KEY"`` and each default were set, by these names.
        is_local: Whether tasks run in this process, without an executor.
    """

    name: str
    executor: str | object = "local"
    executor_config: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origins: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)
    is_local: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        write = object.__setattr__
        write(self, "executor_config", _read_only(self.executor_config))
        write(self, "defaults", _read_only(self.defaults))
        write(self, "origins", _read_only(self.origins))
        write(self, "is_local", isinstance(self.executor, str) and self.executor == "local")

    def __hash__(self) -> int:
        # The fields hold mappings, which have no hash; equal environments have equal names.
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only view does not pickle; the constructor makes it anew.
        mappings = (dict(self.executor_config), dict(self.defaults), dict(self.origins))
        return (Environment, (self.name, self.executor, *mappings))


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that ``wove.config`` was told, at one moment.

    Attributes:
        default_environment: The environment of a weave that names none. It need not be configured yet.
        environments: By name. ``"default"`` is always among them.
        defaults: Checked options for every weave and task.
        origins: Where ``"default_environment"`` and each default were set, by these names.
    """

    default_environment: str = DEFAULT
    environments: Mapping[str, Environment] = field(default_factory=dict[str, Environment])
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origins: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)
    # The results of resolution for weaves without settings of their own. A cache, not part of the value:
    # it dies with the configuration, so it never has to be emptied.
    resolved: dict[Any, Any] = field(
        init=False, repr=False, compare=False, default_factory=dict[Any, Any]
    )

    def __post_init__(self) -> None:
        environments = dict(self.environments)
        environments.setdefault(DEFAULT, Environment(DEFAULT))
        object.__setattr__(self, "environments", MappingProxyType(environments))
        object.__setattr__(self, "defaults", _read_only(self.defaults))
        object.__setattr__(self, "origins", _read_only(self.origins))

    def __hash__(self) -> int:
        return hash((self.default_environment, frozenset(self.environments)))

    def __reduce__(self) -> tuple[Any, ...]:
        mappings = (dict(self.environments), dict(self.defaults), dict(self.origins))
        return (Configuration, (self.default_environment, *mappings))


BUILT_IN: Final = Configuration()
"""The configuration without any source of settings."""

KEYS: Final = frozenset({"default_environment", "environments", *names("config")})
"""Everything that can be configured, by the name under which a call or a file gives it."""

_OF_ENVIRONMENT: Final = frozenset({"executor", "executor_config", *names("environment")})
_OF_EXECUTOR: Final = ("start", "send", "recv", "stop")


def overlaid(
    configuration: Configuration,
    given: Mapping[Any, object],
    label: str,
    *,
    extends: bool = False,
) -> Configuration:
    """Return *configuration* with everything in *given* laid over it.

    Args:
        configuration: The settings so far. It is not changed.
        given: ``default_environment``, ``environments`` and defaults, unchecked.
        label: What messages and origins call the source: ``"wove.config"``, or a file.
        extends: Whether an ``executor_config`` adds its keys to those that are there, instead of taking their place.

    Raises:
        TypeError: An unknown key, or a value of the wrong type.
        ValueError: A value out of range, or an environment to remove that is not there.
    """
    for name in given:
        if name not in KEYS:
            error = unknown_option(name, KEYS, label)
            if name == "environment":  # right on tasks and weaves, where most calls are written
                error = TypeError(f"{error}. Did you mean 'default_environment'?")
            raise error

    default = given.get("default_environment")
    if default is not None:
        OPTIONS["environment"].check(f"{label}: default_environment", default)

    defaults = _defaults(configuration.defaults, given, label)
    kept = {"default_environment", *defaults}
    set_here = {name for name, value in given.items() if name in defaults or value is not None}
    return Configuration(
        cast("str", default or configuration.default_environment),
        _environments(configuration.environments, given.get("environments"), label, extends),
        defaults,
        _origins(configuration.origins, kept, set_here, label),
    )


def _origins(
    old: Mapping[str, str], kept: Collection[str], set_here: Collection[str], label: str
) -> dict[str, str]:
    """Return the origins of the settings *kept*: *label* for those that were *set_here*."""
    return {
        name: label if name in set_here else old[name]
        for name in kept
        if name in set_here or name in old
    }


def check_default_kept(before: Configuration, after: Configuration) -> None:
    """Refuse to remove the environment that weaves go on using.

    Raises:
        ValueError: The default environment of *after* was there in *before*, and is gone.
    """
    name = after.default_environment
    if name in before.environments and name not in after.environments:
        raise ValueError(
            f"wove.config: environment {name!r} cannot be removed while it is the default environment. "
            "Set default_environment to another one in the same call"
        )


def _defaults(old: Mapping[str, Any], given: Mapping[str, object], label: str) -> Mapping[str, Any]:
    options = {name: value for name, value in given.items() if name in OPTIONS}
    checked = check_defaults(options, label)

    # An option that the check has dropped is a None that takes a default back.
    return {name: value for name, value in old.items() if name not in options} | checked


def _environments(
    old: Mapping[str, Environment], given: object, label: str, extends: bool
) -> dict[str, Environment]:
    environments = dict(old)
    if given is None:
        return environments
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{label}: environments must be a dict of definitions by name, not {shown(given)}"
        )

    for name, definition in cast("Mapping[Any, object]", given).items():
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"{label}: the name of an environment is text and not empty, not {shown(name)}"
            )
        if definition is not None:
            environments[name] = _environment(
                environments.get(name) or Environment(name), definition, label, extends
            )
        elif environments.pop(name, None) is None:
            raise ValueError(
                f"{label}: there is no environment {name!r} to remove.{suggest(name, environments)}"
            )

    return environments


def _environment(old: Environment, given: object, source: str, extends: bool) -> Environment:
    """Return *old* with a definition laid over it, key by key."""
    label = f"{source}: environment {old.name!r}"
    if not isinstance(given, Mapping):
        raise TypeError(
            f'{label} must be a dict such as {{"executor": "local"}}, not {shown(given)}'
        )

    definition = cast("Mapping[Any, object]", given)
    for key in definition:
        if key not in _OF_ENVIRONMENT:
            raise unknown_option(key, _OF_ENVIRONMENT, label)

    executor, config = old.executor, old.executor_config
    if "executor" in definition:
        executor = _executor(definition["executor"], label)
        if executor != old.executor:
            config = {}  # it was another executor's: its keys mean nothing to this one

    set_here = set(definition)
    if "executor_config" in definition:
        given_config = _executor_config(definition["executor_config"], label)
        config = {**config, **given_config} if extends else given_config
        set_here.update(f"executor_config.{key}" for key in given_config)

    defaults = _defaults(old.defaults, definition, label)
    kept = {"executor", *(f"executor_config.{key}" for key in config), *defaults}
    return Environment(
        old.name, executor, config, defaults, _origins(old.origins, kept, set_here, source)
    )


def _executor(value: object, label: str) -> str | object:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, type):
        raise TypeError(f"{label}: executor is the class {value.__name__}; give an instance of it")
    if isinstance(value, str) or not all(
        callable(getattr(value, name, None)) for name in _OF_EXECUTOR
    ):
        raise TypeError(
            f"{label}: executor must be the name of a built-in executor, or an object with the methods "
            f"{', '.join(_OF_EXECUTOR)} (an EnvironmentExecutor), not {shown(value)}"
        )

    return value


def _executor_config(value: object, label: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        # Not the value itself: it may well be the secret that belongs under one of the keys.
        raise TypeError(
            f"{label}: executor_config must be a dict, not of type {type(value).__name__}"
        )

    config = cast("Mapping[object, object]", value)
    for key in config:
        if not isinstance(key, str):
            raise TypeError(f"{label}: the keys of executor_config are text, not {shown(key)}")

    return {str(key): _copied(held) for key, held in config.items()}


def _copied(value: object) -> object:
    """*value* with its plain dicts and lists copied, so that what the caller does to them later stays out."""
    if type(value) is dict:
        return {key: _copied(held) for key, held in cast("dict[object, object]", value).items()}
    if type(value) is list:
        return [_copied(held) for held in cast("list[object]", value)]
    return value
