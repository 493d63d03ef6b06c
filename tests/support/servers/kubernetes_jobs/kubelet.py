"""A node: runs the containers of pods as processes, with exactly the environment that their specs give them."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from store import RefusedError, Store, Thing, now

MESSAGE_BYTES, MESSAGE_LINES = 2048, 80
"""What FallbackToLogsOnError takes of a log (pkg/kubelet/kuberuntime/kuberuntime_container.go)."""

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class ConfigError(Exception):
    """A container cannot be configured."""


class Kubelet(threading.Thread):
    """Starts pods while there is room, each in a thread of its own."""

    def __init__(self, store: Store, slots: int, images: dict[str, dict[str, str]]) -> None:
        super().__init__(name="kubelet", daemon=True)
        self.store, self.slots, self.images = store, slots, images
        self.pods: dict[str, Pod] = {}
        self.logs: dict[tuple[str, str], str] = {}
        self.lock = threading.Lock()

    def run(self) -> None:
        version = 0
        while True:
            with self.store.changed:
                if self.store.version == version:
                    self.store.changed.wait(0.1)
                version = self.store.version
            for pod in sorted(
                self.store.find("pods")[0], key=lambda pod: pod["metadata"]["creationTimestamp"]
            ):
                self.look(pod)

    def look(self, pod: Thing) -> None:
        metadata = pod["metadata"]
        running = self.pods.get(metadata["uid"])
        if metadata.get("deletionTimestamp"):
            if running is None or not running.is_alive():
                self.store.remove("pods", metadata["namespace"], metadata["name"])
            else:
                running.leave(metadata["deletionGracePeriodSeconds"])
        elif running is None and pod["status"]["phase"] == "Pending":
            if sum(each.is_alive() for each in self.pods.values()) < self.slots:
                self.pods[metadata["uid"]] = new = Pod(self, pod)
                new.start()
            else:
                why = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available"
                condition = {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": why,
                }
                self.status(pod, conditions=[condition])

    def status(self, pod: Thing, **fields: Any) -> None:
        metadata = pod["metadata"]
        change = lambda pod: pod["status"].update(fields)  # noqa: E731
        self.store.update("pods", metadata["namespace"], metadata["name"], change)

    def end(self) -> None:
        for pod in list(self.pods.values()):
            pod.kill(signal.SIGKILL)


class Pod(threading.Thread):
    """One pod, with one container that matters."""

    def __init__(self, kubelet: Kubelet, pod: Thing) -> None:
        super().__init__(name=pod["metadata"]["name"], daemon=True)
        self.kubelet, self.pod = kubelet, pod
        self.container = pod["spec"]["containers"][0]
        self.process: subprocess.Popen[bytes] | None = None
        self.leaving, self.evicted = threading.Event(), ""
        self.kill_at: float | None = None

    def leave(self, grace: float) -> None:
        if not self.leaving.is_set():
            self.kill_at = time.monotonic() + grace
            self.leaving.set()
            self.kill(signal.SIGTERM)

    def evict(self, message: str) -> None:
        self.evicted = message
        self.kill(signal.SIGKILL)

    def kill(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                # The first process gets a SIGTERM, as in a container; a SIGKILL ends all.
                (os.kill if number == signal.SIGTERM else os.killpg)(self.process.pid, number)

    def run(self) -> None:
        bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}
        self.kubelet.status(
            self.pod, conditions=[bound], startTime=now(), podIP="127.0.0.1", hostIP="127.0.0.1"
        )
        if not self.pull():
            return
        environ = self.configured()
        if environ is None:
            return
        with tempfile.NamedTemporaryFile(delete=False) as output:
            self.kubelet.logs[self.pod["metadata"]["uid"], self.container["name"]] = output.name
            try:
                self.process = subprocess.Popen(
                    [*self.container.get("command", []), *self.container.get("args", [])],
                    env=environ,
                    cwd=self.container.get("workingDir", "/"),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            except (OSError, IndexError) as error:
                why = f"failed to create containerd task: OCI runtime create failed: {error}"
                self.over(
                    {
                        "exitCode": 128,
                        "reason": "StartError",
                        "message": why,
                        "startedAt": "1970-01-01T00:00:00Z",
                    }
                )
                return
        started = now()
        if self.leaving.is_set():
            self.kill(signal.SIGTERM)
        self.tell("Running", {"running": {"startedAt": started}}, ready=True)
        code, oom = self.wait(self.process)
        reason = "Completed" if code == 0 else "OOMKilled" if oom else "Error"
        end = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}
        if code and self.container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = Path(output.name).read_bytes().splitlines(keepends=True)[-MESSAGE_LINES:]
            end["message"] = b"".join(lines)[-MESSAGE_BYTES:].decode(errors="replace")
        self.over(end)

    def wait(self, process: subprocess.Popen[bytes]) -> tuple[int, bool]:
        """The exit code, as a container runtime has it, and whether it had more memory than its limit."""
        limit = ((self.container.get("resources") or {}).get("limits") or {}).get("memory")
        most = None if limit is None else _bytes(limit)
        oom = False
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05 if most or self.leaving.is_set() else 0.2)
            if most and _resident(process.pid) > most:
                oom = True
                self.kill(signal.SIGKILL)
            if self.kill_at is not None and time.monotonic() > self.kill_at:
                self.kill(signal.SIGKILL)
        code = process.returncode
        return (code if code >= 0 else 128 - code), oom

    def pull(self) -> bool:
        """Until the image is there; a pod that is deleted before has none."""
        image = self.container["image"]
        number = 0
        while image not in self.kubelet.images:
            if re.search(r"[A-Z\s]", image):
                waiting = {
                    "reason": "InvalidImageName",
                    "message": f'Failed to apply default image tag "{image}"',
                }
            elif number % 2:
                waiting = {
                    "reason": "ImagePullBackOff",
                    "message": f'Back-off pulling image "{image}"',
                }
            else:
                why = f'failed to pull and unpack image "{image}": pull access denied, repository does not exist'
                waiting = {
                    "reason": "ErrImagePull",
                    "message": f"rpc error: code = NotFound desc = {why}",
                }
            if not self.stuck(waiting):
                return False
            number += 1
        return True

    def configured(self) -> dict[str, str] | None:
        while True:
            try:
                return self.environment()
            except ConfigError as error:
                if not self.stuck({"reason": "CreateContainerConfigError", "message": str(error)}):
                    return None

    def stuck(self, waiting: Thing) -> bool:
        """Wait a while with that to say; False: the pod is being deleted."""
        self.tell("Pending", {"waiting": waiting})
        return not self.leaving.wait(1.0)

    def environment(self) -> dict[str, str]:
        metadata = self.pod["metadata"]
        service = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        base = {
            **self.kubelet.images[self.container["image"]],
            "HOSTNAME": metadata["name"],
            **service,
        }
        own: dict[str, str] = {}
        for source in self.container.get("envFrom") or ():
            for kind, key in (("secrets", "secretRef"), ("configmaps", "configMapRef")):
                if key in source:
                    own.update(
                        {
                            source.get("prefix", "") + k: v
                            for k, v in self.data(kind, source[key]["name"]).items()
                        }
                    )
        for variable in self.container.get("env") or ():
            name, source = variable["name"], variable.get("valueFrom") or {}
            if "secretKeyRef" in source or "configMapKeyRef" in source:
                kind = "secrets" if "secretKeyRef" in source else "configmaps"
                reference = source.get("secretKeyRef") or source["configMapKeyRef"]
                data = self.data(kind, reference["name"])
                if reference["key"] not in data:
                    raise ConfigError(
                        f"couldn't find key {reference['key']} in {kind[:-1].title()} {reference['name']}"
                    )
                own[name] = data[reference["key"]]
            elif "fieldRef" in source:
                fields = {
                    "metadata.name": metadata["name"],
                    "metadata.namespace": metadata["namespace"],
                }
                own[name] = {**fields, "status.podIP": "127.0.0.1"}[source["fieldRef"]["fieldPath"]]
            else:
                own[name] = expand(variable.get("value", ""), {**base, **own})
        return {**base, **own}

    def data(self, kind: str, name: str) -> dict[str, str]:
        try:
            found = self.kubelet.store.get(kind, self.pod["metadata"]["namespace"], name)
        except RefusedError:
            raise ConfigError(f'{kind[:-1]} "{name}" not found') from None
        data = found.get("data") or {}
        return (
            data
            if kind == "configmaps"
            else {key: base64.b64decode(value).decode() for key, value in data.items()}
        )

    def tell(self, phase: str, state: Thing, *, ready: bool = False) -> None:
        fields = {
            "name": self.container["name"],
            "image": self.container["image"],
            "imageID": "",
            "ready": ready,
        }
        self.kubelet.status(
            self.pod, phase=phase, containerStatuses=[{**fields, "restartCount": 0, "state": state}]
        )

    def over(self, end: Thing) -> None:
        self.tell("Failed" if end["exitCode"] else "Succeeded", {"terminated": end})
        if self.evicted:
            self.kubelet.status(self.pod, phase="Failed", reason="Evicted", message=self.evicted)


def expand(value: str, known: dict[str, str]) -> str:
    """``$(NAME)`` and ``$$`` (third_party/forked/golang/expansion)."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, value)


def _bytes(quantity: str | int) -> float:
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    assert match is not None, quantity
    return float(match[1]) * UNITS[match[2]]


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
