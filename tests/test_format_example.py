"""docs/format.md is executed: its constants, its reader and its worked example."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import phiquant
from phiquant import PhiConfig, PhiTensor, codec, grid
from phiquant.codec import Layout, Planes
from phiquant.codec.encode import split_codes

PAGE = Path(__file__).parents[1] / "docs" / "format.md"
BLOCK = re.compile(
    r"^<!-- block: (?P<name>[\w ]+) -->\n\n```(?:text|python)\n(?P<body>.*?)^```$", re.M | re.S
)
SHAPE = (2, 40)
PLANES = ("index", "deviation", "deviation_low")
BITS = (4, 4, 4)


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    found = {match["name"]: match["body"] for match in BLOCK.finditer(PAGE.read_text("utf-8"))}
    expected = {"BEND", "LINE", "LADDER", "reader", "exact reader", "weight", "scale", *PLANES}
    expected |= {f"exact {name}" for name in ("scale", *PLANES[:2], "remainder", "weight")}
    expected |= {"file reader", "file header", "file keys", "file checksum"}
    assert found.keys() == expected | {"index alone", "first deviation plane", "all"}
    return found


@pytest.fixture(scope="module")
def constants(blocks: dict[str, str]) -> dict[str, list[float]]:
    return {
        name: [float.fromhex(text) for text in blocks[name].split()]
        for name in ("BEND", "LINE", "LADDER")
    }


@pytest.fixture(scope="module")
def read_row(blocks: dict[str, str], constants: dict[str, Any]) -> Callable[..., list[float]]:
    """The page's own reader, which knows nothing of phiquant."""
    names = dict(constants)
    exec(blocks["reader"], names)
    return names["read_row"]


@pytest.fixture(scope="module")
def exact_names(blocks: dict[str, str], constants: dict[str, Any]) -> dict[str, Any]:
    """What the page's exact reader defines."""
    names = dict(constants)
    exec(blocks["reader"] + blocks["exact reader"], names)
    return names


def layout(deviation_bits: int) -> Layout:
    return Layout(SHAPE[1], 4, deviation_bits, group_size=32, grid="phi", exponent=-10)


def matrix(text: str) -> torch.Tensor:
    return torch.tensor([float(number) for number in text.split()]).view(SHAPE)


def octets(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8).view(SHAPE[0], -1)


def words(blocks: dict[str, str]) -> list[list[int]]:
    return [[int(word, 16) for word in line.split()] for line in blocks["scale"].splitlines()]


def planes(blocks: dict[str, str]) -> Planes:
    scale = torch.tensor(words(blocks), dtype=torch.int32).to(torch.int16)
    return Planes(*(octets(blocks[name]) for name in PLANES), scale)


@pytest.mark.parametrize(
    ("name", "expected"), [("BEND", grid.BENDS), ("LINE", grid.LINES), ("LADDER", grid.LADDER)]
)
def test_constants(constants: dict[str, Any], name: str, expected: tuple[float, ...]) -> None:
    assert constants[name] == list(expected)


def test_the_example_encodes_to_the_printed_planes(blocks: dict[str, str]) -> None:
    encoded = codec.encode(matrix(blocks["weight"]), layout(8))
    for name, printed in zip((*PLANES, "scale"), planes(blocks), strict=False):
        assert getattr(encoded, name).tolist() == printed.tolist(), name


@pytest.mark.parametrize(
    ("name", "count"), [("index alone", 1), ("first deviation plane", 2), ("all", 3)]
)
def test_the_example_decodes_to_the_printed_weights(
    blocks: dict[str, str], read_row: Callable[..., list[float]], name: str, count: int
) -> None:
    printed = matrix(blocks[name])
    stored = planes(blocks)
    cut = Planes(*(stored[i] if i < count else None for i in range(3)), stored.scale)
    assert torch.equal(codec.decode(cut, layout(4 * (count - 1))), printed)
    for row, scales in enumerate(words(blocks)):
        streams = [(bytes(stored[i][row].tolist()), BITS[i]) for i in range(count)]
        assert read_row(streams, scales, SHAPE[1], 32, "phi", -10) == printed[row].tolist()


def test_the_steps_by_hand_are_those_of_the_first_weight(blocks: dict[str, str]) -> None:
    text = re.sub(r"\s+", " ", PAGE.read_text("utf-8").partition("The first weight by hand")[2])
    position, square, times_b, plus_a, level, value = (
        float(re.search(rf"{words_before} = (-?[\d.]+\d)", text)[1])
        for words_before in ("252.5 / 256", r"p \* p", "times b", "plus a", "times p", "scale")
    )
    p = torch.tensor(position)
    cubic, line = torch.tensor(grid.BENDS[3]) / 512, torch.tensor(grid.LINES[3]) / 8
    steps = [p * p, p * p * cubic, p * p * cubic + line, (p * p * cubic + line) * p]
    assert [step.item() for step in steps] == torch.tensor(
        [square, times_b, plus_a, level]
    ).tolist()
    assert torch.tensor(value) == steps[-1] * (-171 * 2.0**-10) == matrix(blocks["all"])[0, 0]


