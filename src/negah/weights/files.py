"""Where weights lie and how they are read: a file, a folder, a bundled name, or a repository of the Hugging Face hub.

Nothing that is read here can run code: tensors come from safetensors, or from torch files with `weights_only=True`.
What the tensors mean is the business of `layouts`.
"""

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import safe_open

from negah.errors import WeightsError

BUNDLED = Path(__file__).parent / "bundled"

# In the order in which they are looked for; an index names the shards that lie beside it.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
CONFIG_FILES = ("config.json", "preprocessor_config.json")
OPEN_CLIP = "open_clip_config.json"  # beside open_clip's weights

# A name without a revision means the same weights tomorrow as today: these commits, as published by Meta.  Other
# repositories are taken at their main branch unless the user names a revision.
PINNED = {
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
    "facebook/dinov2-with-registers-small": "0d9846e56b43a21fa46d7f3f5070f0506a5795a9",
    "facebook/dinov2-with-registers-base": "a1d738ccfa7ae170945f210395d99dde8adb1805",
    "facebook/dinov2-with-registers-large": "e4c89a4e05589de9b3e188688a303d0f3c04d0f3",
    "facebook/dinov2-with-registers-giant": "8d0d49f77fb8b5dd78842496ff14afe7dd4d85cb",
}


REACH_S = 10  # seconds in which the hub is to answer
HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")  # owner/name@revision


class Checkpoint(NamedTuple):
    """A checkpoint as it stands in its files, before any layout is recognised."""

    content: dict[str, Any]  # tensors by name; torch files may nest them in further dicts
    config: dict[str, Any]  # CONFIG_FILES and OPEN_CLIP beside the weights, merged; {} without
    negah: dict[str, Any]  # what negah wrote into the safetensors metadata; {} for files of others
    origin: str  # for messages: a path, or name@revision


def read(name_or_path: str | Path, *, revision: str | None = None, known: str = "") -> Checkpoint:
    """The checkpoint behind a name or path.

    Args:
        name_or_path: a file; a folder with config.json and weights, whole or in shards; a bundled name
            ("negah/aerial-tiny"); or a repository of the Hugging Face hub, "owner/name" or "owner/name@revision".
        revision: commit, tag or branch in the repository; only for names of the hub.
        known: for the message where nothing is there, names that could be given; by default those of backbones.

    Raises WeightsError when nothing is there, it cannot be fetched, or cannot be read.
    """
    text, path = str(name_or_path), Path(name_or_path)
    if text.startswith("negah/") and not path.exists():
        file, config, origin = bundled_path(text), {}, text
    elif path.is_dir():
        file, config, origin = file_in(path), config_in(path), text
    elif path.is_file():
        file, config, origin = path, {}, text
    elif isinstance(name_or_path, str) and (match := HUB_NAME.fullmatch(text)):
        repository, at = match[1], revision or match[2] or PINNED.get(match[1])
        folder = Path(repository).parent
        if Path(repository).suffix in SUFFIXES:
            raise WeightsError(f"no file at {text}: {held_by(folder) if folder.is_dir() else 'check the path'}")
        if at is None and folder.is_dir():
            raise WeightsError(f"no weights at {text}: {held_by(folder)} (for {text} of the hub: {text}@main)")
        file, config = fetch(repository, at)
        return collect(file, config, f"{repository}@{at or 'main'}")
    else:
        known = known or (
            f"a bundled name ({', '.join(bundled_backbones()) or 'none in this install'}), or a Hugging Face name like "
            "facebook/dinov2-small"
        )
        raise WeightsError(f"no weights at {text}: give a file, a folder with model.safetensors, {known}")
    if revision is not None:
        raise WeightsError(f"revision {revision} means nothing for {origin}: only Hugging Face names have one")
    return collect(file, config, origin)


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(f"negah/{path.stem}" for path in BUNDLED.glob("*.safetensors"))


def bundled_backbones() -> list[str]:
    """Those of them that hold a backbone, and not what refines a survey or knows words."""
    return [name for name in bundled() if "backbone" in _described(bundled_path(name))]


def _described(path: Path) -> dict[str, Any]:
    """What negah wrote into the metadata of a safetensors file, without its tensors."""
    with safe_open(str(path), framework="pt") as file:
        return json.loads((file.metadata() or {}).get("negah", "{}"))


def bundled_path(name: str) -> Path:
    """The file of a bundled model. Raises WeightsError, listing what is bundled, for other names."""
    if name not in bundled():
        raise WeightsError(f"there is no bundled model {name}: bundled are {', '.join(bundled()) or 'none'}")
    return BUNDLED / f"{name.removeprefix('negah/')}.safetensors"


