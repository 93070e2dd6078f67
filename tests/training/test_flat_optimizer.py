"""One vector in place of many matrices: the same updates, saved and loaded as before."""

from __future__ import annotations

import copy

import safetensors.torch
import torch

from pipeline.training.flat_optimizer import flat_optimizer


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(4, 8, generator=generator)
        model(inputs).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        model.zero_grad()


def make(vector):
    return torch.optim.AdamW(vector, lr=0.1, weight_decay=0.01)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def models():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    return model, copy.deepcopy(model)


def test_the_updates_are_those_of_single_weights():
    flat, single = models()
    before = copy.deepcopy(single)
    train(flat, flat_optimizer(list(flat.parameters()), make), 5)
    train(single, make(single.parameters()), 5)
    assert equal(flat, single) and not equal(flat, before)


def test_weights_that_no_record_uses_stay():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    optimizer = flat_optimizer([used, unused], lambda vector: torch.optim.AdamW(vector, lr=0.1, weight_decay=0.0))
    used.sum().backward()
    optimizer.step()
    assert (used < 1).all() and (unused == 1).all()


def test_a_training_goes_on_from_its_saved_state(tmp_path):
    whole, parted = models()
    optimizer = flat_optimizer(list(whole.parameters()), make)
    train(whole, optimizer, 3, seed=1)
    train(whole, optimizer, 3, seed=2)
    optimizer = flat_optimizer(list(parted.parameters()), make)
    train(parted, optimizer, 3, seed=1)
    safetensors.torch.save_file(parted.state_dict(), tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed, _ = models()
    optimizer = flat_optimizer(list(resumed.parameters()), make)
    resumed.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(resumed, optimizer, 3, seed=2)
    assert equal(resumed, whole)
