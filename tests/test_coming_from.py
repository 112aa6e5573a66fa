"""The page for those who come from another library is true, on both sides."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
PEERS = ("lightly", "torchattacks", "diffusers", "open_clip", "torch_geometric")


@pytest.fixture
def clip(tmp_path) -> Path:
    """A small CLIP of random weights, as open_clip's models lie on the hub."""
    from open_clip.model import CLIP

    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    net = CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    folder = tmp_path / "clip"
    folder.mkdir()
    save_file({name: x.contiguous() for name, x in net.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_both_sides_run_and_agree(clip, pipeline, tmp_path, monkeypatch):
    for peer in PEERS:
        pytest.importorskip(peer)
    (tmp_path / "stable-diffusion").symlink_to(pipeline)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 12
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile("\n".join(blocks), "docs/coming-from.md", "exec"), {"__name__": "coming_from"})


@pytest.mark.parametrize("peer", [*PEERS, "negah"])
def test_what_the_page_names_is_there(peer):
    pytest.importorskip(peer)
    named = set(re.findall(rf"\b({peer}(?:\.\w+)+)", PAGE))
    assert named
    for name in named:
        module, _, attribute = name.rpartition(".")
        try:
            found = hasattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError:
            found = False
        if not found:
            importlib.import_module(name)
