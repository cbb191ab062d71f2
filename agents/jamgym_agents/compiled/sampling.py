"""How codes are drawn, in compiled loops; see `jamgym_agents.sampling`."""

from __future__ import annotations

import math

import numpy as np

from jamgym_agents.compiled.arithmetic import exp, maximum
from jamgym_agents.compiled.arrays import Draws, Floats
from jamgym_agents.compiled.compiling import serial


@serial
def transform(logits: Floats, draws: Draws) -> None:
    """`sampling.transform` of `logits` `(V,)`, in place."""
    count = len(logits)
    if draws.greedy:
        best = np.argmax(logits)
        logits[:] = -np.inf
        logits[best] = 0
        return
    logits /= np.float32(draws.temperature)
    if 0 < draws.top_k < count:
        floor = np.sort(logits)[count - draws.top_k]
        for v in range(count):
            if logits[v] < floor:
                logits[v] = -np.inf
    if draws.top_p < 1:
        shares = np.exp(logits - maximum(logits))
        shares /= shares.sum()
        before = 0.0
        for v in np.argsort(-shares, kind="mergesort"):
            if before >= draws.top_p:
                logits[v] = -np.inf
            before += shares[v]
    top = maximum(logits)
    whole = np.float32(0.0)
    for v in range(count):
        logits[v] -= top
        whole += exp(logits[v])
    logits -= np.float32(math.log(whole))


@serial
def draw(log_probs: Floats, number: float) -> int:
    """`sampling.draw` from `log_probs` `(V,)` by a random `number`."""
    reached = np.empty(len(log_probs), np.float32)
    for v in range(len(log_probs)):
        reached[v] = exp(log_probs[v])
    so_far = 0.0
    for v in range(len(log_probs)):
        so_far += reached[v]
        reached[v] = so_far
    total = reached[-1]
    wanted = min(total * np.float32(number), np.nextafter(total, np.float32(0.0)))
    for v in range(len(log_probs)):
        if reached[v] > wanted:
            return v
    return len(log_probs) - 1
