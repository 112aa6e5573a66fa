import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file

from negah import weights
from negah.errors import WeightsError
from negah.nn.vit import ViT
from negah.weights import files

REVISION = "0123456789abcdef0123456789abcdef01234567"
SIZE = {"patch": 4, "dim": 64, "depth": 1, "heads": 1, "grid": (2, 2)}


def error(name, **kwargs) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as transformers writes it."""
    return weights.save(ViT(**SIZE), tmp_path / "model", layout="transformers")


def fill_cache(cache: Path, name: str, model: Path, *, revision: str = REVISION) -> None:
    """Lay a folder down as a download of the hub would have left it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    for file in model.iterdir():
        (repository / "snapshots" / revision / file.name).write_bytes(file.read_bytes())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


# Files and folders


def test_shards(folder):
    state = load_file(folder / "model.safetensors")
    keys = sorted(state)
    whole = weights.load(folder)
    (folder / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for shard, names in shards.items():
        save_file({name: state[name] for name in names}, folder / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(weights.load(folder).pos_embed, whole.pos_embed)

    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors" in error(folder)
    outside = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    assert "not a file beside it" in error(folder)


def test_older_folders_with_a_torch_file(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(weights.load(folder).cls_token, state["embeddings.cls_token"])


def test_config_json_says_what_shapes_cannot(folder):
    state = load_file(folder / "model.safetensors")
    save_file(state, folder / "model.safetensors")  # without what negah writes beside the tensors
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2, "image_size": [4, 16]}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    vit = weights.load(folder)
    assert vit.heads == 2 and vit.grid == (1, 4)
    assert vit.config["mean"] == [0.5] * 3 and vit.config["std"] == [0.25] * 3

    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    assert "missing: encoder.layer.1.norm1.weight" in error(folder)
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert "config.json says hidden_act = 'relu'" in error(folder)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read as json" in error(folder)


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"patch_embed.proj.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("evil.pth", "plain.pth"):
        assert f"{name} cannot be read as a torch file of plain tensors" in error(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_foreign_files(tmp_path, folder):
    good = (folder / "model.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.pth").write_text("not weights")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    for name in ("short.safetensors", "empty.safetensors", "text.pth"):
        assert f"{name} cannot be read" in error(tmp_path / name)
    assert "tensor.pth holds a Tensor, not named tensors" in error(tmp_path / "tensor.pth")
    assert "has no model.safetensors" in error(tmp_path)


def test_a_name_that_is_nothing(tmp_path, cache):
    assert "no weights at" in error(tmp_path / "absent.safetensors")
    assert "no weights at dinov2_vits14" in error("dinov2_vits14")
    assert "no file at models/vit.safetensors" in error("models/vit.safetensors")
    assert "no bundled model negah/none: bundled are" in error("negah/none")


def test_revisions_belong_to_the_hub(folder):
    assert "revision main means nothing for" in error(folder, revision="main")


def test_bundled_models_load_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUNDLED", tmp_path)
    vit = ViT(**SIZE)
    state = {f"backbone.{name}": p.detach().half() for name, p in vit.named_parameters()}
    state["head.classifier.weight"] = torch.zeros(1, 64)
    meta = {"negah": json.dumps({"backbone": vit.config, "head": {"dim": 64}})}
    save_file(state, tmp_path / "toy.safetensors", metadata=meta)
    assert weights.bundled() == ["negah/toy"]
    loaded = weights.load("negah/toy")
    assert loaded.config == vit.config
    assert torch.equal(loaded.pos_embed, vit.pos_embed.half().float())


# The hub


@pytest.mark.parametrize("name", ["someone/model", f"someone/model@{REVISION}", "timm/vit_tiny.lvd142m"])
def test_cached_repository_loads_without_a_network(folder, cache, name):
    fill_cache(cache, name.partition("@")[0], folder)
    assert torch.equal(weights.load(name).pos_embed, weights.load(folder).pos_embed)


def test_metas_names_mean_one_commit(folder, cache):
    name = "facebook/dinov2-with-registers-small"
    fill_cache(cache, name, folder)
    assert f"cannot fetch {name} at {files.PINNED[name]}" in error(name)  # main is another commit
    assert weights.load(name, revision="main").dim == 64
    assert weights.load(f"{name}@{REVISION}").dim == 64
    assert all(len(commit) == 40 for commit in files.PINNED.values())


def test_offline_without_a_cache_says_so_at_once(cache):
    message = error("someone/model")
    assert "HF_HUB_OFFLINE" in message and "hf download someone/model" in message


def test_hub_is_asked_once_when_it_is_out_of_reach(monkeypatch):
    asked, online = [], []

    def unreachable(url, timeout):
        asked.append(url)
        raise ConnectionError("no network")

    def download(repository, name, *, revision, local_files_only):
        online.extend([] if local_files_only else [name])
        raise LocalEntryNotFoundError("out of reach")

    monkeypatch.setattr(files, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(files, "hf_hub_download", download)
    assert "out of reach" in error("someone/model")
    assert len(asked) == 1 and not online, "each download tries for half a minute"


def test_a_hub_that_goes_away_is_not_asked_again(monkeypatch):
    online = []

    def download(repository, name, *, revision, local_files_only):
        online.extend([] if local_files_only else [name])
        raise LocalEntryNotFoundError("out of reach")

    monkeypatch.setattr(files, "reached", lambda *_: True)
    monkeypatch.setattr(files, "hf_hub_download", download)
    assert "out of reach" in error("someone/model")
    assert len(online) == 1


def test_a_mistyped_path_into_a_folder_that_is_there_asks_no_hub(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "fetch", lambda *_: pytest.fail("the hub was asked"))
    (tmp_path / "run").mkdir()
    assert error("run/model").startswith("no weights at run/model: run/ holds no model")
    (tmp_path / "run" / "model.safetensors").touch()
    folder.rename(tmp_path / "run" / "small")
    held = "run/ holds run/model.safetensors, run/small"
    assert error("run/model") == f"no weights at run/model: {held} (for run/model of the hub: run/model@main)"
    assert error("run/modle.safetensors") == f"no file at run/modle.safetensors: {held}"
    assert error("none/modle.safetensors") == "no file at none/modle.safetensors: check the path"
    with pytest.raises(pytest.fail.Exception, match="the hub was asked"):
        weights.load("run/model@main")


def test_only_the_needed_files_are_fetched(folder, monkeypatch):
    asked = []

    def download(repository, name, *, revision, local_files_only):
        asked.append((repository, name, revision))
        if not (folder / name).exists():
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        return str(folder / name)

    monkeypatch.setattr(files, "reached", lambda *_: True)
    monkeypatch.setattr(files, "hf_hub_download", download)
    weights.load("someone/model", revision="v1")
    assert {name for _, name, _ in asked} == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert {(repository, revision) for repository, _, revision in asked} == {("someone/model", "v1")}

    (folder / "model.safetensors").rename(folder / "weights.bin")
    assert "someone/model at main has no model.safetensors" in error("someone/model")


def test_files_beside_a_checkpoint_are_found_in_folders_and_fetched_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, *, revision, local_files_only):
        asked.append((repository, name, revision, local_files_only))
        if name != "vocab.json" or not local_files_only:  # out of reach, and one of them in the cache
            raise LocalEntryNotFoundError("no network")
        return str(tmp_path / "cache" / name)

    monkeypatch.setattr(files, "reached", lambda *_: True)
    monkeypatch.setattr(files, "hf_hub_download", download)
    names = ("tokenizer.json", "vocab.json")
    assert files.folder_of("owner/clip@v2", names) == tmp_path / "cache"
    assert asked[0] == ("owner/clip", "tokenizer.json", "v2", False)
    assert files.folder_of(str(tmp_path), names) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert files.folder_of(str(tmp_path), names) == tmp_path
    assert files.folder_of(str(tmp_path / "vocab.json"), names) is None, "a file of weights has no folder of its own"
    asked.clear()
    monkeypatch.setattr(files, "reached", lambda *_: False)
    assert files.folder_of("owner/clip@v2", names) == tmp_path / "cache"
    assert all(cached for *_, cached in asked), "the hub is not asked again where it is out of reach"
