"""Writes test/trainer/grpo-cases.json: random GRPO batches with loss, KL and gradients from a plain reference of their own.

Run: python3 scripts/make-grpo-cases.py  (torch 2.13.0 made the committed file). The reference is written from the papers' formulas over padded
[completions, tokens] matrices and a mask, in float64, the way TorchLMHeadGRPO of Liger-Kernel's tests and TRL's trainer lay it out; it shares no
layout, no order of operations and no code with src/trainer. Gradients are PyTorch's autograd, checked here against finite differences.
"""

import json
import math
import random
from pathlib import Path

import torch

torch.set_default_dtype(torch.float64)


def advantages(rewards: list[list[float]], eps: float) -> list[float]:
    """One number per completion: (r - mean of its group) / (std of its group, n - 1 in the denominator, + eps); 0 in a uniform group."""
    out = []
    for group in rewards:
        mean = math.fsum(group) / len(group)
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / (len(group) - 1))
        out += [0.0 if max(group) == min(group) else (r - mean) / (std + eps) for r in group]
    return out


def reference(case: dict, logp: torch.Tensor, old: torch.Tensor, ref: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss and its terms. logp, old, ref, mask: [completions, tokens], padded on the right."""
    adv = torch.tensor(advantages(case["rewards"], case["advantageEps"]))[:, None]
    ratio = torch.exp(logp - (logp.detach() if case["firstUpdate"] else old))
    low, high = 1 - case["epsLow"], 1 + case["epsHigh"]
    clipped = torch.where(ratio < low, torch.full_like(ratio, low), torch.where(ratio > high, torch.full_like(ratio, high), ratio))
    gain = ratio * adv if case["firstUpdate"] else torch.min(ratio * adv, clipped * adv)
    d = torch.clip(ref - logp, -case["klClamp"], case["klClamp"])
    kl = torch.exp(d) - d - 1

    def aggregate(values: torch.Tensor) -> torch.Tensor:
        if case["lossAggregation"] == "token":
            return (values * mask).sum() / mask.sum()
        return ((values * mask).sum(dim=1) / mask.sum(dim=1)).mean()

    outside = ((ratio < low) & (adv < 0), (ratio > high) & (adv > 0))
    clips = [aggregate((o & (not case["firstUpdate"])).double()) for o in outside]
    policy, penalty = -aggregate(gain), aggregate(kl)
    return {"loss": policy + case["klCoef"] * penalty, "policy": policy, "kl": penalty, "clipLow": clips[0], "clipHigh": clips[1]}


def make(rng: random.Random, **knobs) -> dict:
    groups = rng.randint(1, 3)
    size = rng.choice([2, 3, 4])
    case = {
        "rewards": [[rng.choice([0.0, 1.0]) if rng.random() < 0.8 else round(rng.uniform(-2, 2), 3) for _ in range(size)] for _ in range(groups)],
        **knobs,
    }
    if rng.random() < 0.3:
        case["rewards"][0] = [1.0] * size  # a group that teaches nothing but pays KL
    lengths = [rng.randint(1, 7) for _ in range(groups * size)]
    longest = max(lengths)
    mask = torch.tensor([[1.0] * n + [0.0] * (longest - n) for n in lengths])

    def matrix(draw):
        return torch.tensor([[round(draw(), 4) if t < n else rng.uniform(-50, 50) for t in range(longest)] for n in lengths])

    logp = matrix(lambda: -rng.expovariate(1))
    old = torch.where(mask > 0, (logp + matrix(lambda: rng.gauss(0, 0.3))).round(decimals=4), logp)
    # Mostly near the policy, now and then beyond the clamp on either side.
    ref = torch.where(mask > 0, (logp + matrix(lambda: rng.choice([0.0, rng.gauss(0, 0.5), rng.gauss(0, 12)]))).round(decimals=4), logp)

    variable = logp.clone().requires_grad_(True)
    found = reference(case, variable, old, ref, mask)
    (gradient,) = torch.autograd.grad(found["loss"], variable)
    assert (gradient[mask == 0] == 0).all()
    h = 1e-6
    for i, n in enumerate(lengths):
        for t in range(n):
            step = torch.zeros_like(logp)
            step[i, t] = h
            shifted = [reference({**case, "firstUpdate": False}, logp + s * step, logp if case["firstUpdate"] else old, ref, mask)["loss"] for s in (1, -1)]
            slope = float(shifted[0] - shifted[1]) / (2 * h)
            kink = abs(abs(float(ref[i, t] - logp[i, t])) - case["klClamp"]) < 1e-5
            assert kink or abs(slope - float(gradient[i, t])) < 1e-6 * max(1, abs(slope)), (slope, gradient[i, t])

    rows = lambda m: [[float(v) for v in m[i, :n]] for i, n in enumerate(lengths)]
    return {
        **case,
        "logprobs": rows(logp),
        "old": rows(old),
        "reference": rows(ref),
        "advantages": advantages(case["rewards"], case["advantageEps"]),
        **{name: value.item() for name, value in found.items()},
        "gradient": rows(gradient),
    }


def main() -> None:
    rng = random.Random(3)
    cases = []
    for aggregation in ("sequence", "token"):
        for first in (True, False):
            for low, high in ((0.2, 0.2), (0.2, 0.28), (0.05, 0.4)):
                for beta, clamp, eps in ((0.1, 11.0, 1e-4), (0.04, 3.0, 1e-6)):
                    cases.append(make(rng, lossAggregation=aggregation, firstUpdate=first, epsLow=low, epsHigh=high, klCoef=beta, klClamp=clamp, advantageEps=eps))
    out = Path(__file__).parents[1] / "test/trainer/grpo-cases.json"
    lines = ",\n".join("    " + json.dumps(case) for case in cases)
    out.write_text(f'{{\n  "torch": "{torch.__version__}",\n  "cases": [\n{lines}\n  ]\n}}\n')
    clipped = sum(case["clipLow"] + case["clipHigh"] > 0 for case in cases)
    print(len(cases), "cases,", clipped, "with clipped tokens,", out.stat().st_size, "bytes")


main()
