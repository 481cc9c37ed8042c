"""eegvision.ingest.unpickle: pickled arrays are read whole and in place, and nothing in a file is ever run."""

from __future__ import annotations

import contextlib
import copyreg
import mmap
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eegvision.ingest import unpickle
from eegvision.vocab import InputError

RNG = np.random.default_rng(0)
CONTENT: dict[Any, Any] = {
    "float64": RNG.standard_normal((3, 4, 5)),
    "large": RNG.standard_normal((90, 110)),
    "fortran": np.asfortranarray(RNG.standard_normal((90, 111))),
    "float32": RNG.standard_normal((2, 3)).astype(np.float32),
    "float16": RNG.standard_normal(50_000).astype(np.float16),
    "integers": np.arange(7),
    "big endian": np.arange(5, dtype=">i4"),
    "booleans": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "unicode": np.array([["00001_aardvark", "b"], ["", "é𝄞"]]),
    "bytes array": np.array([b"ab", b"c"]),
    "objects": np.array([["x", None], [1, ["y", 2.5]]], object),
    "object columns": np.asfortranarray(np.array([["x", "y", "z"], ["u", "v", "w"]], object)),
    "names": ["Oz", "O1", "O2", "\n\\ é"],
    "scalar": np.float64(1000.0),
    "text scalar": np.str_("abc"),
    "number": -(1 << 70),
    "mixed": (1, 2.5, True, False, None, b"\x00\xff", {"nested": [{}]}),
    3: "an integer as key",
}


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) or isinstance(found, np.memmap | unpickle.TextArray)
    if isinstance(expected, np.ndarray):
        values = unpickle.array(found)
        assert values is not None
        assert (values.dtype, values.shape) == (expected.dtype, expected.shape)
        assert values.tolist() == expected.tolist()
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_every_protocol_and_both_numpys_are_read(tmp_path, protocol, module):
    pickled = pickle.dumps(CONTENT, protocol=protocol)
    if module == "numpy.core":  # with the length that precedes a name in protocol 4
        for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
            shorter = name.replace(b"_core", b"core")
            pickled = pickled.replace(b"\x8c" + bytes([len(name)]) + name, b"\x8c" + bytes([len(shorter)]) + shorter)
            pickled = pickled.replace(b"c" + name + b"\n", b"c" + shorter + b"\n")
        assert b"numpy._core" not in pickled
    (tmp_path / "a.npy").write_bytes(pickled)
    loaded = unpickle.load(tmp_path / "a.npy")
    assert list(loaded) == list(CONTENT)
    for key, expected in CONTENT.items():
        same(loaded[key], expected)


@pytest.mark.parametrize("protocol", range(3, 6))
def test_a_large_array_is_mapped_where_it_lies(tmp_path, protocol):
    path = tmp_path / "a.npy"
    path.write_bytes(b"before" + pickle.dumps({"eeg": CONTENT["large"], "names": ["a"]}, protocol=protocol))
    eeg = unpickle.load(path, offset=6)["eeg"]
    assert isinstance(eeg, np.memmap)
    assert eeg.offset == path.read_bytes().index(CONTENT["large"].tobytes())
    assert not eeg.flags.writeable


@pytest.mark.parametrize("protocol", range(3))
def test_an_array_that_is_text_in_the_file_is_decoded_when_asked_for(tmp_path, protocol):
    (tmp_path / "a.npy").write_bytes(pickle.dumps([CONTENT["large"], CONTENT["fortran"]], protocol=protocol))
    for found, name in zip(unpickle.load(tmp_path / "a.npy"), ("large", "fortran"), strict=True):
        assert isinstance(found, unpickle.TextArray)
        assert isinstance(found.array().base, np.memmap | mmap.mmap)
        np.testing.assert_array_equal(found.array(), CONTENT[name])


def test_text_longer_than_a_chunk_is_decoded_across_its_borders(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "_CHUNK_BYTES", 1001)
    for protocol in range(3):
        (tmp_path / "a.npy").write_bytes(pickle.dumps(CONTENT["large"], protocol=protocol))
        np.testing.assert_array_equal(unpickle.array(unpickle.load(tmp_path / "a.npy")), CONTENT["large"])


