"""Layers against torch-geometric's with the same weights, against their equations, and under permutations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from negah.errors import InputError
from negah.graph import CSR, GAT, GCN, GIN, SAGE, Edges, Update
from negah.graph.aggregate import neighbour_attention, neighbour_mean

INNER, OUTER = 5, 4
NODES = 9


def graph(seed: int = 0, nodes: int = NODES, count: int = 20, weighted: bool = False) -> tuple[Tensor, Tensor | None]:
    """Directed edges without duplicates or self-loops that leave the last two nodes alone."""
    g = torch.Generator().manual_seed(seed)
    linked = nodes - 2
    places = torch.randperm(linked * linked, generator=g)
    places = places[places // linked != places % linked][:count]
    index = torch.stack([places // linked, places % linked])
    return index, torch.rand(count, generator=g, dtype=torch.float64) + 0.1 if weighted else None


def features(seed: int = 1, nodes: int = NODES) -> Tensor:
    return torch.randn(nodes, INNER, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(INNER, 6), nn.ReLU(), nn.Linear(6, OUTER))


LAYERS = {
    "update": lambda inner=INNER, outer=OUTER: Update(inner, outer),
    "gcn": lambda inner=INNER, outer=OUTER: GCN(inner, outer),
    "mean": lambda inner=INNER, outer=OUTER: SAGE(inner, outer),
    "max": lambda inner=INNER, outer=OUTER: SAGE(inner, outer, over="max"),
    "gin": lambda inner=INNER, outer=OUTER: GIN(mlp(), eps=0.3, learn_eps=True),
    "gat": lambda inner=INNER, outer=OUTER: GAT(inner, outer, heads=3),
    "gat mean": lambda inner=INNER, outer=OUTER: GAT(inner, outer, heads=3, join="mean"),
}


def made(name: str, *sizes: int) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[name](*sizes).double()
    for parameter in layer.parameters():  # zeros would hide a forgotten bias
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer


# Against torch-geometric


def theirs(name: str, ours: nn.Module, inner: int, outer: int) -> tuple[nn.Module, dict[str, str]]:
    """Its layer with our weights, and the name there of each parameter here."""
    peer = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")
    if name == "gcn":
        layer, names = peer.GCNConv(inner, outer), {"weight": "lin.weight", "bias": "bias"}
    elif name in ("mean", "max"):
        layer = peer.SAGEConv(inner, outer, aggr=name)
        names = {"own.weight": "lin_r.weight", "others.weight": "lin_l.weight", "others.bias": "lin_l.bias"}
    elif name == "gin":
        layer = peer.GINConv(mlp(), eps=0.3, train_eps=True)
        names = {"eps": "eps"} | {f"mlp.{k}.{w}": f"nn.{k}.{w}" for k in (0, 2) for w in ("weight", "bias")}
    else:
        layer = peer.GATConv(inner, outer, heads=3, concat=name == "gat")
        names = {"weight": "lin.weight", "bias": "bias", "from_own": "att_dst", "from_others": "att_src"}
    layer = layer.double()
    there, here = dict(layer.named_parameters()), dict(ours.named_parameters())
    assert set(names) == set(here) and set(names.values()) == set(there)
    for mine, its in names.items():
        there[its].data.copy_(here[mine].data.view_as(there[its]))
    return layer, names


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("sizes", [(5, 4), (4, 5)], ids=["narrower", "wider"])
@pytest.mark.parametrize("name, weighted", [
    ("gcn", False), ("gcn", True), ("mean", False), ("max", False), ("gin", False), ("gat", False), ("gat mean", False),
])  # fmt: skip
def test_values_and_gradients_are_those_of_torch_geometric(name, weighted, sizes, dtype, tolerance):
    if name == "gin":
        sizes = (INNER, OUTER)
    ours = made(name, *sizes).to(dtype)
    layer, names = theirs(name, ours, *sizes)
    layer = layer.to(dtype)
    index, weights = graph(weighted=weighted)
    weights = None if weights is None else weights.to(dtype)
    x = torch.randn(NODES, sizes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    mine, its = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = ours(mine, Edges.of(index, NODES, weights))
    peer = layer(its, index, weights) if weighted else layer(its, index)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(out, peer, **close)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    (out * pull).sum().backward()
    (peer * pull).sum().backward()
    torch.testing.assert_close(mine.grad, its.grad, **close)
    there = dict(layer.named_parameters())
    for name_here, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, there[names[name_here]].grad.view_as(parameter), **close)


def test_gradients_of_edge_weights_are_those_of_torch_geometric():
    ours = made("gcn")
    layer, _ = theirs("gcn", ours, INNER, OUTER)
    index, weights = graph(weighted=True)
    assert weights is not None
    mine, its = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    ours(features(), Edges.of(index, NODES, mine)).square().sum().backward()
    layer(features(), index, its).square().sum().backward()
    torch.testing.assert_close(mine.grad, its.grad, rtol=1e-12, atol=1e-12)


# Against the equations


def dense(index: Tensor, weights: Tensor | None) -> Tensor:
    matrix = torch.zeros(NODES, NODES, dtype=torch.float64)
    matrix[index[1], index[0]] = 1.0 if weights is None else weights
    return matrix


@pytest.mark.parametrize("weighted", [False, True])
def test_layers_are_their_equations(weighted):
    index, weights = graph(weighted=weighted)
    a, h, edges = dense(index, weights), features(), Edges.of(index, NODES, weights)
    update = made("update")
    expected = torch.relu(h @ update.own.weight.T + update.own.bias + a @ h @ update.others.weight.T)
    torch.testing.assert_close(update(h, edges), expected)

    mean = made("mean")
    means = a / a.sum(1, keepdim=True).clamp_min(1e-30)
    expected = h @ mean.own.weight.T + means @ h @ mean.others.weight.T + mean.others.bias
    torch.testing.assert_close(mean(h, edges), expected)
    torch.testing.assert_close(neighbour_mean(h, edges), means @ h)

    gin = made("gin")
    torch.testing.assert_close(gin(h, edges), gin.mlp((1 + gin.eps) * h + a @ h))

    gat, looped = made("gat mean"), a + torch.eye(NODES, dtype=torch.float64)
    expected = torch.zeros(NODES, OUTER, dtype=torch.float64)
    for own, others, weight in zip(gat.from_own, gat.from_others, gat.weight.view(3, OUTER, INNER)):
        z = h @ weight.T
        scores = torch.nn.functional.leaky_relu((z @ own)[:, None] + (z @ others)[None], 0.2).exp() * looped
        expected += scores / scores.sum(1, keepdim=True) @ z / 3
    torch.testing.assert_close(gat(h, edges), expected + gat.bias)


def test_a_lonely_node_keeps_only_what_is_its_own():
    index, _ = graph()
    edges, h = Edges.of(index, NODES), features()
    alone = h[-1:]
    assert edges.isolated.tolist() == [False] * (NODES - 2) + [True] * 2
    update, mean, top, gcn, gat = (made(name) for name in ("update", "mean", "max", "gcn", "gat"))
    torch.testing.assert_close(update(h, edges)[-1:], update.sigma(update.own(alone)))
    torch.testing.assert_close(mean(h, edges)[-1:], mean.own(alone) + mean.others.bias)
    torch.testing.assert_close(top(h, edges)[-1:], top.own(alone) + top.others.bias)
    torch.testing.assert_close(gcn(h, edges)[-1:], alone @ gcn.weight.T + gcn.bias)
    torch.testing.assert_close(gat(h, edges)[-1:], alone @ gat.weight.T + gat.bias)


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_without_edges_is_a_graph(name):
    edges = Edges.of(torch.zeros(2, 0, dtype=torch.long), NODES)
    h = features().requires_grad_()
    out = made(name)(h, edges)
    out.sum().backward()
    assert out.isfinite().all() and h.grad is not None and h.grad.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_an_edge_of_no_weight_is_no_edge(name):
    if name == "max":
        pytest.skip("a maximum knows no weights")
    index, weights = graph(weighted=True)
    assert weights is not None
    weights[::2] = 0
    layer, h = made(name), features()
    kept = Edges.of(index[:, 1::2], NODES, weights[1::2])
    torch.testing.assert_close(layer(h, Edges.of(index, NODES, weights)), layer(h, kept))


def test_an_edge_of_no_weight_takes_nothing_from_the_others_however_high_its_score():
    scores = torch.tensor([[0.0], [1.0], [1e4]], dtype=torch.float64)
    h = torch.randn(3, 1, 2, dtype=torch.float64)
    index = torch.tensor([[0, 1, 2], [0, 0, 0]])
    edges = Edges.of(index, 3, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), loops="keep")
    out = neighbour_attention(h, torch.zeros_like(scores), scores, edges)
    torch.testing.assert_close(out[0, 0], torch.softmax(scores[:2, 0], 0) @ h[:2, 0])
    assert out[1:].eq(0).all(), "nobody to attend to"


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_exact(name):
    # The first and the second derivative, against differences.
    index, weights = graph(weighted=name != "max")
    layer = made(name)
    h = features().requires_grad_()
    if weights is None:
        edges = Edges.of(index, NODES)
        assert torch.autograd.gradcheck(lambda x: layer(x, edges), (h,))
        return
    weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: layer(x, Edges.of(index, NODES, w)), (h, weights))
    if name == "gcn":
        assert torch.autograd.gradgradcheck(lambda x, w: layer(x, Edges.of(index, NODES, w)), (h, weights))


@pytest.mark.parametrize("name", ["update", "gcn", "mean", "gat"])
def test_bags_of_words_may_stay_sparse(name):
    index, _ = graph()
    h = features().relu()
    h[:, 1:3] = 0
    layer, edges = made(name), Edges.of(index, NODES)
    plain = layer(h, edges)
    plain.square().sum().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    out = layer(CSR.of_dense(h), edges)
    torch.testing.assert_close(out, plain)
    out.square().sum().backward()
    for parameter, grad in zip(layer.parameters(), expected):
        torch.testing.assert_close(parameter.grad, grad)


@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_goes_through(name):
    index, _ = graph()
    layer, edges = made(name).float(), Edges.of(index, NODES)
    h = features().float()
    exact = layer(h, edges)
    with torch.autocast("cpu", torch.bfloat16):
        near = layer(h, edges)
    near.float().sum().backward()
    torch.testing.assert_close(near.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: layers are only tried on the CPU")
@pytest.mark.parametrize("name", LAYERS)
def test_a_gpu_gives_the_same(name):
    index, weights = graph(weighted=name != "max")
    layer, edges = made(name), Edges.of(index, NODES, weights)
    mine = features().requires_grad_()
    out = layer(mine, edges)
    out.square().sum().backward()
    its = features().cuda().requires_grad_()
    there = layer.cuda()(its, edges.to("cuda"))
    there.square().sum().backward()
    assert mine.grad is not None and its.grad is not None
    torch.testing.assert_close(there.cpu(), out)
    torch.testing.assert_close(its.grad.cpu(), mine.grad)


# Under permutations


def permuted(index: Tensor, order: Tensor) -> Tensor:
    """The edges when node order[i] is called i."""
    return torch.argsort(order)[index]


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=25)
@given(data=st.data())
def test_every_layer_is_equivariant(name, data):
    nodes = data.draw(st.integers(3, 8), "nodes")
    pairs = data.draw(st.lists(st.tuples(*[st.integers(0, nodes - 1)] * 2), unique=True, max_size=20), "edges")
    order = torch.tensor(data.draw(st.permutations(range(nodes)), "order"))
    index = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    # Whole numbers, so that neighbours are often equal: a tie must not let the order in.
    h = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=nodes * INNER, max_size=nodes * INNER), "h"))
    h = h.view(nodes, INNER).double()
    layer = made(name)
    plain = layer(h, Edges.of(index, nodes, loops="keep"))
    moved = layer(h[order], Edges.of(permuted(index, order), nodes, loops="keep"))
    torch.testing.assert_close(moved, plain[order], rtol=1e-12, atol=1e-12)


# What does not fit


def test_what_does_not_fit_is_said():
    index, weights = graph(weighted=True)
    edges, h = Edges.of(index, NODES), features()
    with pytest.raises(InputError, match="8 rows of features for the 9 nodes"):
        made("gcn")(h[:-1], edges)
    with pytest.raises(InputError, match="features are 4 wide, the layer takes 5: make it with inner=4"):
        made("mean")(h[:, 1:], edges)
    with pytest.raises(InputError, match="a maximum over neighbours knows no weights: pass edges.unweighted()"):
        made("max")(h, Edges.of(index, NODES, weights))
    with pytest.raises(InputError, match="needs dense features"):
        made("max")(CSR.of_dense(h), edges)
    assert weights is not None
    weights[3] = -1
    negative = Edges.of(index, NODES, weights)
    made("update")(h, negative)  # a sum may
    for name in ("gcn", "mean", "gat"):
        with pytest.raises(InputError, match=r"the edge from node \d to node \d has weight -1: .* not negative"):
            made(name)(h, negative)
