"Round trips, damage of every kind, and writes that break off."

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from hyperclip_nb.core import files
from hyperclip_nb.core.files import (
    FileError,
    fingerprint,
    load_tensors,
    mapped,
    path_inside,
    read_json,
    save_tensors,
    sha256_of,
    to_plain,
    write_atomic,
    write_json,
)

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.text(max_size=8).filter(lambda name: name != "__metadata__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@st.composite
def tensors(draw):
    shape, dtype = draw(st.lists(st.integers(0, 4), max_size=3)), draw(st.sampled_from(DTYPES))
    x = torch.randint(-5, 6, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    return x.t() if x.ndim == 2 and draw(st.booleans()) else x


# --- tensors


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, tensors(), max_size=4), st.dictionaries(st.text(max_size=4), json_values, max_size=2))
def test_tensors_come_back_as_they_were(folder, saved, meta):
    save_tensors(folder / "x.safetensors", saved, meta)
    loaded, notes = load_tensors(folder / "x.safetensors")
    assert loaded.keys() == saved.keys() and notes == meta
    for name, x in saved.items():
        assert loaded[name].dtype == x.dtype and loaded[name].shape == x.shape and torch.equal(loaded[name], x)
    before = (folder / "x.safetensors").read_bytes()
    save_tensors(folder / "x.safetensors", dict(reversed(saved.items())), meta)
    assert (folder / "x.safetensors").read_bytes() == before


SMALL = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}


@pytest.fixture(scope="module")
def small(folder):
    save_tensors(folder / "small.safetensors", SMALL, {"lr": 0.1})
    return (folder / "small.safetensors").read_bytes()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(folder, small, data):
    place, value = data.draw(st.integers(0, len(small) - 1)), data.draw(st.integers(0, 255))
    path = folder / "changed.safetensors"
    path.write_bytes(small[:place] + bytes([value]) + small[place + 1 :])
    try:
        loaded, meta = load_tensors(path)
    except FileError as error:
        assert str(path) in str(error)
    else:
        assert meta == {"lr": 0.1} and all(torch.equal(loaded[k], v) for k, v in SMALL.items())
        assert small[place] == value or small[place] in b" " and value in b" \t\n\r"  # only white space may differ