def test_numpys_own_files_are_read(tmp_path):
    np.save(tmp_path / "dict.npy", CONTENT)  # type: ignore[arg-type]
    loaded = unpickle.load(tmp_path / "dict.npy")
    for key, expected in CONTENT.items():
        same(loaded[key], expected)
    assert isinstance(loaded["large"], np.memmap)
    for name in ("large", "fortran", "unicode", "float16"):
        np.save(tmp_path / "plain.npy", CONTENT[name])
        plain = unpickle.load(tmp_path / "plain.npy")
        assert isinstance(plain, np.memmap)
        same(plain, CONTENT[name])
    np.save(tmp_path / "objects.npy", CONTENT["objects"])
    same(unpickle.load(tmp_path / "objects.npy"), CONTENT["objects"])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_torch_file_of_arrays_is_read(tmp_path, protocol):
    torch.save(CONTENT, tmp_path / "a.pt", pickle_protocol=protocol)
    loaded = unpickle.load_torch(tmp_path / "a.pt")
    for key, expected in CONTENT.items():
        same(loaded[key], expected)
    assert isinstance(loaded["large"], unpickle.TextArray if protocol == 2 else np.memmap)


def test_a_torch_file_of_tensors_is_read(tmp_path):
    torch.save({"eeg": torch.arange(6.0).reshape(2, 3), "names": ["a"]}, tmp_path / "a.pt")
    loaded = unpickle.load_torch(tmp_path / "a.pt")
    assert torch.equal(loaded["eeg"], torch.arange(6.0).reshape(2, 3))
    assert loaded["names"] == ["a"]


