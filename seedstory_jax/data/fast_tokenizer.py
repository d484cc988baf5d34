"""A `tokenizer.json` that gives a slow LLaMA tokenizer's ids, and the proof that it does."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from seedstory_jax.data.slow_tokenizer import BLANK, SlowTokenizer
from seedstory_jax.errors import UserError


def fast_tokenizer(slow: SlowTokenizer) -> Any:
    """The `tokenizers.Tokenizer` of a slow folder; raises UserError for what that library cannot express.

    One thing it cannot: with legacy=False the slow class put a lone blank before a text that begins with an added
    token which is not special. No row does: rows begin with a caption, responses with `[INST]`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, processors

    tokenizer = Tokenizer(_model(slow))
    normalizer, pre_tokenizer = _blanks(slow)
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    # Found in the raw text, as the slow class did (`normalized` would look behind the prefix blank).
    tokenizer.add_tokens(
        [
            AddedToken(t.content, lstrip=t.lstrip, rstrip=t.rstrip, normalized=False, special=t.special)
            for t in slow.added
        ]
    )
    wrong = [t.content for t in slow.added if tokenizer.token_to_id(t.content) != t.id]
    if wrong:
        raise UserError(f"{slow.folder}: added tokens {wrong[:5]} do not get the ids that the folder gives them")
    ends = {name: next((t for t in slow.added if t.content == name), None) for name in ("<s>", "</s>")}
    template = [name for name, wanted in (("<s>", slow.add_bos), ("", True), ("</s>", slow.add_eos)) if wanted]
    if all(ends.values()):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(name or "$A" for name in template),
            pair=" ".join(name or "$A" for name in template) + " " + " ".join(f"{name or '$B'}:1" for name in template),
            special_tokens=[(name, token.id) for name, token in ends.items()],
        )
    return tokenizer


def _model(slow: SlowTokenizer) -> Any:
    from tokenizers import models

    proto = slow.proto
    pieces, kind = proto.pieces, proto.trainer_spec.model_type
    unknown = next(number for number, piece in enumerate(pieces) if piece.type == piece.UNKNOWN)
    falls_back = any(piece.type == piece.BYTE for piece in pieces)
    if kind == proto.trainer_spec.BPE:
        return models.BPE(
            {piece.piece: number for number, piece in enumerate(pieces)},
            _merges(pieces),
            unk_token=pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=falls_back,
        )
    if kind == proto.trainer_spec.UNIGRAM:
        return models.Unigram([(piece.piece, piece.score) for piece in pieces], unknown, byte_fallback=falls_back)
    raise UserError(
        f"{slow.folder / 'tokenizer.model'}: a sentencepiece model of kind {kind}; BPE or unigram is needed"
    )


def _merges(pieces: Sequence[Any]) -> list[tuple[str, str]]:
    """Pairs in the order in which sentencepiece joins them: by the score of what they make."""
    number = {piece.piece: i for i, piece in enumerate(pieces) if piece.type == piece.NORMAL}
    found = []
    for name, i in number.items():
        splits = ((name[:cut], name[cut:]) for cut in range(1, len(name)))
        halves = [(left, right) for left, right in splits if left in number and right in number]
        halves.sort(key=lambda pair: (number[pair[0]], number[pair[1]]))
        found += [(-pieces[i].score, pair) for pair in halves]
    found.sort(key=lambda entry: entry[0])  # stable: the splits of one piece stay together
    return [pair for _, pair in found]


