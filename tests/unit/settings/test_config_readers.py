"""Readers of ``executor_config`` that several adapters share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wove.settings.config_readers import command, mapping, options, variables

RESERVED = {"key": "Wove makes it"}


class TestOptions:
    def test_a_copy_of_the_users_dict(self) -> None:
        given = {"workers": 2}
        found = options({"more": given}, "more", label="x", reserved=RESERVED)
        assert found == given and found is not given
        assert options({}, "more", label="x", reserved=RESERVED) == {}

    @pytest.mark.parametrize("value", [[], "workers", 7])
    def test_not_a_dict(self, value: object) -> None:
        with pytest.raises(TypeError, match="x: executor_config 'more' must be a dict, not"):
            options({"more": value}, "more", label="x", reserved=RESERVED)

    def test_a_name_that_is_not_text(self) -> None:
        with pytest.raises(TypeError, match="x: executor_config 'more' .* 1 is not a name"):
            options({"more": {1: 2}}, "more", label="x", reserved=RESERVED)

    def test_a_reserved_option(self) -> None:
        with pytest.raises(ValueError, match="x: .*'more' cannot set 'key': Wove makes it"):
            options({"more": {"key": 1}}, "more", label="x", reserved=RESERVED)

    def test_an_unknown_option(self) -> None:
        with pytest.raises(ValueError, match="no option 'worker'. Did you mean 'workers'"):
            options(
                {"more": {"worker": 1}}, "more", label="x", reserved=RESERVED, known=["workers"]
            )


class TestCommand:
    def test_a_list_or_a_text(self) -> None:
        assert command({}, "command", label="x") is None
        assert command({}, "command", ("a", "b"), label="x") == ("a", "b")
        expected = ("sh", "-c", "exit 7")
        for given in ("sh -c 'exit 7'", list(expected), expected, [Path("sh"), "-c", "exit 7"]):
            assert command({"command": given}, "command", label="x") == expected

    @pytest.mark.parametrize("value", [[], "", [""]])
    def test_empty(self, value: object) -> None:
        with pytest.raises(ValueError, match="x: executor_config 'command' is empty"):
            command({"command": value}, "command", label="x")

    @pytest.mark.parametrize("value", [[1], 1, {"a": "b"}])
    def test_not_a_command(self, value: object) -> None:
        with pytest.raises(TypeError, match="x: executor_config 'command' must be a list"):
            command({"command": value}, "command", label="x")

    def test_an_open_quote(self) -> None:
        with pytest.raises(ValueError, match="cannot be split into words: No closing quotation"):
            command({"command": "sh -c 'exit"}, "command", label="x")

    def test_control_characters_are_refused_where_a_script_has_to_carry_them(self) -> None:
        lines = ["python", "-c", "a = 1\nprint(a)"]
        assert command({"command": lines}, "command", label="x") == tuple(lines)
        with pytest.raises(ValueError, match="holds a line break"):
            command({"command": lines}, "command", label="x", printable=True)


class TestVariables:
    @pytest.mark.parametrize("value", [{"A": "1"}, "A=1", ["A=1"], [{"value": "1"}], [{"name": 1}]])
    def test_not_a_list_of_variables(self, value: Any) -> None:
        with pytest.raises(TypeError, match="x: 'env' must be a list of {'name'"):
            variables({"env": value}, "env", label="x", reserved=RESERVED)

    def test_a_reserved_one(self) -> None:
        with pytest.raises(ValueError, match="x cannot set key: Wove makes it"):
            variables({"env": [{"name": "key"}]}, "env", label="x", reserved=RESERVED)

    def test_the_users(self) -> None:
        env = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {}}]
        assert variables({"env": env}, "env", label="x", reserved=RESERVED) == env
        assert variables({}, "env", label="x", reserved=RESERVED) == []


def test_a_mapping_that_is_not_a_dict() -> None:
    assert mapping({}, "pod_spec", label="x") == {}
    with pytest.raises(TypeError, match="x: executor_config 'pod_spec' must be a dict"):
        mapping({"pod_spec": []}, "pod_spec", label="x")
