"""What neighbours know: label the points of a map from a few labels, by features, and by features and neighbours.

    python examples/ask_the_neighbours.py

Where like lies beside like, a graph convolution averages noise away.  Where neighbours are strangers it averages the
signal away instead, so the same network on a shuffled graph is shown as well.
"""

import numpy as np
import torch

from negah.graph import GCN, Edges
from negah.graph.near import nearest
from negah.graph.nodes import Network, NodeData, accuracy, train
from negah.probe.linear import fit_linear

# 600 buildings in a square of 1 km.  Three quarters, by place; each building shows its quarter's style, and much noise.
random = np.random.default_rng(0)
places = random.uniform(0, 1000, (600, 2))
quarter = np.linalg.norm(places[:, None] - [[200, 300], [800, 250], [500, 800]], axis=2).argmin(1)
style = np.eye(3)[quarter] @ random.normal(size=(3, 16)) + 3 * random.normal(size=(600, 16))

order = random.permutation(600)
known, judged = order[:60], order[60:]  # the tenth that somebody looked at, and the rest
features, labels = torch.tensor(style, dtype=torch.float32), torch.tensor(quarter)

alone = fit_linear(style[known], quarter[known]).probability(style[judged]).argmax(1)
print(f"by each building's own features: {(alone == quarter[judged]).mean():.0%} of quarters are right")

near = nearest(places, k=6, reach=150)  # each building and its six nearest, as a checked, undirected graph
strangers = nearest(random.permutation(places), k=6, reach=150)
graphs: dict[str, Edges] = {"and its neighbours'": near, "and those of strangers": strangers}
for name, edges in graphs.items():
    data = NodeData(
        features, edges, labels, 3, torch.tensor(known), val=labels.new_empty(0), test=torch.tensor(judged)
    )  # fmt: skip
    torch.manual_seed(0)
    network = Network([GCN(16, 16), GCN(16, 3)])
    train(network, data, steps=100)
    print(f"by its own {name}: {accuracy(network, data, data.test):.0%}")
