"""Writes test/fixtures/qwen2vl*: tiny random Qwen2-VLs and what Hugging Face transformers computes with them.

Run:  python3 scripts/make-goldens.py        (needs torch, transformers and safetensors; versions go to versions.json)

Files
  config.json, generation_config.json, model.safetensors   the model, as transformers saves it
  goldens.safetensors    pixels, ids, M-RoPE positions, vision features, input embeddings, logits and per-token logprobs per case
  gradients.safetensors  d(loss) / d(parameter) of case "group": loss = sum_t weights_t * logprob_t over both completions
  mrope.json             ids, grids, positions and next position of more layouts (odd grids, several media, text only)
qwen2vl-cases/<model>/   more shapes: config.json, generation_config.json, model.safetensors; goldens.safetensors with positions, features, logits,
                         logprobs and 64 greedy tokens per case; gradients.json with [norm, sum_k g_k cos(0.7 k)] per parameter, over all cases
qwen2vl-shapes/          names.json: parameters of the released 2B, 7B and 72B (their config.json beside it), counted on the meta device
"""

import json
import platform
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, GenerationConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

OUT = Path(__file__).resolve().parent.parent / "test" / "fixtures" / "qwen2vl"
IMAGE, VIDEO, START, END, EOS = 90, 91, 92, 93, [94, 95]
MERGE = 2

torch.manual_seed(20)
torch.set_num_threads(1)


def build():
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=94, eos_token_id=95,
            rope_parameters=dict(rope_theta=10000.0, rope_type="default", mrope_section=[2, 3, 3]),
        ),
        vision_config=dict(
            depth=2, embed_dim=24, hidden_size=32, mlp_ratio=2, num_heads=2, in_channels=3, patch_size=4,
            spatial_merge_size=MERGE, temporal_patch_size=2,
        ),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=False, bos_token_id=94, eos_token_id=95,
    )
    model = Qwen2VLForConditionalGeneration(config).float().eval()
    with torch.no_grad():  # large enough that every part (attention, biases, norms) moves the result
        for name, p in model.named_parameters():
            if p.ndim == 1:
                centre = 0.0 if "bias" in name else 1.0
                p.copy_(centre + 0.3 * torch.randn_like(p))
            else:
                fan_in = p[0].numel()
                p.copy_(torch.randn_like(p) * (1.0 if "embed_tokens" in name else 1.3 / fan_in**0.5))
    model.generation_config = GenerationConfig(bos_token_id=94, eos_token_id=EOS, pad_token_id=94, do_sample=False)
    return model


def media(kind, grid):
    t, h, w = grid
    # transformers 4 continues text at max(position) + 1 (the rule Qwen2-VL was trained with), 5.x at start + max(h, w) / merge;
    # they differ where t > max(h, w) / merge, so the fixtures stay out of that corner
    assert t <= max(h, w) // MERGE
    token = IMAGE if kind == "image" else VIDEO
    return [START] + [token] * (t * h * w // MERGE**2) + [END]


def text(n, generator):
    return torch.randint(0, 90, (n,), generator=generator).tolist()


def layout(parts, seed):
    """parts: numbers are text runs, ("image" | "video", grid) are media. Returns ids and the grids of each kind."""
    g = torch.Generator().manual_seed(seed)
    ids, grids = [], {"image": [], "video": []}
    for part in parts:
        if isinstance(part, int):
            ids += text(part, g)
        else:
            ids += media(*part)
            grids[part[0]].append(part[1])
    return ids, grids


def inputs(ids, grids, pixels):
    ids = torch.tensor([ids])
    out = dict(input_ids=ids, mm_token_type_ids=((ids == IMAGE).int() + 2 * (ids == VIDEO).int()))
    for kind, key, grid_key in (("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw")):
        if grids[kind]:
            out[key] = torch.cat(pixels[kind])
            out[grid_key] = torch.tensor(grids[kind])
    return out


def positions_of(model, ids, grids):
    if not grids["image"] and not grids["video"]:
        return torch.arange(len(ids)).expand(3, -1)
    batch = inputs(ids, grids, {k: [torch.zeros(1)] * len(v) for k, v in grids.items()})
    return model.model.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], image_grid_thw=batch.get("image_grid_thw"),
        video_grid_thw=batch.get("video_grid_thw"),
    )[0][:, 0]


