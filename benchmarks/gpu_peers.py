"""TRL + Liger and Unsloth on token ids that tunesmith prepared: one process, one measurement. For `train_gpu.py`."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """recompute: `default` is the peer's own default (TRL: on; Unsloth: offloaded). memory: GiB, 0 for no cap."""

    way: str
    base: Path
    prepared: Path
    output: Path
    quantize: str
    recompute: str
    packing: bool
    dropout: float
    targets: list[str]
    rows: int
    accumulation: int
    steps: int
    warm_up: int
    memory: float


def train(settings: Settings) -> dict[str, Any]:
    """Tokens per second without padding, over `steps` steps after `warm_up`; peaks, losses."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    if settings.way == "unsloth":
        import unsloth  # noqa: F401  # wants to be first
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    if settings.memory:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(settings.memory * 2**30 / total)
    begin = time.time()
    model, tokenizer, extra = _unsloth(settings) if settings.way == "unsloth" else _trl(settings)
    loaded = time.time() - begin
    seconds: list[float] = []
    parts: list[list[Any]] = []  # of each step, summed at the end: counting must not wait for the device
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            torch.cuda.synchronize()
            parts.append([])
            self.begin = time.time()

        def on_step_end(self, *_: object, **__: object) -> None:
            torch.cuda.synchronize()
            seconds.append(time.time() - self.begin)

        def on_log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
            if logs and "loss" in logs:
                losses.append(round(float(logs["loss"]), 4))

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(settings.output),
            per_device_train_batch_size=settings.rows,
            gradient_accumulation_steps=settings.accumulation,
            max_steps=settings.warm_up + settings.steps,
            learning_rate=2e-4,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            bf16=True,
            max_length=2048,
            packing=settings.packing,
            optim="adamw_torch_fused",
            dataset_kwargs={"skip_prepare_dataset": not settings.packing},
            dataset_num_proc=1,
            **extra.pop("config"),
        ),
        train_dataset=_dataset(settings),
        processing_class=tokenizer,
        callbacks=[Clock()],
        **extra,
    )
    own_step = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        mask = inputs.get("attention_mask")
        parts[-1].append(mask.sum() if mask is not None and mask.ndim == 2 else inputs["input_ids"].numel())
        return own_step(model, inputs, *more, **named)

    trainer.training_step = counted
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    tokens = [sum(int(part) for part in step) for step in parts]
    timed = slice(settings.warm_up, settings.warm_up + settings.steps)
    each = [n / s for n, s in zip(tokens[timed], seconds[timed], strict=True)]
    name = {"trl": "TRL + Liger", "unsloth": "Unsloth"}[settings.way]
    how = "its default recompute" if settings.recompute == "default" else f"recompute {settings.recompute}"
    return {
        "way": f"{name}, {how}{', packed' if settings.packing else ''}",
        "tokens_per_second": round(sum(tokens[timed]) / sum(seconds[timed])),
        "median": round(statistics.median(each)),
        "least_most": [round(min(each)), round(max(each))],
        "peak_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "steps": len(each),
        "tokens_a_step": round(statistics.mean(tokens[timed])),
        "load_seconds": round(loaded, 1),
        "first_step_seconds": round(seconds[0], 1),
        "losses": losses[:3],
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def _dataset(settings: Settings) -> Any:
    """The prepared rows in their order, as often as the steps need them."""
    from datasets import Dataset

    from tunesmith.rows import Rows

    rows = Rows.open(settings.prepared, "train")
    count = settings.rows * settings.accumulation * (settings.warm_up + settings.steps + 1)
    count = min(len(rows), count * 10) if settings.packing else count
    lines = []
    for n in range(count):
        ids, learned = rows.ids(n % len(rows)).tolist(), rows.learned(n % len(rows)).tolist()
        lines.append(
            {"input_ids": ids, "labels": [i if on else -100 for i, on in zip(ids, learned, strict=True)]}
        )
    return Dataset.from_list(lines)


def _trl(settings: Settings) -> tuple[Any, Any, dict[str, Any]]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        settings.base,
        quantization_config=quantized if settings.quantize == "nf4" else None,
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
        device_map={"": 0},
    )
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=settings.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=settings.targets,
    )
    config: dict[str, Any] = {"use_liger_kernel": True}
    if settings.recompute != "default":
        config["gradient_checkpointing"] = settings.recompute == "full"
    return model, AutoTokenizer.from_pretrained(settings.base), {"peft_config": lora, "config": config}


def _unsloth(settings: Settings) -> tuple[Any, Any, dict[str, Any]]:
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(settings.base),
        max_seq_length=2048,
        dtype=torch.bfloat16,
        load_in_4bit=settings.quantize == "nf4",
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=settings.targets,
        use_gradient_checkpointing={"default": "unsloth", "none": False, "full": True}[settings.recompute],
        random_state=0,
    )
    return model, tokenizer, {"config": {}}
