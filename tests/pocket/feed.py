"""Batches by number: the same seed and number give the same batch, whichever process makes it and whenever a run goes on."""
import os

import numpy as np
import torch

import tasks


def batch(t, length, n, **how):
    samples = [t.sample(length, **how) for _ in range(n)]
    out = {k: torch.from_numpy(np.stack([x[k] for x in samples])) for k in ("ids", "positions", "weight", "kind", "number")}
    out["context"] = torch.tensor([x["context"] for x in samples])
    out["sources"] = [x["sources"] for x in samples]
    return out


def targets(b):
    """ids and weights one to the left: what each row has to predict."""
    out = {k: torch.roll(b[k], -1, 1) for k in ("ids", "weight", "kind", "number")}
    out["weight"][:, -1] = 0
    return out


def draw(chooser, mix):
    """One of (value, weight), ..."""
    values, weights = zip(*mix)
    return int(chooser.choice(values, p=np.array(weights) / sum(weights)))


class Batches(torch.utils.data.Dataset):
    """make(tasks, chooser, number) -> a dict of tensors; chooser is a random source of the batch's own."""

    def __init__(self, work, seed, n, make, name="train"):
        self.tasks = tasks.Tasks(tasks.Corpus(os.path.join(work, name + ".npz")), os.path.join(work, "tokenizer.json"), seed)
        self.seed, self.n, self.make = seed, n, make

    def __len__(self):
        return self.n

    def __getitem__(self, number):
        self.tasks.random.seed(f"{self.seed} {number}")
        return self.make(self.tasks, np.random.default_rng((self.seed, number)), number)

    def since(self, number, device, workers):
        """Those from a number on, in turn, on the device."""
        loader = torch.utils.data.DataLoader(self, batch_size=None, sampler=range(number, self.n), num_workers=workers,
                                             pin_memory=device.type == "cuda", prefetch_factor=4 if workers else None)
        for b in loader:
            yield {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in b.items()}