def test_every_truncation_is_refused(folder, small):
    path = folder / "short.safetensors"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(FileError, match="delete it|without its sha256"):
            load_tensors(path)
    path.write_bytes(small + b"\0")
    with pytest.raises(FileError):
        load_tensors(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_rubbish_is_refused(folder, rubbish):
    (folder / "rubbish").write_bytes(rubbish)
    with pytest.raises(FileError):
        load_tensors(folder / "rubbish")


def test_other_files_are_named(folder):
    save_file(SMALL, folder / "foreign.safetensors")
    with pytest.raises(FileError, match="foreign.safetensors: expected a file written by hyperclip_nb"):
        load_tensors(folder / "foreign.safetensors")
    with pytest.raises(FileError, match="nowhere: expected a safetensors file, found none"):
        load_tensors(folder / "nowhere")
    with pytest.raises(FileError, match=folder.name):
        load_tensors(folder)
    with pytest.raises(ValueError, match="expected a tensor for 'a', got list"):
        save_tensors(folder / "x.safetensors", {"a": [1.0]})


def test_what_was_loaded_does_not_follow_the_file(folder, small):
    path = folder / "moving.safetensors"
    path.write_bytes(small)
    loaded, _ = load_tensors(path)
    path.write_bytes(b"\xff" * len(small))
    assert all(torch.equal(loaded[k], v) for k, v in SMALL.items())


def test_what_is_mapped_stays_when_the_file_is_replaced_and_is_checked_when_it_is_opened(folder, small):
    path = folder / "mapped.safetensors"
    path.write_bytes(small)
    loaded, _ = load_tensors(path, mapped=True)
    save_tensors(path, {name: torch.zeros_like(x) for name, x in SMALL.items()})
    assert all(torch.equal(loaded[k], v) for k, v in SMALL.items())
    for damaged in small[:-1], small[:-1] + bytes([small[-1] ^ 1]):
        path.write_bytes(damaged)
        with pytest.raises(FileError):
            load_tensors(path, mapped=True)


@pytest.mark.parametrize("shape", [(3, 5, 7), (0, 4), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_tensor_in_a_file_has_no_name_and_leaves_nothing(tmp_path, shape, dtype):
    x = mapped(shape, tmp_path, dtype)
    y = torch.randint(100, shape).to(dtype)
    x.copy_(y)
    assert torch.equal(x, y) and x.shape == shape and x.dtype == dtype
    assert os.name != "posix" or not [*tmp_path.iterdir()]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_disk_without_room_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(OSError) as caught:
        mapped((2**50,), tmp_path)
    assert str(tmp_path) in str(caught.value) and not [*tmp_path.iterdir()]


ANONYMOUS = """
import re, sys, torch
from pathlib import Path
from hyperclip_nb.core.files import load_tensors, mapped, save_tensors
own = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
folder = Path(sys.argv[1])
save_tensors(folder / "x", {"x": torch.ones(50, 2**18)})  # 50 MiB
found = []
for how in True, False:
    before = own()
    x = load_tensors(folder / "x", mapped=how)[0]["x"]
    assert x.sum() == x.numel()
    found.append(own() - before)
    del x
before = own()
y = mapped((50, 2**18), folder).fill_(1.0)
assert y.sum() == y.numel()
print(*found, own() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_what_is_mapped_takes_no_memory_of_the_process(tmp_path):
    said = subprocess.run([sys.executable, "-c", ANONYMOUS, tmp_path], capture_output=True, text=True, check=True)
    with_map, in_memory, file = map(float, said.stdout.split())  # MiB
    assert with_map < 5 and file < 5 and in_memory > 45


# --- writes that break off


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace", "_bytes"])
def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "x.safetensors"
    save_tensors(path, SMALL)
    before = path.read_bytes()

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        digest = files.tensors_digest({"other": torch.ones(3)}, "{}")
        patch.setattr(files, "tensors_digest", lambda *_: digest)
        patch.setattr(f"hyperclip_nb.core.files.{broken}", stop)
        with pytest.raises(KeyboardInterrupt):
            save_tensors(path, {"other": torch.ones(3)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_folders_are_made_and_permissions_are_the_users(tmp_path, mask, mode):
    umask = os.umask(mask)
    try:
        write_atomic(tmp_path / "a" / "b.txt", b"x")
        write_json(tmp_path / "a" / "c.json", {})
        save_tensors(tmp_path / "a" / "d.safetensors", SMALL)
    finally:
        os.umask(umask)
    assert os.name != "posix" or {p.stat().st_mode & 0o777 for p in (tmp_path / "a").iterdir()} == {mode}
    assert sha256_of(tmp_path / "a" / "b.txt") == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (lambda path: write_json(path, {}), lambda path: save_tensors(path, SMALL)):
        with pytest.raises(OSError, match="No space left on device: '.*wanted'"):
            write(tmp_path / "wanted")
    assert os.listdir(tmp_path) == []


def test_a_killed_write_leaves_only_what_the_next_process_sweeps(tmp_path):
    "SIGKILL in the middle of a large write: whatever is left bears the dead process's number."
    code = (
        "import sys, time, torch; from hyperclip_nb.core import files; content = files._bytes\n"
        "files._bytes = lambda x: (print('on', flush=True), time.sleep(60))\n"
        "files.tensors_digest = lambda *_: ''\n"
        f"files.save_tensors({str(tmp_path / 'big.safetensors')!r}, {{'x': torch.zeros(10)}})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"on\n"
    child.kill()
    child.wait()
    assert len(os.listdir(tmp_path)) == 1
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == []


@given(st.dictionaries(names, tensors(), max_size=4))
@settings(max_examples=40, deadline=None)
def test_safetensors_reads_what_is_written(folder, saved):
    "Another library's reader finds the same tensors, each at an offset that its type divides."
    save_tensors(folder / "x.safetensors", saved)
    with safe_open(folder / "x.safetensors", "pt") as file:
        assert set(file.keys()) == saved.keys()
        assert all(torch.equal(file.get_tensor(name), x) for name, x in saved.items())
    content = (folder / "x.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, x in saved.items():
        assert header[name]["data_offsets"][0] % x.itemsize == 0


# --- what may be opened


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "/a", "a//b", "a/./b", "a\\b", "C:a", "a\0", "a/../../b"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(FileError, match="nothing was opened"):
        path_inside(tmp_path, name)


def test_names_inside_are_paths(tmp_path):
    assert path_inside(tmp_path, "figures/..forest.png") == tmp_path / "figures" / "..forest.png"
    (tmp_path / "figures").symlink_to(tmp_path)
    with pytest.raises(FileError, match="found a link"):
        path_inside(tmp_path, "figures/forest.png")


def test_pipes_sockets_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # a socket's name is short
        server.bind("socket")
    for path, kind in (tmp_path / "pipe", "pipe"), (tmp_path / "socket", "socket"), (Path("/dev/zero"), "device"):
        for read in (read_json, load_tensors, sha256_of):
            with pytest.raises(FileError, match=f"expected a file, found a {kind}"):
                read(path)


# --- JSON


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_json_comes_back_as_it_was(folder, value):
    write_json(folder / "x.json", value)
    assert read_json(folder / "x.json") == value


class Leaf(msgspec.Struct):
    size: int


class Tree(msgspec.Struct):
    files: dict[str, Leaf]
    lists: list[dict[str, list[Leaf]]] = []


@given(st.dictionaries(st.text(min_size=1, max_size=6), st.integers(), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_the_error_names_the_entry(folder, sizes, data):
    guilty = data.draw(st.sampled_from(sorted(sizes)))
    write_json(folder / "tree.json", {"files": {k: {"size": "big" if k == guilty else v} for k, v in sizes.items()}})
    with pytest.raises(FileError) as error:
        read_json(folder / "tree.json", Tree)
    assert str(error.value) == f"{folder / 'tree.json'}: Expected `int`, got `str` - at `$.files[{guilty!r}].size`"


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {"files": {}, "lists": [{}, {"a": [], "b": [{"size": 1}, {"size": None}]}]},
            r"\$\.lists\[1\]\['b'\]\[1\]\.size",
        ),
        ({"files": {"x": {}}}, r"missing required field `size` - at `\$\.files\['x'\]`"),
        ({"files": {"x": 3}}, r"got `int` - at `\$\.files\['x'\]`"),
        ({}, "missing required field `files`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_wrong_types_are_placed(folder, content, message):
    write_json(folder / "wrong.json", content)
    with pytest.raises(FileError, match=message):
        read_json(folder / "wrong.json", Tree)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": tru', b'{"a": "\xff"}', b"{} {}"])
def test_broken_json_is_named(folder, content):
    (folder / "broken.json").write_bytes(content)
    with pytest.raises(FileError, match="broken.json: expected JSON, but"):
        read_json(folder / "broken.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_of_other_editors_is_read(folder, encoding):
    (folder / "bom.json").write_bytes(json.dumps({"où": ["太阳"]}, ensure_ascii=False).encode(encoding))
    assert read_json(folder / "bom.json", dict[str, list[str]]) == {"où": ["太阳"]}


def test_another_encoding_is_named(folder):
    for content in '{"où": 1}'.encode("latin-1"), b"\xff\xfe{", b"\xff\xfe\x00\xd8":
        (folder / "latin.json").write_bytes(content)
        with pytest.raises(FileError, match="latin.json: expected"):
            read_json(folder / "latin.json")


@pytest.mark.parametrize("type", [dict, list, object])
def test_deep_json_is_refused(folder, type):
    (folder / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(FileError, match="deep.json"):
        read_json(folder / "deep.json", type)
    (folder / "deep.json").write_text('{"a":' * 3_000 + "1" + "}" * 3_000)
    with pytest.raises(FileError, match="deep.json"):
        read_json(folder / "deep.json", type)


@pytest.mark.parametrize("bad", [math.nan, math.inf, [np.float64("nan")], {"a": torch.tensor(float("inf"))}])
def test_numbers_that_json_lacks_are_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(FileError, match="finite"):
        write_json(tmp_path / "x.json", {"rows": bad})
    assert os.listdir(tmp_path) == []


# --- fingerprints


@dataclass
class Point:
    x: float = 0.0
    at: Path = Path("a/b")


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4))
@settings(deadline=None)
def test_fingerprints_do_not_see_order_and_survive_json(settings_):
    shuffled = dict(sorted(settings_.items(), reverse=True))
    assert fingerprint(settings_) == fingerprint(shuffled) == fingerprint(json.loads(json.dumps(to_plain(settings_))))


def test_fingerprints_tell_settings_apart():
    different = [
        1,
        2,
        1.5,
        "1",
        True,
        None,
        math.inf,
        -math.inf,
        [1],
        [[1]],
        {"a": 1},
        {"a": 2},
        {"b": 1},
        Point(),
        Point(1.0),
        Path("x"),
        torch.float32,
        torch.zeros(2),
        torch.zeros(1, 2),
        torch.zeros(2).half(),
        torch.ones(2),
        np.arange(3),
        (1, math.inf),
    ]
    assert len({fingerprint(x) for x in different}) == len(different)


def test_fingerprints_see_what_is_equal():
    assert fingerprint(Point()) == fingerprint({"at": "a/b", "x": 0.0})
    assert fingerprint({"a", "b", "c"}) == fingerprint({"c", "a", "b"}) == fingerprint(["a", "b", "c"])
    assert fingerprint((1, 2)) == fingerprint([1, 2]) == fingerprint(np.array([1, 2]))
    assert fingerprint(np.float32(0.5)) == fingerprint(0.5)
    assert fingerprint(torch.arange(4).view(2, 2).t()) == fingerprint(torch.tensor([[0, 2], [1, 3]]))
    with pytest.raises(ValueError, match="got function"):
        fingerprint({"f": lambda: 0})


def test_the_digest_covers_names_and_borders():
    a, b = torch.zeros(2, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    different = [{"a": a, "b": b}, {"a": b, "b": a}, {"b": a, "a": b, "c": a[:0]}, {"a": a}, {}]
    assert len({files.tensors_digest(x) for x in different}) == len(different)
