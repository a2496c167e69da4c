"""A sequence of tasks as public CODA-Prompt code learns it, beside the same sequence here.

    python -m tests.benchmarks.coda_prompt configs/miniclip_tinar.yaml tasks.limit=3

The reference does the work of github.com/GT-RIPL/CODA-Prompt (arXiv 2211.13218) on the same tower,
images, batch, epochs and prompt sizes: each image is decoded in every epoch, every step encodes its
queries with the frozen tower, prompts are keys and values in front of those of the first five
blocks, and each test encodes all images seen twice. Images come from memory. Ours is the complete
command, its start included, without any cache of an earlier run. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pipeline.config import Config, load_config
from pipeline.data.decoding import decode_sample
from pipeline.data.index import Selection
from pipeline.data.reader import ShardReader
from pipeline.data.transforms import build_transform
from pipeline.model.backbone import FrozenClip
from pipeline.model.weights import load_clip
from pipeline.training.checked_run import Run, check_run

_CPU = torch.device("cpu")
_LAYERS = 5  # blocks with prompts
_COMPONENTS, _LENGTH = 10, 8  # of each task, and tokens of each component, as here by default
_OURS = {  # settings of this pipeline
    "tppt_v": ("method.name=tppt_v",),
    "tppt_v, prompts in the upper third": (
        "method.name=tppt_v",
        "method.options.tppt_v.visual_prompts.first_layer=4",
    ),
    "tppt_ridge": ("method.name=tppt_ridge",),
}


class CodaPrompt(nn.Module):
    """Prompts, keys and attention of all tasks, allocated at once, and a linear head."""

    def __init__(self, clip: FrozenClip, n_classes: int, n_tasks: int, per_task: int, length: int):
        super().__init__()
        width, components = clip.vision_width, n_tasks * per_task
        self._frozen = (clip.clip.visual,)  # in a tuple: its tensors are none of this module
        self._normalise = clip.normalise
        self._per_task = per_task
        self.prompts, self.keys, self.attention = (
            nn.ParameterList(nn.Parameter(torch.empty(shape)) for _ in range(_LAYERS))
            for shape in ((components, length * width), (components, width), (components, width))
        )
        for parameter in self.parameters():
            nn.init.orthogonal_(parameter)
        self.head = nn.Linear(width, n_classes)
        self._shape = (components, length, width)

    def forward(self, image_BCHW: Tensor, task: int, *, learns: bool) -> Tensor:
        """``logits_BC`` over all classes of the run."""
        with torch.no_grad():
            query_BV = self._encode(image_BCHW, None, task, learns)
        return self.head(self._encode(image_BCHW, query_BV, task, learns))

    def _encode(
        self, image_BCHW: Tensor, query_BV: Tensor | None, task: int, learns: bool
    ) -> Tensor:
        visual: Any = self._frozen[0]
        token_BSV = visual._embeds(self._normalise(image_BCHW))
        for layer, block in enumerate(visual.transformer.resblocks):
            prefix = None
            if query_BV is not None and layer < _LAYERS:
                prefix = self._prefix(layer, query_BV, task, learns).chunk(2, dim=1)
            token_BSV = token_BSV + _attend(block, block.ln_1(token_BSV), prefix)
            token_BSV = token_BSV + block.mlp(block.ln_2(token_BSV))
        pooled_BV: Tensor = visual._pool(token_BSV)[0]
        return pooled_BV

    def _prefix(self, layer: int, query_BV: Tensor, task: int, learns: bool) -> Tensor:
        """The keys and values of each image, ``prompt_BLV``, from the components up to ``task``."""
        first, last = task * self._per_task, (task + 1) * self._per_task
        prompt_MLV = self.prompts[layer].view(self._shape)[:last]
        key_MV, attention_MV = self.keys[layer][:last], self.attention[layer][:last]
        if learns and first:
            prompt_MLV, key_MV, attention_MV = (
                torch.cat([tensor[:first].detach().clone(), tensor[first:]])
                for tensor in (prompt_MLV, key_MV, attention_MV)
            )
        attended_BMV = F.normalize(torch.einsum("bv,mv->bmv", query_BV, attention_MV), dim=2)
        weight_BM = torch.einsum("bmv,mv->bm", attended_BMV, F.normalize(key_MV, dim=1))
        return torch.einsum("bm,mlv->blv", weight_BM, prompt_MLV)


def _attend(block: Any, normed_BSV: Tensor, prefix: Sequence[Tensor] | None) -> Tensor:
    """The attention of a block with further keys and values behind its projections."""
    attention = block.attn
    heads = attention.num_heads
    query_BSV, key_BSV, value_BSV = F.linear(
        normed_BSV, attention.in_proj_weight, attention.in_proj_bias
    ).chunk(3, dim=-1)
    if prefix is not None:
        key_BSV = torch.cat([prefix[0], key_BSV], dim=1)
        value_BSV = torch.cat([prefix[1], value_BSV], dim=1)
    query, key, value = (
        each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query_BSV, key_BSV, value_BSV)
    )
    score = (query @ key.transpose(-2, -1)) * key.shape[-1] ** -0.5
    return attention.out_proj((score.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class _Images:
    """The encoded images of a selection, decoded and transformed whenever they are read."""

    def __init__(self, run: Run, selection: Selection, size: int) -> None:
        self._samples = selection.take(np.arange(len(selection)))
        self._records = ShardReader(run.index).read(self._samples)
        self._transform = build_transform(run.config.data.eval_transform, size)
        self._class_of_label = run.data.class_of_label()

    def batches(self, size: int, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and class numbers, in ``order``."""
        for rows in order.split(size):
            images = [self._transform(self._decode(row), None) for row in rows.tolist()]
            labels = torch.from_numpy(self._samples.label_S[rows.numpy()])
            yield torch.stack(images), self._class_of_label[labels]

    def _decode(self, row: int) -> Image.Image:
        label = int(self._samples.label_S[row])
        return decode_sample(self._records[row], key=self._samples.keys[row], label=label)

    def __len__(self) -> int:
        return len(self._records)


