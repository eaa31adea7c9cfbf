"""What is kept on disk is what would be computed, whatever becomes of the folder."""

import os

import numpy as np
import pytest

from conformance.numbers import cache
from conformance.ops.cases import select
from conformance.ops.golden import compute

ENTRY = {"a": np.array([1.0, np.nan, np.inf]), "b": np.array([[2.0]])}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


class Counted:
    """Computes the entry, and counts how often."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return dict(ENTRY)


@pytest.fixture
def computed():
    return Counted()


def is_entry(arrays):
    return arrays.keys() == ENTRY.keys() and all(np.array_equal(arrays[name], ENTRY[name], equal_nan=True) for name in ENTRY)


@pytest.mark.parametrize(
    "case", select(["*/random", "*/hides_a_row"], op=["attention", "pre_ln_block", "rope"]), ids=lambda c: c.id
)
def test_a_golden_from_the_cache_is_the_one_that_was_computed(case, folder, monkeypatch):
    first, again = compute(case, 5), compute(case, 5)
    monkeypatch.setenv(cache.VARIABLE, cache.OFF)
    live = compute(case, 5)
    assert list(folder.iterdir())
    for name, expected in live.outputs.items():
        for other in (first.outputs[name], again.outputs[name]):
            assert other.rms == expected.rms
            np.testing.assert_array_equal(other.interval(), expected.interval())


def test_an_entry_is_computed_once(folder, computed):
    assert is_entry(cache.kept("key", computed))
    assert is_entry(cache.kept("key", computed))
    assert computed.times == 1
    cache.kept("another", computed)
    assert computed.times == 2


def test_other_sources_have_other_entries(folder, computed, monkeypatch):
    cache.kept("key", computed)
    monkeypatch.setattr(cache, "_sources", lambda: "changed")
    cache.kept("key", computed)
    assert computed.times == 2


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 200])
def test_a_damaged_entry_is_computed_anew(folder, computed, content):
    cache.kept("key", computed)
    (path,) = folder.iterdir()
    path.write_bytes(content)
    assert is_entry(cache.kept("key", computed))
    assert computed.times == 2
    assert is_entry(cache.kept("key", computed))
    assert computed.times == 2


def test_nothing_is_kept_where_it_is_off(tmp_path, computed, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, cache.OFF)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert is_entry(cache.kept("key", computed))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_trouble(folder, computed):
    folder.write_text("a file where a folder should be")
    assert is_entry(cache.kept("key", computed))
    assert is_entry(cache.kept("key", computed))
    assert computed.times == 2


def test_an_entry_that_leads_nowhere_does_not_stop_the_others_from_going(folder, computed, monkeypatch):
    cache.kept("size", computed)
    (path,) = folder.iterdir()
    monkeypatch.setattr(cache, "LIMIT", 3 * path.stat().st_size)
    (folder / "nowhere.safetensors").symlink_to(folder / "no_such_file")
    for key in "abcdef":
        cache.kept(key, computed)
    assert sum(each.is_file() for each in folder.iterdir()) <= 3


def test_the_oldest_entries_go_first(folder, computed, monkeypatch):
    cache.kept("size", computed)
    (path,) = folder.iterdir()
    monkeypatch.setattr(cache, "LIMIT", 3 * path.stat().st_size)
    for age, key in enumerate(("new", "middle", "old")):
        before = set(folder.iterdir()) if folder.exists() else set()
        cache.kept(key, computed)
        for made in set(folder.iterdir()) - before:
            os.utime(made, (1e9 - age, 1e9 - age))
    cache.kept("last", computed)
    assert len(list(folder.iterdir())) == 3
    made = computed.times
    cache.kept("last", computed)
    cache.kept("new", computed)
    assert computed.times == made
    cache.kept("old", computed)
    assert computed.times == made + 1
