"""Features equal those of the libraries that the layouts belong to: random weights, fp32, largest difference 1e-5."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from negah import weights
from negah.nn.vit import ViT

TOLERANCE = 1e-5
SIZES = [(224, 224), (518, 518), (140, 322)]
NARROW = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 14, "image_size": 518}
FULL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14, "image_size": 518}


def shaken(make, *args, **kwargs):
    """A model with random weights of a size at which no part of it disappears, whatever it starts them from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(*args, **kwargs).eval()
        for name, parameter in model.named_parameters():
            vector = parameter.ndim == 1 and not name.endswith("bias")
            torch.nn.init.normal_(parameter, mean=1.0 if vector else 0.0, std=0.2 if vector else 0.05)
    return model


def images(h: int, w: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(h))


def sequence(vit: ViT, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        cls, registers, patches = vit(x)
    return torch.cat([cls[:, None], registers, patches], dim=1)


def of_peer(model, vit: ViT, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        if isinstance(model, timm.models.VisionTransformer):
            return model.forward_features(vit.normalise(x))
        return model(vit.normalise(x)).last_hidden_state


def assert_equal(model, vit: ViT, sizes=SIZES) -> None:
    for h, w in sizes:
        theirs = of_peer(model, vit, images(h, w))
        assert theirs.abs().max() > 1 and theirs.std() > 0.5  # else anything would be equal
        assert (sequence(vit, images(h, w)) - theirs).abs().max() <= TOLERANCE, (h, w)


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("names", ["saved", "in memory"])  # transformers writes older names than its modules bear
def test_transformers(tmp_path, names, registers, swiglu):
    if registers:
        config = Dinov2WithRegistersConfig(**NARROW, num_register_tokens=registers, use_swiglu_ffn=swiglu)
        model = shaken(Dinov2WithRegistersModel, config)
    else:
        config = Dinov2Config(**NARROW, use_swiglu_ffn=swiglu)
        model = shaken(Dinov2Model, config)
    model.save_pretrained(tmp_path)
    if names == "in memory":
        state = model.state_dict()
        assert "encoder.layer.0.attention.q_proj.weight" in state
        assert swiglu == ("encoder.layer.0.mlp.gate_proj.weight" in state)
        save_file(state, tmp_path / "model.safetensors")
    vit = weights.load(tmp_path)
    assert (vit.config["registers"], vit.config["ffn"]) == (registers, "swiglu" if swiglu else "mlp")
    assert_equal(model, vit)


@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_full_size(tmp_path, registers):
    if registers:
        model = shaken(Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**FULL, num_register_tokens=registers))
    else:
        model = shaken(Dinov2Model, Dinov2Config(**FULL))
    model.save_pretrained(tmp_path)
    vit = weights.load(tmp_path)
    assert (vit.dim, vit.depth, vit.heads, vit.patch, vit.grid) == (384, 12, 6, 14, (37, 37))
    assert_equal(model, vit, sizes=SIZES[2:] if registers else SIZES[:1])


def test_transformers_classifier_gives_its_backbone(tmp_path):
    model = shaken(Dinov2ForImageClassification, Dinov2Config(**NARROW, num_labels=5))
    model.save_pretrained(tmp_path)
    assert_equal(model.dinov2, weights.load(tmp_path), sizes=[(140, 140)])


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"])
def test_timm_full_size(tmp_path, name):
    model = shaken(timm.create_model, name, pretrained=False, num_classes=0, dynamic_img_size=True)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    vit = weights.load(tmp_path / "model.safetensors")
    assert_equal(model, vit, sizes=SIZES if "reg4" in name else SIZES[-1:])


@pytest.mark.parametrize("registers", [0, 3])
def test_timm_swiglu(tmp_path, registers):
    model = shaken(
        timm.models.VisionTransformer, img_size=140, patch_size=14, embed_dim=64, depth=2, num_heads=1, num_classes=0,
        init_values=1.0, mlp_ratio=5.5, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, reg_tokens=registers,
        no_embed_class=registers > 0, dynamic_img_size=True,
    )  # fmt: skip
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    vit = weights.load(tmp_path / "model.safetensors")
    assert vit.config["ffn"] == "swiglu"
    assert_equal(model, vit, sizes=[(140, 140), (98, 210)])


@pytest.mark.parametrize("registers", [0, 4])
def test_attention_and_features_of_every_layer(tmp_path, registers):
    kind = (Dinov2WithRegistersModel, Dinov2WithRegistersConfig) if registers else (Dinov2Model, Dinov2Config)
    model = shaken(kind[0], kind[1](**NARROW))
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    vit = weights.load(tmp_path)
    x = images(98, 140, batch=2)
    with torch.inference_mode():
        theirs = model(vit.normalise(x), output_attentions=True, output_hidden_states=True)
        for layer in range(vit.depth):
            assert (vit.attention(x, layer) - theirs.attentions[layer]).abs().max() <= TOLERANCE
            (ours,) = vit.intermediate(x, [layer], norm=False)
            ours = torch.cat([ours.cls[:, None], ours.registers, ours.patches], dim=1)
            assert (ours - theirs.hidden_states[layer + 1]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("layer_scale", [1.0, None])
def test_transformers_loads_what_we_save(tmp_path, registers, ffn, layer_scale):
    vit = shaken(
        ViT, patch=8, dim=48, depth=2, heads=3, ffn=ffn, registers=registers, grid=(13, 13), layer_scale=layer_scale,
        interpolation="size-antialias" if registers else "size",
    )  # fmt: skip
    weights.save(vit, tmp_path / "model", layout="transformers")
    model, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert type(model) is (Dinov2WithRegistersModel if registers else Dinov2Model)
    assert_equal(model.eval(), vit, sizes=[(104, 104), (80, 152)])


@pytest.mark.parametrize("registers", [0, 4])
def test_timm_loads_what_we_save(tmp_path, registers):
    vit = shaken(ViT, patch=14, dim=384, depth=1, heads=6, registers=registers, interpolation="size-antialias")
    path = weights.save(vit, tmp_path / "vit.pth", layout="timm")
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    model = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, depth=1).eval()
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert_equal(model, vit, sizes=[(140, 322)])