def file_in(folder: Path) -> Path:
    """The weights of a folder as transformers writes it."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"folder {folder} has no {' or '.join(WEIGHT_FILES)}: give the file itself")


def held_by(folder: Path) -> str:
    """Which models lie in a folder: files of weights, and folders with a config or pipeline."""
    paths = sorted(folder.iterdir())
    configs = ("config.json", "model_index.json")
    found = [str(p) for p in paths if p.suffix in SUFFIXES or any((p / name).is_file() for name in configs)]
    return f"{folder}/ holds {', '.join(found) or 'no model'}"


def config_in(folder: Path) -> dict[str, Any]:
    """CONFIG_FILES and OPEN_CLIP of a folder, merged; {} without any."""
    return merged([folder / name for name in (*CONFIG_FILES, OPEN_CLIP) if (folder / name).is_file()])


def folder_of(name_or_path: str, files: Sequence[str]) -> Path | None:
    """The folder in which some of `files` lie beside a checkpoint; those of a repository of the hub are fetched."""
    path = Path(name_or_path)
    if path.is_dir():
        return path if any((path / name).is_file() for name in files) else None
    if path.exists() or not (match := HUB_NAME.fullmatch(name_or_path)) or name_or_path in bundled():
        return None
    found, at = [], match[2] or PINNED.get(match[1])
    # Without a network, what was fetched before.
    ways = (False, True) if reached(match[1], files[0], at) else (True,)
    for name in files:
        for cached in ways:
            try:
                found.append(Path(hf_hub_download(match[1], name, revision=at, local_files_only=cached)))
                break
            except (EntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError, ValueError):
                continue
    return found[0].parent if found else None


def reached(repository: str, name: str, revision: str | None) -> bool:
    """Whether the hub answers, whatever it says of this file: asked once, where a download tries for half a minute."""
    try:
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=REACH_S)
    except HfHubHTTPError:
        pass
    except Exception:  # of the network, of HF_HUB_OFFLINE: httpx and the hub have trees of their own
        return False
    return True


def fetch(repository: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """Weights and config of a repository of the hub, from the local cache where they lie there already.

    Only the files that are needed are fetched. `HF_HOME`, `HF_HUB_OFFLINE` and the user's token are respected.
    """

    within_reach: bool | None = None  # not asked yet: what is in the cache may not need it

    def get(name: str) -> Path | None:
        """None: not in the repository, or neither in the cache nor within reach."""
        nonlocal within_reach
        if within_reach is None and not isinstance(try_to_load_from_cache(repository, name, revision=revision), str):
            within_reach = reached(repository, name, revision)
        try:
            # After one failure to reach the hub only the cache is asked: each further try would wait as long again.
            return Path(hf_hub_download(repository, name, revision=revision, local_files_only=within_reach is False))
        except LocalEntryNotFoundError:
            if within_reach is not False:
                within_reach = False
                return get(name)
        except EntryNotFoundError:
            pass
        except RepositoryNotFoundError as error:
            raise WeightsError(
                f"there is no repository {repository} on the Hugging Face hub, or it is not open to you: check the "
                "name, or log in with `hf auth login`"
            ) from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise WeightsError(f"cannot fetch {name} of {repository} at {at}: {one_line(error)}") from error
        return None

    at = revision or "main"
    config = merged([path for name in CONFIG_FILES if (path := get(name))])
    file = next((path for name in WEIGHT_FILES if (path := get(name))), None)
    if file is not None and file.name.startswith("open_clip") and (path := get(OPEN_CLIP)):
        config |= merged([path])
    missing = [] if file is None else [s for s in shards_in(file) if get(s) is None]
    if (file is None or missing) and within_reach is False:
        raise WeightsError(
            f"cannot fetch {repository} at {at}: it is not in the local cache and the Hugging Face hub is out of reach "
            "(no network, or HF_HUB_OFFLINE is set); where there is a network, "
            f"`hf download {repository} --revision {at}` fills the cache, or a folder to copy here"
        )
    if file is None:
        raise WeightsError(f"{repository} at {at} has no {' or '.join(WEIGHT_FILES)}: download its file and give that")
    if missing:
        raise WeightsError(f"{repository} at {at} lacks {', '.join(missing)}, which {file.name} names")
    return file, config


def collect(file: Path, config: dict[str, Any], origin: str) -> Checkpoint:
    """Tensors of one file, or of the shards that an index names."""
    shards = shards_in(file)
    if not shards:
        content, negah = read_file(file)
        return Checkpoint(content, config, negah, origin)
    content = {}
    for shard in shards:
        if not (file.parent / shard).is_file():
            raise WeightsError(f"{origin} lacks {shard}, which {file.name} names: fetch it again")
        content |= read_file(file.parent / shard)[0]
    return Checkpoint(content, config, {}, origin)


def shards_in(file: Path) -> list[str]:
    """Names of the files that an index names, each once; [] when the file is no index.

    Raises WeightsError when a name leads out of the folder.
    """
    if not file.name.endswith(".index.json"):
        return []
    named = read_json(file).get("weight_map")
    shards = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    for shard in shards:
        if PurePath(shard).name != shard or "\\" in shard:
            raise WeightsError(f"{file} names {shard!r}, which is not a file beside it: do not use this checkpoint")
    if not shards:
        raise WeightsError(f"{file} names no files: fetch it again")
    return shards


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content of one file, and the json under "negah" in its metadata ({} without).

    Files that end in .safetensors are read as such; all others as torch files, with `weights_only=True`.  Of an archive
    of TorchScript, as OpenAI publishes CLIP, the tensors are taken, and nothing of its code is run.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                return tensors, json.loads((file.metadata() or {}).get("negah", "{}"))
        if is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # that the format is out of fashion
                return dict(torch.jit.load(path, map_location="cpu").state_dict()), {}
        # DINO's training files carry their command line; a namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise whatever their parsers meet
        raise WeightsError(f"{path} cannot be read as {kind(path)}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not named tensors: save a state dict")
    return content, {}


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that holds code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())


def kind(path: Path) -> str:
    return "safetensors" if path.suffix == ".safetensors" else "a torch file of plain tensors"


def one_line(error: Exception) -> str:
    """The first sentence of a message, without colours and line ends."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return re.split(r"(?<=[.!?]) ", text or type(error).__name__)[0]


def merged(files: list[Path]) -> dict[str, Any]:
    return {key: value for file in files for key, value in read_json(file).items()}


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as json: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is json but not an object: fetch it again")
    return content
