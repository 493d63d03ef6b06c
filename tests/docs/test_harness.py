"""The harness itself: what it runs, and what it does not let pass."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.docs.pages import Page, blocks_of, check_command
from tests.support.scripts import run_script

PAGE = textwrap.dedent("""\
    # Title

    ```python
    # helper.py
    VALUE = 1
    ```

    Text.

    ```python
    import helper
    print(helper.VALUE, 0.123)
    ```

    ```text
    1 0...
    ```

    ```python
    print(helper.VALUE + 1)
    ```

    Not what it prints, because something stands between:

    ```text
    9
    ```
    """)


def test_a_page_becomes_a_script_with_its_own_line_numbers(tmp_path: Path) -> None:
    page = Page.read(PAGE)
    assert page.files == {"helper.py": "# helper.py\nVALUE = 1\n"}
    assert page.script.splitlines()[10] == PAGE.splitlines()[10] == "import helper"
    (tmp_path / "helper.py").write_text(page.files["helper.py"])
    done = run_script(page.script, cwd=tmp_path)
    assert page.differences(done.stdout) == []


def test_other_output_is_a_difference(tmp_path: Path) -> None:
    page = Page.read("```python\nprint('a')\nprint('b')\n```\n```text\na\nc\n```\n")
    (told,) = page.differences(run_script(page.script, cwd=tmp_path).stdout)
    assert "line 1 should print\na\nc\nbut prints\na\nb\n" in told
    page = Page.read("```python\npass\n```\n```text\na\n```\n")
    assert page.differences(run_script(page.script, cwd=tmp_path).stdout)


@pytest.mark.parametrize(
    "page",
    [
        "```python\nnever = 'ends'\n",
        "- item\n  ```python\n  indented\n  ```\n",
        "```pyhton\n1\n```\n",
    ],
)
def test_a_block_that_would_be_overlooked_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match=r"line \d+:"):
        Page.read(page)


def test_longer_fences_may_hold_shorter_ones() -> None:
    (block,) = blocks_of("````text\n```python\n1\n```\n````\n")
    assert block.text == "```python\n1\n```\n"


@pytest.mark.parametrize("command", ["make demo", "make test", 'pip install "./wove[dispatch]"'])
def test_commands_that_work(command: str) -> None:
    assert check_command(command) is None


@pytest.mark.parametrize(
    "command",
    [
        "make coffee",
        'pip install "./wove[nothing]"',
        "pip install wove",  # the index has another package of that name
        "pip install requests",
        "rm -rf /",
    ],
)
def test_commands_that_do_not(command: str) -> None:
    assert check_command(command)
