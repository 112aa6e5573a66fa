"""CLIP equals those of the libraries that the layouts belong to: random weights, fp32, largest difference 1e-5."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP as OpenClip
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from negah import language
from negah.errors import WeightsError
from negah.language.load import gsd_of, read, reference_of, save, tokenizer_of
from negah.language.tokens import Tokenizer

TOLERANCE = 1e-5
TEXT = {"context_length": 20, "vocab_size": 150, "width": 128, "heads": 2, "layers": 2}
VISION = {
    "vit": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
    "heads of another width": {"image_size": 64, "layers": 2, "width": 160, "head_width": 80, "patch_size": 16},
    "resnet": {"image_size": 64, "layers": (1, 2, 1, 1), "width": 32, "patch_size": None},
}
IDS = nn.functional.pad(torch.tensor([[147, 5, 7, 149, 0, 0], [147, 149, 0, 0, 0, 0], [147, 9, 9, 2, 3, 149]]), (0, 14))


def shaken(model: nn.Module) -> nn.Module:
    """Random weights of a size at which no part of it disappears."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if p.ndim:
            mean = 1.0 if p.ndim == 1 and not name.endswith(("bias", "class_embedding")) else 0.0
            nn.init.normal_(p, mean=mean, std=0.1 if p.ndim == 1 else 0.05, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def pictures() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def normalised(ours: language.CLIP) -> Tensor:
    return (pictures() - ours.image.mean) / ours.image.std


@torch.no_grad()
def assert_equal(ours: language.CLIP, images: Tensor, texts: Tensor) -> None:
    """images, texts: what a peer makes of the pictures and IDS."""
    for mine, theirs in ((ours.images(pictures()), images), (ours.texts(IDS), texts)):
        theirs = nn.functional.normalize(theirs, dim=-1)
        assert (theirs[0] - theirs[1]).abs().max() > 1e-4  # else anything would be equal
        assert (mine - theirs).abs().max() <= TOLERANCE


def of_open_clip(vision: dict, *, quick: bool) -> OpenClip:
    return shaken(OpenClip(embed_dim=64, vision_cfg=vision, text_cfg=TEXT, quick_gelu=quick))


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("kind", VISION)
def test_open_clip(tmp_path, kind, quick):
    theirs = of_open_clip(VISION[kind], quick=quick)
    save_file(plain(theirs.state_dict()), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {"vision_cfg": VISION[kind], "text_cfg": TEXT, "quick_gelu": quick}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    ours = language.load(tmp_path)
    assert_equal(ours, theirs.encode_image(normalised(ours)), theirs.encode_text(IDS))
    assert ours.size == 64


def test_a_file_of_open_clip_without_its_config_is_told_what_it_does_not_say(tmp_path):
    theirs = of_open_clip(VISION["vit"], quick=True)
    torch.save({"state_dict": {f"module.{name}": x for name, x in theirs.state_dict().items()}}, tmp_path / "model.pt")
    assert language.load(tmp_path / "model.pt").text.config["activation"] == "gelu"
    ours = language.load(tmp_path / "model.pt", activation="quick-gelu")
    assert_equal(ours, theirs.encode_image(normalised(ours)), theirs.encode_text(IDS))


class Archive(nn.Module):
    """Tensors under their names, in a module that can be scripted."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        for head in dict.fromkeys(name.split(".")[0] for name in state):
            inside = {name.split(".", 1)[1]: x for name, x in state.items() if name.startswith(f"{head}.")}
            if inside:
                self.add_module(head, Archive(inside))
            else:
                self.register_buffer(head, state[head])

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("code of an archive must not run")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_openais_archive(tmp_path):
    theirs = of_open_clip(VISION["vit"], quick=True)
    state = plain(theirs.state_dict()) | {
        "input_resolution": torch.tensor(64), "context_length": torch.tensor(20), "vocab_size": torch.tensor(150)
    }  # fmt: skip
    torch.jit.script(Archive(state)).save(tmp_path / "ViT.pt")
    ours = language.load(tmp_path / "ViT.pt")
    assert_equal(ours, theirs.encode_image(normalised(ours)), theirs.encode_text(IDS))


@pytest.mark.parametrize(("act", "end"), [("quick_gelu", 2), ("gelu", 149)])
def test_transformers(tmp_path, act, end):
    """2 is what old configs say for the end token, where the highest number was meant."""
    text = {"vocab_size": 150, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 20, "hidden_act": act, "eos_token_id": end,
            "bos_token_id": 147, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 3,
              "image_size": 64, "patch_size": 16, "hidden_act": act}  # fmt: skip
    theirs = shaken(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)))
    theirs.save_pretrained(tmp_path)
    ours = language.load(tmp_path)
    with torch.no_grad():
        out = theirs(input_ids=IDS, pixel_values=normalised(ours))
        assert_equal(ours, out.image_embeds, out.text_embeds)
        assert (ours.logits(pictures(), IDS) - out.logits_per_image).abs().max() <= 1e-4


def test_ours_come_back_with_their_tokens(tmp_path):
    for kind in VISION:
        theirs = of_open_clip(VISION[kind], quick=False)
        save_file(plain(theirs.state_dict()), tmp_path / "theirs.safetensors")
        if kind == "heads of another width":
            continue  # a file alone does not say so
        ours = language.load(tmp_path / "theirs.safetensors")
        tokens = Tokenizer.train(["solar panels on a roof"], vocabulary=520, length=20)
        save(ours, tmp_path / "ours.safetensors", tokens=tokens, dtype=torch.float32)
        again = language.load(tmp_path / "ours.safetensors")
        assert torch.equal(again.logits(pictures(), IDS), ours.logits(pictures(), IDS))
        found = tokenizer_of(read(tmp_path / "ours.safetensors"))
        assert torch.equal(found(["a solar roof"]), tokens(["a solar roof"]))
        assert load_file(tmp_path / "ours.safetensors")["log_scale"].dtype == torch.float32


def test_reference_pictures_and_ground_size_come_back(tmp_path):
    theirs = of_open_clip(VISION["vit"], quick=False)
    save_file(plain(theirs.state_dict()), tmp_path / "theirs.safetensors")
    checkpoint = read(tmp_path / "theirs.safetensors")
    assert reference_of(checkpoint) is None and gsd_of(checkpoint) is None
    ours = language.load(tmp_path / "theirs.safetensors")
    vectors = torch.nn.functional.normalize(torch.randn(5, ours.dim), dim=1)
    path = save(ours, tmp_path / "ours.safetensors", reference=vectors, gsd_m=0.6)
    assert (language.load(path).logits(pictures(), IDS) - ours.logits(pictures(), IDS)).abs().max() < 0.1
    found = reference_of(read(path))
    assert found is not None and (found - vectors).abs().max() < 1e-3 and gsd_of(read(path)) == 0.6
    for bad in (torch.ones(0, 4), torch.full((2, 4), torch.nan)):
        save(ours, path, reference=bad)
        with pytest.raises(WeightsError, match="reference vectors that are none"):
            reference_of(read(path))


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: x for key, x in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: without(s, "ln_final.bias"), "missing: ln_final.bias"),
        (lambda s: s | {"visual.more": torch.zeros(1)}, "unexpected: visual.more"),
        (lambda s: s | {"visual.proj": torch.zeros(128, 32)}, "misshapen: visual.proj is .128, 32., for .64, 128."),
        (lambda s: without(s, "visual.conv1.weight"), "holds no CLIP"),
        (lambda s: without(s, "token_embedding.weight"), "not a complete CLIP"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, change, says):
    state = change(plain(of_open_clip(VISION["vit"], quick=False).state_dict()))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=says):
        language.load(tmp_path / "model.safetensors")


def test_openais_vocabulary_gives_openais_tokens(tmp_path):
    theirs = open_clip.get_tokenizer("ViT-B-32")
    own = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {own.get(token, token): i for token, i in theirs.encoder.items()}
    pairs = sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.__getitem__)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts = [
        "a photo of solar panels on a roof", "", "خانه با صفحه خورشیدی 🌞", "word " * 10_000, "naïve café",
        "It's   the HOUSE's 2 pools,\n 3rd!", "日本語の文章", "<|endoftext|> inside",
    ]  # fmt: skip
    ours = Tokenizer.of_folder(tmp_path)
    found, expected = ours(texts), theirs(texts)
    assert found.shape == expected.shape == (len(texts), 77)
    for mine, other in zip(found, expected):
        upto = int((other == ours.end).int().argmax()) + 1
        assert torch.equal(mine[:upto], other[:upto]) and (mine[upto:] == ours.end).all()


def test_a_folder_without_a_vocabulary_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no tokenizer.json, nor vocab.json and merges.txt"):
        Tokenizer.of_folder(tmp_path)
    Path(tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="cannot be read"):
        Tokenizer.of_folder(tmp_path)
