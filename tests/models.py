"""Small models with random weights, saved as users save theirs: encoders to train, and an LLM for the real engine.

`python -m tests.models FOLDER` saves the tiny LLM, the teacher of `conf/teacher/vllm_tiny.yaml`.
"""

import re
import string
import sys
from pathlib import Path

SENTENCES = (
    "How much does it cost to repair a bike in Leeds on a weekday?",
    "what about it",
    "Which one is best for people who start gardening in March?",
    "best one near me",
    "Rules for parking a van overnight in Lisbon, 2024",
    "Is that allowed?",
)
"""Their words are tokens of the DistilBERT; everything else is spelled, as it is by the RoBERTa."""


def build_tiny(kind: str, folder: Path | str, seed: int = 0) -> Path:
    """Save an encoder of two narrow layers with random weights and its tokenizer.

    Args:
        kind: `distilbert` or `roberta`.
        folder: Where to save; created if missing.
        seed: Draws the weights.

    Returns:
        The folder.
    """
    return _build(kind, folder, seed, is_tiny=True)


def build_base(kind: str, folder: Path | str, seed: int = 0) -> Path:
    """Save one of the published size, still with random weights and the tiny one's tokenizer."""
    return _build(kind, folder, seed, is_tiny=False)


def _build(kind: str, folder: Path | str, seed: int, is_tiny: bool) -> Path:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        DistilBertConfig,
        DistilBertModel,
        DistilBertTokenizer,
        RobertaConfig,
        RobertaModel,
        RobertaTokenizer,
    )

    # Written down rather than learned: learning a vocabulary gives another one each time.
    if kind == "distilbert":
        characters = string.ascii_lowercase + string.digits + string.punctuation
        words = sorted(set(re.findall(r"\w+", " ".join(SENTENCES).lower())))
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
        tokenizer = DistilBertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})
    elif kind == "roberta":
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
        tokenizer = RobertaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    else:
        raise ValueError(f"no tiny {kind!r}; there are distilbert and roberta")
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 520}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "distilbert":
            sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2} if is_tiny else {}
            model = DistilBertModel(DistilBertConfig(**sizes, **shared))
        else:
            narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            sizes = narrow if is_tiny else {}
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            model = RobertaModel(RobertaConfig(type_vocab_size=1, **sizes, **ends, **shared))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Begins with the beginning-of-sequence token, like Llama's, so that one too many would show."""


def build_llm(folder: Path | str, layers: int = 2, width: int = 128, seed: int = 0) -> Path:
    """Save a Llama with random weights, a byte-level tokenizer of 2,000 tokens and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bos, eos = "<s>", "</s>"
    specials = [bos, eos, "<|system|>", "<|user|>", "<|assistant|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    prose = [path.read_text() for path in sorted(Path(__file__).parent.parent.glob("pipeline/**/*.py"))]
    bpe.train_from_iterator(prose, trainer)
    # Plain text gets a beginning-of-sequence token, as with Llama; a rendered chat has its own.
    bpe.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=CHAT_TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def build_lora(llm: Path, folder: Path | str, seed: int = 0) -> Path:
    """Save an adapter with random weights for the query projections of an LLM of `build_llm`, as PEFT saves one."""
    import json

    import torch
    from safetensors.torch import save_file

    config = json.loads((llm / "config.json").read_text())
    width, rank = config["hidden_size"], 8
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, width, generator=draw)
        weights[f"{name}.lora_B.weight"] = torch.randn(width, rank, generator=draw)
    folder = Path(folder)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "CAUSAL_LM"}))
    return folder


if __name__ == "__main__":
    build_llm(sys.argv[1])
