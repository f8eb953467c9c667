"""Encoders of others: tiny networks of the same classes and keys, written and read as theirs."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from wspnb import encoders, probe
from wspnb.encoders import ENCODERS, Frozen, load_frozen, read_folders

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {  # as the published folders name them; Curia-2 has one channel and SwiGLU
    "dinov2": ("Dinov2", {"image_size": 56, "patch_size": 14}),
    "rad_dino": ("Dinov2", {"image_size": 56, "patch_size": 14}),
    "curia2": ("Dinov2", {"num_channels": 1, "use_swiglu_ffn": True, "patch_size": 16}),
    "dinov3": ("DINOv3ViT", {"intermediate_size": 32, "num_register_tokens": 4}),
}


def publish(folder, name, seed=0):
    """A tiny network of the encoder's class, random weights, as a folder of its authors."""
    kind, options = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**TINY, **options)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def small(monkeypatch):
    """The table with inputs of 112 px, divisible by patches of 14 and of 16."""
    for name, row in ENCODERS.items():
        monkeypatch.setitem(ENCODERS, name, replace(row, size=112))


@pytest.mark.parametrize("name", MODELS)
def test_each_class_is_loaded_and_probed(tmp_path, small, name):
    model, row = publish(tmp_path, name), ENCODERS[name]
    assert model.config.model_type in row.kinds
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 112, 112), dtype=np.uint8)  # the input's size: no resizing
    labels = np.repeat([0, 1], 12)
    images[labels == 1, :56] //= 8
    encoder = load_frozen(name, tmp_path)
    found = probe.extract_features(encoder, images, range(24), batch_size=5)
    pixels = images[:, None] / 255.0  # by hand, from the values of the table
    if row.mean is None:
        pixels = pixels - pixels.mean((2, 3), keepdims=True)
        pixels = pixels / pixels.std((2, 3), keepdims=True, ddof=1)
    else:
        mean, sd = (np.reshape(values, (3, 1, 1)) for values in (row.mean, row.sd))
        pixels = (np.repeat(pixels, 3, axis=1) - mean) / sd
    with torch.no_grad():
        tokens = model(pixel_values=torch.tensor(pixels, dtype=torch.float32)).last_hidden_state
    assert found.shape == (24, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, tokens[:, 0], atol=2e-5)
    patients = np.repeat([f"p{i:02d}" for i in range(12)], 2)
    assert probe.cross_validate(found, labels, patients, n_folds=3).mean > 0.9


