import math

import torch
import torch.nn.functional as F

from negah.probe.attentive import AttentiveHead, pooled_evidence


def tokens(batch: int = 3, n: int = 10, dim: int = 32) -> torch.Tensor:
    return torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(0))


def test_the_head_is_one_transformer_layer_and_one_linear_layer():
    torch.manual_seed(0)
    head, x = AttentiveHead(32, heads=4), tokens()
    block = head.block
    y = F.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (y @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, -1)
    per_head = [t.reshape(3, 10, 4, 8).transpose(1, 2) for t in (q, k, v)]
    a = (per_head[0] @ per_head[1].transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    z = x + (a @ per_head[2]).transpose(1, 2).reshape(3, 10, 32) @ block.attn.proj.weight.T + block.attn.proj.bias
    w = F.layer_norm(z, (32,), block.norm2.weight, block.norm2.bias, 1e-6)
    z = z + F.gelu(w @ block.mlp.fc1.weight.T + block.mlp.fc1.bias) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    out = head.classifier(head.norm(z)).squeeze(-1)

    reading = head(x)
    assert torch.allclose(reading.logit, out[:, 0], atol=1e-5)
    assert torch.allclose(reading.patch_logits, out[:, 1:], atol=1e-5)
    assert torch.allclose(reading.attention, a[:, :, 0, 1:], atol=1e-6)
    assert (reading.attention.sum(-1) < 1).all()  # the rest is CLS on itself


def test_a_reading_does_not_depend_on_the_other_images():
    head, x = AttentiveHead(32).eval(), tokens(6)
    whole, alone = head(x), head(x[2:3])
    for a, b in zip(whole, alone, strict=True):
        assert torch.allclose(a[2:3], b, atol=1e-6)


def test_only_the_patches_of_images_above_a_probability_are_read():
    torch.manual_seed(0)
    head, x = AttentiveHead(32, heads=4).eval(), tokens(6)
    torch.nn.init.normal_(head.classifier.weight)  # so that images differ
    with torch.no_grad():
        whole = head(x)
    probability = whole.logit.sigmoid()
    above = float(probability.sort().values[2:4].mean())
    some = head(x, above=above)
    assert torch.allclose(some.logit, whole.logit, atol=1e-6)
    assert torch.equal(some.attention, whole.attention)
    found = probability >= above
    assert int(found.sum()) == 3
    assert torch.allclose(some.patch_logits[found], whole.patch_logits[found], atol=1e-5)
    assert (some.patch_logits[~found] == -torch.inf).all()
    assert (head(x, above=1.0).patch_logits == -torch.inf).all()


def test_pooled_evidence_is_the_mean_of_the_strongest_patches():
    logits = torch.arange(40.0).reshape(2, 20)
    assert torch.equal(pooled_evidence(logits, share=0.1), torch.tensor([18.5, 38.5]))
    assert torch.equal(pooled_evidence(logits[:, :3], share=0.01), torch.tensor([2.0, 22.0]))  # at least one


def test_every_part_of_the_head_learns():
    head = AttentiveHead(32)
    reading = head(tokens())
    (reading.logit.square().sum() + reading.patch_logits.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
