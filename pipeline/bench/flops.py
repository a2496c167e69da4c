"""The floating-point operations that a step needs: twice its multiply-adds.

Frozen weights get no gradient, so a backward pass is about as long as a forward pass: linear maps
cost the same again, the two products of attention twice as much. Full fine-tuning would need three
forward passes. Norms, activations, losses and the mixing of prompts are left out: below 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.methods.base import Method


@dataclass(frozen=True)
class Tower:
    """The blocks of a transformer; all of them have the same shape."""

    layers: int
    width: int
    mlp_width: int
    output_width: int  # of the projection of the one token that is read at the end
    patch_values: int = 0  # values of a patch of pixels; 0 for text
    patches: int = 0

    def forward(self, tokens: int, *, reads_one: bool = False) -> float:
        """One image or text of ``tokens``; ``reads_one``: the last block computes one token only.

        This is exact where nothing but that token is read.
        """
        block, rest = self._linear(tokens, tokens) + self._attention(tokens, tokens), 0.0
        if reads_one:
            rest = self._linear(1, tokens) + self._attention(1, tokens) - block
        return self.layers * block + rest + self._head() + self._patches()

    def backward(self, tokens: int, *, reads_one: bool = False) -> float:
        """The gradient on the input of the first block; no weight has a gradient."""
        block, rest = self._linear(tokens, tokens) + 2 * self._attention(tokens, tokens), 0.0
        if reads_one:
            rest = self._linear(1, tokens) + 2 * self._attention(1, tokens) - block
        return self.layers * block + rest + self._head()

    def _linear(self, queries: int, keys: int) -> float:
        attention = 2 * (2 * queries + 2 * keys) * self.width**2
        return attention + 2 * queries * 2 * self.width * self.mlp_width

    def _attention(self, queries: int, keys: int) -> float:
        return 2 * 2 * queries * keys * self.width

    def _head(self) -> float:
        return 2 * self.width * self.output_width

    def _patches(self) -> float:
        return 2 * self.patches * self.patch_values * self.width


def step_flops(method: Method, *, images: int) -> float:
    """Needed for one optimizer step on ``images`` images of all ranks, in the method's task.

    The image tower is computed from the first prompted block on; what is below it is kept, as the
    frozen features are. Learned anchors are those of the task's classes at their real length.
    """
    clip = method.clip
    total = 0.0
    if method.inputs.images:
        tokens, tower = clip.image_tokens + method.n_prompt_tokens, image_tower(method)
        reads_one = clip.clip.visual.pool_type == "tok"
        total += images * tower.forward(tokens, reads_one=reads_one)
        if method.n_prompt_tokens:
            total += images * tower.backward(tokens, reads_one=reads_one)
    context = method.context_tokens(method.options)
    if context:
        names = clip.tokenize([f"{name}." for name in method.task.names])
        tokens, text = names.token_CN.shape[1] + context, text_tower(method)
        total += len(method.task.names) * (text.forward(tokens) + text.backward(tokens))
    return total


def image_tower(method: Method) -> Tower:
    """The shape of the image tower, from the first prompted block on."""
    clip, first = method.clip, method.inputs.first_layer
    visual = clip.clip.visual
    return Tower(
        layers=clip.vision_layers - first,
        width=clip.vision_width,
        mlp_width=visual.transformer.resblocks[0].mlp.c_fc.out_features,
        output_width=clip.joint_width,
        patch_values=3 * visual.conv1.kernel_size[0] ** 2,
        patches=0 if first else clip.image_tokens - 1,
    )


def text_tower(method: Method) -> Tower:
    """The shape of the text tower."""
    clip = method.clip
    owner = getattr(clip.clip, "text", clip.clip)
    block = owner.transformer.resblocks[0]
    return Tower(
        layers=clip.text_layers,
        width=int(owner.positional_embedding.shape[1]),
        mlp_width=block.mlp.c_fc.out_features,
        output_width=clip.joint_width,
    )
