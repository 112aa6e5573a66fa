"""Claim: A picture of Stable Diffusion 1.5's shapes takes less time than with diffusers on a CPU, at equal output

    python benchmarks/sd_sampling.py [--threads 2] [--rounds 3] [--steps 8] [--size 512]

Networks of Stable Diffusion 1.5's shapes with random weights, 512 x 512 px, 8 steps of DDIM with guidance at 7.5, batch
1, the same seed.  The contestants take turns in one process, and each round gives a ratio; medians of those:

    diffusers          StableDiffusionPipeline as it comes, fp32
    negah              `diffusion.generate`, fp32, with the model packed as `negah generate` does
    negah, interval    the same, guided in the middle half of the steps only: another picture, so no equal output
    negah, bf16        the same in bfloat16: its difference from diffusers' picture is measured

By the clock, and by the processor's time ("cpu"), which other programs on the machine disturb less; "load" is how many
programs wanted a core in the last minute, this one among them.  Memory: each in a process of its own, the highest
resident size while sampling, over that just before ("step"), and from zero ("all").
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from negah.diffusion.generate import generate
from negah.diffusion.load import TEXT_1, UNET_1, VAE_1, load
from negah.lab.costs import highest
from negah.language.tokens import Tokenizer

NAME, PROMPT, SCALE, SEED = "sd_sampling", "a house with solar panels on a red roof", 7.5, 0
WHO = ("diffusers", "negah", "negah, interval", "negah, bf16")
TARGET, BF16_TARGET, INTERVAL_TARGET = 1.15, 1.9, 1.2


def saved(folder: Path) -> Path:
    """A pipeline of the true shapes with random weights, as diffusers writes it."""
    torch.manual_seed(SEED)
    vocabulary = folder / "words"
    vocabulary.mkdir()
    Tokenizer.train([PROMPT], vocabulary=600, length=77).pairs.model.save(str(vocabulary))
    words: dict[str, Any] = {"vocab": str(vocabulary / "vocab.json"), "merges": str(vocabulary / "merges.txt")}
    tokenizer = CLIPTokenizer(**words, model_max_length=77)
    end = tokenizer.eos_token_id
    text = CLIPTextModel(CLIPTextConfig(**TEXT_1, eos_token_id=end, pad_token_id=end))
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE_1), text_encoder=text, tokenizer=tokenizer,
        unet=UNet2DConditionModel(**UNET_1), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


class Watch:
    """Seconds that a module's forward took, by the clock and of the processor."""

    def __init__(self, module: torch.nn.Module):
        self.taken = [0.0, 0.0]
        module.register_forward_pre_hook(lambda *_: setattr(self, "begun", clocks()))
        module.register_forward_hook(lambda *_: self.add())

    def add(self) -> None:
        self.taken = [a + now - begun for a, now, begun in zip(self.taken, clocks(), self.begun)]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def contestant(who: str, model: Path, steps: int, size: int) -> tuple[Callable[[], Tensor], torch.nn.Module]:
    """What draws the picture, [1, 3, h, w] in [0, 1], and its UNet."""
    if who == "diffusers":
        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        return lambda: pipeline(
            PROMPT, num_inference_steps=steps, guidance_scale=SCALE, height=size, width=size, output_type="pt",
            generator=[torch.Generator().manual_seed(SEED)],
        ).images, pipeline.unet  # fmt: skip
    ours = load(model, dtype=torch.bfloat16 if who == "negah, bf16" else torch.float32).pack()
    sigmas = ours.schedule.levels(steps, sampler="ddim").tolist()
    middle = (sigmas[steps - steps // 4], sigmas[steps // 4])
    return lambda: generate(
        ours, [PROMPT], [SEED], sampler="ddim", steps=steps, scale=SCALE, height=size, width=size,
        interval=middle if who == "negah, interval" else None,
    ), ours.unet  # fmt: skip


def speed(model: Path, rounds: int, steps: int, size: int) -> list[dict[str, Any]]:
    """A row for each round and contestant, and one of the medians of the rounds' ratios to diffusers."""
    made = {who: contestant(who, model, steps, size) for who in WHO}
    watches = {who: Watch(unet) for who, (_, unet) in made.items()}
    rows, images = [], {}
    for number in range(rounds):
        order = WHO if number % 2 == 0 else WHO[::-1]
        for who in order:
            watches[who].taken = [0.0, 0.0]
            begun = clocks()
            images[who] = made[who][0]()
            total = [now - before for now, before in zip(clocks(), begun)]
            unet = watches[who].taken
            rows.append({
                "what": "speed", "round": number, "who": who, "seconds": total[0], "unet": unet[0], "cpu": total[1],
                "unet cpu": unet[1], "load": os.getloadavg()[0],
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    for who in WHO[1:]:
        ratios = {}
        for key in ("seconds", "unet", "cpu", "unet cpu"):
            of = {row["round"]: row[key] for row in rows if row["who"] == who}
            peer = {row["round"]: row[key] for row in rows if row["who"] == "diffusers"}
            ratios[key] = statistics.median(peer[n] / of[n] for n in peer)
        off = (images[who] - images["diffusers"]).abs()
        rows.append({
            "what": "speed ratio", "who": who, **ratios, "largest difference": off.max().item(),
            "mean difference": off.mean().item(),
        })  # fmt: skip
    plain, guided = ([row for row in rows if row["who"] == who and "round" in row] for who in WHO[1:3])
    faster = {key: statistics.median(a[key] / b[key] for a, b in zip(plain, guided)) for key in ("seconds", "cpu")}
    rows.append({"what": "speed ratio", "who": "negah, interval over negah", **faster})
    return rows


def memory(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each, measured in a process of its own."""
    rows = []
    for who in (WHO[0], WHO[1], WHO[3]):
        command = [sys.executable, __file__, "--one", who, "--model", str(model), "--threads", str(args.threads)]
        command += ["--steps", "2", "--size", str(args.size)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append({"what": "memory", "who": who, **json.loads(told.splitlines()[-1])})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--one", help="(of the processes that it starts)")
    parser.add_argument("--model", type=Path, help="(the same)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        draw, _ = contestant(args.one, args.model, args.steps, args.size)
        step, whole = highest(draw)
        print(json.dumps({"step": step, "all": whole}))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = saved(Path(folder))
        rows = [*memory(model, args), *speed(model, args.rounds, args.steps, args.size)]
    ratio = {row["who"]: row for row in rows if row["what"] == "speed ratio"}
    peak = {row["who"]: row["all"] for row in rows if row["what"] == "memory"}
    unit = (
        f"times the speed of diffusers in fp32, pictures at most {ratio['negah']['largest difference']:.0e} apart"
        f" (by processor time {ratio['negah']['cpu']:.2f}); bf16 {ratio['negah, bf16']['seconds']:.2f} (target"
        f" {BF16_TARGET}), mean difference {ratio['negah, bf16']['mean difference']:.4f}; an interval of guidance"
        f" {ratio['negah, interval over negah']['seconds']:.2f} times the speed of none (target {INTERVAL_TARGET})"
        f"; peak memory {peak['negah'] / peak['diffusers']:.2f} of diffusers'"
    )
    results.write(
        NAME, claim=str(__doc__).splitlines()[0].removeprefix("Claim: "), rows=rows,
        headline={"value": ratio["negah"]["seconds"], "unit": unit, "target": TARGET, "better": "higher"},
        seeds=[SEED], packages=("diffusers", "transformers"), threads=args.threads, steps=args.steps, size=args.size,
    )  # fmt: skip


if __name__ == "__main__":
    main()
