"""The Modelfile that Ollama reads: the prompt of the training as a template, and the sampling that stage 5 checks with."""

from __future__ import annotations

from itertools import groupby

from config import GenerationConfig
from pipeline.models.llama_cpp import sampling
from pipeline.models.prompts import SYSTEM, PromptFormat


def modelfile(gguf_name: str, prompt_format: PromptFormat, generation: GenerationConfig, context_tokens: int) -> str:
    """Return the text of a Modelfile, with which Ollama asks as the training did, in every turn of a conversation.

    Args:
        gguf_name: the GGUF file, beside the Modelfile.
        prompt_format: how the model was trained.
        generation: how it answers, where the user sets nothing else.
        context_tokens: tokens of a conversation and its next answer together, at most.
    """
    drawn = sampling(generation, context_tokens)
    parameters = {**drawn, "num_predict": generation.max_new_tokens, "num_ctx": context_tokens}
    return "\n".join(
        [
            f"FROM ./{gguf_name}",
            f"TEMPLATE {_quoted(_template(prompt_format))}",
            *[f"PARAMETER stop {_quoted(stop)}" for stop in _stops(prompt_format)],
            *[f"PARAMETER {name} {value}" for name, value in parameters.items()],
            "",
        ]
    )


def _template(prompt_format: PromptFormat) -> str:
    """Return the Go template of a conversation; what a user types is a title.

    BOS is left out: Ollama adds it where the GGUF says so. An answer that comes first is passed over: Ollama leaves out
    the oldest messages where a conversation has become too long. The last answer stays open, so that it can be continued.
    """
    before, between, after = map(_literal, (prompt_format.before, prompt_format.between, prompt_format.after))
    with_system = "{{ .System }}".join(map(_literal, prompt_format.before_with_system.split(SYSTEM)))
    question = "{{ .Content }}".join(map(_literal, prompt_format.around_title()))
    # Ollama executes a template without .Messages once a turn: what belongs before the first question would stand in each.
    return "\n".join(
        [
            f"{{{{ if .System }}}}{with_system}{{{{ else }}}}{before}{{{{ end }}}}",
            "{{- $asked := false }}",
            "{{- range .Messages }}",
            f'{{{{- if eq .Role "user" }}}}{{{{ if $asked }}}}{between}{{{{ end }}}}{question}{after}{{{{ $asked = true }}}}',
            '{{- else if and $asked (eq .Role "assistant") }}{{ .Content }}',
            "{{- end }}",
            "{{- end }}",
        ]
    )


def _stops(prompt_format: PromptFormat) -> list[str]:
    """Return what an answer ends at: its end token, and the control tokens that open a turn.

    A model that writes one of the latter has begun to ask itself questions. Ollama stops at the EOS token of the GGUF too:
    a token that a Modelfile cannot hold is left to that.
    """
    frame = prompt_format.before + prompt_format.after
    opening = [token for token in prompt_format.control_tokens if token in frame]
    return [stop for stop in dict.fromkeys([prompt_format.end, *opening]) if all(map(_is_kept, stop))]


def _literal(text: str) -> str:
    """Return text as a Go template writes it; what Ollama or Go would take for something else is a string of Go."""
    parts = []
    for plain, characters in groupby(text, lambda character: _is_kept(character) and character not in '{"'):
        part = "".join(characters)
        parts.append(part if plain else f'{{{{ "{"".join(map(_escape, part))}" }}}}')
    return "".join(parts)


def _is_kept(character: str) -> bool:
    # Ollama's parser of Modelfiles leaves out what is not printed, a no-break space for instance.
    return character.isprintable() or character in "\n\t"


def _escape(character: str) -> str:
    if character == "{":
        return character
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def _quoted(value: str) -> str:
    # There are no escapes in a Modelfile: a value ends at three quotes that are the last of their line.
    return f'"""{value}"""'
