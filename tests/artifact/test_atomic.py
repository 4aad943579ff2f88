"""Saving is one step: a killed process, a full disk or another writer leave one whole file, the old one or the new."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_jax.artifact import ArtifactError, container

ROOT = Path(__file__).parents[2]
# A process that holds the container alone and not jax, so that to fork it is cheap and safe.
PROLOGUE = """
import os, random, resource, signal, sys, time, types
for name in ("lepton_jax", "lepton_jax.artifact", "lepton_jax.core"):
    module = types.ModuleType(name)
    module.__path__ = [os.path.join(sys.argv[1], *name.split("."))]
    sys.modules[name] = module
from lepton_jax.artifact import container
from lepton_jax.core.files import ArtifactError
assert "jax" not in sys.modules
folder = sys.argv[2]
path = os.path.join(folder, "m.lepton")

def content(number, size=300_000):
    body = number.to_bytes(4, "little") * (size // 4)
    return container.build(b'{"tree":{}}', b"program %d" % number, body)

def child(task):
    process = os.fork()
    if not process:
        task()
        os._exit(0)
    return process

def parts():
    return [name for name in os.listdir(folder) if name != "m.lepton"]
"""

KILLS = """
contents = [content(i) for i in range(2)]
container.write_atomic(path, contents[0])
times = []
for _ in range(9):
    begin = time.perf_counter()
    container.write_atomic(path, contents[0])
    times.append(time.perf_counter() - begin)
longest = 1.5 * sorted(times)[4] + 0.002
random.seed(0)
kept = replaced = left = 0
for kill in range(200):
    old, new = contents[kill % 2], contents[1 - kill % 2]
    container.write_atomic(path, old)
    assert not parts(), parts()
    ready, go = os.pipe()

    def save_and_wait():
        os.write(go, b"x")
        container.write_atomic(path, new)
        time.sleep(60)

    process = child(save_and_wait)
    os.read(ready, 1)
    time.sleep(random.uniform(0, longest))
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    os.close(ready), os.close(go)
    found = container.read(path)
    assert found in (old, new), (kill, len(found))
    container.parse(found, "m")
    kept, replaced, left = kept + (found == old), replaced + (found == new), left + len(parts())
    assert all(name.startswith(".m.lepton.") and name.endswith(".lepton-part") for name in parts()), parts()
container.write_atomic(path, contents[1])
assert container.read(path) == contents[1]
print(kept, replaced, left, len(parts()))
"""

WRITERS = """
contents = [content(i) for i in range(4)]
container.write_atomic(path, contents[0])

def save_often(one):
    for _ in range(25):
        container.write_atomic(path, one)

writers = [child(lambda one=one: save_often(one)) for one in contents]
seen = set()
while writers:
    found = container.read(path)
    assert found in contents
    seen.add(contents.index(found))
    writers = [process for process in writers if os.waitpid(process, os.WNOHANG) == (0, 0)]
assert container.read(path) in contents
print(len(seen), len(parts()))
"""

FULL = """
container.write_atomic(path, content(0, 1000))
old = container.read(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    container.write_atomic(path, content(1))
except ArtifactError as error:
    print(error)
assert container.read(path) == old and not parts()
container.write_atomic(path, content(2, 1000))
assert container.read(path) == content(2, 1000)
"""


def run(script, folder):
    command = [sys.executable, "-c", PROLOGUE + script, str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_hundred_kills_leave_the_old_file_or_the_new_one(tmp_path):
    kept, replaced, left, at_end = map(int, run(KILLS, tmp_path).split())
    assert kept + replaced == 200
    assert at_end == 0  # each save removes what a killed one left
    # Kills came before, in the midst of and after the step.
    assert min(kept, replaced) >= 5
    assert left >= 5


def test_of_several_writers_one_wins_and_none_mix(tmp_path):
    seen, left = map(int, run(WRITERS, tmp_path).split())
    assert seen >= 2
    assert left == 0


def test_a_disk_that_takes_no_more_is_an_error_and_keeps_the_old_file(tmp_path):
    """A real limit: the system refuses to let the file grow, in the midst of writing."""
    said = run(FULL, tmp_path)
    assert "cannot write" in said
    assert "File too large" in said
    assert "is as it was" in said


def test_permissions_follow_the_mask_and_the_old_file(tmp_path):
    before = os.umask(0o027)
    try:
        container.write_atomic(tmp_path / "m", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o640
    (tmp_path / "m").chmod(0o600)
    container.write_atomic(tmp_path / "m", b"y")
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o600


def test_a_link_keeps_pointing_to_the_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "a" / "m")
    container.write_atomic(tmp_path / "latest", b"one")
    container.write_atomic(tmp_path / "latest", b"two")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "a" / "m").read_bytes() == b"two"


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        container.write_atomic(tmp_path / "m", b"x")
    assert os.listdir(tmp_path) == ["m"]


def test_a_long_name_is_no_trouble(tmp_path):
    name = "n" * 240
    container.write_atomic(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]
