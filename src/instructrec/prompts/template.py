"""The one renderer: what a prompt template and a tokenizer make of a record. Training, evaluation, chat and server
call it, so a model is always asked in the words it was tuned with.

    ids = encode(prompt text) + encode(answer) + end token

The prompt is rendered *without* the answer, exactly as it is when the model has to answer, and the answer is tokenised
apart from it: the ids a tuned model is served with are, token for token, the prefix of the ids it was tuned on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from ..data.records import Origin, Record, Turn
from ..errors import InputError
from .sandbox import compile_template
from .verbalizer import Verbalizer

FORMAT = 1
# Some families open a block for reasoning unless told not to; an instruction row has no reasoning to learn from.
_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
_PROBE = (Turn("user", "x"), Turn("assistant", "y", supervised=True))


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of one record.

    ids: T token ids.  supervised: T flags, True where a token is a target of the loss.
    instruction_end: number of tokens before the last assistant header (the span x that a model may read again).
    prompt_end: number of tokens before the answer: `ids[:prompt_end]` is what serving feeds.
    skipped_turns: earlier answers that are not trained on because the template shows them differently once they are
    history (their tokens would not be what serving asks for).
    """

    ids: list[int]
    supervised: list[bool]
    instruction_end: int
    prompt_end: int
    skipped_turns: int = 0
    origin: Origin = Origin()

    @property
    def targets(self) -> int:
        """Number of supervised tokens."""
        return sum(self.supervised)


@dataclass(frozen=True, slots=True)
class _Text:
    """Rendered text with the places where a turn's own words stand: (start, end, turn number)."""

    text: str
    spans: tuple[tuple[int, int, int], ...]