def _blanks(slow: SlowTokenizer) -> tuple[Any, Any]:
    """(normalizer, pre-tokenizer): what sentencepiece does to a text before it looks for pieces."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    spec = slow.proto.normalizer_spec
    if not spec.escape_whitespaces or slow.proto.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"{slow.folder / 'tokenizer.model'}: only blanks written as a prefix {BLANK} are supported")
    steps: list[Any] = []
    squeezes = spec.remove_extra_whitespaces
    if squeezes and not slow.legacy:  # a leading blank is kept where it is one before normalisation
        steps.append(normalizers.Replace(Regex(r"^[^\S ]\s*"), ""))
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if squeezes:
        steps.append(normalizers.Replace(Regex("^ +| +$" if slow.legacy else " +$"), ""))
        steps.append(normalizers.Replace(Regex("(?<= ) +"), ""))  # the first blank stays, and its place in the text
    if slow.legacy:
        if spec.add_dummy_prefix:
            steps.append(normalizers.Prepend(BLANK))
        return normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)]), None
    first = pre_tokenizers.Metaspace(BLANK, prepend_scheme="first", split=False)
    if not (squeezes and normalizers.Sequence(steps).normalize_str("x" + BLANK) == "x"):
        # The prefix is not squeezed together with a blank behind it, but Metaspace prepends none where one stands. As
        # no blank is left in the text by now, one can stand for the prefix in between.
        first = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(BLANK, prepend_scheme="never", split=False),
            ]
        )
    return normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)]), first


def trying_texts(slow: SlowTokenizer) -> list[str]:
    """Texts on which tokenizers differ: blanks, line ends, other scripts, added tokens in all company."""
    plain = [
        "Once upon a time, in a town filled with colorful buildings, a young boy named Timmy stood on a sidewalk.",
        "He's wearing a light green T-shirt (size 12½) — \"gloves\", too; isn't he?  Two blanks.   Three.",
        " leading blank",
        "trailing blank ",
        "line\nend\r\nand\ttab",
        "naïve café, Ünïcödé, Москва, 東京の空, 안녕하세요, مرحبا",
        "🐵🍌 emoji 👩‍🚀 and a zero​width",
        "aaaaaaaaaaaaaaaaaaaaa !!!!!! ------ 1234567890 3.14159",
        "supercalifragilisticexpialidocious CamelCaseWords snake_case_words",
        "[INST]George climbs a tree.[/INST]",
        "",
        " ",
    ]
    texts = list(plain)
    tokens = [token.content for token in slow.added]
    shown = [*tokens[:6], *tokens[-3:]]
    for name in shown:
        for company in (
            "a cat{}a dog",
            "a cat {} a dog",
            "a cat.  {}  [INST]A dog",
            "a cat\n{}\na dog",
            "a{0}{0} {0}b",
        ):
            texts.append(company.format(name))
    image = "".join(name for name in tokens if "<img_" in name)
    captions = [text for text in plain if text.strip()]
    texts += [f"{one} <img>{image}</img>[INST]{two}<img>{image}</img>" for one, two in pairwise(captions)]
    # Pieces that sentencepiece finds whole, wherever they stand, have no equal in `tokenizers`.
    defined = [piece.piece for piece in slow.proto.pieces if piece.type == piece.USER_DEFINED]
    return texts + [f"a {name} b{name}c" for name in defined[:20]]


def equal_tokenizer(slow: SlowTokenizer) -> tuple[Any, int]:
    """`fast_tokenizer` and on how many texts it was compared with sentencepiece; raises UserError if one differs."""
    tokenizer = fast_tokenizer(slow)
    return tokenizer, check_equal(tokenizer, slow, trying_texts(slow))


def check_equal(tokenizer: Any, slow: SlowTokenizer, texts: Iterable[str]) -> int:
    """How many texts were compared; raises UserError, which shows the first one with other ids than sentencepiece's."""
    count = 0
    for text in texts:
        wanted, found = slow.encode(text), tokenizer.encode(text, add_special_tokens=False).ids
        if wanted != found:
            place = next((i for i, (a, b) in enumerate(zip(wanted, found)) if a != b), min(len(wanted), len(found)))
            raise UserError(
                f"{slow.folder}: no tokenizer.json gives sentencepiece's ids: for {text[:60]!r} it gives "
                f"{found[place : place + 4]} at {place} where sentencepiece gives {wanted[place : place + 4]}"
            )
        count += 1
    return count


def describe(slow: SlowTokenizer) -> str:
    """Which variant of the published tokenizer a folder is, in one line."""
    legacy = f"legacy={slow.legacy}" + ("" if slow.legacy_said else " (not said there: as transformers 4.34 took it)")
    new = [token for token in slow.added if token.id >= len(slow.proto.pieces)]
    strips = sum(token.lstrip and token.rstrip for token in new)
    special = sum(token.special for token in new)
    return (
        f"sentencepiece of {len(slow.proto.pieces)} pieces, {legacy}, {len(new)} added tokens: {strips} strip blanks "
        f"on both sides, {special} are special"
    )
