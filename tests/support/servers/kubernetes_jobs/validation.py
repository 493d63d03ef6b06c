"""What an API server refuses: the few rules that a Job, a Secret or a ConfigMap can break."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from store import RefusedError, Thing

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
MAX_DATA = 1_048_576
KINDS = {
    "jobs": ("Job", "batch/v1"),
    "secrets": ("Secret", "v1"),
    "configmaps": ("ConfigMap", "v1"),
}


def check(kind: str, namespace: str, thing: Thing, *, strict: bool) -> None:
    """Refuse *thing* as the API server would."""
    name, version = KINDS[kind]
    if thing.get("kind") != name or thing.get("apiVersion") != version:
        given = f"{thing.get('apiVersion')}, Kind={thing.get('kind')}"
        raise RefusedError(
            400, "BadRequest", f"the API version in the data ({given}) does not match ({version})"
        )
    if strict and (unknown := list(_unknown(name, thing))):
        fields = ", ".join(f'unknown field "{field}"' for field in unknown)
        raise RefusedError(
            400,
            "BadRequest",
            f'{name} in version "{version}" cannot be handled: strict decoding error: {fields}',
        )
    if thing.get("metadata", {}).get("namespace", namespace) != namespace:
        raise RefusedError(
            400, "BadRequest", "the namespace of the provided object does not match the request"
        )
    wrong = list(_metadata("metadata", thing.get("metadata", {}), 253))
    wrong += list(_job(thing) if kind == "jobs" else _data(thing))
    if wrong:
        label = f'{name}.batch "{thing["metadata"].get("name", "")}" is invalid: {", ".join(wrong)}'
        raise RefusedError(422, "Invalid", label)


def _metadata(path: str, metadata: Thing, most: int) -> Iterator[str]:
    name = metadata.get("name", "")
    if path == "metadata" and not (name or metadata.get("generateName")):
        yield "metadata.name: Required value: name or generateName is required"
    if name and (not SUBDOMAIN.fullmatch(name) or len(name) > most):
        yield f'{path}.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of lower case ...'
    for key, value in (metadata.get("labels") or {}).items():
        if not _is_key(key):
            yield f'{path}.labels: Invalid value: "{key}": name part must consist of alphanumeric characters'
        if (
            not isinstance(value, str)
            or len(value) > 63
            or (value and not QUALIFIED.fullmatch(value))
        ):
            yield f'{path}.labels: Invalid value: "{value}": a valid label must be an empty string or consist of ...'
    for key in metadata.get("annotations") or {}:
        if not _is_key(key):
            yield f'{path}.annotations: Invalid value: "{key}"'
    if (
        sum(len(key) + len(value) for key, value in (metadata.get("annotations") or {}).items())
        > 256 * 1024
    ):
        yield f"{path}.annotations: Too long: must have at most 262144 bytes"


def _is_key(key: str) -> bool:
    prefix, _, name = key.rpartition("/")
    return (
        bool(QUALIFIED.fullmatch(name))
        and len(name) <= 63
        and (not prefix or bool(SUBDOMAIN.fullmatch(prefix)))
    )


def _data(thing: Thing) -> Iterator[str]:
    if sum(map(len, (thing.get("data") or {}).values())) > MAX_DATA:
        yield f"data: Too long: must have at most {MAX_DATA} bytes"


def _job(job: Thing) -> Iterator[str]:
    spec = job.get("spec") or {}
    template = spec.get("template") or {}
    pod = template.get("spec") or {}
    if len(job["metadata"].get("name", "")) > 63:
        yield "spec.template.labels: Invalid value: must be no more than 63 characters"
    yield from _metadata("spec.template.metadata", template.get("metadata") or {}, 253)
    for field in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not isinstance(spec.get(field, 0), int) or spec.get(field, 0) < 0:
            yield f"spec.{field}: Invalid value: {spec[field]}: must be greater than or equal to 0"
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        yield 'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"'
    if not pod.get("containers"):
        yield "spec.template.spec.containers: Required value"
    for number, container in enumerate(pod.get("containers") or ()):
        path = f"spec.template.spec.containers[{number}]"
        if not DNS_LABEL.fullmatch(container.get("name", "")):
            yield f"{path}.name: Invalid value"
        if not container.get("image"):
            yield f"{path}.image: Required value"
        for variable in container.get("env") or ():
            if not re.fullmatch(r"[-._a-zA-Z][-._a-zA-Z0-9]*", variable.get("name", "")):
                yield f"{path}.env: Invalid value: {json.dumps(variable.get('name'))}"


def _unknown(kind: str, thing: Thing) -> Iterator[str]:
    """Fields that the kind does not have; the client's own models know which there are."""
    from kubernetes import client

    yield from _unknown_in(getattr(client, f"V1{kind}"), thing, "")


def _unknown_in(model: Any, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _unknown_in(model, each, f"{path}[{number}]")
    elif isinstance(value, dict) and model is not None:
        fields = _fields(model)
        for name, each in value.items():
            inner = f"{path}.{name}" if path else name
            if name not in fields:
                yield inner
            else:
                yield from _unknown_in(fields[name], each, inner)


@functools.cache
def _fields(model: Any) -> dict[str, Any]:
    """The names in JSON of a model's fields, each with the model of its values, if those have one."""
    from kubernetes import client

    def of(kind: str) -> Any:
        match = re.fullmatch(r"(?:list\[)?(V1\w+)\]?", kind)
        return match and getattr(client, match[1], None)

    return {alias: of(model.openapi_types[name]) for name, alias in model.attribute_map.items()}