def test_preparing_a_slice_agrees_with_the_processors_of_the_library():
    """Resizing and normalising, against transformers' own for DINOv2 (Pillow, in bytes, which it
    cuts after each axis: so grey values that do not overshoot 0 and 255)."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    plane = np.kron(np.random.default_rng(0).integers(70, 180, (12, 12)), np.ones((8, 8)))
    plane = plane.astype(np.uint8)
    for name in ("dinov2", "rad_dino"):
        row = ENCODERS[name]
        options = {"size": {"height": row.size, "width": row.size}, "do_center_crop": False}
        options |= {"resample": 3, "image_mean": row.mean, "image_std": row.sd}
        theirs = BitImageProcessorPil(**options)(np.stack([plane] * 3, -1), return_tensors="pt")
        ours = Frozen(torch.nn.Identity(), row).prepare(torch.tensor(plane / 255)[None, None])
        step = 1 / 255 / min(row.sd)  # theirs rounds to a byte after each axis
        assert ours.shape == theirs["pixel_values"].shape == (1, 3, row.size, row.size)
        assert (ours - theirs["pixel_values"]).abs().max() < 1.2 * step


def test_features_are_kept_under_the_input_as_well_as_the_weights(tmp_path):
    """The same network as DINOv2 and as RAD-DINO gives other features, and another key."""
    publish(tmp_path, "dinov2")
    keys = [probe.features_key(load_frozen(n, tmp_path), "d", [0]) for n in ("dinov2", "rad_dino")]
    assert keys[0] != keys[1]
    assert keys[0] == probe.features_key(load_frozen("dinov2", tmp_path), "d", [0])


def test_bytes_are_scaled_and_other_ranges_refused():
    prepare = Frozen(torch.nn.Identity(), ENCODERS["curia2"]).prepare
    grey = torch.randint(0, 256, (1, 1, 9, 9), dtype=torch.uint8)
    assert torch.equal(prepare(grey), prepare(grey / 255))
    for odd in (grey.float(), grey.short()):
        with pytest.raises(ValueError, match="images of"):
            prepare(odd)


def test_an_even_slice_has_finite_input():
    row = ENCODERS["curia2"]
    assert (
        Frozen(torch.nn.Identity(), row).prepare(torch.full((1, 1, 9, 9), 0.5)).abs().max() < 1e-6
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_absent_files_are_named_with_their_address_and_licence(tmp_path, name):
    row = ENCODERS[name]
    with pytest.raises(FileNotFoundError) as caught:
        load_frozen(name, tmp_path / "none")
    for part in (str(tmp_path / "none"), "model.safetensors", row.address, row.licence):
        assert part in str(caught.value)
    (tmp_path / "config.json").touch()
    for other in ("._model.safetensors", "of_others.safetensors"):
        (tmp_path / other).touch()
        with pytest.raises(FileNotFoundError, match="does not hold"):
            load_frozen(name, tmp_path)
        (tmp_path / other).unlink()


def test_other_networks_are_refused(tmp_path):
    publish(tmp_path / "dinov3", "dinov3")
    with pytest.raises(ValueError, match=r"dinov3_vit of 3 channels, dinov2 is dinov2 or"):
        load_frozen("dinov2", tmp_path / "dinov3")
    publish(tmp_path / "curia2", "curia2")
    with pytest.raises(ValueError, match=r"dinov2 of 1 channels, rad_dino is .* of 3"):
        load_frozen("rad_dino", tmp_path / "curia2")
    home = tmp_path / "rad"
    publish(home, "rad_dino")
    (home / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5307] * 3}))
    load_frozen("rad_dino", home)
    with pytest.raises(ValueError, match=r"image_mean is \[0\.5307.*dinov2's \(0\.485"):
        load_frozen("dinov2", home)
    (home / "preprocessor_config.json").write_text(json.dumps({"image_std": [0.5] * 3}))
    with pytest.raises(ValueError, match=r"image_std is \[0\.5, .*rad_dino's \(0\.2583"):
        load_frozen("rad_dino", home)


def test_weights_that_do_not_fit_or_are_damaged_are_refused(tmp_path, capfd):
    publish(tmp_path, "dinov2")
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    without = {k: v for k, v in whole.items() if k != "layernorm.weight"}
    save_file(without, file, {"format": "pt"})  # the library would draw them at random
    with pytest.raises(ValueError, match=r"no layernorm\.weight in the weights"):
        load_frozen("dinov2", tmp_path)
    save_file(whole | {"layernorm.weight": torch.ones(3)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"layernorm\.weight of another size in the weights"):
        load_frozen("dinov2", tmp_path)
    more = {"embeddings.register_tokens": torch.ones(1, 4, 3)}  # the features would be others
    save_file(whole | more, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"embeddings\.register_tokens in the weights has no"):
        load_frozen("dinov2", tmp_path)
    capfd.readouterr()
    save_file(whole | {"classifier.weight": torch.ones(3)}, file, {"format": "pt"})
    load_frozen("dinov2", tmp_path)
    assert capfd.readouterr() == ("", "")
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read as dinov2"):
        load_frozen("dinov2", tmp_path)


def test_without_transformers_it_says_how_to_install_it(tmp_path, monkeypatch):
    publish(tmp_path, "dinov2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'wspnb\[encoders\]'"):
        encoders.load_frozen("dinov2", tmp_path)


def test_folders_as_given_on_the_command_line():
    assert read_folders("") == {}
    assert read_folders(" dinov2=/a/b=c, curia2 = d ,") == {"dinov2": "/a/b=c", "curia2": "d"}
    for wrong in ("dinov2", "dinov2=", "resnet=/a"):
        with pytest.raises(ValueError, match="NAME one of dinov2, rad_dino, curia2, dinov3"):
            read_folders(wrong)
    with pytest.raises(ValueError, match="dinov2 twice, /a and /b"):
        read_folders("dinov2=/a,dinov2=/b")


def test_an_encoder_in_the_home_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "another"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="another of 3 channels, dinov2 is"):
        load_frozen("dinov2", "~/.")
