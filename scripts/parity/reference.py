"""The Hugging Face side of `npm run parity`: python3 reference.py versions | make FOLDER | check FOLDER

FOLDER holds job.json and one folder a shape (model/, ours.safetensors). `make` draws the weights, saves them into model/ and writes
theirs.safetensors and theirs.json: what transformers makes of the same questions and media. `check` loads export/, which Grove wrote.
"""

import json
import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution here


def import_torchvision():
    """transformers' processors want torchvision. A build whose C++ part does not fit torch is enough: only its Python part is used."""
    try:
        import torchvision  # noqa: F401

        return
    except ImportError:
        return
    except RuntimeError:
        pass
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    globals()["_torchvision_library"] = library  # its definitions live as long as it
    import torchvision  # noqa: F401


import_torchvision()

import safetensors
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen2VLForConditionalGeneration

try:
    from PIL import Image
except ImportError:
    Image = None
try:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    Qwen2VLImageProcessor(), Qwen2VLVideoProcessor()
    if Image is None:
        raise ImportError("Pillow")
    PROCESSORS = True
except Exception:  # transformers raises several kinds where torchvision or Pillow is missing
    PROCESSORS = False

MERGE, FACTOR, NEW_TOKENS = 2, 28, 64
MIN_PIXELS, MAX_PIXELS = 3136, 12845056