def random_pixels(grids, seed):
    g = torch.Generator().manual_seed(seed)
    return {k: [torch.randn(t * h * w, 3 * 2 * 4 * 4, generator=g) for t, h, w in v] for k, v in grids.items()}


CASES = {  # prompt layout; completions of 5 and 8 tokens follow in case "group"
    "group": [4, ("video", (2, 4, 6)), 3, ("image", (1, 4, 4)), 5],
    "image": [2, ("image", (1, 2, 6)), 1, ("image", (1, 6, 4)), 6],
    "video": [1, ("video", (3, 2, 6)), 4],
    "text": [11],
}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    model = build()
    model.save_pretrained(OUT)
    gold, mrope = {}, []
    for seed, (name, parts) in enumerate(CASES.items(), start=1):
        ids, grids = layout(parts, seed)
        pixels = random_pixels(grids, 100 + seed)
        positions = positions_of(model, ids, grids)
        gold[f"{name}.ids"] = torch.tensor(ids, dtype=torch.int32)
        gold[f"{name}.positions"] = positions.to(torch.int32)
        for kind in ("image", "video"):
            for i, (grid, p) in enumerate(zip(grids[kind], pixels[kind])):
                gold[f"{name}.{kind}{i}.grid"] = torch.tensor(grid, dtype=torch.int32)
                gold[f"{name}.{kind}{i}.pixels"] = p
        grabbed = {}
        hook = model.model.language_model.register_forward_pre_hook(
            lambda m, a, kw: grabbed.update(embeddings=kw["inputs_embeds"][0]), with_kwargs=True
        )
        completions = [text(5, torch.Generator().manual_seed(7)) + [EOS[0]], text(7, torch.Generator().manual_seed(8)) + [EOS[1]]]
        rows = completions if name == "group" else [text(4, torch.Generator().manual_seed(9))]
        loss = 0.0
        for i, completion in enumerate(rows):
            with torch.set_grad_enabled(name == "group"):
                out = model(**inputs(ids + completion, grids, pixels), use_cache=False)
            logits = out.logits[0]
            target = torch.tensor(completion)
            logprobs = logits[len(ids) - 1 : -1].log_softmax(-1).gather(-1, target[:, None])[:, 0]
            gold[f"{name}.completion{i}"] = target.to(torch.int32)
            gold[f"{name}.logits{i}"] = logits.detach().clone()
            gold[f"{name}.logprobs{i}"] = logprobs.detach().clone()
            if name == "group":
                weights = torch.randn(len(completion), generator=torch.Generator().manual_seed(30 + i))
                gold[f"{name}.weights{i}"] = weights
                loss = loss + (weights * logprobs).sum()
        hook.remove()
        gold[f"{name}.embeddings"] = grabbed["embeddings"][: len(ids)].detach().clone()
        features = [model.model.visual(p, grid_thw=torch.tensor([grid])).pooler_output
                    for kind in ("image", "video") for grid, p in zip(grids[kind], pixels[kind])]
        if features:  # images first, then videos
            gold[f"{name}.features"] = torch.cat(features).detach().clone()
        if name == "group":
            loss.backward()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
            gold["group.loss"] = loss.detach().reshape(1)

    more = [
        [3, ("image", (1, 2, 2)), 2], [("video", (3, 6, 2)), 1], [1, ("image", (1, 10, 2)), 3, ("video", (3, 2, 6)), 2],
        [2, ("video", (2, 4, 4)), ("video", (1, 2, 8)), 4, ("image", (1, 4, 2)), 1], [7], [1, ("video", (4, 2, 8)), 1],
    ]
    for seed, parts in enumerate(more, start=40):
        ids, grids = layout(parts, seed)
        positions = positions_of(model, ids, grids)
        mrope.append(dict(ids=ids, images=grids["image"], videos=grids["video"], positions=positions.tolist(), next=int(positions.max()) + 1))

    save_file({k: v.contiguous() for k, v in gold.items()}, OUT / "goldens.safetensors")
    save_file({k: v.contiguous() for k, v in gradients.items()}, OUT / "gradients.safetensors")
    tokens = dict(imageToken=IMAGE, videoToken=VIDEO, visionStart=START, visionEnd=END, merge=MERGE)
    (OUT / "mrope.json").write_text(json.dumps(dict(tokens=tokens, cases=mrope)) + "\n")
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__, safetensors=safetensors.__version__)
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


