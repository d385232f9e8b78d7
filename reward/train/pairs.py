"""Pass pairs through the model, under accelerate; find their inputs; measure held-out pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from metrics.accuracy import bootstrap_share, compute_calibration, compute_credit
from reward.data import PairImages, Pairs, group_pairs, to_pixels
from reward.model.model import RewardModel
from reward.train.frozen_cache import CachedPairs, FrozenCache, stack_pairs
from reward.train.loss import preference_loss
from training.batches import make_loader
from training.processes import gather_places, share_places

Array = npt.NDArray[np.float64]


class PairScorer(nn.Module):
    """Module that accelerate wraps: all images of each pair through the model in one forward pass."""

    def __init__(self, model: RewardModel, frozen_done: bool) -> None:
        super().__init__()
        self.model = model
        self.frozen_done = frozen_done

    def forward(self, inputs: Tensor, captions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Rewards and logits of B pairs.

        Args:
            inputs: (2B or 3B, …), of all images a, all images b, and all input photos where the model sees them: pixels
                as `preprocess` gives them, or what the frozen blocks made of them where `frozen_done`.
            captions: B.
        Returns:
            (members, 2, B) cosines of a and of b, and the same times the logit scale.
        """
        model, count = self.model, len(captions)
        features = model.encode_from_frozen(inputs) if self.frozen_done else model.encode_pixels(inputs)
        seen = features[2 * count :] if model.config.needs_input else None
        cosines = model.compare(features[: 2 * count], captions, seen).view(-1, 2, count)
        return cosines, cosines * model.logit_scale


@dataclass(frozen=True)
class InputReader:
    """Reads what `PairScorer` takes: images from files, or activations from the cache."""

    accelerator: Accelerator
    model: RewardModel
    cache: FrozenCache | None
    workers: int

    def read(self, pairs: Pairs, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        """(2B, …) inputs on the device, of each batch of places of pairs."""
        pinned = self.accelerator.device.type == "cuda"
        if self.cache:
            for stacked in make_loader(CachedPairs(pairs, self.cache), batches, stack_pairs, self.workers, pinned):
                yield stacked.to(self.accelerator.device, non_blocking=True)
        else:
            for groups in make_loader(PairImages(pairs), batches, group_pairs, self.workers, pinned):
                yield to_pixels(groups, self.model.config, self.accelerator.device)


def measure(scorer: PairScorer, reader: InputReader, pairs: Pairs, batch_pairs: int) -> dict[str, float]:
    """Measure the model on labelled pairs: every process takes its share, all get the result. A collective.

    Returns:
        accuracy on the n labels that are not ties, low and high (95 %, over sources; not there for a single source);
        loss and calibration_error over all.
    """
    return summarize(pairs, *compute_margins(scorer, reader, pairs, batch_pairs))


@torch.no_grad()
def compute_margins(scorer: PairScorer, reader: InputReader, pairs: Pairs, batch_pairs: int) -> tuple[Array, Array]:
    """(n,) logits of a minus logits of b, and (n,) losses in nats, by the members' mean. A collective."""
    mine = share_places(reader.accelerator, len(pairs))
    batches = [mine[start : start + batch_pairs] for start in range(0, len(mine), batch_pairs)]
    found: list[tuple[int, tuple[float, float]]] = []
    for places, inputs in zip(batches, reader.read(pairs, batches), strict=True):
        _, logits = scorer(inputs, [pairs.rows[place].caption for place in places])
        left, right = logits.mean(dim=0)
        p_a = torch.tensor([pairs.rows[place].p_a for place in places], device=left.device)
        losses = preference_loss(left.float(), right.float(), p_a)
        both = zip((left - right).float().tolist(), losses.tolist(), strict=True)
        found += zip(places, both, strict=True)
    margins, losses_of_all = np.array(gather_places(reader.accelerator, found)).reshape(-1, 2).T
    return margins, losses_of_all


def summarize(pairs: Pairs, margin: Array, losses: Array) -> dict[str, float]:
    """The numbers of `measure` from (n,) logits of a minus logits of b, and (n,) losses."""
    p_a, weight = (np.array([getattr(row, name) for row in pairs.rows]) for name in ("p_a", "weight"))
    sources = np.array([row.source for row in pairs.rows])
    decided = p_a != 0.5
    credit = compute_credit(margin, p_a)
    accuracy, low, high = bootstrap_share(credit[decided], weight[decided], sources[decided])
    probability = 1 / (1 + np.exp(-margin))
    _, calibration_error, _ = compute_calibration(probability, p_a, weight, sources)
    values = {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "n": int(decided.sum()),
        "loss": float(np.average(losses, weights=weight)),
        "calibration_error": calibration_error,
    }
    return {name: value for name, value in values.items() if np.isfinite(value)}
