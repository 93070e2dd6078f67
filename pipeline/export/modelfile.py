"""The Modelfile that Ollama reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config import GenerationConfig
from pipeline.models.prompts import CONTEXT, TITLE, PromptFormat

if TYPE_CHECKING:
    pass


def modelfile(gguf_name: str, prompt_format: PromptFormat, generation: GenerationConfig) -> str:
    """Return the text of a Modelfile: what the user types is the title, and the answer ends where it should.

    BOS is left out: Ollama adds it where the GGUF says so.
    """
    question = prompt_format.question.replace(TITLE, "{{ .Prompt }}").replace(CONTEXT, "")
    template = prompt_format.before + question + prompt_format.after
    stops = dict.fromkeys([prompt_format.end, *_turn_starts(prompt_format)])
    return "\n".join(
        [
            f"FROM ./{gguf_name}",
            f'TEMPLATE """{template}"""',
            *[f'PARAMETER stop "{stop}"' for stop in stops],
            f"PARAMETER temperature {generation.temperature}",
            f"PARAMETER num_predict {generation.max_new_tokens}",
            "",
        ]
    )


def _turn_starts(prompt_format: PromptFormat) -> list[str]:
    """Return the control tokens that open a turn: a model that writes one has begun to ask itself questions."""
    frame = prompt_format.before + prompt_format.after
    return [token for token in prompt_format.control_tokens if token in frame]