class Renderer:
    """A prompt template bound to a tokenizer.

    tokenizer: a fast Hugging Face tokenizer.  source: Jinja text over `messages` and `add_generation_prompt`.
    own: the template is the model's own chat template, whose text is taken as it is; to others the tokenizer's BOS is
    prepended where the tokenizer would add one.
    """

    def __init__(self, tokenizer: Any, source: str, *, name: str, system: str = "", own: bool = True) -> None:
        self.tokenizer, self.source, self.name, self.system, self.own = tokenizer, source, name, system, own
        self.reading: dict[str, Any] = {"strokes": 1}  # the plan by which a model reads what is rendered here
        self.labels: Verbalizer | None = None  # what a model chooses from that writes no text
        self._run = compile_template(source)
        if tokenizer.eos_token_id is None:
            raise InputError("this tokenizer has no end token (eos_token): the model could never learn to stop")
        self._special = _special_tokens(tokenizer)
        self._control, self._control_ids = _control_tokens(tokenizer, source)
        plain = tokenizer("a", add_special_tokens=True)["input_ids"]
        bos = tokenizer.bos_token_id
        self._bos = [bos] if not own and bos is not None and plain[:1] == [bos] else []
        self._named = {"bos_token": "", "eos_token": ""} | dict(tokenizer.special_tokens_map)
        self._anchor = _anchor(tokenizer)
        self._variant, self._lead = self._choose_variant()
        self.end_id = -1
        self.end_id = self.render(Record(_PROBE)).ids[-1]

    # -- text ---------------------------------------------------------------------------------------------------

    def _messages(self, turns: Sequence[Turn], wrap: Callable[[str, int], str]) -> list[dict[str, str]]:
        fields = []
        for number, turn in enumerate(turns):
            parts = {"content": turn.content, "instruction": turn.text, "input": turn.input}
            fields.append({"role": turn.role} | {name: wrap(text, number) for name, text in parts.items()})
        return fields

    def _jinja(self, messages: list[dict[str, str]], header: bool) -> str:
        # Many templates ask `if tools is not none`, which an undefined name would pass.
        absent = {"tools": None, "documents": None}
        return self._run(messages=messages, add_generation_prompt=header, **self._named, **absent, **self._variant)

    def _plain(self, turns: Sequence[Turn], header: bool) -> str:
        return self._jinja(self._messages(turns, lambda text, _: text), header)

    def _text(self, turns: Sequence[Turn], header: bool) -> _Text:
        """Render, and find where each turn's words ended up by rendering again with marks around them."""
        real = self._plain(turns, header)
        first = _free_mark(self.source + "".join(turn.content for turn in turns), 2 * len(turns))

        def mark(text: str, number: int) -> str:
            words = text.strip()  # many templates strip a turn's text, so its outer spaces stay outside the marks
            if not words:
                return text
            start = text.index(words)
            marked = f"{chr(first + 2 * number)}{words}{chr(first + 2 * number + 1)}"
            return text[:start] + marked + text[start + len(words) :]

        plain, spans = _unmark(self._jinja(self._messages(turns, mark), header), first, len(turns))
        if plain != real or spans is None:
            raise InputError(
                f"prompt template '{self.name}' rewrites the text of a turn: which tokens are the answer is unknown"
            )
        return _Text(real, spans)

    def _check_shown(self, turns: Sequence[Turn], prompt: _Text) -> None:
        for number, turn in enumerate(turns):
            shown = sum(end - start for start, end, place in prompt.spans if place == number)
            if turn.role != "assistant" and shown < len(turn.text.strip()) + len(turn.input.strip()):
                raise InputError(f"prompt template '{self.name}' does not show all of the {turn.role}'s text")

    def _choose_variant(self) -> tuple[dict[str, Any], str]:
        """The first variant whose prompt ends where the answer begins. If none does, the plain one, and the text that
        has to be put in front of every answer (`<assistant>` where a template knows no `add_generation_prompt`,
        gpt-oss's channel): it belongs to the prompt, else it would be generated and shown as part of the answer."""
        gaps = []
        for variant in _VARIANTS:
            self._variant = variant
            full = self._text(_PROBE, header=False)
            prompt = self._plain(_PROBE[:1], header=True)
            start, _ = self._last_span(full, _PROBE)
            gap = full.text[len(prompt) : start] if full.text.startswith(prompt) else None
            if gap is not None and not gap.strip():
                return variant, ""
            gaps.append(gap or "")
        return _VARIANTS[0], gaps[0].rstrip(" ")  # a space before the first word is part of that word's token

    def _last_span(self, full: _Text, turns: Sequence[Turn]) -> tuple[int, int]:
        spans = [(start, end) for start, end, number in full.spans if number == len(turns) - 1]
        if not spans:
            raise InputError(f"prompt template '{self.name}' does not show the assistant's answer")
        start, end = spans[-1]
        if full.text[start:end] != turns[-1].text.strip():
            raise InputError(f"prompt template '{self.name}' rewrites the assistant's answer")
        return start, end

    # -- ids ----------------------------------------------------------------------------------------------------

    def render(self, record: Record) -> Rendered:
        """Ids, supervised positions and the end of the instruction of one record, from one call.

        A record that ends with the user's turn becomes a prompt: all of `ids`, nothing supervised.
        Raises InputError when the template refuses the turns.
        """
        turns = list(record.turns)
        if self.system and not record.system:  # an empty system message counts as none
            turns = [Turn("system", self.system), *(turn for turn in turns if turn.role != "system")]
        _check_characters(turns)
        answered = turns[-1].role == "assistant"
        history = turns[:-1] if answered else turns
        asked = self._text(history, header=True)
        self._check_shown(history, asked)
        prompt = _Text(asked.text + self._lead, asked.spans)
        header = self._header_start(history, prompt)
        earlier = self._earlier(history, prompt)
        ids, supervised = list(self._bos), [False] * len(self._bos)
        instruction_end = None
        cuts = _cuts(earlier, header, len(prompt.text))
        for (start, number), (end, _) in zip(cuts, [*cuts[1:], (len(prompt.text), None)], strict=True):
            if start == header:
                instruction_end = len(ids)
            piece = self._encode(prompt, start, end, first=start == 0)
            if number is not None:
                flags = [history[number].supervised] * len(piece)
            else:  # the template's own text: only the end token of an answer before it is learned
                ends = self._end_flags(piece) if supervised and supervised[-1] else []
                known = any(ends) and piece[sum(ends) - 1] == self.end_id
                flags = ends if known else [False] * len(piece)
            ids += piece
            supervised += flags
        prompt_end = len(ids)
        if answered:
            answer = sum(self._answer_ids(turns, prompt.text), [])
            ids += answer
            supervised += [turns[-1].supervised] * len(answer)
        end_of_x = prompt_end if instruction_end is None else instruction_end
        skipped = sum(turn.supervised and number not in earlier for number, turn in enumerate(history))
        return Rendered(ids, supervised, end_of_x, prompt_end, skipped, record.origin)

    def prompt(self, record: Record) -> Rendered:
        """What serving feeds for this record: everything before the answer."""
        return self.render(record.prompt)

    def prompt_ids(self, record: Record) -> list[int]:
        """Its token ids alone."""
        return self.prompt(record).ids

    def answer_ids(self, record: Record) -> tuple[list[int], list[int]]:
        """Ids of a record's answer as they stand behind its prompt, and those that end it.

        With `labels` an answer is one id, its label's number behind the vocabulary, and nothing ends it.
        """
        turns = [Turn("system", self.system)] if self.system and not record.system else []
        turns += record.turns
        _check_characters(turns)
        return self._answer_ids(turns, self._plain(turns[:-1], header=True) + self._lead)

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's text: generated ids without end tokens, outer white space removed."""
        if self.labels:
            return " ".join(self.labels.labels[number - len(self.tokenizer)] for number in ids)
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ).strip()

    def accepted(self, answers: Sequence[str]) -> list[str]:
        """What `decode` has to give to be right: with `labels`, the label of an answer that is one of its words."""
        labels = self.labels
        return [labels.labels[labels.number(text)] if labels and labels.knows(text) else text for text in answers]

    def stop_ids(self, extra: Sequence[int] = ()) -> list[int]:
        """Ids that end an answer: the template's end token, the tokenizer's EOS and the model's own (`extra`)."""
        return sorted({self.end_id, self.tokenizer.eos_token_id, *extra})

    def _earlier(self, history: Sequence[Turn], prompt: _Text) -> dict[int, tuple[int, int, int]]:
        """Where the header, the words and the end of each earlier answer stand, for those answers that the history
        still shows as they were asked for."""
        places = {}
        for number, turn in enumerate(history):
            spans = [(start, end) for start, end, place in prompt.spans if place == number]
            if turn.role != "assistant" or len(spans) != 1:
                continue
            (start, end), asked = spans[0], history[:number]
            then = self._plain(asked, header=True) + self._lead
            before = tuple(span for span in prompt.spans if span[2] < number)
            same = prompt.text.startswith(then) and len(then) <= start and not prompt.text[len(then) : start].strip()
            if same and prompt.text[start:end] == turn.text.strip():
                places[number] = (self._header_start(asked, _Text(then, before)), len(then), end)
        return places

    def _header_start(self, history: Sequence[Turn], prompt: _Text) -> int:
        """Where the last assistant header begins; the end of the prompt if that is unknown."""
        without = self._plain(history, header=False)
        if prompt.text.startswith(without):
            return len(without)
        # Some templates end a text that asks for no answer in another way (Phi-3 with its EOS): the header is then
        # the control token in which the two differ, if no turn's words come after it.
        words = max((end for _, end, _ in prompt.spans), default=0)
        differ = len(commonprefix([without, prompt.text]))
        for match in self._control.finditer(prompt.text, words):
            if match.start() <= differ < match.end(1):
                return match.start()
        return len(prompt.text)

    def _answer_ids(self, turns: Sequence[Turn], prompt: str) -> tuple[list[int], list[int]]:
        """The last answer, and its end token; one is appended where the template has none.

        White space that the template puts between prompt and answer is part of what the model has to generate, so it
        is part of the answer.
        """
        if self.labels:
            return [len(self.tokenizer) + self.labels.number(turns[-1].text)], []
        full = self._text(turns, header=False)
        start, end = self._last_span(full, turns)
        shown = full.text.startswith(prompt)
        if self._lead and not shown:
            raise InputError(f"prompt template '{self.name}' changes what it puts before an answer with the turns")
        gap = full.text[len(prompt) : start] if shown else self._before_mask(prompt)
        piece = _Text(gap + full.text[start:end], ((len(gap), len(gap) + end - start, 0),))
        ids = self._encode(piece, 0, len(piece.text), first=False)
        tail = self._tokens(full.text[end:], first=False)
        flags = self._end_flags(tail)
        return ids, tail[: sum(flags)] if any(flags) else [self.tokenizer.eos_token_id]

    def _before_mask(self, prompt: str) -> str:
        """White space before a prompt's mask: it belongs to the word that stands there ("Ġgreat")."""
        mask = self.tokenizer.mask_token
        before = prompt[: prompt.rindex(mask)] if mask and mask in prompt else ""
        return before[len(before.rstrip()) :]

    def _end_flags(self, piece: Sequence[int]) -> list[bool]:
        """True up to and including the first special token: the end of the answer before this piece."""
        stop = next((place for place, token in enumerate(piece) if token in self._special), -1)
        return [place <= stop for place in range(len(piece))]

    def _encode(self, text: _Text, start: int, end: int, *, first: bool) -> list[int]:
        """Ids of text[start:end]; where a turn's own words spell a control token they are cut after its first
        character, so that they stay text."""
        cuts, own, free = [start], 0, start
        for match in self._control.finditer(text.text, start, end):
            place, after = match.span(1)
            if any(place < stop and after > begin for begin, stop, _ in text.spans):
                cuts.append(place + 1)
            elif place >= free:  # the template's own control token
                own, free = own + 1, after
        ids: list[int] = []
        for begin, stop in zip(cuts, [*cuts[1:], end], strict=True):
            ids += self._tokens(text.text[begin:stop], first=first and begin == start)
        if sum(token in self._control_ids for token in ids) > own:  # a normaliser can spell one from other characters
            raise InputError("the text of a turn would be read as a control token of this tokenizer")
        return ids

    def _tokens(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        anchored = "" if first else self._anchor
        ids = self._ids(anchored + text)
        if not anchored:
            return ids
        anchor = self._ids(anchored)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        """What the tokenizer gives, in a third of the time; it sets its backend right for each call itself."""
        backend = self.tokenizer.backend_tokenizer
        if backend.truncation is None and backend.padding is None and not backend.encode_special_tokens:
            return list(backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def variant(self) -> dict[str, Any]:
        """What the template is told besides the turns."""
        return dict(self._variant)

    @property
    def lead(self) -> str:
        """Text that stands before every answer and that the template does not put there itself."""
        return self._lead

    @property
    def vocabulary(self) -> int:
        """Ids that a rendered row may have: those of the tokenizer and of the labels."""
        return len(self.tokenizer) + (len(self.labels.labels) if self.labels else 0)

    @property
    def adds_bos(self) -> bool:
        """True where the tokenizer's BOS is put before the template's text."""
        return bool(self._bos)

    # -- keeping ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """What `prompt.json` holds: template, system message, end token, and a sha256 over them."""
        body = {
            "format": FORMAT,
            "name": self.name,
            "own": self.own,
            "template": self.source,
            "system": self.system,
            "end_token": self.tokenizer.convert_ids_to_tokens(self.end_id),
            "reading": self.reading,
        }
        if self.labels:
            body["labels"] = {label: list(words) for label, words in self.labels.words.items()}
        return body | {"sha256": _digest(body)}

    @classmethod
    def from_json(cls, value: dict[str, Any], tokenizer: Any, where: str) -> Renderer:
        """The renderer a run was tuned with. Raises InputError when the file was changed or does not fit."""
        body = {key: item for key, item in value.items() if key != "sha256"} if isinstance(value, dict) else {}
        if body.get("format") != FORMAT:
            raise InputError(f"{where}: format: unknown prompt format (got {body.get('format')!r}, want {FORMAT})")
        if value.get("sha256") != _digest(body):
            raise InputError(
                f"{where}: sha256: the prompt was changed after tuning, the model would be asked differently"
            )
        kinds = {"template": str, "name": str, "system": str, "own": bool, "end_token": str, "reading": dict}
        for key, kind in kinds.items():
            if not isinstance(value.get(key), kind):
                raise InputError(f"{where}: {key}: missing, or not what it should be")
        renderer = cls(tokenizer, value["template"], name=value["name"], system=value["system"], own=value["own"])
        if renderer.to_json()["end_token"] != value["end_token"]:
            raise InputError(
                f"{where}: end_token: this tokenizer ends answers differently (want {value['end_token']!r})"
            )
        labels = Verbalizer.from_value(value["labels"], f"{where}: labels") if "labels" in value else None
        return renderer.with_reading(value["reading"]).with_labels(labels)

    def with_system(self, system: str) -> Renderer:
        """The same template with another default system message."""
        other = Renderer(self.tokenizer, self.source, name=self.name, system=system, own=self.own)
        return other.with_reading(self.reading).with_labels(self.labels)

    def with_reading(self, reading: dict[str, Any]) -> Renderer:
        """This renderer, with a reading plan that `prompt.json` keeps beside the template."""
        self.reading = dict(reading)
        return self

    def with_labels(self, labels: Verbalizer | None) -> Renderer:
        """A copy of this renderer whose answers are these labels, or text."""
        other = copy(self)
        other.labels = labels
        return other


def shorten_input(record: Record, characters: int) -> Record:
    """The record with the last user turn's input cut to its first `characters` characters."""
    place = max(number for number, turn in enumerate(record.turns) if turn.role == "user")
    turn = record.turns[place]
    turns = (*record.turns[:place], replace(turn, input=turn.input[:characters].rstrip()), *record.turns[place + 1 :])
    return replace(record, turns=turns)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def _check_characters(turns: Sequence[Turn]) -> None:
    for turn in turns:
        if half := re.search("[\ud800-\udfff]", turn.content):
            raise InputError(
                f"the {turn.role}'s text holds half of a surrogate pair (\\u{ord(half[0]):x}), not a character"
            )


def _cuts(earlier: dict[int, tuple[int, int, int]], header: int, length: int) -> list[tuple[int, int | None]]:
    """Where pieces begin that are tokenised apart, with the turn number if the piece is an earlier answer.

    Earlier answers are cut out because they were tokenised apart when they were generated; assistant headers are cut
    off so that the instruction before them has the same ids each time it is read.
    """
    cuts: dict[int, int | None] = {0: None}
    for number, (head, start, end) in earlier.items():
        cuts |= {head: None} | {start: number} | {end: None}
    cuts[header] = None
    return sorted((cut, number) for cut, number in cuts.items() if cut < length or cut == 0)


def _special_tokens(tokenizer: Any) -> frozenset[int]:
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _control_tokens(tokenizer: Any, source: str) -> tuple[re.Pattern[str], frozenset[int]]:
    """A pattern that matches every text that the tokenizer would read as a control token, overlapping ones too
    (group 1), and the ids of these tokens.

    Control tokens are the special ones, and added tokens that a template of this model uses or that are spelled like
    one (`<think>`, `<tool_call>`, `<|fim_prefix|>` are often not flagged special); added tokens that are only
    frequent words (Gemma's runs of new lines) are not.
    """
    templates = source + str(tokenizer.chat_template or "")
    words = {word for word in tokenizer.all_special_tokens if word.strip()}
    for token in tokenizer.added_tokens_decoder.values():
        word = token.content
        if word.strip() and (token.special or word in templates or (word.startswith("<|") and word.endswith("|>"))):
            words.add(word)
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    ids = {tokenizer.convert_tokens_to_ids(word) for word in words}
    # An unknown character becomes the unknown token, which controls nothing.
    ids -= {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return re.compile(f"(?=({alternatives}))"), frozenset(ids)


def _anchor(tokenizer: Any) -> str:
    """'' for most tokenizers; for those that put a space before the first word (SentencePiece), a text to encode in
    front and cut off again, so that a piece from the middle gets no space of its own."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return "\n" if ids and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁") else ""


def _free_mark(text: str, size: int) -> int:
    """First code point of a private-use block of which the text uses none of the first `size`."""
    for first, last in ((0xF0000, 0xFFFFD), (0x100000, 0x10FFFD), (0xE000, 0xF8FF)):
        if first + size <= last and not re.search(f"[{chr(first)}-{chr(first + size)}]", text):
            return first
    raise InputError("a turn uses all private-use blocks of Unicode; none is left to mark the turns with")


def _unmark(marked: str, first: int, turns: int) -> tuple[str, tuple[tuple[int, int, int], ...] | None]:
    """The text without its marks, and the spans between them; None where a mark lost its partner."""
    text: list[str] = []
    spans: list[tuple[int, int, int]] = []
    opened: dict[int, int] = {}
    place = 0
    for piece in re.split(f"([{chr(first)}-{chr(first + 2 * turns - 1)}])", marked) if turns else [marked]:
        number, closing = divmod(ord(piece) - first, 2) if len(piece) == 1 else (-1, 0)
        if not 0 <= number < turns:
            text.append(piece)
            place += len(piece)
        elif bool(closing) != (number in opened):
            return "".join(text), None
        elif closing:
            spans.append((opened.pop(number), place, number))
        else:
            opened[number] = place
    return "".join(text), None if opened else tuple(spans)
