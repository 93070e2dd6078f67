"""What the page says, in English and in Portuguese."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

# Name: (English, Portuguese).
TEXTS = {
    "title": ("Your models", "Seus modelos"),
    "preset": ("preset", "preset"),
    "records": ("records", "registros"),
    "ask": ("Ask", "Perguntar"),
    "search": ("Search", "Buscar"),
    "compare": ("Compare", "Comparar"),
    "train": ("Train", "Treino"),
    # Ask
    "question": ("Title or question", "Título ou pergunta"),
    "question_hint": ("Type it and press Enter", "Digite e tecle Enter"),
    "examples": ("For example", "Por exemplo"),
    "stop": ("Stop", "Parar"),
    "foundation": ("Foundation", "Modelo base"),
    "finetuned": ("Fine-tuned", "Fine-tuning"),
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
    "score_parts": ("meaning {0}, words {1} %", "significado {0}, palavras {1} %"),
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
    # Search
    "query": ("What are you looking for?", "O que você procura?"),
    "query_hint": (
        "Results appear as you type: by meaning, by words and by title",
        "Os resultados aparecem enquanto você digita: por significado, palavras e título",
    ),
    "results": ("Results, at most", "Resultados, no máximo"),
    "least_score": ("Score, at least", "Pontuação, no mínimo"),
    "filters": ("Filters", "Filtros"),
    "filters_hint": (
        "Choose or type conditions, such as {0}; a record must meet all of them",
        "Escolha ou digite condições, como {0}; um registro deve atender a todas",
    ),
    "no_filter": (
        "{0} is no filter. Filters are such as brand=Sansha, brand!=Sansha or price<=20.",
        "{0} não é um filtro. Filtros são como brand=Sansha, brand!=Sansha ou price<=20.",
    ),
    "opening": ("Opening the index …", "Abrindo o índice …"),
    "found": ("Results: {0}", "Resultados: {0}"),
    "nothing_found": (
        "Nothing fits. Try other words, a lower score or fewer filters.",
        "Nada combina. Tente outras palavras, uma pontuação menor ou menos filtros.",
    ),
    "type_to_search": ("Type a few words of what you are looking for.", "Digite algumas palavras do que você procura."),
    # Train
    "step": ("Step", "Passo"),
    "of_steps": ("{0} of {1}", "{0} de {1}"),
    "training_loss": ("Training loss", "Loss de treino"),
    "running_mean": ("Training loss, running mean", "Loss de treino, média móvel"),
    "validation_loss": ("Validation loss", "Loss de validação"),
    "perplexity": ("Perplexity", "Perplexidade"),
    "learning_rate": ("Learning rate", "Taxa de aprendizado"),
    "speed": ("Tokens per second", "Tokens por segundo"),
    "optimizer_step": ("optimizer step", "passo do otimizador"),
    "loss": ("loss per token (nats)", "loss por token (nats)"),
    "running": ("Training in progress", "Treino em andamento"),
    "finished": ("Training finished", "Treino terminado"),
    "left": ("about {0} min left", "faltam cerca de {0} min"),
    "at_start": ("{0} at the start", "{0} no início"),
    "last_line": ("last written {0}", "última escrita {0}"),
    "interrupted": (
        "Nothing has been written for {0} minutes. If the training was interrupted, go on with:",
        "Nada foi escrito há {0} minutos. Se o treino foi interrompido, continue com:",
    ),
    # What is asked before the page opens
    "password_hint": ("Any name, and the password of this page", "Qualquer nome e a senha desta página"),
}
LANGUAGES = {
    language: SimpleNamespace(**{name: texts[position] for name, texts in TEXTS.items()})
    for position, language in enumerate(("en", "pt"))
}


def language_of(headers: Mapping[str, str]) -> str:
    """Return en or pt: whichever comes first among the languages that a browser accepts, else en."""
    for part in headers.get("accept-language", "").split(","):
        language = part.split(";")[0].strip().partition("-")[0].lower()
        if language in LANGUAGES:
            return language
    return "en"
