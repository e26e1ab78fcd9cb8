"""Checkpoint files: several writes at once, what killed ones leave, and which values they hold."""

import collections
import datetime
import fcntl
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from augsubset import load_checkpoint, save_checkpoint
from augsubset.utils.checkpoint import write_whole


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def test_the_content_is_on_the_disk_before_it_takes_the_files_place(path, monkeypatch):
    sync, replace, calls = os.fsync, Path.replace, []

    def record_sync(file):
        calls.append(("sync", os.fstat(file).st_size))
        sync(file)

    def record_replace(partial, target):
        calls.append(("replace", target))
        return replace(partial, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_whole(path, b"content")
    assert calls == [("sync", 7), ("replace", path)]


def test_a_signal_handler_saves_in_the_middle_of_a_save(path, monkeypatch):
    sync, found = os.fsync, []

    def handle(*_):
        save_checkpoint(path, step=2)
        found.append(load_checkpoint(path)["step"])

    def interrupt(file):
        monkeypatch.setattr(os, "fsync", sync)
        signal.raise_signal(signal.SIGUSR1)
        sync(file)

    previous = signal.signal(signal.SIGUSR1, handle)
    monkeypatch.setattr(os, "fsync", interrupt)
    try:
        save_checkpoint(path, step=1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert found == [2]
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(path.parent) == [path.name]


def test_threads_that_save_at_once_leave_whole_files(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # many saves in little time
    save_checkpoint(path, step=0)
    failed = []

    def save(thread):
        try:
            for step in range(50):
                save_checkpoint(path, step=step, values=torch.full((1000 * thread,), step))
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        load_checkpoint(path)  # raises for a damaged one
    assert not failed
    assert load_checkpoint(path)["step"] == 49
    assert os.listdir(path.parent) == [path.name]


def test_the_next_save_removes_what_a_killed_one_left(path, monkeypatch):
    others = [path.with_name(name) for name in ("run.ckpt.best.partial", "other.partial")]
    for other in others:
        other.touch()
    monkeypatch.setattr(os, "fsync", lambda file: 1 / 0)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as if it had not come to that
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(path, step=1)
    assert len(os.listdir(path.parent)) == 3
    monkeypatch.undo()
    save_checkpoint(path, step=2)
    assert set(path.parent.iterdir()) == {path, *others}


def test_a_save_that_another_took_for_abandoned_starts_again(path, monkeypatch):
    flock, taken = fcntl.flock, []

    def lock_late(file, mode):
        if not taken:
            taken.append(Path(file.name))
            save_checkpoint(path, step=2)  # removes the file, which is not locked yet
        flock(file, mode)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    save_checkpoint(path, step=1)
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_saved_through(tmp_path, exists):
    target, link = tmp_path / "on" / "scratch.ckpt", tmp_path / "run.ckpt"
    target.parent.mkdir()
    if exists:
        save_checkpoint(target, step=1)
    link.symlink_to(target)
    save_checkpoint(link, step=2)
    assert link.is_symlink()
    assert load_checkpoint(target)["step"] == 2


def test_the_file_has_the_rights_that_new_files_have(path):
    save_checkpoint(path, step=1)
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


# Values.


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


KEPT = [
    *(None, True, 7, -(2**128), 1.5, 2j, "text", b"bytes", (), [1, (2, [3.0])], {(1, 2): {"a": 1}}),
    *(torch.zeros(3), nn.Parameter(torch.ones(2)), torch.float32, torch.device("cpu")),
    *(torch.Size([2]), {1, 2}, collections.Counter("aab"), collections.OrderedDict(b=1, a=[2])),
    *(random.getstate(), np.random.get_state(), np.random.default_rng(0).bit_generator.state),
    *(np.random.Generator(np.random.MT19937(0)).bit_generator.state, torch.get_rng_state()),
    *(np.arange(6).reshape(2, 3)[::-1].T, np.array(1.5, np.float32), np.zeros((0, 3), np.uint16)),
    *(
        np.array([True]),
        {"deep": [{"in": (np.arange(2), 1)}]},
        collections.OrderedDict(a=np.ones(2)),
    ),
]


@pytest.mark.parametrize("value", KEPT, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_as_it_was(path, value):
    save_checkpoint(path, state={"value": value})
    assert_equal(load_checkpoint(path)["state"]["value"], value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Path("a/b"), "a/b"),
        (collections.defaultdict(list, {np.int64(1): [np.float64(2)]}), {1: [2.0]}),
        (collections.Counter({"a": np.int64(2)}), collections.Counter(a=2)),
        (collections.OrderedDict(a=np.float64(1)), collections.OrderedDict(a=1.0)),
        ((1, [np.float64(2.0)]), (1, [2.0])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_plain_value_becomes_pythons(path, value, expected):
    save_checkpoint(path, value=value)
    assert_equal(load_checkpoint(path)["value"], expected)


def test_a_models_state_keeps_its_versions(path):
    state = nn.BatchNorm1d(2).state_dict()
    save_checkpoint(path, model=state)
    assert load_checkpoint(path)["model"]._metadata == state._metadata


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        *(
            datetime.datetime(2020, 1, 1),
            np.datetime64("NaT"),
            np.longdouble(1),
            range(3),
            Pair(1, 2),
        ),
        *(np.array(["a"]), np.array([None]), np.array([1], ">i4"), np.array([1], np.longdouble)),
        *(
            np.zeros(1, [("a", int)]),
            np.ma.zeros(2),
            2**3000,
            lambda: 0,
            len,
            object(),
            {Pair(1, 2)},
        ),
        *(frozenset({1}), collections.deque([1]), torch.Generator(), np.random.default_rng(0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_is_refused_before_anything_is_replaced(path, value):
    save_checkpoint(path, step=1)
    with pytest.raises(TypeError, match=r"^run\['log'\]\[1\] must be a tensor, number, string"):
        save_checkpoint(path, step=2, run={"log": [1.0, value]})
    assert load_checkpoint(path) == {"step": 1}
    assert os.listdir(path.parent) == [path.name]


def test_a_module_in_place_of_its_state_is_told_so(path):
    with pytest.raises(TypeError, match=r"model must be .*, got Linear\. Pass its state_dict\(\)"):
        save_checkpoint(path, model=nn.Linear(2, 2))