def learn_as_public_code_does(config: Config) -> dict[str, Any]:
    """The accuracies after each task and the processor seconds of the loop."""
    run, clip = (
        check_run(config, 1),
        load_clip(config.model.arch, config.model.weights, device=_CPU),
    )
    size, tasks = clip.image_size, run.tasks
    train = [_Images(run, run.data.train(task), size) for task in tasks]
    test = [_Images(run, run.data.test(task), size) for task in tasks]
    torch.manual_seed(config.seed)
    model = CodaPrompt(clip, tasks[-1].last, len(tasks), _COMPONENTS, _LENGTH)
    batch, epochs = config.data.global_batch, config.optim.epochs
    started, accuracies, test_s = time.process_time(), [], 0.0
    for number, task in enumerate(tasks):
        optimizer = torch.optim.Adam(model.parameters(), lr=config.optim.learning_rate)
        for _ in range(epochs):
            for image_BCHW, label_B in train[number].batches(
                batch, torch.randperm(len(train[number]))
            ):
                logits_BC = model(image_BCHW, number, learns=True)[:, : task.last]
                logits_BC[:, : task.first] = -torch.inf
                optimizer.zero_grad()
                F.cross_entropy(logits_BC, label_B).backward()
                optimizer.step()
        before = time.process_time()
        accuracies.append(_accuracy(model, test[: number + 1], number, task.last, batch))
        test_s += time.process_time() - before
    seconds = time.process_time() - started
    return {"accuracies": accuracies, "seconds": seconds, "of them tests": test_s}


@torch.no_grad()
def _accuracy(
    model: CodaPrompt, tests: Sequence[_Images], task: int, n_classes: int, batch: int
) -> float:
    """The share of right answers over all images."""
    correct = 0
    for images in tests:
        for image_BCHW, label_B in images.batches(batch, torch.arange(len(images))):
            logits_BC = model(image_BCHW, task, learns=False)[:, :n_classes]
            correct += int((logits_BC.argmax(dim=1) == label_B).sum())
    return correct / sum(map(len, tests))


def learn_here(file: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The accuracies after each task and the processor seconds of the complete command."""
    with tempfile.TemporaryDirectory() as name:
        settings = [f"output={name}/run", f"data.feature_cache={name}/features"]
        command = [sys.executable, "-m", "pipeline.train", "--config", file, *overrides, *settings]
        before = os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
        results = json.loads(Path(name, "run", "results.json").read_text())
    seconds = sum(after[2:4]) - sum(before[2:4])
    return {"accuracies": results["stage_accuracy"]["micro"], "seconds": seconds}


def main() -> None:
    """Learn the sequence in both ways and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    print("reference", json.dumps(learn_as_public_code_does(config)), flush=True)
    for name, settings in _OURS.items():
        found = learn_here(options.config, [*options.overrides, *settings])
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
