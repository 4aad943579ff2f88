"""Files are written whole, what killed writers left is removed, damage is named, and folders have one owner."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_jax.core import locks
from lepton_jax.core.files import ArtifactError, folder_in_the_making, read_json, write_atomic, write_json, write_text

ROOT = Path(__file__).parents[2]
HOLD = "import sys, time; from lepton_jax.core import locks; locks.hold(sys.argv[1]); print('held', flush=True); time.sleep(60)"


def leftover(path, digits="0a1b2c3d"):
    return path.with_name(f".{path.name}.{digits}.lepton-part")


def test_the_next_save_of_a_file_removes_what_killed_ones_left_of_it(tmp_path):
    path, other = tmp_path / "m.lepton", tmp_path / "n.lepton"
    for left in (leftover(path), leftover(path, "ffffffff"), leftover(other)):
        left.write_bytes(b"x")
    mine = tmp_path / ".m.lepton.notes.lepton-part"
    mine.write_bytes(b"x")
    write_atomic(path, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([path, leftover(other), mine])
    write_atomic(other, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([path, other, mine])


def test_what_another_process_is_writing_stays(tmp_path):
    path = tmp_path / "m"
    part = leftover(path)
    part.write_bytes(b"x")
    with part.open() as file:
        locks.lock(part, file.fileno())
        write_atomic(path, b"new")
        assert part.exists()
    write_atomic(path, b"new")
    assert not part.exists()


def test_a_folder_in_the_making_leaves_nothing(tmp_path):
    left = leftover(tmp_path / "f")
    left.mkdir()
    (left / "a").write_text("x")
    with folder_in_the_making(tmp_path / "f") as made:
        assert [str(path) for path in tmp_path.iterdir()] == [made]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_no_failure_of_the_system_loses_the_old_file(tmp_path, monkeypatch, call, code):
    path = tmp_path / "m.json"
    write_json(path, {"a": 1})
    real, seen = getattr(os, call), []

    def fails(*args, **kwargs):
        if call == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        seen.append(call)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(ArtifactError, match=rf"cannot write .*m\.json .*{os.strerror(code)}.*is as it was"):
        write_json(path, {"a": 2})
    monkeypatch.undo()
    assert seen
    assert read_json(path, "") == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize("text", ["", '{"a": ', "[1]", "3", "[" * 100_000, "\0\0\0\0"])
def test_damaged_json_says_where_and_what_to_do(tmp_path, text):
    write_text(tmp_path / "a.json", text)
    with pytest.raises(ArtifactError, match=r"a\.json is damaged.*\. Delete it\.$") as error:
        read_json(tmp_path / "a.json", "Delete it.")
    assert "\n" not in str(error.value)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ArtifactError, match="Delete it"):
        read_json(tmp_path / "a.json", "Delete it.")


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    who = f"process {holder.pid}" if Path("/proc/locks").exists() else "another process"
    with pytest.raises(ValueError, match=f"is in use by {who}. Wait until it has ended, or choose another folder"):
        locks.hold(tmp_path)
    holder.kill()
    holder.communicate()
    locks.hold(tmp_path)
    locks.let_go(tmp_path)
    assert not list(tmp_path.iterdir())
