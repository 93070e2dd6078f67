"""What the page says, in English and in Portuguese; what one tab alone says is in its module."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

# Name: (English, Portuguese).
TEXTS = {
    "title": ("Your models", "Seus modelos"),
    "run": ("run", "execução"),
    "records": ("records", "registros"),
    # Ask
    "question": ("Title or question", "Título ou pergunta"),
    "question_hint": ("Type it and press Enter", "Digite e tecle Enter"),
    "examples": ("For example", "Por exemplo"),
    "stop": ("Stop", "Parar"),
    "foundation": ("Foundation", "Modelo base"),
    "finetuned": ("Fine-tuned", "Fine-tuning"),
    "merged": ("Merged", "Mesclado"),
    "gguf": ("GGUF", "GGUF"),
    "rag": ("RAG", "RAG"),
    "about_foundation": ("What the base model knows by itself.", "O que o modelo base sabe por si só."),
    "about_finetuned": (
        "The same model with the adapter that your records trained.",
        "O mesmo modelo com o adaptador treinado com os seus registros.",
    ),
    "about_rag": (
        "A model that reads the records which fit the question before it answers.",
        "Um modelo que lê os registros que combinam com a pergunta antes de responder.",
    ),
    "settings": ("Settings", "Opções"),
    "max_new_tokens": ("Length of an answer, in tokens at most", "Tamanho da resposta, em tokens, no máximo"),
    "temperature": ("Temperature", "Temperatura"),
    "temperature_hint": (
        "0 always takes the likeliest word, more is more varied",
        "0 escolhe sempre a palavra mais provável; mais alto varia mais",
    ),
    "k": ("Records for RAG, at most", "Registros para o RAG, no máximo"),
    "answer_with": ("RAG answers with", "O RAG responde com"),
    "waiting": ("waiting", "aguardando"),
    "ahead": ("questions before this one: {0}", "perguntas na frente: {0}"),
    "loading": ("loading the model", "carregando o modelo"),
    "writing": ("writing", "escrevendo"),
    "done": ("{0} s", "{0} s"),
    "stopped": ("stopped", "parado"),
    "failed": ("no answer", "sem resposta"),
    "needed": ("not made yet", "ainda não existe"),
    "empty_answer": ("The model wrote nothing.", "O modelo não escreveu nada."),
    "ask_something": ("Type a title or a question first.", "Digite antes um título ou uma pergunta."),
    "too_long": (
        "This text has {0} characters; at most {1} can be asked at a time. Shorten it and try again.",
        "Este texto tem {0} caracteres; o máximo por vez é {1}. Encurte-o e tente de novo.",
    ),
    "unexpected": (
        "Something went wrong. The terminal in which app.py runs says what.",
        "Algo deu errado. O terminal em que app.py roda diz o quê.",
    ),
    "all_done": ("All answers are there.", "Todas as respostas estão prontas."),
    "sources": ("Records that RAG was given", "Registros dados ao RAG"),
    "score": ("score {0}", "pontuação {0}"),
    "score_parts": ("mean of meaning {0} and words {1}", "média de significado {0} e palavras {1}"),
    # What a stage has yet to make
    "stage_first": ("Stage {0} makes this. In a terminal:", "A etapa {0} produz isto. Em um terminal:"),
    "stage_again": (
        "The data or settings have changed since stage {0} ran. In a terminal:",
        "Os dados ou as opções mudaram depois da etapa {0}. Em um terminal:",
    ),
    "from_here": ("Or with all stages after it:", "Ou com todas as etapas depois dela:"),
    "all_stages": ("Or all stages in a row:", "Ou todas as etapas em sequência:"),
    "out_of_date": ("This is out of date", "Isto está desatualizado"),
    "no_data": ("Nothing has been made yet", "Ainda não há nada aqui"),
    "no_model": ("There is no fine-tuned model yet", "Ainda não há modelo com fine-tuning"),
    "no_index": ("The records are not indexed yet", "Os registros ainda não foram indexados"),
    "no_comparison": ("There is no comparison yet", "Ainda não há comparação"),
    "no_training": ("No training has begun yet", "Nenhum treino começou ainda"),
    # What is asked before the page opens
    "password_hint": ("Any name, and the password of this page", "Qualquer nome e a senha desta página"),
}
LANGUAGES = {"en": SimpleNamespace(), "pt": SimpleNamespace()}


def add(texts: Mapping[str, tuple[str, str]]) -> None:
    """Let the page say more."""
    for name, (english, portuguese) in texts.items():
        setattr(LANGUAGES["en"], name, english)
        setattr(LANGUAGES["pt"], name, portuguese)


add(TEXTS)


def language_of(headers: Mapping[str, str]) -> str:
    """Return en or pt: whichever comes first among the languages that a browser accepts, else en."""
    for part in headers.get("accept-language", "").split(","):
        language = part.split(";")[0].strip().partition("-")[0].lower()
        if language in LANGUAGES:
            return language
    return "en"