def test_shared_values_stay_shared_without_growing(tmp_path):
    value: list[Any] = ["x"]
    for _ in range(12):
        value = [value] * 10
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    loaded = unpickle.load(tmp_path / "a.pkl")
    assert loaded[0] is loaded[9]


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def payloads(marker: Path, trap: Path) -> dict[str, bytes]:
    """Pickles that make a folder when Python's own pickle reads them, one per place for code to hide in."""
    call = b"cos\nmkdir\n(" + text(str(marker)) + b"tR"
    array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR"
    dtype_O = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntR"
    code = text(f"__import__('os').mkdir({str(marker)!r})")
    return {
        "top": call + b".",
        "dict key": b"}" + call + b"K\x01s.",
        "dict value": b"}" + text("a") + call + b"s.",
        "dict items": b"}(" + text("a") + call + b"u.",
        "dict opcode": b"(" + text("a") + call + b"d.",
        "list item": b"]" + call + b"a.",
        "tuple": b"(" + call + b"t.",
        "array state": array + b"(K\x01(K\x01t" + dtype_O + b"I00\n" + call + b"tb.",
        "array shape": array + b"(K\x01" + call + dtype_O + b"I00\n](Natb.",
        "dtype arguments": b"cnumpy\ndtype\n(" + call + b"tR.",
        "dtype state": dtype_O + call + b"b.",
        "object array element": array + b"(K\x01(K\x01t" + dtype_O + b"I00\n(" + call + b"ltb.",
        "scalar": b"cnumpy._core.multiarray\nscalar\n(" + dtype_O + call + b"tR.",
        "memo": call + b"q\x000N.",
        "nested call": b"c_codecs\nencode\n(" + call + b"Vlatin1\ntR.",
        "state": b"}" + call + b"b.",
        "new object": b"cnumpy\nndarray\n" + call + b"\x85\x81.",
        "extension": b"\x82\xf0(" + text(str(marker)) + b"tR.",
        "dotted name": b"\x80\x04" + short("pathlib") + short("os.mkdir") + b"\x93(" + text(str(marker)) + b"tR.",
        "stacked name": b"\x80\x04" + short("os") + short("mkdir") + b"\x93(" + text(str(marker)) + b"tR.",
        "instance": b"(" + text(str(marker)) + b"ios\nmkdir\n.",
        "object": b"(cos\nmkdir\n" + text(str(marker)) + b"o.",
        "numpy.load": b"cnumpy\nload\n(" + text(str(trap)) + b"NI01\ntR.",
        "eval": b"cbuiltins\neval\n(" + code + b"tR.",
        "exec": b"c__builtin__\nexec\n(" + code + b"tR.",
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR" + text("mkdir") + b"tR("
        + text(str(marker)) + b"tR.",
        "with the file's end in between": b"N." + call + b".",
    }  # fmt: skip


@pytest.fixture
def trap(tmp_path) -> tuple[Path, Path]:
    """A folder that only code would make, and a .npy file that makes it."""
    marker, path = tmp_path / "harm", tmp_path / "trap.npy"
    path.write_bytes(b"cos\nmkdir\n(" + text(str(marker)) + b"tR.")
    return marker, path


@pytest.fixture
def extension():
    copyreg.add_extension("os", "mkdir", 240)
    yield
    copyreg.remove_extension("os", "mkdir", 240)


@pytest.mark.parametrize("place", payloads(Path("m"), Path("t")))
@pytest.mark.usefixtures("extension")
def test_code_is_refused_wherever_it_hides_and_never_runs(tmp_path, trap, place):
    marker, path = trap
    payload = payloads(marker, path)[place]
    (tmp_path / "evil.npy").write_bytes(payload)
    header = np.lib.format.magic(1, 0) + b"\x4e\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    (tmp_path / "saved.npy").write_bytes(header.ljust(6 + 2 + 2 + 0x4E - 1) + b"\n" + payload)
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", payload)
    for load, name in ((unpickle.load, "evil.npy"), (unpickle.load, "saved.npy"), (unpickle.load_torch, "evil.pt")):
        with pytest.raises(InputError, match=rf"{name} cannot be used: .*code in a file is never run"):
            load(tmp_path / name)
        assert not marker.exists()
    # The payload is live: Python's own reader runs it.
    with (tmp_path / "evil.npy").open("rb") as file:
        for _ in range(1 + place.startswith("with")):
            with contextlib.suppress(Exception):  # after the call anything may fail
                pickle.load(file)
    assert marker.exists()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"cnumpy\nfromfile\n(Vx\ntR.", "asks for numpy.fromfile, which is code"),
        (b"cnumpy.lib._npyio_impl\nload\n(Vx\ntR.", "asks for numpy.lib._npyio_impl.load"),
        (b"cbuiltins\nset\n(tR.", "asks for builtins.set"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"Pname\n.", "opcode 'PERSID'"),
        (b"NQ.", "opcode 'BINPERSID'"),
        (b"\x97.", "opcode 'NEXT_BUFFER'"),
        (b"cnumpy\nndarray\n)\x81.", "opcode 'NEWOBJ'"),
        (b"cnumpy\nndarray\n)}\x92.", "opcode 'NEWOBJ_EX'"),
        (b"\x82\xf0.", "opcode 'EXT1'"),
        (b"\x83\xf0\x00.", "opcode 'EXT2'"),
        (b"U\x01a.", "SHORT_BINSTRING"),
        (b"cnumpy\nndarray\n.", "neither text, number, list, dict nor array"),
        (b"cnumpy\nndarray\n}b.", "gives a state to what is no array"),
        (b"cnumpy\nndarray\n(K\x01tR.", "calls ndarray in a way"),
        (b"c_codecs\nencode\n(Vab\nVrot13\ntR.", "calls encode in a way"),
        (b"cnumpy\ndtype\n(VV8\nI00\nI01\ntR.", "calls dtype in a way"),
        (b"cnumpy\ndtype\n(Vm8\nI00\nI01\ntR.", "calls dtype in a way"),
        (b"cnumpy\ndtype\n(Vf8,O\nI00\nI01\ntR.", "calls dtype in a way"),
        (b"](h\x00t.", "KeyError"),
        (b"]q\x00h\x00a.", "nested more than 16 deep, or holds itself"),
        (b"](" * 40 + b"l" * 40 + b".", "neither text|damaged|nested|missing"),
        (b"(" * 3 + b".", "neither text|damaged"),
        (b"NN.", "damaged"),
        (b".", "damaged"),
        (b"", "cut short"),
        (b"}N" + b"Ns.", "key of a dict is of type NoneType"),
        (b"}Va\nNsVa\nNs.", "has the key 'a' twice"),
        (b"\x80\x06N.", "protocol above 5"),
        (b"B\xff\xff\xff\x7fx.", "a piece of 2,147,483,647 bytes is not in it"),
        (b"\x8e" + b"\xff" * 8 + b".", "bytes is not in it"),
        (b"X\x00\x00\x02\x00" + b"a" * 131072 + b".", "a text of 131,072 bytes that belongs to no array"),
        (b"V" + b"a" * 131072 + b"\n.", "a text of 131,072 bytes that belongs to no array"),
        (b"V" + b"a" * 131072, "does not end"),
        (b"I" + b"1" * 70000 + b"\n.", "does not end"),
        (b"X\x02\x00\x00\x00\xff\xfe.", "UnicodeDecodeError"),
    ],
)
def test_what_no_array_needs_is_refused_with_a_reason(tmp_path, pickled, reason):
    (tmp_path / "odd.npy").write_bytes(pickled)
    with pytest.raises(InputError, match=rf"odd\.npy cannot be used: .*({reason})"):
        unpickle.load(tmp_path / "odd.npy")


