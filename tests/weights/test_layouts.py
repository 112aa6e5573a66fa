import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from negah import weights
from negah.errors import OutputError, WeightsError
from negah.nn.vit import ViT

LAYOUTS = ["negah", "hub", "transformers", "timm"]


def random_vit(**changes) -> ViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = ViT(**{"patch": 4, "dim": 128, "depth": 2, "heads": 2, "grid": (3, 3), "registers": 2, **changes})
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter)
    return vit.eval()


def state_in(layout: str, folder, vit: ViT | None = None) -> dict[str, torch.Tensor]:
    """Tensors as a layout names them, without what only negah writes beside them."""
    path = folder / ("out" if layout == "transformers" else "out.safetensors")
    weights.save(vit or random_vit(), path, layout=layout)
    return load_file(path / "model.safetensors" if path.is_dir() else path)


def assert_same(a: ViT, b: ViT, *, but: tuple[str, ...] = ()) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - set(but):
        assert torch.equal(ours[name], theirs[name]), name


def error(path, **kwargs) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load(path, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("changes", [{}, {"registers": 0, "ffn": "swiglu"}, {"grid": (2, 5), "heads": 4}], ids=str)
def test_saved_and_loaded_again(tmp_path, layout, changes):
    vit = random_vit(**changes, interpolation="hub", mean=(0.1, 0.2, 0.3))
    path = weights.save(vit, tmp_path / ("folder" if layout == "transformers" else "vit.safetensors"), layout=layout)
    again = weights.load(path)
    assert again.config == vit.config
    images = torch.randint(0, 256, (2, 3, 16, 8), dtype=torch.uint8)
    # timm adds CLS and its position into one, whose sum is rounded once.
    assert (again(images).patches - vit(images).patches).abs().max() < (1e-5 if layout == "timm" else 1e-12)
    assert again.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not again.training and all(parameter.requires_grad for parameter in again.parameters())
    if layout != "timm":
        assert_same(vit, again)


def test_half_precision_files_load_as_fp32(tmp_path):
    vit = random_vit()
    path = weights.save(vit, tmp_path / "half.safetensors", dtype=torch.float16)
    assert path.stat().st_size < 2.5 * sum(p.numel() for p in vit.parameters())
    for a, b in zip(weights.load(path).parameters(), vit.parameters()):
        assert a.dtype == torch.float32 and torch.equal(a, b.half().float())


def test_loading_leaves_the_random_state_alone(tmp_path):
    path = weights.save(random_vit(), tmp_path / "vit.safetensors")
    before = torch.get_rng_state()
    weights.load(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layout", ["hub", "transformers", "timm"])
def test_each_missing_key_is_named(tmp_path, layout):
    # A file without registers is a model of its own: there only config.json could say that they are missing.
    state = state_in(layout, tmp_path, random_vit(registers=0, depth=1))
    for key in state:
        path = tmp_path / "broken.safetensors"
        save_file({name: tensor for name, tensor in state.items() if name != key}, path)
        assert re.search(rf"\b{re.escape(key)}\b", error(path, layout=layout)), key


def test_registers_that_config_json_promises_are_missed(tmp_path):
    folder = weights.save(random_vit(), tmp_path / "model", layout="transformers")
    state = load_file(folder / "model.safetensors")
    del state["embeddings.register_tokens"]
    save_file(state, folder / "model.safetensors")
    assert error(folder).endswith("missing: embeddings.register_tokens")


@pytest.mark.parametrize("layout", ["hub", "transformers", "timm"])
def test_each_misshapen_key_is_named_with_its_shape(tmp_path, layout):
    state = state_in(layout, tmp_path, random_vit(depth=1))
    for key, tensor in state.items():
        if "register" in key or "reg_token" in key:
            tensor = tensor[..., :-1]  # one register less is a model of its own
        else:
            tensor = tensor[:, :, :-1] if tensor.ndim == 3 and tensor.shape[1] == 1 else tensor.flatten()[:-1]
        path = tmp_path / "broken.safetensors"
        save_file({**state, key: tensor.contiguous()}, path)
        message = error(path)
        assert re.search(rf"\b{re.escape(key)} is {re.escape(str(list(tensor.shape)))}", message), (key, message)


@pytest.mark.parametrize("layout", ["hub", "transformers", "timm"])
def test_all_faults_are_named_at_once(tmp_path, layout):
    state = state_in(layout, tmp_path)
    first, second, third, fourth = (k for k in state if re.search(r"\.1\..*(norm[12])", k))
    del state[first], state[second]
    state[third] = state[third][:5].contiguous()
    state["extra.weight"] = torch.zeros(1)
    state["blocks.0.ls3.gamma"] = torch.zeros(1)
    save_file(state, tmp_path / "broken.safetensors")
    message = error(tmp_path / "broken.safetensors")
    missing, unexpected, misshapen = re.fullmatch(
        r".*missing: (.*); unexpected: (.*); misshapen: (.*)", message
    ).groups()
    assert set(missing.split(", ")) == {first, second}
    assert set(unexpected.split(", ")) == {"extra.weight", "blocks.0.ls3.gamma"}
    assert misshapen == f"{third} is [5] instead of [128]"
    assert fourth not in message


@pytest.mark.parametrize(("layout", "scale"), [("hub", r"ls\d\.gamma"), ("transformers", r"layer_scale\d\.lambda1")])
def test_layer_scale_is_never_left_out_quietly(tmp_path, layout, scale):
    state = state_in(layout, tmp_path)
    lost = {key for key in state if re.search(scale, key)}
    assert len(lost) == 4
    save_file({key: tensor for key, tensor in state.items() if key not in lost}, tmp_path / "broken.safetensors")
    message = error(tmp_path / "broken.safetensors")
    assert all(key in message for key in lost)


def test_timm_without_layer_scale_is_a_model_of_its_own(tmp_path):
    vit = random_vit(layer_scale=None)
    save_file(state_in("timm", tmp_path, vit), tmp_path / "plain.safetensors")
    again = weights.load(tmp_path / "plain.safetensors", interpolation="hub")
    assert again.config["layer_scale"] is None
    images = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8)
    assert (again(images).cls - vit(images).cls).abs().max() < 1e-5


@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("prefix", ["module.", "backbone.", "dinov2.", "dinov2_with_registers.", "module.backbone."])
def test_prefixes_and_heads_beside(tmp_path, layout, prefix):
    state = {prefix + key: tensor for key, tensor in state_in(layout, tmp_path).items()}
    state["head.weight" if prefix == "backbone." else "classifier.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "wrapped.safetensors")
    assert_same(weights.load(tmp_path / "wrapped.safetensors"), random_vit())
    save_file({**state, "unknown.weight": torch.zeros(1)}, tmp_path / "wrapped.safetensors")
    assert "unexpected: unknown.weight" in error(tmp_path / "wrapped.safetensors")


def test_training_file_gives_the_teacher(tmp_path):
    state = state_in("hub", tmp_path)
    chunked = {re.sub(r"^blocks\.(\d)\.", r"blocks.\1.\1.", key): tensor for key, tensor in state.items()}
    teacher = {f"backbone.{key}": tensor for key, tensor in chunked.items()} | {"dino_head.mlp.0.weight": torch.ones(1)}
    student = {f"backbone.{key}": tensor + 1 for key, tensor in chunked.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "nested.pth")
    assert_same(weights.load(tmp_path / "nested.pth"), random_vit())
    flat = {f"student.{k}": v for k, v in student.items()} | {f"teacher.{k}": v for k, v in teacher.items()}
    torch.save({"model": flat, "iteration": 7}, tmp_path / "flat.pth")
    assert_same(weights.load(tmp_path / "flat.pth"), random_vit())


@pytest.mark.parametrize("wrapper", ["teacher", "student", "model", "state_dict"])
def test_dicts_around_the_weights(tmp_path, wrapper):
    torch.save({wrapper: state_in("hub", tmp_path), "epoch": 1}, tmp_path / "vit.pth")
    assert_same(weights.load(tmp_path / "vit.pth"), random_vit())


def test_chunks_that_count_from_zero_are_refused(tmp_path):
    state = {re.sub(r"^blocks\.(\d)\.", r"blocks.\1.0.", k): v for k, v in state_in("hub", tmp_path).items()}
    save_file(state, tmp_path / "chunks.safetensors")
    assert "two tensors for blocks.0." in error(tmp_path / "chunks.safetensors")


def test_unknown_wrappers_and_several_backbones_are_refused(tmp_path):
    state = state_in("hub", tmp_path)
    save_file({f"encoder_q.{k}": v for k, v in state.items()}, tmp_path / "a.safetensors")
    assert "under 'encoder_q.', which is not a known wrapper" in error(tmp_path / "a.safetensors")
    twice = {f"{prefix}.{k}": v.clone() for k, v in state.items() for prefix in ("model", "module")}
    save_file(twice, tmp_path / "b.safetensors")
    assert "holds several backbones (model., module.)" in error(tmp_path / "b.safetensors")
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "c.safetensors")
    message = error(tmp_path / "c.safetensors")
    assert "patch_embed.proj.weight" in message and "embeddings.patch_embeddings.projection.weight" in message


def test_heads_are_64_wide_unless_said_otherwise(tmp_path):
    save_file(state_in("hub", tmp_path), tmp_path / "vit.safetensors")
    assert weights.load(tmp_path / "vit.safetensors").heads == 2
    assert weights.load(tmp_path / "vit.safetensors", heads=4).heads == 4
    assert "cannot build: dim 128 is not a multiple of heads 5" in error(tmp_path / "vit.safetensors", heads=5)
    save_file(state_in("hub", tmp_path, random_vit(dim=96)), tmp_path / "odd.safetensors")
    assert "width of 96: give heads=" in error(tmp_path / "odd.safetensors")
    assert weights.load(tmp_path / "odd.safetensors", heads=3).heads == 3


@pytest.mark.parametrize(
    ("layout", "registers", "interpolation"),
    [
        ("hub", 0, "hub"), ("hub", 2, "size-antialias"), ("transformers", 0, "size"),
        ("transformers", 2, "size-antialias"), ("timm", 0, "size-antialias"), ("timm", 2, "size-antialias"),
    ],
)  # fmt: skip
def test_interpolation_is_that_of_the_layout_unless_said_otherwise(tmp_path, layout, registers, interpolation):
    save_file(state_in(layout, tmp_path, random_vit(registers=registers)), tmp_path / "vit.safetensors")
    assert weights.load(tmp_path / "vit.safetensors").interpolation == interpolation
    assert weights.load(tmp_path / "vit.safetensors", interpolation="hub").interpolation == "hub"


@pytest.mark.parametrize("ratio", [4.0, 2.0, 2.7])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_any_hidden_width_is_recognised(tmp_path, ffn, ratio):
    vit = random_vit(ffn=ffn, mlp_ratio=ratio)
    save_file(state_in("hub", tmp_path, vit), tmp_path / "vit.safetensors")
    assert_same(weights.load(tmp_path / "vit.safetensors"), vit)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(WeightsError, match=r"whole mlp ratios, not 2\.5"):
        weights.save(random_vit(mlp_ratio=2.5), tmp_path / "folder", layout="transformers")
    with pytest.raises(WeightsError, match=r"vit\.pth: give a name ending in \.safetensors"):
        weights.save(random_vit(), tmp_path / "vit.pth")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*vit\.safetensors"):
        weights.save(random_vit(), tmp_path / "file" / "vit.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
