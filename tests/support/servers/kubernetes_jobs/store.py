"""Objects of a cluster, with uid and resourceVersion, and what changed: what an API server keeps in etcd."""

from __future__ import annotations

import copy
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

Thing = dict[str, Any]

MAX_CHANGES = 5000


class RefusedError(Exception):
    """An answer that is not a success, as the ``Status`` of an API server says it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def status(self) -> Thing:
        kind = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return {**kind, "message": str(self), "reason": self.reason, "code": self.code}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def selects(selector: str, labels: Thing) -> bool:
    """Whether a label selector matches: equality and sets, as kubectl has them."""
    for term in filter(None, re.split(r",(?![^(]*\))", selector)):
        if match := re.fullmatch(r"\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*", term):
            values = {value.strip() for value in match[3].split(",")}
            good = (labels.get(match[1]) in values) == (match[2] == "in")
        elif "!=" in term:
            name, value = term.split("!=")
            good = labels.get(name.strip()) != value.strip()
        elif "=" in term:
            name, value = re.split("==?", term, maxsplit=1)
            good = labels.get(name.strip()) == value.strip()
        elif term.strip().startswith("!"):
            good = term.strip()[1:] not in labels
        else:
            good = term.strip() in labels
        if not good:
            return False
    return True


class Store:
    """All objects, by kind, namespace and name."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 1000
        self.oldest = 1000
        self._things: dict[tuple[str, str, str], Thing] = {}
        self._changes: list[tuple[int, str, str, Thing]] = []

    def get(self, kind: str, namespace: str, name: str) -> Thing:
        with self.changed:
            try:
                return copy.deepcopy(self._things[kind, namespace, name])
            except KeyError:
                group = "jobs.batch" if kind == "jobs" else kind
                raise RefusedError(404, "NotFound", f'{group} "{name}" not found') from None

    def find(
        self, kind: str, namespace: str | None = None, selector: str = ""
    ) -> tuple[list[Thing], int]:
        with self.changed:
            found = [
                copy.deepcopy(thing)
                for (one, where, _), thing in sorted(self._things.items())
                if one == kind and where == (namespace or where)
            ]
            version = self.version
        return [
            each for each in found if selects(selector, each["metadata"].get("labels") or {})
        ], version

    def create(self, kind: str, namespace: str, thing: Thing) -> Thing:
        thing = copy.deepcopy(thing)
        metadata = thing.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + "".join(
                random.choices("bcdfghjklmnpqrstvwxz2456789", k=5)
            )
        with self.changed:
            if (kind, namespace, metadata["name"]) in self._things:
                group = "jobs.batch" if kind == "jobs" else kind
                raise RefusedError(
                    409, "AlreadyExists", f'{group} "{metadata["name"]}" already exists'
                )
            metadata.update(
                namespace=namespace, uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1
            )
            return self._put("ADDED", kind, thing)

    def update(
        self, kind: str, namespace: str, name: str, change: Callable[[Thing], object]
    ) -> Thing | None:
        """Have *change* applied; ``None``: it is not there any more."""
        with self.changed:
            thing = self._things.get((kind, namespace, name))
            if thing is None:
                return None
            new = copy.deepcopy(thing)
            change(new)
            return thing if new == thing else self._put("MODIFIED", kind, new)

    def remove(self, kind: str, namespace: str, name: str) -> Thing | None:
        with self.changed:
            thing = self._things.pop((kind, namespace, name), None)
            if thing is not None:
                self._note("DELETED", kind, copy.deepcopy(thing))
            return thing

    def _put(self, what: str, kind: str, thing: Thing) -> Thing:
        metadata = thing["metadata"]
        self._things[kind, metadata.get("namespace", ""), metadata["name"]] = thing
        self._note(what, kind, thing)
        return copy.deepcopy(thing)

    def _note(self, what: str, kind: str, thing: Thing) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self._changes.append((self.version, what, kind, copy.deepcopy(thing)))
        if len(self._changes) > MAX_CHANGES:
            self.forget(MAX_CHANGES // 2)
        self.changed.notify_all()

    def forget(self, number: int) -> None:
        """Forget the first *number* changes: who watches from before then gets a 410."""
        with self.changed:
            if number and self._changes:
                self.oldest = self._changes[min(number, len(self._changes)) - 1][0]
                del self._changes[:number]

    def watch(
        self, kind: str, namespace: str, selector: str, version: int, until: float
    ) -> Iterator[Thing | None]:
        """The changes after *version*; ``None`` now and then. An object that leaves the selector is not told."""
        while True:
            with self.changed:
                if version < self.oldest:
                    raise RefusedError(
                        410, "Expired", f"too old resource version: {version} ({self.oldest})"
                    )
                news = [each for each in self._changes if each[0] > version]
                if not news:
                    if time.monotonic() >= until:
                        return
                    self.changed.wait(min(1.0, max(0.01, until - time.monotonic())))
                top = self.version
            for number, what, one, thing in news:
                version = number
                metadata = thing["metadata"]
                fits = one == kind and metadata.get("namespace") == namespace
                if fits and selects(selector, metadata.get("labels") or {}):
                    yield {"type": what, "object": thing}
            if not news:
                version = max(version, top) if version >= top else version
                yield None
