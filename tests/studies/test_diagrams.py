from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from wspnb import plots
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
    assert rows["size"].tolist() == [image_size, *sizes, 0, 0, 0]
    widths = [1, 16, 32, 64, 128, 256]
    assert rows.channels.tolist() == [*widths, 256, 128, 64]
    convolutions = [25 * a * b + b for a, b in pairwise(widths)]
    dense = [256 * 128 + 128, 128 * 64 + 64]
    assert rows.parameters.tolist() == [0, *convolutions, 0, *dense]
    assert (sum(convolutions), sum(dense)) == (1_088_896, 41_152)

    drawn = words(axis)
    for number, (size, width, count) in enumerate(
        zip(sizes, widths[1:], convolutions, strict=True), 1
    ):
        assert f"block {number}\n{width} × {size}²\n{count:,}" in drawn
    assert f"dense 1\n128\n{dense[0]:,}" in drawn and f"dense 2\n64\n{dense[1]:,}" in drawn
    total = "encoder 1,088,896 + head 41,152 = 1,130,048 parameters"
    assert axis.get_title() == f"{image_size} px: {total}"


def test_table_follows_the_module_and_leaves_it_as_it_was():
    encoder, head = build_encoder("tiny", "batch"), build_head("tiny")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    rows = diagrams.layer_table(encoder, head, 200)
    assert rows.parameters["block 1"] == 25 * 16 + 16 + 2 * 16  # the norm's scale and shift
    assert encoder.training
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())

    padded = diagrams.layer_table(build_encoder("tiny_padded"), head, 160)
    assert padded["size"].tolist()[1:6] == [80, 40, 20, 10, 5]


@pytest.mark.parametrize("image_size", [155, 0, -1])
def test_too_small_images_are_refused(axis, image_size):
    encoder = build_encoder("tiny")
    with pytest.raises(ValueError, match="at least 156 px"):
        diagrams.draw_network(axis, encoder, build_head("tiny"), image_size)
    assert encoder.training


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="ResNet18 has no blocks"):
        diagrams.layer_table(build_encoder("resnet18"), build_head("resnet18"), 512)


def test_flow_fits_and_is_one_piece(axis):
    diagrams.draw_flow(axis)
    renderer = axis.figure.canvas.get_renderer()
    drawn = [text for text in axis.texts if text.get_bbox_patch()]
    assert len(drawn) == len(diagrams.FLOW_BOXES)
    extents = [text.get_bbox_patch().get_window_extent(renderer) for text in drawn]
    for number, box in enumerate(extents):
        assert not any(box.overlaps(other) for other in extents[number + 1 :])
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
    for _, _, kind, text in diagrams.FLOW_BOXES.values():
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


def test_names_of_patients_are_no_formulas(tmp_path):
    """A dollar sign begins mathematics for matplotlib: two in one name, and nothing is drawn."""
    names, grey = ["$1_$x", r"$\q$"], np.zeros((2, 8, 8), np.uint8)
    plots.save_figure(plots.contact_sheet(grey, names), tmp_path, "sheet")
    coloured = np.zeros((2, 96, 96, 3), np.uint8)
    fig = plots.mosaic(coloured, names, title="$\\a$")
    fig.axes[0].plot(0, 0, label=plots.as_text("_P$$1"))  # as a name of a patient
    fig.legend()
    assert [text.get_text().strip("\u200a") for text in fig.legends[0].get_texts()] == [r"_P\$\$1"]
    plots.save_figure(fig, tmp_path, "mosaic")


def test_sheets_and_points_of_other_forms_are_refused():
    grey = np.zeros((2, 8, 8), np.uint8)
    for images, titles in [(grey.astype(int), None), (grey[0], None), (grey, ["one"])]:
        with pytest.raises(ValueError):
            plots.contact_sheet(images, titles)
    axis = plots.contact_sheet(grey).axes[0]
    for values, kind in [([0], "class"), ([0, 1], "colour")]:
        with pytest.raises(ValueError, match="one value of each point"):
            plots.scatter(axis, np.zeros((2, 2)), values, kind)
