"""What every test stands on: shapes checked at run time, real data where there are some, one thread per process."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports negah: each annotated shape and type is checked at every call that a test makes.  The hook
# takes its checker by name, so a module is made to hold it: beartype, taking an int for a float as pyright does.
checks = ModuleType("negah_runtime_checks")
checks.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # pyright: ignore[reportAttributeAccessIssue]
sys.modules[checks.__name__] = checks
install_import_hook("negah", "negah_runtime_checks.check")

# A slow moment of a busy machine is not a failure of the property under test.
settings.register_profile("negah", deadline=None)
settings.load_profile("negah")

# Processes share the cores among them; a thread pool in each would only make them wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    import torch

    torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets, from NEGAH_DATA or beside the checkout; the test is skipped where there is none."""
    folder = Path(os.environ.get("NEGAH_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set NEGAH_DATA to their folder")
    return folder


TEXTS = [
    "two houses with red roofs, one solar array, no swimming pool, a few trees, a street", "a house",
    "an aerial image of a house with a red roof beside a street and many trees", "the pool of a house in the sun",
]  # fmt: skip


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion of random weights, as a diffusers folder."""
    pytest.importorskip("diffusers")
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from negah.language.tokens import Tokenizer

    folder = tmp_path_factory.mktemp("tiny-sd")
    content = json.loads(Tokenizer.train(TEXTS * 4, vocabulary=640, length=77).pairs.to_str())["model"]
    vocabulary = content["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    end = vocabulary["<|endoftext|>"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=end, pad_token_id=end,
        ))  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), norm_num_groups=4, cross_attention_dim=32, layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None,
    ).save_pretrained(folder / "sd")  # fmt: skip
    return folder / "sd"
