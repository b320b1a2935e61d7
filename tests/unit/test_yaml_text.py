"""YAML that is no settings ends in one line of bounded length, at once."""

import os

import pytest

from snpdeconv.config import read_yaml, read_yaml_file
from snpdeconv.errors import ConfigError

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS, "a: " + "9" * 5000, "a: 0x" + "f" * 6000, "a: " + "1:" * 3000 + "1", "a: 2024-02-30", "a: 2024-13-45T99:99:99Z",
        "a: !!int x", "a: !!float x", "a: !!binary é", "a: !!timestamp x", "a: !!python/object/apply:os.system ['true']",
        "[" * 5000, "{a: " * 5000, "- " * 5000, "? [a, b]\n: c", "&a [*a]", "*nobody", "a: \x00", "a: \udcff", "%YAML 9.9\n---\na: 1", "x" * (2**20 + 1),
    ],
    ids=lambda text: text[:24].encode("unicode_escape").decode(),
)  # fmt: skip
def test_what_is_no_settings_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, where="mine.yaml")
    message = str(caught.value)
    assert message.startswith("mine.yaml: ")
    assert len(message) < 1_000
    assert message.isprintable()


def test_settings_with_aliases_are_read():
    assert read_yaml("a: &x {b: 1e-4}\nc: *x\n", where="mine") == {"a": {"b": 1e-4}, "c": {"b": 1e-4}}


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    for name, what in (
        ("pipe.yaml", "pipe or a device"),
        ("latin.yaml", "not UTF-8"),
        ("none.yaml", "no such file"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_yaml_file(tmp_path / name)
    with pytest.raises(ConfigError, match="pipe or a device"):
        read_yaml_file(type(tmp_path)("/dev/zero"))
