from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from wspnb.models import build_encoder, build_head
from wspnb.studies import diagrams

ROOT = Path(__file__).parents[2]


@pytest.fixture
def axis():
    fig, axis = plt.subplots(figsize=(12, 3.6))
    yield axis
    plt.close(fig)


def words(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def convolved(size: int) -> list[int]:
    """Side of the map after each block: 5x5 without padding, then the half, rounded down."""
    sizes = []
    for _ in range(5):
        size = (size - 4) // 2
        sizes.append(size)
    return sizes


@pytest.mark.parametrize(
    "image_size, sizes", [(512, [254, 125, 60, 28, 12]), (160, [78, 37, 16, 6, 1])]
)
def test_network_is_drawn_with_its_own_sizes(axis, image_size, sizes):
    assert convolved(image_size) == sizes
    rows = diagrams.draw_network(axis, build_encoder("tiny"), build_head("tiny"), image_size)
    assert [row.size for row in rows] == [image_size, *sizes, 0, 0, 0]
    widths = [1, 16, 32, 64, 128, 256]
    assert [row.channels for row in rows] == [*widths, 256, 128, 64]
    convolutions = [25 * a * b + b for a, b in pairwise(widths)]
    dense = [256 * 128 + 128, 128 * 64 + 64]
    assert [row.parameters for row in rows] == [0, *convolutions, 0, *dense]
    assert (sum(convolutions), sum(dense)) == (1_088_896, 41_152)

    drawn = words(axis)
    for size, width in zip(sizes, widths[1:], strict=True):
        assert f"{width} × {size}²" in drawn
    for number, count in enumerate(convolutions, 1):
        assert f"block {number}\n{count:,}\n5x5 conv\npool 2\nReLU" in drawn
    assert f"dense 1\n{dense[0]:,}\nReLU" in drawn and f"dense 2\n{dense[1]:,}" in drawn
    total = "encoder 1,088,896 + head 41,152 = 1,130,048 parameters"
    assert axis.get_title() == f"{image_size} px: {total}"


def test_table_follows_the_module_and_leaves_it_as_it_was():
    encoder, head = build_encoder("tiny", "batch"), build_head("tiny")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    rows = diagrams.layer_table(encoder, head, 200)
    assert rows[1].parameters == 25 * 16 + 16 + 2 * 16  # the norm's scale and shift
    assert rows[1].steps == "5x5 conv, pool 2, norm, ReLU"
    assert encoder.training
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert not any(module._forward_hooks for module in [*encoder.modules(), *head.modules()])

    padded = diagrams.layer_table(build_encoder("tiny_padded"), head, 160)
    assert [row.size for row in padded[1:6]] == [80, 40, 20, 10, 5]


@pytest.mark.parametrize("image_size", [155, 0, -1])
def test_too_small_images_are_refused(axis, image_size):
    encoder = build_encoder("tiny")
    with pytest.raises(ValueError, match="at least 156 px"):
        diagrams.draw_network(axis, encoder, build_head("tiny"), image_size)
    assert not any(module._forward_hooks for module in encoder.modules())


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="ResNet18 has no blocks"):
        diagrams.layer_table(build_encoder("resnet18"), build_head("resnet18"), 512)


def test_flow_fits_and_is_one_piece(axis):
    diagrams.draw_flow(axis)
    figure = axis.figure
    figure.canvas.draw()
    renderer, (width, height) = figure.canvas.get_renderer(), diagrams.BOX
    texts = {text.get_text(): text.get_window_extent(renderer) for text in axis.texts}
    spots = {}
    for key, (x, y, text, _) in diagrams.FLOW_BOXES.items():
        corners = [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)]
        (x0, y0), (x1, y1) = axis.transData.transform(corners)
        assert x0 < texts[text].x0 and texts[text].x1 < x1, text
        assert y0 < texts[text].y0 and texts[text].y1 < y1, text
        spots[key] = x0, y0, x1, y1
    boxes = np.array(list(spots.values()))
    for number, (x0, y0, x1, y1) in enumerate(boxes[:-1]):
        rest = boxes[number + 1 :]
        apart = (rest[:, 0] > x1) | (rest[:, 2] < x0) | (rest[:, 1] > y1) | (rest[:, 3] < y0)
        assert apart.all(), list(spots)[number]

    arrows = [pair.split() for pair in diagrams.FLOW_ARROWS]
    reached = {"ct", "batch"}
    for _ in arrows:
        reached |= {end for start, end in arrows if start in reached}
    assert reached == set(diagrams.FLOW_BOXES)


def test_flow_names_what_there_is():
    """Notebooks and files of the drawing exist in the repository's code under these names."""
    numbers = {path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    code = "".join(
        path.read_text()
        for path in (ROOT / "src/wspnb").rglob("*.py")
        if path.name != "diagrams.py"
    )
    for _, _, text, kind in diagrams.FLOW_BOXES.values():
        if kind == "notebook":
            assert text[:2] in numbers, text
        for word in text.split():
            if "." in word:
                assert word in code, word


def test_circle_moves_points_along_the_radius_only(axis):
    angles = np.linspace(0, 6, 50)
    plane = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels, positions = np.arange(50) % 2, np.linspace(0, 1, 50)
    mappable = diagrams.draw_circle(axis, plane, labels, positions, "depth")
    points = np.asarray(mappable.get_offsets())
    lengths = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(points / lengths[:, None], plane, atol=1e-12)
    assert lengths[labels == 0].min() > lengths[labels == 1].max() + 0.1
    assert lengths.max() < 1.1 and lengths.min() > 0.6
    np.testing.assert_array_equal(mappable.get_array(), positions)
    assert diagrams.draw_circle(axis, plane, labels, positions, "class") is None


def test_circle_refuses_other_points(axis):
    for plane in (np.full((4, 2), 0.5), np.eye(4)[:, :3] + np.eye(4)[:, 1:]):
        with pytest.raises(ValueError, match="divide 2-D embeddings by their length"):
            diagrams.draw_circle(axis, plane, np.zeros(4), np.zeros(4), "class")
