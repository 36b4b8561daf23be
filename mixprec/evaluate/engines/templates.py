"""Prompts in a model's chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta

from mixprec.core.errors import UserError, reason
from mixprec.evaluate.engines.base import Engine, Generation, OnTokens, Request, Sampling, nothing
from mixprec.models.encoding import Encoder
from mixprec.models.model import Model
from mixprec.traces.conversation import Turns


def templated(tokenizer: Any, turns: Turns, arguments: Mapping[str, Any] = {}) -> str:
    """A conversation with all that the template writes around it, its BOS too, up to where the model goes on.

    ``arguments``: of the template, as ``enable_thinking``. Of several named templates it is ``default``. Raises
    UserError where the tokenizer has no template, none of that name, or one that doesn't take these turns.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template")
    try:
        return str(
            tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True, **dict(arguments))
        )
    except Exception as problem:  # a template is a program, and fails in as many ways
        raise UserError(f"the tokenizer's chat template can't be filled in ({reason(problem)})") from None


def require(model: Model, asked: str, instead: str, arguments: Mapping[str, Any] = {}) -> None:
    """See to it that prompts can go into the chat template of ``model``, without reading its weights.

    ``asked``: what asked for the template; ``instead``: what to write instead; ``arguments``: of the template, which
    has to know them. Raises UserError with both.
    """
    tokenizer = model.tokenizer
    settled = [name for name in arguments if name in _SETTLED]
    if settled:
        raise UserError(f"template argument {settled[0]}: {model.id}: what asks sets it itself; leave it out")
    try:
        templated(tokenizer, [{"role": "user", "content": "Is there a template?"}], arguments)
    except UserError as problem:
        raise UserError(f"{asked}: {model.id}: {problem}; {instead}") from None
    known = _variables(tokenizer)
    unknown = [name for name in arguments if name not in known]
    if unknown:
        told = ", ".join(sorted(known - _OWN)) or "none"
        raise UserError(
            f"template argument {unknown[0]}: the chat template of {model.id} doesn't use it; it uses {told}"
        )


#: What ``templated`` gives the tokenizer, and the tokenizer its template: a second value is an error, or turns it off.
_SETTLED = frozenset({"conversation", "messages", "tokenize", "add_generation_prompt"})

#: Variables that every template is given.
_OWN = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token",
    "raise_exception", "strftime_now", "loop", "range", "namespace",
})  # fmt: skip


def _variables(tokenizer: Any) -> set[str]:
    """Names that the chat template takes from outside. A template passes over any others without a word."""
    template = tokenizer.get_chat_template()
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    return set(jinja2.meta.find_undeclared_variables(environment.parse(template)))


class _Generation(jinja2.ext.Extension):
    """Blocks that mark an assistant's text for training, which transformers' templates may have."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own way)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class FilledIn:
    """An engine whose server is sent text in place of messages: the chat template is filled in here.

    So a trace's prompt is what the model saw. What the tokenizer puts in front of every text (BOS, as a rule) is not
    sent: the server does it itself.
    """

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        self._engine, self._tokenizer = engine, encoder.tokenizer
        self._head = "".join(encoder.tokenizer.convert_ids_to_tokens(list(encoder.head)))

    @property
    def described(self) -> dict[str, Any]:
        return self._engine.described

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_tokens: OnTokens = nothing
    ) -> Iterator[Generation]:
        """As of the engine. Raises UserError as ``templated`` does, too."""
        texts = {each.key: self._text(each) for each in requests}
        asked = [Request(each.key, texts[each.key].removeprefix(self._head), each.seed) for each in requests]
        for made in self._engine.generate(asked, sampling, on_tokens):
            yield made._replace(prompt=texts[made.key])

    def _text(self, request: Request) -> str:
        return templated(self._tokenizer, request.turns, request.template) if request.chat else request.prompt
