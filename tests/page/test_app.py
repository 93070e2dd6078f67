"""The page in a real Chromium: what people see, that they stay apart, that text stays text and nothing leaves the machine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tiny_models import tiny_config

import fine_tuning
import rag_indexing
from config import PROJECT_DIR, GenerationConfig, TrainConfig
from pipeline.models import generation, loading, prompts
from pipeline.models.adapter import load_adapter
from pipeline.run import manifests
from pipeline.run.errors import UserError

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

HOSTILE = (
    "<script>window.hit = 1</script> <img src=x onerror='window.hit = 2'> **b** [l](javascript:hit) ${hit} {{hit}}"
)
RECORDS = [
    ("Girls Ballet Tutu Neon Blue", "Dance tutu for girls ages 2-8 years. Perfect for recitals."),
    ("Cold Chisel", "Forged steel, 7 inches long, for splitting brick and cutting bolts."),
    ("Green Tea", "Fifty sachets of sencha from Shizuoka, fresh and grassy."),
    (f"Poster {HOSTILE}", f"A poster for the wall. {HOSTILE}"),
] + [(f"Item number {n}", f"Item {n} is one of many items of the catalogue.") for n in range(12)]
SECRET = "correct horse battery"
PATIENCE = 60_000  # milliseconds until a test gives up; nothing waits so long where all is well


def write_records(config, records):
    """Do what stage 1 does."""
    outputs = ["trn_processed.json"]
    with manifests.stage_manifest(config, "process_data", [], outputs) as metrics:
        metrics["records_written"] = len(records)
        rows = [
            json.dumps({"product": title, "description": content, "price": n, "maker": f"M{n % 2}"})
            for n, (title, content) in enumerate(records)
        ]
        text = "[\n" + ",\n".join(rows) + "\n]\n"
        (config.run_dir / "trn_processed.json").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model):
    """The settings of a run with data, an adapter, an index and a report."""
    folder = tmp_path_factory.mktemp("app")
    train = TrainConfig(
        max_steps=4, batch_size=2, gradient_accumulation_steps=1, max_length=512, learning_rate=5e-2, logging_steps=1,
        validation_size=4,
    )  # fmt: skip
    config = tiny_config(tiny_model("llama"), folder, train=train)
    config = replace(
        config,
        data=replace(config.data, metadata=("price", "maker")),
        prompt=replace(config.prompt, format="alpaca"),
        answers=GenerationConfig(max_new_tokens=12, temperature=0.0),
    )
    write_records(config, RECORDS)
    fine_tuning.run(config)
    rag_indexing.run(config)
    (config.run_dir / "comparison.html").write_text(
        "<!doctype html><html><head></head><body><h1>No script has run</h1><script>"
        "document.querySelector('h1').textContent = 'The report'; try { parent.hit = 3 } catch {}</script></body></html>"
    )
    return config


@pytest.fixture(scope="module")
def serve():
    """A function that serves the page of a run in this process, and returns its Assistant and its address."""
    from pipeline.page import site
    from pipeline.page.assistant import Assistant

    served = []

    def start(config):
        assistant = Assistant(config)
        served.append(site.launch(assistant, "127.0.0.1", None, open_browser=False))
        return assistant, served[-1].local_url

    yield start
    for page in served:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def served(project, serve):
    return serve(project)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """A function that opens an address as somebody new; nothing may be asked for elsewhere, and no script may fail."""
    contexts, outside, failures = [], [], []

    def note(request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:")):
            outside.append(request.url)

    def open_page(address, locale="en-US", phone=False):
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        contexts.append(chromium.new_context(locale=locale, viewport=size, is_mobile=phone, has_touch=phone))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", note)
        page.on("pageerror", lambda error: failures.append(error))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not outside and not failures


def ask(page, question):
    page.locator("#question textarea").fill(question)
    page.keyboard.press("Enter")


def type_into(field, text):
    # Gradio does not notice what fill() does to a text box.
    field.click()
    field.press_sequentially(text)


def answers(page):
    """The texts of the three answers, once all are there."""
    for kind in ("foundation", "finetuned", "rag"):
        page.locator(f"#{kind} .done").wait_for()
    return [
        " ".join(page.locator(f"#{kind} .text").text_content().split()) for kind in ("foundation", "finetuned", "rag")
    ]


class Gate:
    """Counts the tokens that a model writes, and lets it write no more than it is allowed to."""

    def __init__(self, model):
        self.written, self._allowed = 0, threading.Semaphore(0)
        self._open = False
        self._hook = model.register_forward_hook(self._wait)

    def _wait(self, *_):
        self.written += 1
        if not self._open:
            self._allowed.acquire()

    def allow(self, tokens):
        self._allowed.release(tokens)

    def open(self):
        self._open = True
        self._allowed.release(10_000)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()
        self.open()


@pytest.fixture
def gate(served):
    with Gate(served[0]._models.get("foundation").loaded.model.get_base_model()) as gate:
        yield gate


@needs_chromium
def test_the_three_answers_are_those_of_the_stages(project, served, visit):
    page = visit(served[1])
    ask(page, "Cold  Chisel")
    shown = answers(page)
    base = loading.load_base(project.model, "16bit")
    own = prompts.make_prompt_format(project.prompt, base.tokenizer)

    def written(model, prompt_format):
        answer = generation.generate(model, prompt_format, [prompt_format.prompt("Cold Chisel")], project.answers)[0]
        return " ".join(answer.text.split())

    expected = [written(base, own)]
    folder = project.run_dir / "lora_model"
    expected.append(written(load_adapter(base, folder), prompts.load_prompt_format(folder)))
    assert shown[:2] == expected and expected[0] != expected[1]
    sources = page.locator("#sources li")
    assert sources.count() == project.rag.k and "Cold Chisel" in sources.first.inner_text()
    assert re.search(r"score 0\.7\d", sources.first.inner_text())
    assert all(
        re.fullmatch(r"\d+\.\d s", page.locator(f"#{kind} .state").inner_text()) for kind in ("foundation", "rag")
    )


@needs_chromium
def test_stop_works_in_the_middle_of_a_token(served, visit, gate):
    page = visit(served[1])
    ask(page, "Green Tea")
    page.locator("#foundation .writing").wait_for()
    gate.allow(3)
    page.locator("#foundation .writing .text").filter(has_text=re.compile(r"\S")).wait_for()
    page.get_by_role("button", name="Stop").click()
    for kind in ("foundation", "finetuned", "rag"):
        page.locator(f"#{kind} .stopped").wait_for()
    assert page.get_by_role("button", name="Ask").is_enabled()
    gate.open()
    served[0].models.submit(lambda: None).result()  # the thread is free again
    assert gate.written <= 5 and page.locator("#foundation .stopped").count() == 1


@needs_chromium
def test_escape_stops_too_and_the_next_question_is_answered(served, visit, gate):
    page = visit(served[1])
    ask(page, "Green Tea")
    page.locator("#foundation .writing").wait_for()
    page.keyboard.press("Escape")
    page.locator("#rag .stopped").wait_for()
    gate.open()
    ask(page, "Cold Chisel")
    assert all(answers(page))


@needs_chromium
def test_whoever_leaves_stops(served, visit, gate):
    page = visit(served[1])
    page.get_by_text("Settings").click()
    limit = page.get_by_label("number input for Length of an answer")
    limit.fill("1000")
    limit.press("Tab")
    ask(page, "Green Tea")
    page.locator("#foundation .writing").wait_for()
    page.context.close()
    free = served[0].models.submit(lambda: None)
    for _ in range(900):
        if free.done():
            break
        gate.allow(1)
        threading.Event().wait(0.02)
    assert free.done() and gate.written < 900


@needs_chromium
def test_people_wait_for_each_other_and_see_their_own_answers(served, visit, gate):
    first, second = visit(served[1]), visit(served[1], locale="pt-BR")
    ask(first, "Green Tea")
    first.locator("#foundation .writing").wait_for()
    ask(second, "Cold Chisel")
    second.get_by_text("perguntas na frente: 1").wait_for()
    gate.open()
    theirs = answers(first), answers(second)
    assert theirs[0] != theirs[1]
    assert "Green Tea" in first.locator("#sources li").first.inner_text()
    assert "Cold Chisel" in second.locator("#sources li").first.inner_text()
    assert second.get_by_text("perguntas na frente").count() == 0


@needs_chromium
def test_search_as_you_type(served, visit):
    page = visit(served[1])
    page.get_by_role("tab", name="Search").click()
    page.get_by_text("Type a few words").wait_for()
    page.get_by_label("What are you looking for?").press_sequentially("balet")
    first = page.locator("#results li").first
    first.filter(has_text="Girls Ballet Tutu Neon Blue").wait_for()
    assert first.locator("mark").first.inner_text() == "Ballet"
    least = page.get_by_label("number input for Score, at least")
    least.fill("1")
    least.press("Tab")
    page.get_by_text("Nothing fits").wait_for()
    least.fill("0")
    least.press("Tab")
    most = page.get_by_label("number input for Results, at most")
    most.fill("2")
    most.press("Tab")
    page.get_by_text("Results: 2").wait_for()
    assert page.locator("#results li").count() == 2


@needs_chromium
def test_search_with_filters(served, visit):
    page = visit(served[1], locale="pt-BR")
    page.get_by_role("tab", name="Buscar").click()
    filters = page.locator("#filters input")
    filters.wait_for()
    type_into(page.get_by_label("O que você procura?"), "item of the catalogue")
    results = page.locator("#results li")
    results.nth(9).wait_for()
    type_into(filters, "maker=M1")
    page.get_by_role("option", name="maker=M1").click()
    type_into(filters, "price<=7")
    filters.press("Enter")
    page.get_by_text("Resultados: 4").wait_for()
    assert sorted(results.locator(".metadata").all_inner_texts()) == [f"maker\nM1\nprice\n{n}" for n in (1, 3, 5, 7)]
    type_into(filters, "price~7")
    filters.press("Enter")
    page.get_by_role("alert").filter(has_text="price~7 não é um filtro").wait_for()


@needs_chromium
def test_hostile_text_stays_text(served, visit):
    page = visit(served[1])
    ask(page, f"Poster {HOSTILE}")
    answers(page)
    page.locator("#sources li", has_text="window.hit").first.wait_for()
    page.get_by_role("tab", name="Search").click()
    type_into(page.get_by_label("What are you looking for?"), "poster wall")
    result = page.locator("#results li", has_text="poster for the wall")
    result.wait_for()
    assert HOSTILE in result.locator(".text").text_content() and HOSTILE in result.locator("h3").text_content()
    assert page.locator("#results img, #results script, #sources img, #results a").count() == 0
    assert page.evaluate("window.hit") is None


@needs_chromium
def test_the_report_can_reach_nothing(project, served, visit):
    page = visit(served[1])
    page.get_by_role("tab", name="Compare").click()
    page.frame_locator("#report iframe").get_by_role("heading", name="The report").wait_for()
    assert page.evaluate("window.hit") is None


@needs_chromium
def test_a_training_is_followed_live(project, served, visit):
    log = project.run_dir / "training_log.jsonl"
    before = log.read_text(encoding="utf-8")
    page = visit(served[1])
    page.get_by_role("tab", name="Train").click()
    page.get_by_text("4 of 4").wait_for()
    page.get_by_text("Training finished").wait_for()
    page.locator("#curve canvas, #curve svg").first.wait_for()
    line = {
        "step": 1,
        "of": 500,
        "loss": 4.5,
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
        "epoch": 0.1,
        "seconds": 2.0,
        "tokens": 100,
    }
    try:
        log.write_text(json.dumps(line) + "\n", encoding="utf-8")
        page.get_by_text("1 of 500").wait_for()
        page.get_by_text("Training in progress").wait_for()
        with log.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({**line, "step": 6, "loss": 4.25, "seconds": 12.0, "tokens": 600}) + "\n" + '{"step": 7'
            )
        page.get_by_text("6 of 500").wait_for()
        page.get_by_text("about 17 min left").wait_for()
        assert page.locator("dd", has_text="50").count() and page.get_by_text("4.250").count()
    finally:
        log.write_text(before, encoding="utf-8")


@needs_chromium
def test_what_is_too_long_or_empty_is_not_asked(served, visit):
    page = visit(served[1])
    ask(page, "word " * 1000)
    page.get_by_role("alert").filter(has_text="5,000 characters; at most 2,000").wait_for()
    ask(page, "   ")
    page.get_by_role("alert").filter(has_text="Type a title").wait_for()
    assert page.locator(".answer.idle").count() == 3


@needs_chromium
@pytest.mark.parametrize(("locale", "button", "about"), [
    ("en-US", "Ask", "What the base model knows"), ("pt-BR", "Perguntar", "O que o modelo base sabe"),
    ("pt-PT", "Perguntar", "O que o modelo base sabe"), ("fr-FR", "Ask", "What the base model knows"),
])  # fmt: skip
def test_the_language_is_that_of_the_browser(served, visit, locale, button, about):
    page = visit(served[1], locale=locale)
    page.get_by_role("button", name=button, exact=True).wait_for()
    page.get_by_text(about).wait_for()


@needs_chromium
def test_an_empty_project_names_the_stages_to_run(tmp_path, tiny_model, serve, visit):
    config = tiny_config(tiny_model("llama"), tmp_path / "my outputs")
    page = visit(serve(config)[1])
    first = f'python process_data.py --output-dir "{config.output_dir}"'
    for tab, cards in (("Ask", 3), ("Search", 1), ("Compare", 1), ("Train", 1)):
        page.get_by_role("tab", name=tab).click()
        page.locator("code.command:visible", has_text=first).first.wait_for()
        assert page.locator("code.command:visible", has_text=first).count() == cards
        assert page.locator(
            "code.command:visible", has_text=f'python run.py --output-dir "{config.output_dir}"'
        ).count()
    page.get_by_role("tab", name="Ask").click()
    ask(page, "Anything")
    page.locator(".answer.failed").nth(2).wait_for()
    assert page.locator("code.command:visible", has_text=first).count() == 3


@needs_chromium
def test_what_is_missing_or_out_of_date_leaves_the_rest_alone(project, tmp_path, serve, visit):
    shutil.copytree(project.run_dir, tmp_path / "demo")
    shutil.rmtree(tmp_path / "demo" / "lora_model")
    config = replace(project, output_dir=tmp_path)
    page = visit(serve(config)[1])
    page.locator("#finetuned", has_text="python fine_tuning.py").wait_for()
    write_records(config, RECORDS[1:])
    ask(page, "Cold Chisel")
    page.locator("#foundation .done").wait_for()
    page.locator("#finetuned .failed", has_text="python fine_tuning.py").wait_for()
    page.locator("#rag .failed", has_text="python rag_indexing.py").wait_for()
    assert "have changed since stage 6" in page.locator("#rag").inner_text()


@needs_chromium
def test_a_model_that_cannot_be_loaded_is_said_in_every_column(project, serve, visit, tmp_path):
    config = replace(project, model=replace(project.model, name=str(tmp_path / "gone")))
    page = visit(serve(config)[1])
    ask(page, "Cold Chisel")
    page.locator(".answer.failed", has_text="--model.name").nth(2).wait_for()
    assert page.get_by_role("button", name="Ask").is_enabled()


@needs_chromium
def test_a_phone_shows_one_column_and_never_scrolls_sideways(served, visit):
    page = visit(served[1], phone=True)
    ask(page, f"Poster {HOSTILE}")
    answers(page)
    left = {page.locator(f"#{kind}").bounding_box()["x"] for kind in ("foundation", "finetuned", "rag")}
    assert len(left) == 1
    for tab in ("Ask", "Search", "Compare", "Train"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@needs_chromium
def test_a_password_is_asked_for(project, serve, visit, monkeypatch):
    import urllib.error
    import urllib.request

    monkeypatch.setenv("APP_PASSWORD", SECRET)
    address = serve(project)[1]
    for path in ("config", "gradio_api/info"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address + path)
    page = visit(address)
    for password, then in (("wrong horse battery", page.get_by_text("Incorrect")), (SECRET, page.locator("#question"))):
        page.get_by_label("username").fill("ana")
        page.get_by_label("password").fill(password)
        page.get_by_role("button", name="Login").click()
        then.wait_for()


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "app.py", "--no-open-browser", *map(str, arguments)], cwd=PROJECT_DIR, capture_output=True,
        text=True, encoding="utf-8", env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(("arguments", "environment", "sentence"), [
    (["--host", "0.0.0.0"], {}, "needs a password: set APP_PASSWORD"),
    (["--host", "0.0.0.0"], {"APP_PASSWORD": "short"}, "12 characters or more"),
    (["--port", "{taken}"], {}, "cannot listen on 127.0.0.1"),
])  # fmt: skip
def test_what_cannot_be_served_is_one_sentence(arguments, environment, sentence, served, tmp_path):
    taken = served[1].rstrip("/").rpartition(":")[2]
    arguments = [argument.format(taken=taken) for argument in arguments]
    done = command("--output-dir", tmp_path, *arguments, **environment)
    assert done.returncode == 1 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_only_this_machine_is_answered_under_its_own_name(served):
    import urllib.error
    import urllib.request

    answer = urllib.request.urlopen(served[1])
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.search(r'(?:src|href)="https?://', answer.read().decode())
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(served[1], headers={"Host": "evil.example"}))


def test_loaded_again_after_its_stage_was_run_again(tmp_path):
    from pipeline.page.models import Loaded

    manifest = tmp_path / "stage.json"
    loads = []
    loaded = Loaded(lambda: loads.append(1) or len(loads), [manifest])
    assert not loaded.is_current and loaded.get() == loaded.get() == 1 and loaded.is_current
    manifest.write_text("{}")
    assert not loaded.is_current and loaded.get() == loaded.get() == 2
    os.utime(manifest, ns=(1, 1))
    assert loaded.get() == 3


def test_what_is_out_of_date_goes_before_what_replaces_it_is_loaded(tmp_path):
    from pipeline.page.models import Loaded

    class Model:
        pass

    made, left = [], []

    def load():
        left.append(sum(model() is not None for model in made))
        model = Model()
        made.append(weakref.ref(model))
        return model

    loaded = Loaded(load, [tmp_path / "stage.json"])
    loaded.get()
    (tmp_path / "stage.json").write_text("{}")
    loaded.get()
    assert left == [0, 0]


def test_a_worker_serves_in_turn_and_says_who_waits():
    from pipeline.page.worker import Ahead, Worker

    async def run():
        worker, opened, closed = Worker(), threading.Event(), []

        def endless():
            try:
                while True:
                    opened.wait()
                    yield "a"
            finally:
                closed.append(True)

        first = worker.stream(endless)
        skipped, second = (worker.stream(lambda text=text: (c for c in text)) for text in ("x", "bc"))
        skipped.stop()
        assert [item async for item in skipped] == []
        opened.set()
        items = []
        async for item in first:
            items.append(item)
            if item == "a":
                first.stop()
        assert items[0] == Ahead(0) and items[-1] == "a" and not [item for item in items if item == Ahead(1)]
        assert [item async for item in second if item not in (Ahead(2), Ahead(1), Ahead(0))] == ["b", "c"]
        assert closed == [True]
        with pytest.raises(UserError, match="gone"):
            async for _ in worker.stream(failing):
                pass

    def failing():
        yield 1
        raise UserError("gone")

    with ThreadPoolExecutor(1) as thread:  # Playwright has an event loop in this one
        thread.submit(asyncio.run, run()).result()


def test_both_languages_say_the_same():
    from pipeline.page.tabs import all_tabs
    from pipeline.page.texts import TEXTS, language_of

    sources = "".join(
        p.read_text(encoding="utf-8")
        for p in (PROJECT_DIR / "pipeline" / "page").rglob("*.*")
        if p.suffix != ".pyc" and p.stem != "texts"
    )
    said = [*TEXTS.items(), *(text for tab in all_tabs() for text in tab.texts.items())]
    assert len(said) == len(dict(said))
    for name, (english, portuguese) in said:
        assert re.findall(r"\{\d\}", english) == re.findall(r"\{\d\}", portuguese), name
        assert len(re.findall(rf"\b{name}\b", sources)) > (name not in TEXTS) or name.startswith("about_"), (
            f"{name} is used nowhere"
        )
    accepted = {"fr-FR,pt;q=0.8,en;q=0.5": "pt", "en-GB,pt": "en", "": "en"}
    assert {header: language_of({"accept-language": header}) for header in accepted} == accepted
    assert language_of({}) == "en"


def test_numbers_are_written_as_the_language_does():
    from pipeline.page.views import number

    assert number(1234.567, 1, "en") == "1,234.6" and number(1234.567, 1, "pt") == "1.234,6"