# ---------------------------------------------------------------- more shapes

VISION = dict(depth=1, embed_dim=16, mlp_ratio=2, num_heads=2, in_channels=3, patch_size=2, spatial_merge_size=MERGE, temporal_patch_size=2)
MODELS = {
    "gqa-1-1-tied": dict(hidden=32, heads=4, kv=4, section=[2, 1, 1], tied=True, theta=10000.0),
    "gqa-7-1-untied": dict(hidden=56, heads=7, kv=1, section=[1, 1, 2], tied=False, theta=1000000.0),
    "mrope-5-1-2-tied": dict(hidden=32, heads=2, kv=1, section=[5, 1, 2], tied=True, theta=500.0),
}
MORE_CASES = {
    "text": [9],
    "image": [("image", (1, 6, 10)), 4],
    "videos": [2, ("video", (2, 2, 6)), 3, ("video", (1, 6, 2)), 2],
    "mixed": [1, ("image", (1, 2, 2)), 2, ("video", (2, 6, 4)), ("image", (1, 10, 2)), 3, ("video", (1, 2, 10)), 2],
}
NEW_TOKENS = 64


def build_more(spec, seed):
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=96, hidden_size=spec["hidden"], intermediate_size=40, num_hidden_layers=2, num_attention_heads=spec["heads"],
            num_key_value_heads=spec["kv"], max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=94, eos_token_id=95,
            rope_parameters=dict(rope_theta=spec["theta"], rope_type="default", mrope_section=spec["section"]),
        ),
        vision_config=dict(VISION, hidden_size=spec["hidden"]),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=spec["tied"], bos_token_id=94, eos_token_id=95,
    )
    model = Qwen2VLForConditionalGeneration(config).float().eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_((0.0 if "bias" in name else 1.0) + 0.3 * torch.randn_like(p))
            else:
                # small embeddings and sharp attention: greedy text then hangs on what it attends to, and does not repeat one token
                scale = 1.95 if "q_proj" in name or "k_proj" in name else 1.3
                p.copy_(torch.randn_like(p) * (0.1 if "embed_tokens" in name else scale / p[0].numel() ** 0.5))
        model.lm_head.weight[EOS] *= 0.05  # greedy text runs its full length
    model.generation_config = GenerationConfig(bos_token_id=94, eos_token_id=EOS, pad_token_id=94, do_sample=False)
    return model


def greedy(model, batch):
    out = model.generate(
        **batch, do_sample=False, max_new_tokens=NEW_TOKENS, suppress_tokens=[IMAGE, VIDEO, START, END], output_scores=True, return_dict_in_generate=True
    )
    scores = torch.stack([s[0] for s in out.scores])
    best = scores.topk(2, dim=-1).values
    spread = scores[:, torch.isfinite(scores[0])].std(dim=-1)
    return out.sequences[0, batch["input_ids"].shape[1] :], float(((best[:, 0] - best[:, 1]) / spread).min())


