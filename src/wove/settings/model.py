"""What ``wove.config`` holds: environments and defaults, immutable and picklable."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BUILT_IN", "DEFAULT", "Configuration", "Environment"]

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
        is_local: Whether tasks run in this process, without an executor.
    """

    name: str
    executor: str | object = "local"
    executor_config: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_local: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        write = object.__setattr__
        write(self, "executor_config", _read_only(self.executor_config))
        write(self, "defaults", _read_only(self.defaults))
        write(self, "is_local", isinstance(self.executor, str) and self.executor == "local")

    def __hash__(self) -> int:
        # The fields hold mappings, which have no hash; equal environments have equal names.
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only view does not pickle; the constructor makes it anew.
        return (Environment, (self.name, self.executor, dict(self.executor_config), dict(self.defaults)))


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that ``wove.config`` was told, at one moment.

    Attributes:
        default_environment: The environment of a weave that names none. It need not be configured yet.
        environments: By name. ``"default"`` is always among them.
        defaults: Checked options for every weave and task.
    """

    default_environment: str = DEFAULT
    environments: Mapping[str, Environment] = field(default_factory=dict[str, Environment])
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # What resolution has worked out for weaves without settings of their own. A cache, no part of the value:
    # it dies with the configuration, so it never has to be emptied.
    resolved: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict[Any, Any])

    def __post_init__(self) -> None:
        environments = dict(self.environments)
        environments.setdefault(DEFAULT, Environment(DEFAULT))
        object.__setattr__(self, "environments", MappingProxyType(environments))
        object.__setattr__(self, "defaults", _read_only(self.defaults))

    def __hash__(self) -> int:
        return hash((self.default_environment, frozenset(self.environments)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Configuration, (self.default_environment, dict(self.environments), dict(self.defaults)))


BUILT_IN: Final = Configuration()
"""The configuration of a process in which ``wove.config`` was never called."""
