import numpy as np
import pytest
import torch
from torch import nn

from wspnb.losses import byol_loss
from wspnb.models import (
    IMAGENET_MEAN,
    IMAGENET_SD,
    TinyNet,
    build_encoder,
    build_head,
    load_imagenet,
    projection_head,
    resnet18,
)
from wspnb.momentum import Byol

ENCODERS = [("tiny", "none"), ("tiny", "batch"), ("resnet18", None)]


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_numbers_of_parameters():
    assert n_parameters(TinyNet()) == 1_088_896
    assert n_parameters(projection_head("tiny")) == 41_152
    assert n_parameters(TinyNet(norm="batch")) == 1_088_896 + 2 * 496  # deviation, tagged
    assert n_parameters(resnet18()) == 11_170_240
    assert n_parameters(resnet18(in_channels=3)) == 11_176_512
    assert n_parameters(projection_head("resnet18")) == 512 * 256 + 256 + 256 * 128 + 128


def test_shapes():
    with torch.no_grad():
        assert TinyNet()(torch.rand(2, 1, 156, 160)).shape == (2, 256)
        assert resnet18()(torch.rand(2, 1, 64, 64)).shape == (2, 512)
    for backbone, latent in (("tiny", 64), ("resnet18", 128)):
        features = build_encoder(backbone).n_features
        assert build_head(backbone)(torch.rand(3, features)).shape == (3, latent)


def test_tinynet_is_conv_relu_pool_as_in_the_paper():
    net, images = build_encoder("tiny", seed=1), torch.rand(2, 1, 160, 160)
    x = images
    for convolution in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        assert convolution.kernel_size == (5, 5) and convolution.padding == (0, 0)
        x = nn.functional.max_pool2d(convolution(x).relu(), 2)
    assert x.shape == (2, 256, 1, 1)
    assert torch.equal(net(images), x.mean((2, 3)))


@pytest.mark.parametrize("norm", [None, "batch"])
def test_too_small_images_are_refused(norm):
    too_small = r"images of 160x155 px.*at least 156 px.*more, or backbone to tiny_padded$"
    with pytest.raises(ValueError, match=too_small):
        TinyNet(norm=norm)(torch.rand(1, 1, 160, 155))


def test_padded_tinynet_takes_small_images():
    net = build_encoder("tiny_padded", "batch", seed=1).eval()
    assert net(torch.rand(2, 1, 32, 40)).shape == (2, 256)
    with pytest.raises(ValueError, match=r"images of 31x40 px.*at least 32 px.*or more$"):
        net(torch.rand(2, 1, 31, 40))
    weights = build_encoder("tiny", "batch", seed=1).state_dict()  # only the padding differs
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())


def test_resnet_equals_monai():
    from monai.networks.nets import resnet18 as monai_resnet18

    oracle = monai_resnet18(
        spatial_dims=2,
        n_input_channels=1,
        shortcut_type="B",
        bias_downsample=False,
        conv1_t_stride=2,
        feed_forward=False,
    )
    net = build_encoder("resnet18", seed=3)
    assert list(net.state_dict()) == list(oracle.state_dict())
    oracle.load_state_dict(net.state_dict())
    images = torch.rand(2, 1, 96, 80)
    for mode in (True, False):
        net.train(mode), oracle.train(mode)
        with torch.no_grad():
            assert (net(images) - oracle(images)).abs().max() == 0


