"""Frozen features, computed once: tokens of every image in half precision, on disk, mapped into memory.

A probe reads the same tokens in every epoch, fold and method; the backbone should see each image once. Tokens are kept
under the hash of the model and the hash of the pixels, so neither a changed image nor changed weights can meet stale
features, and views of one image (flips, turns) are simply other images. Shards are written whole and renamed into
place: after a kill -9 the next run continues with what was finished, and several runs may share a folder.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from negah.errors import OutputError, WeightsError
from negah.nn.vit import ViT
from negah.progress import Progress, silent

SHARD_BYTES = 64 * 2**20


class CachedTokens:
    """Tokens [n, 1 + p, dim] of n images, half precision, read from mapped files: `cached[positions]` gives a batch."""

    def __init__(self, shards: Sequence[Tensor], where: Sequence[tuple[int, int]]):
        self._shards = list(shards)
        self._where = torch.tensor(where, dtype=torch.long).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, positions: slice | Sequence[int] | ndarray | Tensor) -> Float[Tensor, "n token dim"]:
        where = self._where[torch.as_tensor(positions) if not isinstance(positions, slice) else positions]
        out = self._shards[0].new_empty(len(where), *self._shards[0].shape[1:])
        for shard in where[:, 0].unique().tolist():
            mine = where[:, 0] == shard
            out[mine] = self._shards[shard][where[mine, 1]]
        return out

    def batches(self, batch: int = 256) -> Iterator[Float[Tensor, "n token dim"]]:
        """All of them in order, a few at a time."""
        for start in range(0, len(self), batch):
            yield self[slice(start, start + batch)]


@torch.no_grad()
def cached_tokens(
    backbone: ViT,
    images: Iterable[UInt8[Tensor, "3 h w"]],
    folder: Path,
    *,
    batch: int = 32,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> CachedTokens:
    """[CLS, patches] of each image, from `folder` where it is known, else computed and kept there.

    backbone: moved to `device` and put in eval mode by the caller. images: all of one size, multiples of the patch.
    progress: told of every image; the total is 0 where `images` does not know its length.
    Raises WeightsError when features are not finite in half precision, OutputError when the folder cannot be written.
    """
    home = folder / model_key(backbone)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{home} cannot be made for the features ({error.strerror}): give another folder") from error
    shards, known = _read(home)
    total = len(images) if isinstance(images, Sized) else 0
    where: list[tuple[int, int]] = []
    waiting: dict[str, tuple[Tensor, list[int]]] = {}  # key -> pixels, positions that want its tokens
    fresh: list[Tensor] = []
    keys: list[str] = []

    def compute() -> None:
        pixels = torch.stack([p for p, _ in waiting.values()]).to(device)
        tokens = backbone.tokens(pixels).half().cpu()
        if not tokens.isfinite().all():
            raise WeightsError(
                "the backbone's features are not finite in half precision: these weights cannot be probed"
            )
        for key, (_, positions) in waiting.items():
            known[key] = len(shards), len(keys)
            keys.append(key)
            for position in positions:
                where[position] = known[key]
        fresh.append(tokens)
        waiting.clear()

    def flush() -> None:
        if keys:
            shards.append(_write(home, torch.cat(fresh), keys))
            keys.clear()
            fresh.clear()

    try:
        for position, image in enumerate(images):
            key = hashlib.sha256(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes()).hexdigest()
            where.append(known.get(key, (-1, -1)))
            if key not in known:
                waiting.setdefault(key, (image, []))[1].append(position)
            if len(waiting) == batch:
                compute()
                if sum(t.nbytes for t in fresh) >= SHARD_BYTES:
                    flush()
            progress("features", len(where), total)
        if waiting:
            compute()
    finally:
        flush()  # also after Ctrl-C or an unreadable image: what is computed is kept
    return CachedTokens(shards, where)


def model_key(backbone: ViT) -> str:
    """Hash of a backbone's constructor arguments and weights, 32 hex digits."""
    digest = hashlib.sha256(json.dumps(backbone.config, sort_keys=True).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def fit_to(image: UInt8[ndarray, "h w 3"], size: int, *, patch: int) -> UInt8[Tensor, "3 size size"]:
    """An image as the backbone eats it, size x size px.

    Sides that fall short by less than a patch are mirrored outwards, which keeps the ground sampling distance;
    anything else is resized (bicubic, antialiased), which does not.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    h, w = pixels.shape[1:]
    if 0 <= size - h < min(patch, h) and 0 <= size - w < min(patch, w):
        top, left = (size - h) // 2, (size - w) // 2
        padding = left, size - w - left, top, size - h - top
        return F.pad(pixels[None].float(), padding, mode="reflect")[0].to(torch.uint8)
    resized = F.interpolate(pixels[None].float(), size=(size, size), mode="bicubic", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def turned(image: Tensor, view: int) -> Tensor:
    """One of eight views (0..7) of a square image [..., h, w]: quarter turns, the last four mirrored; 0 leaves it."""
    return torch.rot90(image.flip(-1) if view >= 4 else image, view % 4, (-2, -1))


def _read(home: Path) -> tuple[list[Tensor], dict[str, tuple[int, int]]]:
    shards: list[Tensor] = []
    known: dict[str, tuple[int, int]] = {}
    for path in sorted(home.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as file:
                keys = json.loads(file.metadata()["keys"])
                tokens = file.get_tensor("tokens")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise OutputError(
                f"{path} is no shard of features ({error}): delete it, it will be computed again"
            ) from error
        known.update({key: (len(shards), row) for row, key in enumerate(keys)})
        shards.append(tokens)
    return shards, known


def _write(home: Path, tokens: Tensor, keys: Sequence[str]) -> Tensor:
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
    part, path = home / f"{name}.{os.getpid()}.part", home / f"{name}.safetensors"
    try:
        save_file({"tokens": tokens}, part, metadata={"keys": json.dumps(list(keys))})
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"features cannot be written to {path} ({error}): free some space or give another folder"
        ) from error
    with safe_open(str(path), framework="pt") as file:
        return file.get_tensor("tokens")
