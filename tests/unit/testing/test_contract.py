"""The published contract suite, over an adapter of thirty lines as a third party writes it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from wove import BackendAdapter, BackendAdapterEnvironmentExecutor
from wove.integrations.base import JobStatus
from wove.testing.contract import EnvironmentContract

Job = subprocess.Popen[bytes]


class ProcessAdapter(BackendAdapter):
    """A process for each job."""

    name = "process"
    cancel_reach = "process"
    watch_seconds = (0.1, 1.0)

    def start(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, payload: dict[str, Any], frame: Mapping[str, Any]) -> Job:
        job = subprocess.Popen([sys.executable, "-m", "wove.backend_worker"], stdin=subprocess.PIPE)
        self.jobs.append(job)
        assert job.stdin is not None
        with job.stdin:
            job.stdin.write(json.dumps(payload).encode())
        return job

    def cancel(self, run_id: str, submission: Job, frame: Mapping[str, Any]) -> None:
        submission.terminate()

    def watch(self, submissions: Mapping[str, Job]) -> dict[str, JobStatus]:
        return {
            run_id: JobStatus(
                "finished" if job.returncode == 0 else "lost", f"status {job.returncode}"
            )
            for run_id, job in submissions.items()
            if job.poll() is not None
        }

    def close(self) -> None:
        for job in self.jobs:
            job.terminate()
            job.wait()


@pytest.mark.backend("stdio")
class TestProcessAdapter(EnvironmentContract):
    items = 3
    megabytes = 1

    @pytest.fixture
    def environment(self) -> Mapping[str, Any]:
        return {
            "executor": BackendAdapterEnvironmentExecutor("process", adapter_class=ProcessAdapter)
        }


def test_a_suite_without_an_environment_says_what_it_needs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from wove.testing.contract import EnvironmentContract

        class TestMine(EnvironmentContract):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:asyncio", "-k", "functions_and_closures")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*TestMine needs a fixture `environment` that returns*"])
