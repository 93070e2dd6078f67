"""What must hold for any input: checks for test_hostile_input.py and fuzz.py, from bytes to an AssertionError."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path

from config import DataConfig, PromptConfig
from pipeline.data import readers
from pipeline.data.block_cleaning import clean_block
from pipeline.data.cleaning import CLEANERS, clean, normalise_title
from pipeline.data.metadata import clean_value, comparable_values
from pipeline.data.words import search_words
from pipeline.models.prompts import PromptFormat, make_prompt_format, prompt_ids, training_examples
from pipeline.run.errors import UserError

Check = Callable[[bytes], None]
FORMS = ("x.jsonl", "x.json", "x.csv", "x.tsv", "x.jsonl.gz", "x.json.gz", "x.csv.gz", "cut.jsonl.gz")
FIELDS = ("price", "tags")
SEEDS = {
    "readers": [
        b'\0{"title":"t","content":"c","price":1e9,"tags":["a",null]}\n{"title":"\\ud800","content":NaN}\n',
        b'\1\xef\xbb\xbf[{"title":"t","content":["c",{"a":[[]]}],"title":"u"}, 3, {"title":"\xc3\xa9"}]',
        b'\2title,content,price\n"a\n""b",c,"1,5"\nd,e\n',
        b'\1{"title":{"0":"t","1":NaN},"content":{"0":"c","1":["c"]}}',
        b'\1{"n":1,"data":[{"title":"t","content":{"text":"c"}},]}',
        b'\0{\n"title":"t",\n"content":"c"\n}\n{\n"title":"t"}',
        b"\3title\tcontent\ttags\na\tb\t['x', 'y']\n",
        b'\7{"title":"t","content":"c"}\n',
    ],
    "cleaner": [
        b"<p a='b'>x</p><!-- c --><script>d</script>&amp;#8217;&eacute;",
        b"['a', \"b's\", {[]: 1}, 'c']",
        "R$ 1.299,90 e\u0301\u0323\u200b\u2028".encode(),
    ],
    "prompts": [b"\0a title \x01\x02\0an answer \x03", b"\5{context} {title}\0\x1f</s>"],
}


def reads(folder: Path) -> Check:
    """Return a check of the readers and of stage 1: whatever a file holds, it is read, told or refused."""

    def check(data: bytes) -> None:
        path = folder / FORMS[data[0] % len(FORMS) if data else 0]
        content = data[1:]
        if path.suffix == ".gz":
            content = gzip.compress(content, 1)[: -9 if path.name.startswith("cut") else None]
        path.write_bytes(content)
        settings = DataConfig(metadata=FIELDS, min_content_chars=0)
        try:
            for block in readers.blocks(path, "title", "content", FIELDS):
                found = block.read("title", "content", FIELDS)
                summary, texts = clean_block(block, settings)
                assert len(found.records) + len(found.unreadable) == (
                    len(texts) + summary.rejected.total() + len(summary.unreadable)
                ), "a record is lost"
                for text in texts:
                    record = json.loads(text)
                    assert record["product"] and record["description"] and b"\n" not in text
                assert all(item.problem and len(item.raw) <= 1000 for item in found.unreadable)
            readers.field_names(path, "title", "content")
        except UserError as error:
            assert path.name in str(error)

    return check


def cleans(data: bytes) -> None:
    """Check that any text is cleaned, by every cleaner, and can be written, compared and searched then."""
    text = data.decode("utf-8", "surrogateescape")
    for cleaner in CLEANERS.values():
        cleaned = cleaner(text)
        normalise_title(cleaned)
        search_words(cleaned)
    cleaned = clean(text)
    assert "`" in text or cleaned == " ".join(cleaned.split())
    cleaned.encode()
    if (value := clean_value(text)) is not None:
        json.dumps(value).encode()
        comparable_values(value)


def renders(tokenizers: list) -> Check:
    """Return a check of the prompt formats: no record writes a token that is more than text.

    The bytes below 32 of an input stand for such tokens, those of these tokenizers and of others.
    """
    others = {"<|end|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>", "</s>", "<s>", "[INST]"}
    cases = []
    for tokenizer in tokenizers:
        added = set(tokenizer.added_tokens_decoder)
        for name in ("alpaca", "chat") if tokenizer.chat_template else ("alpaca",):
            prompt_format = make_prompt_format(PromptConfig(format=name), tokenizer)
            tokens = sorted({*prompt_format.control_tokens, *others})
            cases.append((tokenizer, prompt_format, added, tokens, _written(prompt_format, tokenizer, added, "a", "b")))

    def check(data: bytes) -> None:
        tokenizer, prompt_format, added, tokens, harmless = cases[data[0] % len(cases) if data else 0]
        text = data[1:].decode("utf-8", "replace")
        title, _, answer = text.partition("\0")
        for code in range(1, 32):
            title, answer = (part.replace(chr(code), tokens[code % len(tokens)]) for part in (title, answer))
        assert _written(prompt_format, tokenizer, added, title, answer) == harmless

    return check


def _written(prompt_format: PromptFormat, tokenizer, added: set[int], title: str, answer: str) -> list[list[int]]:
    """Return the added tokens, in order, of the training text, of the prompts with and without context, and of a question."""
    example = training_examples(prompt_format, tokenizer, [(title, answer)], 1 << 20)[0]
    context = prompt_format.source_text(title, answer)
    prompts = [prompt_format.prompt(title), prompt_format.prompt(title, context), prompt_format.plain(answer)]
    texts = [example.input_ids, *(prompt_ids(prompt_format, tokenizer, prompt) for prompt in prompts)]
    return [[token for token in ids if token in added] for ids in texts]


def tokenizers(smollm2, phi3) -> list:
    """Return SmolLM2's tokenizer, the same with an automatic BOS, Phi-3's, and that with </s> marked as its authors did."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    with_bos = copy.deepcopy(smollm2)
    with_bos.bos_token = "<|endoftext|>"
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", with_bos.bos_token_id)]
    )
    not_special = copy.deepcopy(phi3)
    not_special.add_tokens([AddedToken("</s>", special=False, rstrip=True, normalized=False), AddedToken("<think>")])
    return [smollm2, with_bos, phi3, not_special]