def test_resnet_keys_are_torchvisions():
    keys = set(resnet18().state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight"} | {f"bn1.{k}" for k in norm}
    for layer in range(1, 5):
        for block in range(2):
            for i in (1, 2):
                expected.add(f"layer{layer}.{block}.conv{i}.weight")
                expected |= {f"layer{layer}.{block}.bn{i}.{k}" for k in norm}
        if layer > 1:
            expected.add(f"layer{layer}.0.downsample.0.weight")
            expected |= {f"layer{layer}.0.downsample.1.{k}" for k in norm}
    assert keys == expected


def test_resnet_init_is_he_fan_out():
    net = build_encoder("resnet18", seed=0)
    for name, width in (("layer1.0.conv1", 64), ("layer4.1.conv2", 512)):
        weight = net.get_submodule(name).weight
        assert weight.std().item() == pytest.approx((2 / (width * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("backbone, norm", ENCODERS)
def test_seed_decides_and_global_generator_is_untouched(backbone, norm):
    state = torch.get_rng_state()
    first, again = build_encoder(backbone, norm, seed=5), build_encoder(backbone, norm, seed=5)
    other = build_encoder(backbone, norm, seed=6)
    head, head_again, head_other = (build_head(backbone, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in ((first, again, other), (head, head_again, head_other)):
        parameters = [torch.cat([p.flatten() for p in m.parameters()]) for m in (a, b, c)]
        assert torch.equal(parameters[0], parameters[1])
        assert not torch.equal(parameters[0], parameters[2])


@pytest.mark.parametrize("backbone, norm", ENCODERS)
def test_channels_last_gives_the_same_features(backbone, norm):
    net, images = build_encoder(backbone, norm).double().eval(), torch.rand(2, 1, 160, 160).double()
    with torch.no_grad():
        expected = net(images)
        net = net.to(memory_format=torch.channels_last)
        features = net(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="norm='layer'"):
        TinyNet(norm="layer")
    for build in (build_encoder, build_head, projection_head):
        with pytest.raises(ValueError, match="choose one of tiny, tiny_padded, resnet18"):
            build("resnet50")


def test_byol_target_starts_equal_follows_slowly_and_gets_no_gradient():
    encoder, head = build_encoder("tiny_padded", "batch", 0), build_head("tiny_padded", 0)
    byol = Byol(encoder, head, "tiny_padded", 0)
    views = torch.rand(8, 1, 32, 32)
    assert torch.equal(byol.target(views), head(encoder(views)))
    byol(*head(encoder(views)).chunk(2), views).backward()
    assert all(p.grad is None for p in byol.target.parameters())
    assert all(p.grad is not None for p in byol.predictor.parameters())
    with torch.no_grad():  # a target that differs: each view predicts the other view's target
        next(byol.target.parameters()).add_(0.5)
        z, t = head(encoder(views)), byol.target(views)
        expected = byol_loss(*byol.predictor(z).chunk(2), *t.chunk(2))
        torch.testing.assert_close(byol(*z.chunk(2), views), expected)
        assert (expected - byol_loss(*byol.predictor(z).chunk(2), *z.chunk(2))).abs() > 1e-4
        next(byol.target.parameters()).sub_(0.5)
    first = next(encoder.parameters())
    before = first.detach().clone()
    with torch.no_grad():
        first.add_(1)
    byol.follow(encoder, head, 0.75)
    assert torch.allclose(next(byol.target.parameters()), before + 0.25)
    again = Byol(encoder, head, "tiny_padded", 0).predictor.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in byol.predictor.state_dict().items())


def published(seed=0):
    """A state dict with the keys and shapes of torchvision's file."""
    torch.manual_seed(seed)
    net = resnet18(in_channels=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net, net.state_dict() | {"fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}


def test_imagenet_stem_folded_to_one_channel_sees_what_the_rgb_stem_saw(tmp_path):
    rgb, state = published()
    torch.save(state, tmp_path / "r.pth")
    grey = build_encoder("resnet18")
    load_imagenet(grey, tmp_path / "r.pth")
    image = torch.rand(1, 1, 64, 64)
    mean, sd = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_SD))
    rgb, grey = rgb.eval(), grey.eval()
    with torch.no_grad():
        expected = rgb.bn1(rgb.conv1((image.expand(1, 3, 64, 64) - mean) / sd))
        found = grey.bn1(grey.conv1(image))
    torch.testing.assert_close(
        found[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-4, rtol=0
    )
    assert torch.equal(grey.layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)


def test_imagenet_file_absent_or_of_another_network(tmp_path):
    net, file = build_encoder("resnet18"), tmp_path / "r.pth"
    with pytest.raises(FileNotFoundError, match=r"r\.pth does not exist.*resnet18-f37072fd\.pth"):
        load_imagenet(net, file)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"r\.pth: not a file of weights"):
        load_imagenet(net, file)
    _, state = published()
    torch.save({k: v for k, v in state.items() if k != "layer2.0.bn1.bias"}, file)
    with pytest.raises(ValueError, match=r"layer2\.0\.bn1\.bias is nothing, not \(128,\)"):
        load_imagenet(net, file)


def test_a_seed_is_a_whole_number_of_any_type():
    one, two = (build_encoder("tiny_padded", seed=seed) for seed in (3, np.int64(3)))
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    with pytest.raises(TypeError):
        build_encoder("tiny_padded", seed=1.5)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_weights_do_not_depend_on_the_default_type(kind):
    expected = [
        *build_encoder("tiny", "batch", 1).parameters(),
        *build_head("tiny", 1).parameters(),
    ]
    torch.set_default_dtype(kind)
    try:
        found = [
            *build_encoder("tiny", "batch", 1).parameters(),
            *build_head("tiny", 1).parameters(),
        ]
        assert torch.get_default_dtype() == kind
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, two)


def test_weights_do_not_depend_on_the_default_device():
    expected = build_encoder("tiny", "batch", 1).state_dict()
    with torch.device("meta"):  # as a card, of a generator that the seed does not reach
        found = build_encoder("tiny", "batch", 1).state_dict()
    assert all(torch.equal(found[name], values) for name, values in expected.items())
