"""How each thing that export makes is used: lines that can be pasted."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.export.card.facts import Facts
from tunesmith.export.gguf.architecture import read_architecture

_QUESTION = "…"


def usage(facts: Facts, kind: str, files: Sequence[str]) -> str:
    """Markdown. `kind`: adapter, merged, gguf or quantized; `files`: the names of what lies in the folder."""
    if kind == "adapter":
        return _adapter(facts)
    if kind == "gguf":
        return _gguf(facts, files)
    return _transformers(facts, kind)


def _turns(facts: Facts) -> str:
    system = facts.contract.system
    first = f'{{"role": "system", "content": {system!r}}}, ' if system else ""
    return f'[{first}{{"role": "user", "content": "{_QUESTION}"}}]'


def _generate(facts: Facts) -> str:
    decoding = facts.recipe.evaluate.decoding
    how = "do_sample=False"
    if decoding.temperature:
        how = f"do_sample=True, temperature={decoding.temperature}, top_p={decoding.top_p}, top_k=0"
    stops = sorted(facts.contract.stop_ids)
    return (
        f"messages = {_turns(facts)}\n"
        "ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, "
        'return_tensors="pt")\n'
        f"out = model.generate(**ids.to(model.device), max_new_tokens={facts.max_tokens}, {how},\n"
        f"                     eos_token_id={stops}, pad_token_id={facts.contract.pad_id})\n"
        'print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))'
    )


def _transformers(facts: Facts, kind: str) -> str:
    dtype = "" if kind == "quantized" else ', dtype="auto"'
    served = (
        f"vLLM: `vllm serve FOLDER --max-model-len {_length(facts)}`.\n\n"
        if kind == "merged"
        else "It needs bitsandbytes.\n\n"
    )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{dtype})\n{_generate(facts)}\n```\n\n'
        f"{served}tunesmith: `tunesmith serve FOLDER`.\n"
    )


def _adapter(facts: Facts) -> str:
    base, quantize = facts.hub_base or "BASE", facts.recipe.model.quantize
    load, note = f'"{base}", dtype="{facts.recipe.model.dtype}"', ""
    if facts.base.revision:
        load += f', revision="{facts.base.revision}"'
    if quantize == "nf4":
        load += (
            ", quantization_config=BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type='nf4', "
        )
        load += f"bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype='{facts.recipe.model.dtype}')"
        note = "It was trained on its base held in NF4: on other weights it answers a little differently.\n\n"
    elif quantize == "int8":
        load += ", quantization_config=BitsAndBytesConfig(load_in_8bit=True)"
        note = (
            "It was trained on its base held in 8 bits: on other weights it answers a little differently.\n\n"
        )
    more = ", BitsAndBytesConfig" if quantize != "none" else ""
    rank = facts.recipe.tune.rank
    return (
        f"{note}```python\nfrom peft import PeftModel\n"
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{more}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({load}), "FOLDER")\n'
        f"{_generate(facts)}\n```\n\n"
        f"vLLM: `vllm serve {base} --tokenizer FOLDER --enable-lora --max-lora-rank {_vllm_rank(rank)} "
        f"--lora-modules {facts.recipe.name}=FOLDER`.\n\n"
        f"tunesmith: `tunesmith serve {base} --adapter {facts.recipe.name}=FOLDER`.\n"
    )


def _gguf(facts: Facts, files: Sequence[str]) -> str:
    """Of the model's files, the first; of the adapter's, what it is laid over."""
    name = facts.recipe.name
    models = [one for one in files if one.endswith(".gguf") and not one.endswith("-adapter.gguf")]
    file = models[0] if models else "BASE.gguf"
    lora = "" if models else f' lora_path="{name}-adapter.gguf",'
    over = "" if models else f" --lora {name}-adapter.gguf"
    decoding, length = facts.recipe.evaluate.decoding, min(_length(facts), _gguf_context(facts))
    ollama = ""
    if modelfiles := [one for one in files if one.startswith("Modelfile.")]:
        ollama = f"Ollama: `ollama create {name.lower()} -f {modelfiles[0]}`.\n\n"
    text = (
        "```python\nfrom llama_cpp import Llama\n\n"
        f'model = Llama("{file}",{lora} n_ctx={length}, verbose=False)\n'
        f"out = model.create_chat_completion({_turns(facts)}, max_tokens={facts.max_tokens},\n"
        f"                                   temperature={decoding.temperature}, top_p={decoding.top_p}, top_k=0, "
        "min_p=0.0, repeat_penalty=1.0)\n"
        'print(out["choices"][0]["message"]["content"])\n```\n\n'
        f"llama.cpp: `llama-server -m {file}{over} --jinja -c {length}`.\n\n{ollama}"
    )
    text += f"tunesmith: `tunesmith serve {file}`.\n" if models else ""
    if f"{name}-adapter.gguf" in files:
        text += (
            f"\n{name}-adapter.gguf is the adapter alone, to be laid over a GGUF file of its base: `tunesmith serve "
            f"BASE.gguf --adapter {name}={name}-adapter.gguf`; llama.cpp: `--lora`. Other programs write prompts by "
            "the template in BASE.gguf; the one of training stands in tokenizer_config.json.\n"
        )
    return text + _window(facts)


def _gguf_context(facts: Facts) -> int:
    config = {key: value for key, value in facts.base.config.items() if key != "quantization_config"}
    return read_architecture(config, facts.base.folder / "config.json").context


def _window(facts: Facts) -> str:
    """What a GGUF of a model with a sliding window can't do."""
    context = _gguf_context(facts)
    if context >= int(facts.base.config.get("max_position_embeddings", context)):
        return ""
    return (
        f"\nThe base looks back over {context:,} tokens only, which GGUF can't say for it: these files hold for a "
        f"prompt and an answer of {context:,} tokens together.\n"
    )


def _length(facts: Facts) -> int:
    """Positions that a prompt and its answer had in training, in steps of 1,024."""
    longest = max(
        (int(split["length"]["max"]) for split in facts.rows.get("splits", {}).values()), default=2048
    )
    whole = -(-(longest + facts.max_tokens) // 1024) * 1024
    return min(whole, int(facts.base.config.get("max_position_embeddings", whole)))


def _vllm_rank(rank: int) -> int:
    """vLLM takes only these."""
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)
