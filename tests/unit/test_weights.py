import errno
import hashlib
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from omr_ray.types import UserError
from omr_ray.weights import check_directory, read_metadata, read_safetensors, write_atomic, write_safetensors_atomic


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message and message.count(";") >= 1, message
    return message


def test_round_trip(tmp_path):
    arrays = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "f16": np.ones(2, np.float16),
        "i64": np.array([-1, 2**40]),
        "u8": np.array([[255]], np.uint8),
        "bool": np.array([True, False]),
        "scalar": np.array(4.0, np.float32),
    }
    path = tmp_path / "new" / "x.safetensors"
    write_safetensors_atomic(path, arrays, {"step": "3"})
    read = read_safetensors(path)
    assert read.keys() == arrays.keys() and read_metadata(path) == {"step": "3"}
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value)
        np.testing.assert_array_equal(load_file(path)[name], value)
        assert read[name].dtype == value.dtype and read[name].shape == value.shape
    assert os.listdir(path.parent) == ["x.safetensors"]


def test_equal_tensors_are_equal_bytes_in_every_process(tmp_path):
    """Rust's hash maps, and with them the order of metadata, differ from one process to the next."""
    code = (
        "import sys, numpy as np; from omr_ray.weights import write_safetensors_atomic as write;"
        "write(sys.argv[1], {n: np.ones(3, np.float32) for n in 'ba'}, {str(i): 'x' for i in range(9)})"
    )
    for name in "12":
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert read_metadata(tmp_path / "1")["8"] == "x"
    assert sorted(read_safetensors(tmp_path / "1")) == ["a", "b"]


def test_bfloat16_comes_back_as_float32(tmp_path):
    value = torch.randn(3, 5).bfloat16()
    save_torch({"w": value}, tmp_path / "x.safetensors")
    read = read_safetensors(tmp_path / "x.safetensors")["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, value.float().numpy())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "cannot be loaded"),
        (b"not safetensors at all", "cannot be loaded"),
        (struct.pack("<Q", 2**40) + b"{}", "cannot be loaded"),
        (struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(62) + b"\0" * 7, "cannot be loaded"),
    ],
)
def test_a_file_that_is_not_whole_is_one_line(tmp_path, content, words):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_safetensors(path)
    assert str(path) in one_line(caught)


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="pickled weights are never opened"):
        read_safetensors(path)
    with pytest.raises(UserError, match="model.bin: pickled weights are never opened") as caught:
        check_directory(tmp_path)
    one_line(caught)
    path.rename(tmp_path / "renamed.safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        read_safetensors(tmp_path / "renamed.safetensors")


def test_check_directory(tmp_path):
    with pytest.raises(UserError, match="no such model directory"):
        check_directory(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no \*.safetensors"):
        check_directory(tmp_path)
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        save_file({"a": np.zeros(3)}, tmp_path / part / "model.safetensors")
        (tmp_path / part / "model.bin").write_bytes(b"beside safetensors it does not matter")
    assert check_directory(tmp_path, parts=("unet", "vae")) == tmp_path


def test_checksums_of_the_parts_are_verified(tmp_path):
    sums = {}
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        file = tmp_path / part / "model.safetensors"
        save_file({part: np.zeros(3)}, file)
        sums[f"{part}/model.safetensors"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    check_directory(tmp_path, parts=("unet", "vae"))
    save_file({"vae": np.ones(3)}, tmp_path / "vae" / "model.safetensors")
    check_directory(tmp_path, parts=("unet",))
    with pytest.raises(UserError, match=r"vae/model.safetensors: its sha256") as caught:
        check_directory(tmp_path, parts=("unet", "vae"))
    one_line(caught)
    (tmp_path / "vae" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no \\*.safetensors"):
        check_directory(tmp_path, parts=("vae",))
    (tmp_path / "checksums.json").write_text("{")
    with pytest.raises(UserError, match="checksums.json: cannot be loaded"):
        check_directory(tmp_path, parts=("unet",))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_safetensors_atomic(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*free some space") as caught:
        write_safetensors_atomic(path, {"a": np.ones(3)})
    assert str(path) in one_line(caught)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.safetensors"]


def test_a_real_full_device_and_a_file_for_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can be written to"):
        write_atomic(tmp_path / "file" / "x", b"")
