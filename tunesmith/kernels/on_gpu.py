"""Triton's set of kernels. Importing it needs triton."""

from __future__ import annotations

from tunesmith.kernels.cross_entropy import cross_entropy
from tunesmith.kernels.decode_attention import decode_attention
from tunesmith.kernels.fp8 import quantise_rows
from tunesmith.kernels.kernel_set import Kernels
from tunesmith.kernels.lora import lora_down, lora_outer, lora_up
from tunesmith.kernels.nf4 import nf4_image
from tunesmith.kernels.norm import norm, norm_backward
from tunesmith.kernels.rotary import rotate, rotate_backward
from tunesmith.kernels.slot_write import slot_write
from tunesmith.kernels.swiglu import swiglu, swiglu_backward

TRITON = Kernels(
    norm=norm,
    norm_backward=norm_backward,
    swiglu=swiglu,
    swiglu_backward=swiglu_backward,
    rotate=rotate,
    rotate_backward=rotate_backward,
    cross_entropy=cross_entropy,
    lora_down=lora_down,
    lora_up=lora_up,
    lora_outer=lora_outer,
    quantise_rows=quantise_rows,
    slot_write=slot_write,
    nf4_image=nf4_image,
    decode_attention=decode_attention,
)
