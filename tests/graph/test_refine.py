"""The refiner: windows without neighbours are judged alone, the order of windows is nothing, files come back whole."""

import pytest
import torch

from negah.errors import WeightsError
from negah.graph.edges import Edges
from negah.graph.refine import Refiner, load, save
from negah.probe.detector import Detector
from negah.probe.detector import save as save_detector


def refiner(seed: int = 0) -> Refiner:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Refiner(6, width=4)
    made.scale, made.shift = torch.tensor(0.5), torch.tensor(-1.0)
    return made.eval()


def windows(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randn(n, generator=generator)


RING = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])


def test_a_window_without_neighbours_is_judged_alone():
    (feature, logit), model = windows(5), refiner()
    together = model(feature, logit, Edges.of(RING, 5, undirected=True)).detach()
    alone = model(feature[4:], logit[4:], Edges.of(RING[:, :0], 1))
    assert together[4] == pytest.approx(alone.item(), abs=1e-6)
    apart = model(feature, logit, Edges.of(RING[:, :0], 5)).detach()
    assert (together[:4] - apart[:4]).abs().min() > 1e-4


def test_the_order_of_windows_is_nothing():
    (feature, logit), model = windows(5), refiner()
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = torch.empty(5, dtype=torch.long)
    moved[order] = torch.arange(5)
    before = model(feature, logit, Edges.of(RING, 5, undirected=True))
    after = model(feature[order], logit[order], Edges.of(moved[RING], 5, undirected=True))
    torch.testing.assert_close(after, before[order])


def test_a_file_comes_back_whole_and_another_is_refused(tmp_path):
    model = refiner()
    save(model, tmp_path / "r.safetensors", detector="abc")
    found, detector = load(tmp_path / "r.safetensors")
    assert detector == "abc" and not found.training
    (feature, logit), edges = windows(4), Edges.of(RING, 4, undirected=True)
    torch.testing.assert_close(found(feature, logit, edges), model(feature, logit, edges))
    save_detector(Detector.random(), tmp_path / "d.safetensors")
    with pytest.raises(WeightsError, match=r"d\.safetensors holds no refiner: give a file by"):
        load(tmp_path / "d.safetensors")
