"""Makes the starter: a tiny Llama and its tokenizer, trained from nothing on text of our own generators.

    python3 scripts/make_starter.py --out FOLDER --steps 20000 --device cuda     # four minutes on one H200
    python3 scripts/make_starter.py --out FOLDER --trial                         # LoRA on the cancer reports

Worker processes write the text while the model learns; shard n is the same on every machine, so is the order.
The weights are those of transformers' LlamaForCausalLM, written as bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import starter_text  # noqa: E402
import starter_tokenizer  # noqa: E402

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a worker
HELD_OUT = 1_000_000  # number of the shard that is never trained on
POSITIONS = 4096
_writer: starter_text.Writer


class Llama(nn.Module):
    """The forward pass of transformers' LlamaForCausalLM over one packed stream, with its parameter names."""

    def __init__(self, layers: int, hidden: int, ffn: int, heads: int, kv: int, vocabulary: int) -> None:
        super().__init__()
        self.layers, self.hidden, self.ffn, self.heads, self.kv = layers, hidden, ffn, heads, kv
        self.vocabulary, self.head = vocabulary, hidden // heads
        shapes = {
            "self_attn.q_proj": (heads * self.head, hidden), "self_attn.k_proj": (kv * self.head, hidden),
            "self_attn.v_proj": (kv * self.head, hidden), "self_attn.o_proj": (hidden, heads * self.head),
            "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
        }  # fmt: skip
        self.weights = nn.ParameterDict()
        self._add("embed_tokens", torch.randn(vocabulary, hidden) * 0.02)
        for layer in range(layers):
            for name, (rows, columns) in shapes.items():
                deep = (2 * layers) ** -0.5 if name in ("self_attn.o_proj", "mlp.down_proj") else 1.0
                self._add(f"layers.{layer}.{name}", torch.randn(rows, columns) * columns**-0.5 * deep)
            for name in ("input_layernorm", "post_attention_layernorm"):
                self._add(f"layers.{layer}.{name}", torch.ones(hidden))
        self._add("norm", torch.ones(hidden))

    def _add(self, name: str, value: Tensor) -> None:
        self.weights[name.replace(".", "/")] = nn.Parameter(value)

    def w(self, name: str) -> Tensor:
        found: Tensor = self.weights[name.replace(".", "/")]
        return found

    def state(self) -> dict[str, Tensor]:
        return {
            f"model.{n.replace('/', '.')}.weight": p.detach().to("cpu", torch.bfloat16).contiguous()
            for n, p in self.weights.items()
        }

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.ffn, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv, "head_dim": self.head, "vocab_size": self.vocabulary,
            "max_position_embeddings": POSITIONS, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "hidden_act": "silu",
            "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
            "initializer_range": 0.02, "use_cache": True, "dtype": "bfloat16",
        }  # fmt: skip

    def forward(self, ids: Tensor, positions: Tensor, cu_seqlens: Tensor, predict: Tensor) -> Tensor:
        """Logits [K, V] at the stream places `predict` [K]; ids and positions are [T]."""
        x = F.embedding(ids, self.w("embed_tokens"))
        rates = 10000.0 ** (
            -torch.arange(0, self.head, 2, device=ids.device, dtype=torch.float32) / self.head
        )
        angle = positions.float()[:, None] * rates
        cos, sin = (f(torch.cat([angle, angle], -1))[:, None] for f in (torch.cos, torch.sin))
        for i in range(self.layers):
            x = x + self._attention(self._norm(x, f"layers.{i}.input_layernorm"), i, cos, sin, cu_seqlens)
            h = self._norm(x, f"layers.{i}.post_attention_layernorm")
            up = F.silu(F.linear(h, self.w(f"layers.{i}.mlp.gate_proj"))) * F.linear(
                h, self.w(f"layers.{i}.mlp.up_proj")
            )
            x = x + F.linear(up, self.w(f"layers.{i}.mlp.down_proj"))
        return F.linear(self._norm(x[predict], "norm"), self.w("embed_tokens"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.float()
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * self.w(name)

    def _attention(self, h: Tensor, i: int, cos: Tensor, sin: Tensor, cu_seqlens: Tensor) -> Tensor:
        def turn(x: Tensor) -> Tensor:
            half = self.head // 2
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        q, k, v = (
            F.linear(h, self.w(f"layers.{i}.self_attn.{n}_proj")).unflatten(-1, (-1, self.head))
            for n in "qkv"
        )
        q, k = turn(q), turn(k)
        return F.linear(attend(q, k, v, cu_seqlens).flatten(1), self.w(f"layers.{i}.self_attn.o_proj"))


def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Causal attention within documents; q [T, H, D], k and v [T, K, D]."""
    if q.is_cuda:
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
        longest = starter_text.LONGEST
        out: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, cu_seqlens, cu_seqlens, longest, longest, 0.0, True, False
        )[0]
        return out
    place = torch.arange(q.shape[0])
    document = torch.bucketize(place, cu_seqlens, right=True)
    seen = (document[:, None] == document) & (place[:, None] >= place)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)


def _start_worker(folder: str) -> None:
    global _writer
    from tokenizers import Tokenizer

    _writer = starter_text.Writer(Tokenizer.from_file(f"{folder}/tokenizer.json"))


def _write(job: tuple[int, int]) -> dict[str, Any]:
    return _writer.shard(*job)


def batches(shards: Iterator[dict[str, Any]], tokens: int, documents: int) -> Iterator[dict[str, Any]]:
    """Streams of `tokens` ids: whole rows one after another, the rest filled with documents that aren't learned.

    Every fifth row has a gap in its positions, so that distances up to the last position are met in short rows.
    """
    rng = np.random.default_rng(0)
    for shard in shards:
        ids, offsets, starts = shard["ids"], shard["offsets"], shard["starts"]
        first = 0
        while True:
            last = int(np.searchsorted(offsets, offsets[first] + tokens, "right")) - 1
            last = min(last, first + documents - 1)
            if last >= len(offsets) - 1:
                break  # the shard's last rows, less than a stream, are left out
            lengths = np.diff(offsets[first : last + 1])
            used = int(lengths.sum())
            stream = np.zeros(tokens, np.int64)
            stream[:used] = ids[offsets[first] : offsets[last]]
            begins = offsets[first:last] - offsets[first]
            place = np.arange(used) - np.repeat(begins, lengths)
            learned = np.zeros(tokens, bool)
            learned[:used] = place >= np.repeat(starts[first:last], lengths)
            jump = np.where(
                rng.random(len(lengths)) < 0.2,
                rng.integers(0, POSITIONS - starter_text.LONGEST, len(lengths)),
                0,
            )
            at = (rng.random(len(lengths)) * starts[first:last]).astype(np.int64)
            positions = np.zeros(tokens, np.int64)
            positions[:used] = place + np.where(place > np.repeat(at, lengths), np.repeat(jump, lengths), 0)
            # the filling: documents of at most LONGEST tokens, as the attention kernel is told
            cuts = [*begins, *range(used, tokens, starter_text.LONGEST)]
            cu_seqlens = np.full(documents + tokens // starter_text.LONGEST + 2, tokens, np.int32)
            cu_seqlens[: len(cuts)] = cuts
            targets = np.nonzero(learned)[0]
            room = tokens // 2
            predict = np.zeros(room, np.int64)
            wanted = np.full(room, -100, np.int64)
            targets = targets[:room]
            predict[: len(targets)] = targets - 1
            wanted[: len(targets)] = stream[targets]
            yield {
                "ids": stream, "positions": positions, "cu_seqlens": cu_seqlens, "predict": predict,
                "wanted": wanted, "used": used, "copies": shard["copies"] if first == 0 else None,
            }  # fmt: skip
            first = last


def on_device(batch: dict[str, Any], device: str) -> dict[str, Tensor]:
    return {
        k: torch.from_numpy(batch[k]).to(device, non_blocking=True)
        for k in ("ids", "positions", "cu_seqlens", "predict", "wanted")
    }


def save(model: Llama, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(model.state(), folder / "model.safetensors", metadata={"format": "pt"})
    eos, text_end, pad, bos = (
        starter_tokenizer.SIZE - len(starter_tokenizer.SPECIAL) + starter_tokenizer.SPECIAL.index(f"<|{n}|>")
        for n in ("eot_id", "end_of_text", "finetune_right_pad_id", "begin_of_text")
    )
    generation = {
        "bos_token_id": bos,
        "eos_token_id": [eos, text_end],
        "pad_token_id": pad,
        "do_sample": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
    config = model.config() | {"bos_token_id": bos, "eos_token_id": [eos, text_end], "pad_token_id": pad}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


@torch.no_grad()
def held_out(model: Any, streams: list[dict[str, Any]], device: str) -> tuple[float, float]:
    """Loss per learned token, and the share of rows whose every learned token is the likeliest."""
    loss = right = rows = count = 0.0
    for batch in streams:
        on = on_device(batch, device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(on["ids"], on["positions"], on["cu_seqlens"], on["predict"]).float()
        use = on["wanted"] >= 0
        loss += float(F.cross_entropy(logits, on["wanted"], ignore_index=-100, reduction="sum"))
        count += float(use.sum())
        wrong = (logits.argmax(-1) != on["wanted"]) & use
        row = torch.bucketize(on["predict"], on["cu_seqlens"], right=True)
        learned_rows = row[use].unique()
        rows += len(learned_rows)
        right += len(learned_rows) - len(row[wrong].unique())
    return loss / count, right / rows


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = starter_tokenizer.build()
    starter_tokenizer.save(tokenizer, args.out, POSITIONS)
    model = Llama(args.layers, 256, args.ffn, 4, 2, starter_tokenizer.SIZE)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    model.to(args.device)
    matrices = [p for n, p in model.weights.items() if p.ndim == 2 and n != "embed_tokens"]
    others = [p for n, p in model.weights.items() if p.ndim == 1 or n == "embed_tokens"]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.98), eps=1e-8, fused=args.device == "cuda",
    )  # fmt: skip

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 400) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps)))

    def loss_of(on: dict[str, Tensor]) -> Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            logits = model(on["ids"], on["positions"], on["cu_seqlens"], on["predict"])
        return F.cross_entropy(logits.float(), on["wanted"], ignore_index=-100)

    run = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    documents = args.tokens // 128
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, _start_worker, (str(args.out),)) as pool:
        jobs = ((n, args.shard) for n in range(HELD_OUT))
        test = list(batches(iter([pool.apply(_write, ((HELD_OUT, args.shard),))]), args.tokens, documents))[
            :4
        ]
        results: list[Any] = []

        def shards() -> Iterator[dict[str, Any]]:
            while True:  # a few shards ahead of the model, no more
                while len(results) < 2 * args.workers:
                    results.append(pool.apply_async(_write, (next(jobs),)))
                yield results.pop(0).get()

        copies = np.zeros(starter_tokenizer.SIZE, np.int64)
        begun = time.perf_counter()
        seen, waited, total = 0, 0.0, torch.zeros((), device=args.device)
        stream = batches(shards(), args.tokens, documents)
        for step in range(args.steps):
            asked = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - asked
            seen += batch["used"]
            copies += 0 if batch["copies"] is None else batch["copies"]
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate(step)
            loss = run(on_device(batch, args.device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            if (step + 1) % args.log == 0:
                mean = float(total) / args.log
                if not math.isfinite(mean):
                    raise SystemExit(f"loss is {mean} at step {step + 1}")
                took = time.perf_counter() - begun
                print(f"step {step + 1} loss {mean:.4f} {seen / took / 1e6:.2f} M tokens/s {took:.0f} s "
                      f"waited {waited:.0f} s", flush=True)  # fmt: skip
                total.zero_()
            if (step + 1) % (args.log * 5) == 0 or step + 1 == args.steps:
                save(model, args.out)
                loss_out, exact = held_out(model, test, args.device)
                print(f"  held out: loss {loss_out:.4f}, whole rows right {exact:.3f}", flush=True)
    kept = copies[: -len(starter_tokenizer.SPECIAL)]
    print(
        f"copied values: each token at least {kept.min():,} times, median {int(np.median(kept)):,}",
        flush=True,
    )
    if args.device == "cuda" and kept.min() < 100:
        raise SystemExit("a token of the vocabulary was hardly ever copied")
    facts = {
        "steps": args.steps, "tokens": seen, "tokens_a_step": args.tokens, "learning_rate": args.lr,
        "seed": args.seed, "held_out_loss": loss_out, "held_out_rows_right": exact,
        "fewest_copies_of_a_token": int(kept.min()),
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--tokens", type=int, default=65536, help="tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument("--workers", type=int, default=max(1, multiprocessing.cpu_count() - 2))
    parser.add_argument("--shard", type=int, default=16384, help="rows a shard")
    parser.add_argument("--log", type=int, default=200)
    parser.add_argument(
        "--trial", action="store_true", help="tune the model in --out on the cancer reports, and score"
    )
    parser.add_argument("--trial-steps", type=int, default=300)
    parser.add_argument("--trial-batch", type=int, default=8)
    parser.add_argument("--trial-lr", type=float, default=2e-3)
    parser.add_argument("--trial-rank", type=int, default=16)
    args = parser.parse_args()
    if args.trial:
        import starter_trial

        starter_trial.trial(
            args.out,
            args.trial_steps,
            args.trial_batch,
            args.trial_lr,
            args.trial_rank,
            args.seed,
            args.device,
        )
    else:
        train(args)


if __name__ == "__main__":
    main()
