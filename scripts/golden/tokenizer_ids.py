#!/usr/bin/env python3
"""Writes small tokenizers and the ids that `transformers` gives with them, for `crates/data/tests/tokenizers.rs`.

Needs `pip install transformers==5.23.0`. Every folder is a kind of tokenizer that models come with: byte-level BPE with and
without a space before a text, `Metaspace` with each scheme, and the normalizer of Llama 2, with a beginning-of-sequence token
or without. The vocabularies are trained here on a few lines of text.
"""

import json
import pathlib
import shutil

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/data/tests/golden/tokenizers"

CORPUS = [
    "This is the main process. Use at most 3 workers to solve the query. Subtask: 3 5 7 = 15\n",
    "<FORK1>3 5 7 = 15</FORK1> <JOIN1>3 * 5 = 15</JOIN1> <ANSWER>3 + 5 = 8</ANSWER>\n<RETURN>3 * 5</RETURN>\n",
    "user assistant system the answer is in the text of the worker, and the worker returns it.\n\n",
] * 4

SPECIAL = ["<unk>", "<s>", "</s>"]

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)

# Behind a special token some rules put the space again, and some do not.
CHAT_LINES = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

TEXTS = [
    "3 5 7 = 15",
    " 3 5 7",
    "  two spaces",
    "This is the main process.\n",
    "\nline\n\nline",
    "<FORK1>3 5</FORK1> <JOIN1>",
    "worker\u00e9\U0001f600 \u4e2d\u6587",
    "",
    " ",
    "a </s> b<s>c",
    "<tool>call</tool> end",
]

# Pairs of texts whose seam no token reaches across.
SEAMS = [
    ["This is the main process.\n", "<FORK1>3 5 7</FORK1>"],
    ["Subtask: 3 5 7\n", "3 * 5 = 15"],
    ["the answer is", " 15"],
    ["<JOIN1>", "15</JOIN1>"],
    ["<tool>", "call"],
    ["x</s>", "the"],
]


def bpe(byte_fallback, alphabet=None, pre_tokenizer=None, normalizer=None, vocab_size=420):
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True) if byte_fallback else models.BPE()
    inner = Tokenizer(model)
    if normalizer:
        inner.normalizer = normalizer
    if pre_tokenizer:
        inner.pre_tokenizer = pre_tokenizer
    special = SPECIAL + ([f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else [])
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=special, initial_alphabet=alphabet or [])
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def finish(inner, decoder, post_processor=None, pre_tokenizer=None, normalizer=None):
    """The tokenizer as a file, with bytes of the fallback as ordinary tokens."""
    inner.decoder = decoder
    content = json.loads(inner.to_str())
    content["added_tokens"] = [
        {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for index, text in enumerate(SPECIAL)
    ]
    inner = Tokenizer.from_str(json.dumps(content))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizer
    if post_processor:
        inner.post_processor = post_processor
    inner.add_tokens([AddedToken(text, special=False, normalized=False) for text in ["<tool>", "</tool>"]])
    return inner


def begins_with_bos():
    return processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])


def both_ends():
    return processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)])


def sentence_piece_decoder(strips):
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(parts + ([decoders.Strip(content=" ", left=1)] if strips else []))


def byte_level(add_prefix_space, post_processor):
    rules = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    inner = bpe(False, pre_tokenizers.ByteLevel.alphabet(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    return finish(inner, decoders.ByteLevel(), post_processor, pre_tokenizer=rules)


def metaspace(scheme, split, post_processor=None):
    rules = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=split)
    inner = bpe(True, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"))
    return finish(inner, sentence_piece_decoder(scheme != "never"), post_processor, pre_tokenizer=rules)


def unigram():
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=300, show_progress=False, special_tokens=SPECIAL, unk_token="<unk>")
    inner.train_from_iterator(CORPUS, trainer)
    return finish(inner, decoders.Metaspace(prepend_scheme="always"), both_ends(), pre_tokenizer=inner.pre_tokenizer)


def prepend():
    rules = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner = bpe(True, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"))
    return finish(inner, sentence_piece_decoder(True), begins_with_bos(), normalizer=rules)


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}

FOLDERS = {
    "byte_level": (byte_level(False, None), FAST, CHAT),
    "byte_level_bos": (byte_level(False, processors.Sequence([processors.ByteLevel(), begins_with_bos()])), FAST, CHAT_LINES),
    "byte_level_prefix": (byte_level(True, begins_with_bos()), FAST, CHAT_LINES),
    "metaspace_always": (metaspace("always", True, both_ends()), FAST, CHAT),
    "metaspace_first": (metaspace("first", False, begins_with_bos()), FAST, CHAT_LINES),
    "metaspace_never": (metaspace("never", False), FAST, CHAT),
    "unigram": (unigram(), FAST, CHAT),
    "prepend": (prepend(), FAST, CHAT_LINES),
    # `transformers` makes rules of its own for this class.
    "llama_legacy": (prepend(), {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True}, CHAT_LINES),
    "llama": (prepend(), {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, "add_bos_token": False, **NAMED}, CHAT),
    "llama_byte_level": (byte_level(False, begins_with_bos()), {"tokenizer_class": "LlamaTokenizer", **NAMED}, CHAT),
}


def message(role, content):
    return {"role": role, "content": content}


def golden(tokenizer):
    def ids(text, whole):
        return list(tokenizer(text, add_special_tokens=whole)["input_ids"])

    plain, whole = ids("a", False), ids("a", True)
    num_before = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)

    def prompt_ids(text):
        """Without what is put behind a sequence: the prompt goes on."""
        return ids(text, True)[: num_before + len(ids(text, False))]

    texts = []
    for text in TEXTS:
        plain = ids(text, False)
        texts.append({"text": text, "ids": plain, "prompt_ids": prompt_ids(text), "decoded": tokenizer.decode(plain, skip_special_tokens=True)})
    chats = []
    for content in ["3 5 7 = 15", " odd  spaces ", "line\nline"]:
        found = tokenizer.apply_chat_template([message("user", content)], add_generation_prompt=True)["input_ids"]
        chats.append({"content": content, "ids": list(found)})
    seams = [{"head": head, "tail": tail, "ids": ids(head + tail, False)} for head, tail in SEAMS]
    return {
        "texts": texts,
        "chats": chats,
        "seams": seams,
        "special": {name: getattr(tokenizer, name) for name in ["bos_token", "eos_token", "unk_token", "pad_token"]},
    }


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    result = {"made_with": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}}
    folders = {}
    for name, (inner, config, template) in FOLDERS.items():
        folder = OUT / name
        folder.mkdir(parents=True)
        inner.save(str(folder / "tokenizer.json"), pretty=False)
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}) + "\n")
        (folder / "chat_template.jinja").write_text(template)
        if name == "metaspace_first":
            # Named nowhere else.
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")
            named = {key: {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} for key, text in NAMED.items()}
            (folder / "special_tokens_map.json").write_text(json.dumps(named) + "\n")
        folders[name] = golden(AutoTokenizer.from_pretrained(folder))
    result["folders"] = folders
    (OUT / "golden.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
