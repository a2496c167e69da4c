"""The exported classifier beside this file; it needs torch and open_clip alone.

``model, preprocess, classes = load()``; ``model(preprocess(image)[None])`` are the scores of a PIL
image in the order of ``classes``. ``arch`` or ``weights`` name the CLIP if it has moved.
"""

import hashlib
import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize


def load(folder=Path(__file__).parent, *, arch=None, weights=None, device="cpu"):
    """The model, its preprocessing and its classes."""
    info = json.loads((Path(folder) / "export.json").read_text("utf-8"))
    for name, tensor in load_file(Path(folder) / "classifier.safetensors", device=device).items():
        kind, number, part = name.split(".")
        info[kind][int(number)][part] = tensor
    wanted = info["backbone"]
    arch, weights = arch or wanted["arch"], weights or wanted["weights"]
    clip = open_clip.create_model(arch, weights, device=device).eval().requires_grad_(False)
    digest = hashlib.sha256()
    for name, x in sorted(clip.state_dict().items()):
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode() + x.cpu().numpy().tobytes())
    if digest.hexdigest() != wanted["sha256"]:
        raise ValueError(f"these are not the weights of {wanted['arch']} that the run used")
    transform = open_clip.image_transform(is_train=False, **info["preprocessing"])

    def model(pixel):
        frozen, prompts = _encode(clip.visual, pixel, {}), {}
        for group in info["prompts"]:
            for block, prompt in enumerate(_mix(group, frozen[0]), group["first_block"]):
                prompts[group["place"], block] = prompt
        pooled, joint, _ = _encode(clip.visual, pixel, prompts) if prompts else frozen
        names = "frozen_pooled", "frozen_joint", "frozen_penultimate", "pooled", "embedding"
        vectors = dict(zip(names, (*frozen, pooled, normalize(joint)), strict=True))
        return sum(_score(head, vectors) for head in info["heads"])

    return model, lambda image: transform(image.convert("RGB")), info["classes"]


def _encode(visual, pixel, prompts):
    token, length = visual._embeds(pixel), 0
    for layer, block in enumerate(visual.transformer.resblocks):
        if ("tokens", layer) in prompts:  # behind CLS, in place of those of the block before
            prompt, image = prompts["tokens", layer], token[:, 1 + length :]
            token, length = torch.cat([token[:, :1], prompt, image], 1), prompt.shape[1]
        below = token
        if ("prefix", layer) in prompts:  # half of it extends the attention's keys, half its values
            x = block.ln_1(token)
            key, value = (torch.cat([p, x], 1) for p in prompts["prefix", layer].chunk(2, 1))
            token = token + block.ls_1(block.attention(x, key, value))
            token = token + block.ls_2(block.mlp(block.ln_2(token)))
        else:
            token = block(token)
    pooled = visual._pool(torch.cat([token[:, :1], token[:, 1 + length :]], 1))[0]
    return pooled, pooled if visual.proj is None else pooled @ visual.proj, visual._pool(below)[0]


def _mix(group, query):
    components, keys = group["components"], normalize(group["keys"])
    if group["choice"] == "nearest":
        nearest = (normalize(query) @ keys.T).topk(group["n_nearest"]).indices
        return components[:, nearest].flatten(2, 3)
    weight = (normalize(query[:, None] * group["attention"], dim=-1) * keys).sum(-1)
    return torch.einsum("bm,dmlv->dblv", weight, components)


def _score(head, vectors):
    parts = [[vectors[name].to(head["weight"].dtype) for name in part] for part in head["vectors"]]
    x = torch.cat([normalize(torch.cat(part, 1)) for part in parts], 1)
    x = (x @ head["projection"]).relu() if "projection" in head else x
    return head["coefficient"] * (head["scale"] * x @ head["weight"].T + head["bias"]).double()