def versions():
    found = dict(python=sys.version.split()[0], torch=torch.__version__, transformers=transformers.__version__, safetensors=safetensors.__version__)
    found["processors"] = PROCESSORS
    found["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(json.dumps(found))


# ---------------------------------------------------------------- text, ids, positions, pixels


def original_positions(ids, grids, tokens):
    """M-RoPE positions as Qwen2-VL was released with (get_rope_index of transformers 4): what follows a medium starts at the largest position
    so far + 1, whichever axis it is on. grids: of images and videos, in order."""
    grids = {kind: iter(of_kind) for kind, of_kind in grids.items()}
    kinds = {tokens["image"]: "images", tokens["video"]: "videos"}
    runs, at = [], 0
    while at < len(ids):
        start = max((int(run.max()) for run in runs), default=-1) + 1
        kind = kinds.get(ids[at])
        if kind is None:
            runs.append(torch.full((3, 1), start))
            at += 1
            continue
        t, h, w = next(grids[kind])
        h, w = h // MERGE, w // MERGE
        axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
        runs.append(torch.stack([axis.flatten() for axis in axes]) + start)
        at += t * h * w
    return torch.cat(runs, dim=1)


def expand(text, tokenizer, grids):
    """The chat text with every placeholder repeated once per merged patch, as Qwen2VLProcessor does it, where that cannot be loaded."""
    for token, kind in (("<|image_pad|>", "images"), ("<|video_pad|>", "videos")):
        for t, h, w in grids[kind]:
            text = text.replace(token, "<|placeholder|>" * (t * h * w // MERGE**2), 1)
        text = text.replace("<|placeholder|>", token)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def resize(media, kind, size):
    """A decoded picture by PIL, frames by torchvision's antialiased bicubic (which is this operator of ATen). uint8 [frames, h, w, 3]."""
    if kind == "image":
        if Image is None:
            return None
        import numpy

        # Rows first, then columns, as Pillow up to 12 resizes in one call and the seed's Pillow did. Pillow 13 begins with the columns where
        # that is less work, which rounds at another place: up to some 20 grey levels where a picture grows in width and shrinks in height.
        picture = Image.fromarray(media[0].numpy())
        for width, height in ((size[1], picture.height), (size[1], size[0])):
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(numpy.array(picture))[None]
    frames = media.permute(0, 3, 1, 2).contiguous()
    return torch.ops.aten._upsample_bicubic2d_aa(frames, list(size), False, None, None).permute(0, 2, 3, 1)


def read_inputs(shape, folder, ours, processor_folder):
    """Per input what transformers makes of it up to the model, and how its pixels differ from ours."""
    tokenizer = AutoTokenizer.from_pretrained(processor_folder)
    tokens = dict(image=tokenizer.convert_tokens_to_ids("<|image_pad|>"), video=tokenizer.convert_tokens_to_ids("<|video_pad|>"))
    template = json.loads((processor_folder / "chat_template.json").read_text())["chat_template"]
    out = []
    for i, given in enumerate(shape["inputs"]):
        grids = dict(images=[], videos=[])
        found = dict(name=given["name"])
        media = [(kind, ours[f"{i}.media{m}.original"], ours[f"{i}.media{m}.resized"]) for m, kind in enumerate(given["media"])]
        greys, same, count = 0, 0, 0
        pixels = 0.0
        for kind, original, resized in media:
            height, width = original.shape[1:3]
            size = tuple(resized.shape[1:3])
            if PROCESSORS:
                assert size == tuple(smart_resize(height, width, FACTOR, MIN_PIXELS, MAX_PIXELS)), "smart_resize differs"
            theirs = resize(original, kind, size)
            if theirs is None:
                greys = None
            elif greys is not None:
                difference = (theirs.int() - resized.int()).abs()
                greys = max(greys, int(difference.max()))
                same += int((difference == 0).sum())
                count += difference.numel()
            key = "images" if kind == "image" else "videos"
            rows = ours[f"{i}.{key}{len(grids[key])}.pixels"]
            if PROCESSORS:
                if kind == "image":
                    patches = Qwen2VLImageProcessor()(images=[Image.fromarray(resized[0].numpy())], do_resize=False, return_tensors="pt")
                    values, grid = patches["pixel_values"], patches["image_grid_thw"][0].tolist()
                else:
                    patches = Qwen2VLVideoProcessor()(videos=[resized.permute(0, 3, 1, 2)], do_resize=False, do_sample_frames=False, return_tensors="pt")
                    values, grid = patches["pixel_values_videos"], patches["video_grid_thw"][0].tolist()
                pixels = max(pixels, float((values - rows).norm() / values.norm()) if values.shape == rows.shape else float("inf"))
            else:
                grid = [(resized.shape[0] + 1) // 2, size[0] // 14, size[1] // 14]
            grids[key].append(grid)
        found["resize"] = None if not media or greys is None else dict(largest=greys, equal=same / count)
        found["pixels"] = pixels if PROCESSORS and media else None
        found["grids"] = grids
        messages = given["messages"]
        found["text"] = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
        if PROCESSORS:
            processor = transformers.AutoProcessor.from_pretrained(processor_folder)
            images = [Image.fromarray(r[0].numpy()) for kind, _, r in media if kind == "image"]
            videos = [r.permute(0, 3, 1, 2) for kind, _, r in media if kind == "video"]
            batch = processor(
                text=[found["text"]], images=images or None, videos=videos or None, do_resize=False, do_sample_frames=False, return_tensors="pt"
            )
            found["ids"] = batch["input_ids"][0].tolist()
        else:
            found["ids"] = expand(found["text"], tokenizer, grids)
        found["positions"] = original_positions(found["ids"], grids, tokens).tolist()
        found["pixel_values"] = {
            key: torch.cat([ours[f"{i}.{key}{m}.pixels"] for m in range(len(grids[key]))]) for key in ("images", "videos") if grids[key]
        }
        out.append(found)
    return out, tokens


# ---------------------------------------------------------------- the model


def draw_weights(model, seed, quiet):
    """Large enough that attention, biases and norms all move the result. Small embeddings and sharp attention make greedy text hang on what it
    attends to instead of repeating one token; the stop tokens' rows are small, so that it runs its full length."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                centre = 0.0 if "bias" in name else 1.0
                p.copy_(centre + 0.3 * torch.randn_like(p))
            else:
                scale = 1.95 if "q_proj" in name or "k_proj" in name else 1.3
                p.copy_(torch.randn_like(p) * (0.1 if "embed_tokens" in name else scale / p[0].numel() ** 0.5))
        model.lm_head.weight[quiet] *= 0.05


def to_device(value, model):
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value


def batch_of(found, completion, tokens, model, corner):
    ids = torch.tensor([found["ids"] + completion])
    out = dict(input_ids=ids, mm_token_type_ids=(ids == tokens["image"]).int() + 2 * (ids == tokens["video"]).int())
    for kind, key, grid_key in (("images", "pixel_values", "image_grid_thw"), ("videos", "pixel_values_videos", "video_grid_thw")):
        if found["grids"][kind]:
            out[key] = found["pixel_values"][kind]
            out[grid_key] = torch.tensor(found["grids"][kind])
    if corner:  # where transformers 5 counts otherwise, the model gets the original positions
        prompt = torch.tensor(found["positions"])
        after = int(prompt.max()) + 1 + torch.arange(len(completion)).expand(3, -1)
        out["position_ids"] = torch.cat([prompt, after], dim=1)[:, None]
    return {key: to_device(value, model) for key, value in out.items()}


def features_of(model, found):
    parts = []
    for kind in ("images", "videos"):
        if found["grids"][kind]:
            out = model.model.visual(to_device(found["pixel_values"][kind], model), grid_thw=torch.tensor(found["grids"][kind], device=model.device))
            parts.append(out if torch.is_tensor(out) else out.pooler_output)
    return torch.cat(parts) if parts else None


def run_model(model, inputs, shape, ours, tokens, prefix, save):
    """Features, logits, logprobs, and gradients of sum(weights * logprobs), per input and summed over all inputs."""
    total = {}
    for i, (given, found) in enumerate(zip(shape["inputs"], inputs)):
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            features = features_of(model, found)
        if features is not None:
            save[f"{prefix}.{i}.features"] = features
        g = 0
        while f"{i}.completion{g}" in ours:
            completion = ours[f"{i}.completion{g}"].tolist()
            logits = model(**batch_of(found, completion, tokens, model, given["corner"]), use_cache=False).logits[0]
            target = torch.tensor(completion, device=logits.device)
            # softmax in float32, as trainers that care have it
            logprobs = logits[len(found["ids"]) - 1 : -1].float().log_softmax(-1).gather(-1, target[:, None])[:, 0]
            save[f"{prefix}.{i}.logits{g}"] = logits.detach()
            save[f"{prefix}.{i}.logprobs{g}"] = logprobs.detach()
            (ours[f"{i}.weights{g}"].to(logprobs.device) * logprobs).sum().backward()
            g += 1
        for name, p in model.named_parameters():
            gradient = p.grad if p.grad is not None else torch.zeros_like(p)
            if shape["gradientsPerInput"]:
                save[f"{prefix}.{i}.gradient.{name}"] = gradient.detach().clone()
            total[name] = total.get(name, 0) + gradient.detach().double()
    for name, gradient in total.items():
        save[f"{prefix}.all.gradient.{name}"] = gradient.float()
    model.zero_grad(set_to_none=True)


def greedy(model, found, given, forbidden, tokens):
    """64 greedy tokens, and the smallest distance of the best two logits over their spread."""
    if not given["corner"]:
        out = model.generate(
            **batch_of(found, [], tokens, model, False), do_sample=False, max_new_tokens=NEW_TOKENS, suppress_tokens=forbidden,
            output_scores=True, return_dict_in_generate=True,
        )
        ids, scores = out.sequences[0, len(found["ids"]) :].tolist(), torch.stack([s[0] for s in out.scores])
    else:  # step by step with the original positions, no cache
        ids, scores = [], []
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                row = model(**batch_of(found, ids, tokens, model, True), use_cache=False).logits[0, -1].clone()
            row[forbidden] = float("-inf")
            scores.append(row)
            ids.append(int(row.argmax()))
        scores = torch.stack(scores)
    finite = scores[:, torch.isfinite(scores[0])].float()
    best = finite.topk(2, dim=-1).values
    return ids, float(((best[:, 0] - best[:, 1]) / finite.std(dim=-1)).min())


def rounded(model):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())


def make(work, job):
    report = {}
    for s, shape in enumerate(job["shapes"]):
        folder = work / shape["folder"]
        ours = load_file(folder / "ours.safetensors")
        model_folder = folder / "model"
        flat = (model_folder / "config.json").read_text()
        generation = json.loads((model_folder / "generation_config.json").read_text())
        inputs, tokens = read_inputs(shape, folder, ours, model_folder)
        config = AutoConfig.from_pretrained(model_folder)
        config.dtype = None
        torch.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(config).float().eval().to(job["device"])
        quiet = [i for i in generation["eos_token_id"]]
        model.generation_config = GenerationConfig(**{k: generation[k] for k in ("eos_token_id", "pad_token_id", "bos_token_id")}, do_sample=False)
        half = job["dtype"] == "bfloat16"
        # Weights whose greedy text hangs on a near tie are drawn again: no arithmetic could be held to such a choice. So are those whose text
        # is a short loop, which would prove little.
        for draw in range(40):
            draw_weights(model, 10_000 * job["seed"] + 100 * s + draw, quiet)
            if half:
                rounded(model)
                break
            texts = [greedy(model, found, given, shape["forbidden"], tokens) for given, found in zip(shape["inputs"], inputs)]
            if all(margin > 1e-4 and len(ids) == NEW_TOKENS and len(set(ids)) >= 8 for ids, margin in texts):
                break
        else:
            raise RuntimeError("40 draws of weights had a near tie or a loop in their greedy text each")
        save = {}
        run_model(model, inputs, shape, ours, tokens, "truth", save)
        stored = model.cpu().to(torch.bfloat16 if half else torch.float32)
        stored.generation_config = GenerationConfig(**{k: v for k, v in generation.items() if k != "do_sample"}, do_sample=True)
        options = dict(max_shard_size="200KB" if job["size"] == "tiny" else "60MB") if shape["sharded"] else {}
        stored.save_pretrained(model_folder, **options)
        if shape["flatConfig"]:
            (model_folder / "config.json").write_text(flat)
        if half:  # read from the folder, as anyone does: `model.bfloat16()` would round the rotary frequencies, which stay float32
            model = Qwen2VLForConditionalGeneration.from_pretrained(model_folder, dtype=torch.bfloat16).eval().to(job["device"])
            run_model(model, inputs, shape, ours, tokens, "half", save)
        save_file({name: value.detach().float().cpu().contiguous() for name, value in save.items()}, folder / "theirs.safetensors")
        entry = dict(draw=draw, inputs=[])
        for i, (given, found) in enumerate(zip(shape["inputs"], inputs)):
            kept = {key: found[key] for key in ("text", "ids", "positions", "grids", "resize", "pixels")}
            if not given["corner"] and (found["grids"]["images"] or found["grids"]["videos"]):
                batch = {key: value.cpu() for key, value in batch_of(found, [], tokens, model, False).items() if not key.startswith("pixel")}
                kept["transformersPositions"] = model.model.get_rope_index(**batch)[0][:, 0].tolist()
            if not half:
                kept["greedy"], kept["margin"] = texts[i]
            entry["inputs"].append(kept)
        report[shape["name"]] = entry
    (work / "theirs.json").write_text(json.dumps(report))


def check(work, job):
    """Loads what Grove exported; logits of the first completion of every input again."""
    report = {}
    for shape in job["shapes"]:
        folder = work / shape["folder"]
        ours = load_file(folder / "ours.safetensors")
        theirs = load_file(folder / "theirs.safetensors")
        export = folder / "export"
        dtype = torch.bfloat16 if job["dtype"] == "bfloat16" else torch.float32
        model, info = Qwen2VLForConditionalGeneration.from_pretrained(export, dtype=dtype, output_loading_info=True)
        model = model.eval().to(job["device"])
        entry = {kind: sorted(map(str, info.get(kind, []))) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
        inputs, tokens = read_inputs(shape, folder, ours, export)
        original, _ = read_inputs(shape, folder, ours, folder / "model")
        entry["processor"] = all(a["ids"] == b["ids"] and a["text"] == b["text"] for a, b in zip(inputs, original))
        kept = GenerationConfig.from_pretrained(folder / "model").to_diff_dict()
        written = GenerationConfig.from_pretrained(export).to_diff_dict()
        entry["generation"] = {k: v for k, v in kept.items() if k != "transformers_version"} == {k: v for k, v in written.items() if k != "transformers_version"}
        entry["tied"] = model.lm_head.weight is model.get_input_embeddings().weight
        entry["logits"] = []
        for i, (given, found) in enumerate(zip(shape["inputs"], inputs)):
            completion = ours[f"{i}.completion0"].tolist()
            with torch.no_grad():
                logits = model(**batch_of(found, completion, tokens, model, given["corner"]), use_cache=False).logits[0].float().cpu()
            before = theirs[f"{'half' if job['dtype'] == 'bfloat16' else 'truth'}.{i}.logits0"]
            entry["logits"].append(float((logits - before).norm() / before.norm()))
        report[shape["name"]] = entry
    (work / "check.json").write_text(json.dumps(report))


if __name__ == "__main__":
    if sys.argv[1] == "versions":
        versions()
    else:
        work = Path(sys.argv[2])
        job = json.loads((work / "job.json").read_text())
        torch.set_num_threads(job["threads"])
        {"make": make, "check": check}[sys.argv[1]](work, job)