@pytest.mark.parametrize("name", grid.GRIDS)
@pytest.mark.parametrize("index_bits", grid.INDEX_BITS, ids="index{}".format)
@pytest.mark.parametrize("deviation_bits", grid.DEVIATION_BITS, ids="deviation{}".format)
def test_the_reader_and_the_codec_agree_on_any_planes(
    read_row: Callable[..., list[float]], name: str, index_bits: int, deviation_bits: int
) -> None:
    shape = Layout(40, index_bits, deviation_bits, 32, name, exponent=-10)
    codes = torch.randint(1 << index_bits + deviation_bits, (1, 64))
    word = torch.randint(0x0080, 0x0F80, (1, 2)) * 8
    word |= torch.randint(2, (1, 2)) << 15 | torch.randint(shape.curve.bends, (1, 2))
    stored = split_codes(codes, shape)._replace(scale=word.to(torch.int16))
    bits = (index_bits, shape.high_bits, shape.low_bits)
    streams = [
        (bytes(plane[0].tolist()), width)
        for plane, width in zip(stored, bits, strict=False)
        if plane is not None
    ]
    row = read_row(streams, word[0].tolist(), 40, 32, name, -10)
    assert row == codec.decode(stored, shape)[0].tolist()


def exact_planes(blocks: dict[str, str]) -> tuple[Layout, Planes, torch.Tensor]:
    shape = Layout(40, group_size=32, exponent=-10, stored_dtype=torch.bfloat16)
    scale = torch.tensor([int(word, 16) for word in blocks["exact scale"].split()])
    index, deviation, remainder = (
        torch.tensor(list(bytes.fromhex(blocks[f"exact {name}"])), dtype=torch.uint8)
        for name in ("index", "deviation", "remainder")
    )
    offsets, starts = torch.zeros(1, 1, dtype=torch.int16), torch.zeros(1, dtype=torch.int64)
    scale = scale.to(torch.int16).unsqueeze(0)
    planes = Planes(
        index.unsqueeze(0), deviation.unsqueeze(0), None, scale, remainder, offsets, starts
    )
    weight = torch.tensor([[float(number) for number in blocks["exact weight"].split()]])
    return shape, planes, weight.bfloat16()


def test_the_exact_example_encodes_to_the_printed_planes_and_back(blocks: dict[str, str]) -> None:
    shape, printed, weight = exact_planes(blocks)
    assert torch.equal(weight, matrix(blocks["weight"])[:1].bfloat16())
    encoded = codec.encode_remainder(weight, codec.encode(weight, shape), shape)
    for name, plane, expected in zip(Planes._fields, encoded, printed, strict=True):
        if name == "exceptions":
            assert plane.numel() == 0
        elif expected is not None:
            assert plane.tolist() == expected.tolist(), name
    assert torch.equal(codec.decode(printed, shape, torch.bfloat16), weight)


def test_the_exact_steps_by_hand_are_those_of_the_first_weights(
    blocks: dict[str, str], exact_names: dict[str, Any]
) -> None:
    text = PAGE.read_text("utf-8").partition("### The same with a remainder")[2]
    sub_cell, scale = exact_names["sub_cell"], 170 * 2.0**-10
    assert sub_cell(1 << 4 | 11, 8, 4, "phi", 5, scale, "bfloat16") == (15802, 3, True)
    assert "ranks 15802 to 15804, so count is 3, width is 2" in text
    for edge in (11, 12):
        level = exact_names["level"]("phi", 8, 5, -6.5 + edge / 16)
        assert f"{torch.tensor(level * scale).item():.7g}" in text
    streams = [(bytes.fromhex(blocks[f"exact {name}"]), 4) for name in PLANES[:2]]
    assert exact_names["code_of"](streams, 0) == 1 << 4 | 11
    second = exact_names["code_of"](streams, 1)
    assert sub_cell(second, 8, 4, "phi", 5, scale, "bfloat16")[:2] == (15573, 7)


