"""Writes test/trainer/loss-cases.json: random batches with the value and gradient of every loss, from a plain reference of their own.

Run: python3 scripts/make-loss-cases.py  (torch 2.13.0 made the committed file). Written from the papers' formulas over padded [completions, tokens]
matrices and a mask, in float64, with ratios of completions as [completions, 1] columns (GSPO's own form, not GSPO-token); it shares no layout and no
code with src/trainer. Gradients are PyTorch's autograd.
"""

import json
import random
from pathlib import Path

import torch

torch.set_default_dtype(torch.float64)

DEFAULTS = {
    "grpo": dict(lossAggregation="sequence", ratio="token", epsLow=0.2, epsHigh=0.2),
    "bnpo": dict(lossAggregation="token", ratio="token", epsLow=0.2, epsHigh=0.2),
    "dr_grpo": dict(lossAggregation="constant", ratio="token", epsLow=0.2, epsHigh=0.2),
    "dapo": dict(lossAggregation="token", ratio="token", epsLow=0.2, epsHigh=0.28),
    "gspo": dict(lossAggregation="sequence", ratio="sequence", epsLow=0.05, epsHigh=0.08),
    "cispo": dict(lossAggregation="token", ratio="token", epsLow=0.2, epsHigh=0.28),
    "sapo": dict(lossAggregation="sequence", ratio="token", epsLow=0.2, epsHigh=0.2),
}


def reference(case: dict, logp, old, ref, adv, mask):
    """(policy term, KL term), each summed up as the case says."""
    old = logp.detach() if case["firstUpdate"] else old
    log_ratio = (logp - old) * mask
    if case["ratio"] == "sequence":
        log_ratio = (log_ratio.sum(1) / mask.sum(1))[:, None]  # [completions, 1]
    ratio, adv = torch.exp(log_ratio), adv[:, None]
    low, high = 1 - case["epsLow"], 1 + case["epsHigh"]
    if case["loss"] == "cispo":
        terms = ratio.detach().clamp(low, high) * adv * logp
    elif case["loss"] == "sapo":
        tau = torch.where(adv > 0, case["sapoTauPos"], case["sapoTauNeg"])
        terms = 4 / tau * torch.sigmoid(tau * (ratio - 1)) * adv
    else:
        bounded = ratio if case.get("dualClip") is None else ratio.clamp(max=case["dualClip"])  # the way TRL's delta does it
        terms = torch.minimum(bounded * adv, ratio.clamp(low, high) * adv)
    d = torch.clip(ref - logp, -case["klClamp"], case["klClamp"])
    kl = {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - d - 1}[case["klEstimator"]]

    def aggregate(values):
        values = (values * mask).sum(1)
        if case["lossAggregation"] == "token":
            return values.sum() / mask.sum()
        if case["lossAggregation"] == "constant":
            return values.sum() / (len(mask) * case["lossLength"])
        return (values / mask.sum(1)).mean()

    return -aggregate(terms.expand_as(mask)), aggregate(kl)


def make(rng: random.Random, **knobs) -> dict:
    case = {"sapoTauPos": 1.0, "sapoTauNeg": 1.05, "klClamp": 11.0, "klCoef": 0.1, "lossLength": 16, **knobs}
    lengths = [rng.randint(1, 9) for _ in range(rng.choice([3, 4, 6]))]
    longest = max(lengths)
    mask = torch.tensor([[1.0] * n + [0.0] * (longest - n) for n in lengths])

    def matrix(draw):
        return torch.tensor([[round(draw(), 4) if t < n else 0.0 for t in range(longest)] for n in lengths])

    logp = matrix(lambda: -rng.expovariate(1))
    spread = 0.1 if case["ratio"] == "sequence" else 0.5
    old = (logp + matrix(lambda: rng.gauss(0, spread))).round(decimals=4)
    ref = (logp + matrix(lambda: rng.gauss(0, 0.5))).round(decimals=4)
    adv = torch.tensor([round(rng.gauss(0, 1), 3) for _ in lengths])
    variable = logp.clone().requires_grad_(True)
    policy, kl = reference(case, variable, old, ref, adv, mask)
    (gradient,) = torch.autograd.grad(policy + case["klCoef"] * kl, variable)
    rows = lambda m: [[float(v) for v in m[i, :n]] for i, n in enumerate(lengths)]
    return {
        **case,
        **{"logprobs": rows(logp), "old": rows(old), "reference": rows(ref), "advantages": adv.tolist()},
        **{"policy": policy.item(), "kl": kl.item(), "gradient": rows(gradient)},
    }


def main() -> None:
    rng = random.Random(11)
    cases = []
    for loss, own in DEFAULTS.items():
        for first in (True, False, False):
            cases.append(make(rng, loss=loss, firstUpdate=first, klEstimator=rng.choice(["k2", "k3"]), **own))
    for loss in ("grpo", "dapo", "gspo"):
        cases.append(make(rng, loss=loss, firstUpdate=False, klEstimator="k3", dualClip=1.3, **DEFAULTS[loss]))
    for aggregation in ("token", "constant"):  # a completion's ratio under other sums
        cases.append(make(rng, loss="gspo", firstUpdate=False, klEstimator="k3", **{**DEFAULTS["gspo"], "lossAggregation": aggregation}))
    for loss in ("cispo", "sapo"):
        cases.append(make(rng, loss=loss, firstUpdate=False, klEstimator="k1", **{**DEFAULTS[loss], "ratio": "sequence"}))
    out = Path(__file__).parents[1] / "test/trainer/loss-cases.json"
    lines = ",\n".join("    " + json.dumps(case) for case in cases)
    out.write_text(f'{{\n  "torch": "{torch.__version__}",\n  "cases": [\n{lines}\n  ]\n}}\n')
    print(len(cases), "cases,", out.stat().st_size, "bytes")


main()