def more_shapes():
    for m, (name, spec) in enumerate(MODELS.items()):
        folder = OUT.parent / "qwen2vl-cases" / name
        folder.mkdir(parents=True, exist_ok=True)
        made = {}
        for case, (case_name, parts) in enumerate(MORE_CASES.items()):
            ids, grids = layout(parts, 60 + case)
            pixels = {
                kind: [torch.randn(t * h * w, 3 * 2 * 2 * 2, generator=torch.Generator().manual_seed(200 + 10 * case + i)) for i, (t, h, w) in enumerate(of_kind)]
                for kind, of_kind in grids.items()
            }
            made[case_name] = (ids, grids, pixels)
        for draw in range(50):  # no greedy choice may hang on a near tie, and texts must not be one loop
            model = build_more(spec, 300 + 50 * m + draw)
            texts = {case: greedy(model, inputs(*made[case])) for case in made}
            if min(margin for _, margin in texts.values()) > 3e-4 and all(len(set(text.tolist())) >= 12 for text, _ in texts.values()):
                break
        else:
            raise RuntimeError("no draw without a near tie or a text that repeats itself")
        gold = {}
        for case, (ids, grids, pixels) in made.items():
            completion = text(5, torch.Generator().manual_seed(70)) + [EOS[0]]
            model.model.rope_deltas = None
            out = model(**inputs(ids + completion, grids, pixels), use_cache=False)
            logits = out.logits[0]
            logprobs = logits[len(ids) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
            weights = torch.randn(len(completion), generator=torch.Generator().manual_seed(71))
            (weights * logprobs).sum().backward()
            features = [model.model.visual(p, grid_thw=torch.tensor([grid])).pooler_output
                        for kind in ("image", "video") for grid, p in zip(grids[kind], pixels[kind])]
            gold |= {
                f"{case}.ids": torch.tensor(ids, dtype=torch.int32), f"{case}.completion0": torch.tensor(completion, dtype=torch.int32),
                f"{case}.positions": positions_of(model, ids, grids).to(torch.int32).contiguous(), f"{case}.weights0": weights,
                f"{case}.logits0": logits.detach().clone(), f"{case}.logprobs0": logprobs.detach().clone(), f"{case}.greedy": texts[case][0].to(torch.int32),
            }
            if features:
                gold[f"{case}.features"] = torch.cat(features).detach().clone()
            for kind in ("image", "video"):
                for i, (grid, p) in enumerate(zip(grids[kind], pixels[kind])):
                    gold[f"{case}.{kind}{i}.grid"] = torch.tensor(grid, dtype=torch.int32)
                    gold[f"{case}.{kind}{i}.pixels"] = p
        gradients = {}
        for p_name, p in model.named_parameters():
            g = p.grad.double().flatten()
            gradients[p_name] = [float(g.norm()), float((g * torch.cos(0.7 * torch.arange(len(g), dtype=torch.float64))).sum())]
        model.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in gold.items()}, folder / "goldens.safetensors")
        (folder / "gradients.json").write_text(json.dumps(gradients) + "\n")
        print(name, "draw", draw, "least margin", min(margin for _, margin in texts.values()), "distinct", [len(set(t.tolist())) for t, _ in texts.values()])


# ---------------------------------------------------------------- the released shapes


def pattern(tensors):
    """Names with layer numbers replaced by *, each with its shape and how often it occurs."""
    import re

    out = {}
    for name, shape in tensors:
        key = re.sub(r"\.\d+\.", ".*.", name, count=1) if re.search(r"(layers|blocks)\.\d+\.", name) else name
        entry = out.setdefault(key, dict(shape=list(shape), count=0))
        assert entry["shape"] == list(shape)
        entry["count"] += 1
    return out


def released_shapes():
    folder = OUT.parent / "qwen2vl-shapes"
    out = {}
    for name in ("2b", "7b", "72b"):
        config = AutoConfig.for_model(**json.loads((folder / f"{name}.json").read_text()))
        with torch.device("meta"):
            model = Qwen2VLForConditionalGeneration(config)
        stored = {n: tuple(p.shape) for n, p in model.named_parameters()}  # a tied head is named once
        out[name] = dict(parameters=model.num_parameters(), tensors=pattern(stored.items()))
    (folder / "names.json").write_text(json.dumps(out, indent=1) + "\n")
    print({name: entry["parameters"] for name, entry in out.items()})


main()
more_shapes()
released_shapes()