@pytest.mark.parametrize("dtype", codec.DTYPES, ids=str)
@pytest.mark.parametrize(("name", "bits"), [("phi", 4), ("phi", 2), ("golden", 4)])
def test_the_exact_reader_and_the_codec_agree(
    exact_names: dict[str, Any], name: str, bits: int, dtype: torch.dtype
) -> None:
    weight = torch.randn(2, 600, generator=torch.Generator().manual_seed(bits)).to(dtype)
    weight[0, :9], weight[1, 3] = torch.tensor([0.0, -0.0, 1e-7] * 3).to(dtype), -30
    shape = Layout(600, 4, bits, 64, name, -10, dtype)
    planes = codec.encode_remainder(weight, codec.encode(weight, shape), shape)
    begins = (planes.offsets.long() & 0xFFFF) + planes.starts
    assert planes.exceptions.shape[0] == 0
    for row in range(2):
        streams = [(bytes(p[row].tolist()), n) for p, n in ((planes[0], 4), (planes[1], bits))]
        read = exact_names["read_exact_row"](
            streams, (planes.scale[row].int() & 0xFFFF).tolist(), 600, 64, name, -10,
            str(dtype).removeprefix("torch."), bytes(planes.remainder.tolist()),
            begins[row].tolist(),
        )  # fmt: skip
        exact = torch.tensor(read, dtype=torch.float64).to(dtype)
        assert torch.equal(exact, weight[row])
        assert torch.equal(exact.signbit(), weight[row].signbit())


@pytest.mark.parametrize(("name", "word"), [("phi", 0x03F8), ("phi", 0xFC00), ("golden", 0x3C01)])
def test_the_reader_refuses_what_is_no_scale_word(
    read_row: Callable[..., list[float]], name: str, word: int
) -> None:
    with pytest.raises(ValueError, match="is not a scale word"):
        read_row([(bytes(16), 4)], [word], 32, 32, name, 0)


# --- in files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file_names(blocks: dict[str, str], constants: dict[str, Any]) -> dict[str, Any]:
    """What the page's readers define; they know nothing of phiquant."""
    names = dict(constants)
    exec(blocks["reader"] + blocks["exact reader"] + blocks["file reader"], names)
    return names


@pytest.fixture
def example_file(blocks: dict[str, str], tmp_path: Path) -> Path:
    """The page's exact row, saved."""
    config = PhiConfig(group_size=32, exact=True)
    model = torch.nn.Sequential(OrderedDict(layer=torch.nn.Linear(40, 1, bias=False)))
    weight = exact_planes(blocks)[2].float()
    model.layer.weight = torch.nn.Parameter(PhiTensor.from_hp(weight, config), requires_grad=False)
    phiquant.save(model, tmp_path / "example.safetensors")
    return tmp_path / "example.safetensors"


def test_the_example_file_is_as_printed(
    blocks: dict[str, str], file_names: dict[str, Any], example_file: Path
) -> None:
    metadata, tensors = file_names["read_file"](example_file)
    assert metadata == {"format": "pt", "phiquant.format": "1", "phiquant.weights": "1"}
    keys = [f"{key} {of[0]} {' '.join(map(str, of[1]))}" for key, of in sorted(tensors.items())]
    assert keys == blocks["file keys"].splitlines()
    header = file_names["numbers"](tensors["layer._weight_header"][2], "q")
    assert header == [int(number) for number in blocks["file header"].split()]
    assert tensors["layer._weight_checksum"][2] == bytes.fromhex(blocks["file checksum"])
    for plane in ("index", "deviation", "remainder"):
        assert tensors[f"layer._weight_{plane}"][2] == bytes.fromhex(blocks[f"exact {plane}"])


def test_the_page_reads_the_example_file(
    blocks: dict[str, str], file_names: dict[str, Any], example_file: Path
) -> None:
    _, tensors = file_names["read_file"](example_file)
    (row,) = file_names["rows_of"]("layer.weight", tensors)
    assert row == exact_planes(blocks)[2][0].tolist()
    bits = exact_planes(blocks)[2].view(torch.int16)[0].tolist()
    octets_of = b"".join((number & 0xFFFF).to_bytes(2, "little") for number in bits)
    digest = hashlib.blake2b(octets_of, digest_size=16).digest()
    assert digest == bytes.fromhex(blocks["file checksum"])


GOLDEN = Path(__file__).parent / "data" / "golden_v1"


@pytest.mark.parametrize("shard", sorted(GOLDEN.glob("*.safetensors")), ids=lambda of: of.name)
def test_the_page_reads_the_golden_checkpoint(file_names: dict[str, Any], shard: Path) -> None:
    """Every weight of it without exceptions, whatever its shape."""
    _, tensors = file_names["read_file"](shard)
    checkpoint = phiquant.open(GOLDEN)
    names = [name for name in checkpoint.headers if f"_{name}_header" in tensors]
    assert len(names) > 3
    for name in names:
        if checkpoint.headers[name].exceptions:
            continue
        tensor = checkpoint[name]
        rows = torch.tensor(list(file_names["rows_of"](name, tensors)), dtype=torch.float64)
        stored = tensor._with(transposed=False, column_shape=(), dtype=torch.float32).dequantize()
        assert torch.equal(rows.view(-1), stored.double().view(-1)), name