def state_of(shape: tuple[int, ...], kind: str, data: bytes, version: int = 1) -> bytes:
    """A pickle (protocol 3) of an array with any state."""
    head, tail = around_samples(shape, kind, version)
    return head + b"B" + len(data).to_bytes(4, "little") + data + tail


def around_samples(shape: tuple[int, ...], kind: str, version: int = 1) -> tuple[bytes, bytes]:
    items = b"".join(b"\x8a\x08" + size.to_bytes(8, "little", signed=True) for size in shape)
    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\n(" + text(kind) + b"\x89\x88tR(K\x03" + text("<") + b"NNN" + 2 * minus_one + b"K\x00tb"
    array = b"\x80\x03cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
    return array + b"(K" + bytes([version]) + b"(" + items + b"t" + dtype + b"\x89", b"tb."


def test_samples_of_a_file_larger_than_memory_stay_on_disk(tmp_path):
    path, shape = tmp_path / "a.npy", (1 << 10, 1 << 10, 1 << 10, 16)
    head, tail = around_samples(shape, "f8")
    with path.open("wb") as file:
        file.write(head + b"\x8e" + (1 << 37).to_bytes(8, "little"))
        file.seek(1 << 37, 1)  # 128 GiB of nothing, which takes no room
        file.write(tail)
    eeg = unpickle.load(path)
    assert isinstance(eeg, np.memmap)
    assert (eeg.shape, eeg.dtype, eeg.offset) == (shape, np.float64, len(head) + 9)
    assert eeg[-1, -1, -1, -1] == 0


def test_an_array_that_claims_more_than_its_bytes_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(state_of((2, 3), "f8", b"\0" * 48))
    assert unpickle.load(path).shape == (2, 3)
    for shape in ((2, 4), (1 << 40, 1 << 20), (-2, -3), (1,) * 40, (0, 3)):
        path.write_bytes(state_of(shape, "f8", b"\0" * 48))
        with pytest.raises(InputError, match=r"a\.npy cannot be used: .*(not as many bytes|no shape)"):
            unpickle.load(path)
    path.write_bytes(state_of((1,), "O8", b"\0" * 8))
    with pytest.raises(InputError, match="has not as many bytes as that takes"):
        unpickle.load(path)
    path.write_bytes(state_of((1,), "U1", b"\xff\xff\xff\xff"))
    with pytest.raises(InputError, match="no Unicode"):
        unpickle.load(path)
    path.write_bytes(state_of((2, 3), "f8", b"\0" * 48, version=2))
    with pytest.raises(InputError, match="state of an unknown kind"):
        unpickle.load(path)


def test_a_file_with_too_many_parts_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(list(range(1000))))
    monkeypatch.setattr(unpickle, "MAX_OPCODES", 500)
    with pytest.raises(InputError, match="more than 500 parts"):
        unpickle.load(tmp_path / "a.pkl")
    monkeypatch.setattr(unpickle, "MAX_READ_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes beside its arrays"):
        unpickle.load(tmp_path / "a.pkl")


def test_a_npy_file_that_is_none_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(100))
    whole = (tmp_path / "a.npy").read_bytes()
    structured = np.zeros(3, dtype=[("a", "f8")])
    for content, reason in (
        (whole[:-1], "has not as many bytes"),
        (whole + b"\0", "has not as many bytes"),
        (whole[:50], "damaged"),
        (whole.replace(b"(100,)", b"(1000)"), "damaged|no shape"),
        (whole.replace(b"\x01\x00", b"\x09\x00", 1), r"version is \(9, 0\)"),
    ):
        (tmp_path / "b.npy").write_bytes(content)
        with pytest.raises(InputError, match=rf"b\.npy cannot be used: .*({reason})"):
            unpickle.load(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", structured)
    with pytest.raises(InputError, match="not plain numbers or text"):
        unpickle.load(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.array(["x", None], object))
    content = (tmp_path / "d.npy").read_bytes().replace(b"'shape': (2,)", b"'shape': (3,)")
    (tmp_path / "d.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"header says shape \[3\], its content has \[2\]"):
        unpickle.load(tmp_path / "d.npy")
    with pytest.raises(InputError, match=r"gone\.npy cannot be read .*check the path"):
        unpickle.load(tmp_path / "gone.npy")


def test_a_torch_file_is_held_against_its_checksums(tmp_path):
    torch.save({"eeg": CONTENT["large"]}, tmp_path / "a.pt", pickle_protocol=5)
    whole = bytearray((tmp_path / "a.pt").read_bytes())
    whole[whole.index(CONTENT["large"].tobytes()) + 5000] ^= 1
    (tmp_path / "a.pt").write_bytes(whole)
    with pytest.raises(InputError, match=r"a\.pt cannot be used: the bytes of its member .*data\.pkl.*checksum"):
        unpickle.load_torch(tmp_path / "a.pt")
    assert unpickle.load_torch(tmp_path / "a.pt", verify=False)["eeg"].shape == (90, 110)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torch_file_cut_short_or_of_another_kind_is_refused(tmp_path, share):
    torch.save({"eeg": CONTENT["large"]}, tmp_path / "a.pt", pickle_protocol=5)
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"a\.pt cannot be used"):
        unpickle.load_torch(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/data.pkl", pickle.dumps({}))
    with pytest.raises(InputError, match="compressed or encrypted"):
        unpickle.load_torch(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({}))
    with pytest.raises(InputError, match=r"has 0 members NAME/data\.pkl"):
        unpickle.load_torch(tmp_path / "c.pt")


def test_text_of_another_length_than_the_array_is_refused_when_decoded(tmp_path):
    pickled = pickle.dumps(np.full((100, 100), np.pi), protocol=2)
    assert pickled.count(b"\xc3\xbb") == 10_000  # byte 251 of pi, two bytes of UTF-8
    (tmp_path / "a.pkl").write_bytes(pickled.replace(b"\xc3\xbb", b"ab", 1))
    loaded = unpickle.load(tmp_path / "a.pkl")
    with pytest.raises(InputError, match=r"a\.pkl is damaged at byte .*80001 bytes for an array.*download it again"):
        loaded.array()


def test_no_numpy_object_is_changed_by_what_a_file_builds(tmp_path):
    state = b"(K\x03V>\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    (tmp_path / "a.pkl").write_bytes(b"cnumpy\ndtype\n(Vf8\nI00\nI01\ntR" + state)
    with pytest.raises(InputError, match="neither text, number, list, dict nor array"):
        unpickle.load(tmp_path / "a.pkl")
    assert np.dtype("f8").isnative
