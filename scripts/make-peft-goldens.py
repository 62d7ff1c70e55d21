"""Writes test/fixtures/peft: adapters of the tiny Qwen2-VL of test/fixtures/qwen2vl, made by Hugging Face's PEFT, and what it computes with them.

Run:  python3 scripts/make-peft-goldens.py        (needs torch, transformers, peft and safetensors; versions go to versions.json)

<name>/adapter_config.json, adapter_model.safetensors   as PeftModel.save_pretrained writes them
<name>/rewritten_config.json  the adapter_config.json that scripts/rewrite-adapter.ts writes of it
<name>/goldens.safetensors   per-token log-probabilities of the fixture's case "group": `logprobs<i>` with the adapter beside the model; of the adapter
                             that it writes, read by PEFT, `rewritten<i>`; `merged<i>` after PEFT's merge_and_unload
"""

import json
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "test" / "fixtures" / "qwen2vl"
OUT = ROOT / "test" / "fixtures" / "peft"
MERGE = 2
IMAGE, VIDEO = 90, 91

LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "language": dict(r=3, lora_alpha=5, lora_dropout=0.1, target_modules=LANGUAGE),
    "attention": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "all-rslora": dict(
        r=2, lora_alpha=3, use_rslora=True,
        target_modules=r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))|.*\.layers\.\d+\.(self_attn|mlp)\.(" + "|".join(LANGUAGE) + ")",
    ),
}

torch.manual_seed(4)
torch.set_num_threads(1)


def base():
    return Qwen2VLForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()


def logprobs(model, gold):
    prompt = gold["group.ids"].tolist()
    found = []
    for i in range(2):
        completion = gold[f"group.completion{i}"].long()
        ids = torch.tensor([prompt + completion.tolist()])
        batch = dict(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int() + 2 * (ids == VIDEO).int())
        for kind, key, grid_key in (("image", "pixel_values", "image_grid_thw"), ("video", "pixel_values_videos", "video_grid_thw")):
            batch[key] = gold[f"group.{kind}0.pixels"]
            batch[grid_key] = gold[f"group.{kind}0.grid"][None].long()
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[0]
        found.append(logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, completion[:, None])[:, 0].clone())
    return found


def main():
    gold = load_file(MODEL / "goldens.safetensors")
    for i, expected in enumerate(logprobs(base(), gold)):
        assert torch.allclose(expected, gold[f"group.logprobs{i}"], atol=1e-5)
    for name, knobs in CASES.items():
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **knobs)).eval()
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                if "lora_B" in key:
                    tensor.copy_(0.5 * torch.randn_like(tensor))
        model.base_model.peft_config["default"].base_model_name_or_path = "qwen2vl"
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        found = {f"logprobs{i}": x for i, x in enumerate(logprobs(model, gold))}
        found |= {f"merged{i}": x for i, x in enumerate(logprobs(model.merge_and_unload(), gold))}
        with tempfile.TemporaryDirectory() as rewritten:
            subprocess.run(["npx", "tsx", "scripts/rewrite-adapter.ts", MODEL, folder, rewritten], cwd=ROOT, check=True)
            shutil.copy(Path(rewritten) / "adapter_config.json", folder / "rewritten_config.json")
            again = PeftModel.from_pretrained(base(), rewritten).eval()
            assert all("lora_" in key or not p.requires_grad for key, p in again.named_parameters())
            found |= {f"rewritten{i}": x for i, x in enumerate(logprobs(again, gold))}
        save_file(found, folder / "goldens.safetensors")
        print(name, {k: float((v - found[f"logprobs{k[-1]}"]).abs().max()) for k, v in found.items()},
              float((found["logprobs0"] - gold["group.logprobs0"]).abs().max()))
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


main()
