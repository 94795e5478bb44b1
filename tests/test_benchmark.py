# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark: each contestant trains and answers, and each group measures what it says."""

import json
import statistics
import sys
from functools import partial

import pytest
import torch
from transformers import BertConfig, ViTConfig

from .test_scripts import SCRIPTS, assert_refused, load_script


pytestmark = pytest.mark.slow  # models are built and exported or trained in most of them


@pytest.fixture(scope="module")
def script():
    """The program; its modules are found beside it while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS / "benchmarks"))
        yield load_script("benchmark")


@pytest.fixture(scope="module")
def configs(script):
    return sys.modules["benchmark_configs"]


@pytest.fixture(scope="module")
def models(script):
    return sys.modules["benchmark_models"]


@pytest.fixture(scope="module")
def peers(script):
    return sys.modules["benchmark_peers"]


@pytest.fixture(scope="module")
def tiny(configs):
    """Sizes at which a test takes no time, and at which parameters still agree."""
    return configs.Sizes(
        width=64, layers=2, heads=2, vocab_size=4096, image_size=16, patch_size=4, mel_bins=10, frames=20,
        question_tokens=4, target_tokens=5, max_positions=32, batch=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def quick(models):
    return models.Settings(threads=1, repeats=1, steps=1)


@pytest.fixture
def here(monkeypatch, script):
    """What would run in a process of its own runs in this one, whose memory says nothing and has much to collect."""
    monkeypatch.setattr(sys.modules["benchmark_tools"].gc, "collect", lambda *arguments: 0)
    stand_ins = {
        "run_alone": lambda function, *arguments: function(*arguments),
        "extra_memory": lambda function, device: function() or 1.0,
    }
    for module in [module for name, module in sys.modules.items() if name.startswith("benchmark_")]:
        for name in stand_ins.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, stand_ins[name])


# peers and loading


TITLES = {
    "captioning": ["CrossFuse", "CrossFuse, own layers", "ViT + BERT", "ViT + GPT-2", "BLIP"],
    "speech": ["CrossFuse", "CrossFuse, own layers", "Whisper", "AST + BERT"],
    "questions": ["CrossFuse", "CrossFuse, own layers", "Florence-2", "T5Gemma2"],
}


@pytest.fixture(scope="module")
def contestants(models, tiny, quick):
    return {task: models.build_contestants(task, tiny, quick) for task in TITLES}


EVERY_CONTESTANT = [pytest.param(task, title, id=f"{task}-{title}") for task in TITLES for title in TITLES[task]]


def test_every_contestant_is_tried(models):
    assert {task: list(entrants) for task, entrants in models.TASKS.items()} == TITLES


@pytest.mark.parametrize(("task", "title"), EVERY_CONTESTANT)
def test_a_contestant_trains(contestants, task, title):
    contestant = contestants[task][title]
    before = contestant.model(**contestant.training).loss.item()
    for _ in range(20):
        contestant.step()
    assert contestant.model(**contestant.training).loss.item() < before - 0.01
    assert not [module for module in contestant.model.modules() if isinstance(module, torch.nn.Dropout) and module.p]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(("task", "title"), EVERY_CONTESTANT)
def test_a_contestant_answers_in_exactly_so_many_tokens(contestants, task, title, beams):
    answers = contestants[task][title].generate(2, 7, beams)
    first = 0 if title == "Whisper" else 1  # which leaves out the token that an answer starts with
    assert answers.shape == (2, first + 7)


@pytest.mark.parametrize("task", TITLES)
def test_parameters_agree_at_the_reference_sizes(configs, models, task):
    fitted = models.make_configs(task, configs.Sizes())
    assert list(fitted) == TITLES[task]  # a difference is an error


def test_other_numbers_of_parameters_are_refused(models):
    models.check_parameters({"ours": 102, "one": 100, "other": 104}, ["one", "other"])
    with pytest.raises(ValueError, match="ours has 110 parameters; expected the peers' mean of 102, give or take 3%"):
        models.check_parameters({"ours": 110, "one": 100, "other": 104}, ["one", "other"])


def test_an_attention_that_a_peer_has_not_is_left_to_the_peer(models, tiny):
    settings = models.Settings(attn_implementation="flex_attention")
    titles = ["CrossFuse", "BLIP"]
    ours, blip = models.build_contestants("captioning", tiny, settings, titles).values()
    assert ours.model.config._attn_implementation == "flex_attention"
    assert blip.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "task", ["captioning", *(pytest.param(task, marks=pytest.mark.slow) for task in ("speech", "questions"))]
)
def test_peers_are_compared(peers, models, tiny, quick, here, tmp_path, monkeypatch, task):
    monkeypatch.setattr(peers, "NEW_TOKENS", 3)
    results = peers.measure_peers(task, tiny, quick)
    assert json.loads(json.dumps(results)) == results
    for summaries in results["measures"].values():
        assert list(summaries) == TITLES[task]
    report = peers.report_peers(results)
    assert report.count("\n| training step") == 2 and models.DIFFERENCES[task][0] in report
    peers.plot_peers(results, str(tmp_path / "peers.png"))
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_are_to_the_best_peer(peers):
    medians = dict(zip(TITLES["captioning"], (2.0, 3.0, 4.0, 8.0, 16.0)))
    summaries = {title: {"median": median, "spread": 0.0} for title, median in medians.items()}
    compared = peers.compare("captioning", {"step, ms": summaries, "greedy, tokens/s": summaries})
    assert compared["best_peer"] == {"step, ms": "ViT + BERT", "greedy, tokens/s": "BLIP"}
    assert compared["ratios"]["step, ms"]["CrossFuse"] == 0.5
    assert compared["ratios"]["greedy, tokens/s"]["CrossFuse"] == 0.125


def test_loading_is_compared(peers, tiny, quick, here):
    results = peers.measure_loading("captioning", tiny, quick)
    assert list(results["measures"]) == ["from_pretrained, ms"]


# compile, missing, latent and reuse


@pytest.fixture
def compiling(script, monkeypatch):
    """With a backend that takes no time."""
    compiling = sys.modules["benchmark_compile"]
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setattr(compiling, "NEW_TOKENS", 3)
    return compiling


def test_a_compiled_step_trains(compiling, models, tiny, quick, here):
    contestant = models.build_contestants("captioning", tiny, quick, ["CrossFuse"])["CrossFuse"]
    before = contestant.model(**contestant.training).loss.item()
    assert compiling.compile_training(contestant, quick)["compiling, s"] > 0
    assert contestant.model(**contestant.training).loss.item() < before


@pytest.mark.slow
def test_compiling_is_compared_with_not_compiling(compiling, tiny, quick):
    rows = compiling.measure_compile("captioning", tiny, quick)["rows"]
    assert len(rows) == 4  # tokens and steps, of both CrossFuses
    assert all(row["compiling, s"] > 0 for row in rows.values())


@pytest.mark.parametrize(("compiled", "pays_after"), [(2.0, 4), (20.0, "never")])
def test_when_compiling_has_paid_for_itself(compiling, quick, monkeypatch, compiled, pays_after):
    monkeypatch.setattr(compiling, "milliseconds", lambda function, device: compiled + 32.0)
    monkeypatch.setattr(compiling, "alternate", lambda *arguments: {"eager": [10.0], "compiled": [compiled]})
    row = compiling.compare(None, None, 1, quick)
    assert row["compiling, s"] == 0.032 and row["pays after"] == pays_after


@pytest.fixture(scope="module")
def selves(script):
    return sys.modules["benchmark_selves"]


def test_half_of_the_values_are_missing(selves, tiny, quick):
    present = selves.make_pair("concat", True, tiny, quick).inputs["modality_mask"]
    assert present.float().mean() == 0.5 and present.any(1).all()


def test_missing_values_are_compared_with_all(selves, tiny, quick, here):
    rows = selves.measure_missing(tiny, quick)["rows"]
    assert [title.partition(",")[0] for title in rows] == 2 * ["concat", "joint", "bottleneck", "latent"]


def test_tokens_are_timed_without_the_encoder(selves, tiny, quick, here, monkeypatch):
    monkeypatch.setattr(selves, "NEW_TOKENS", 3)
    answer = selves.answer_from_memory("latent", tiny, quick)
    assert set(selves.count_encoder_calls(answer.func.__self__, answer).values()) == {0}
    assert answer().shape == (2, 4)
    rows = selves.measure_latent(tiny, quick)["rows"]
    assert list(rows["latent"]) == ["16 patches, ms", "256 patches, ms", "ratio"]


def test_what_is_reused_is_not_run_again(selves, tiny, quick, here):
    rows = selves.measure_reuse(tiny, quick)["rows"]
    runs = [(row["runs of the image's encoder"], row["of the whole encoder"]) for row in rows.values()]
    assert runs == [(1, 1), (0, 1), (0, 0)]


def test_what_is_reused_gives_the_same_answer(selves, configs, models, tiny, quick):
    contestant = models.build(configs.crossfuse_answerer(tiny), models.make_questions(tiny), tiny, quick)
    first, another, memory = selves.reusable_inputs(contestant).values()
    another["input_ids"] = first["input_ids"]
    answers = [contestant.model.eval().generate(**inputs, max_new_tokens=5) for inputs in (first, another, memory)]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


# growth


@pytest.fixture(scope="module")
def growth(script):
    return sys.modules["benchmark_growth"]


def test_the_slope_of_a_power(growth):
    assert growth.slope({x: 3 * x**1.5 for x in (1, 2, 4, 8)}) == pytest.approx(1.5)
    # What is constant hides the power, the more so the smaller x is: only the upper half of the points counts.
    constant = {1: 5.0, 2: 5.0, 4: 5.0, 8: 8.0, 16: 32.0, 32: 128.0}
    assert growth.slope(constant) == pytest.approx(2.0)


def test_a_load_is_what_it_says(growth, tiny, quick):
    load = growth.Load(positions=6, modalities=3, batch=2, target=4)
    contestant = growth.make_loaded("joint", load, tiny, quick)
    assert len(contestant.model.config.modalities) == 3 and contestant.model.config.fusion.type == "joint"
    assert contestant.training["labels"].shape == (2, 4)
    memory = contestant.model.get_encoder()(**contestant.inputs).last_hidden_state
    assert memory.shape == (2, 3 * 6, tiny.width)


def test_growth_is_measured_and_drawn(script, growth, tiny, here, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(growth, "AXES", {axis: (field, (1, 2, 4)) for axis, (field, _) in growth.AXES.items()})
    monkeypatch.setattr(script, "Sizes", lambda: tiny)
    files = {flag: tmp_path / f"growth.{flag}" for flag in ("output", "plot")}
    flags = [text for flag, file in files.items() for text in (f"--{flag}", str(file))]
    script.main(["growth", "--repeats", "1", "--steps", "1", "--threads", "1", *flags])
    results = json.loads(files["output"].read_text())
    assert list(results["slopes"]["time, ms"]) == list(growth.AXES)
    assert list(results["found"]["memory, MB"]["batch"]["latent"]) == ["1", "2", "4"]
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| fusion | time / positions of a modality | memory / positions") and len(table) == 6


# frozen and quantized


ENCODER = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def frozen(script, monkeypatch):
    """With encoders small enough for a test."""
    frozen = sys.modules["benchmark_frozen"]
    monkeypatch.setattr(frozen, "TEXT", BertConfig(**ENCODER))
    monkeypatch.setattr(frozen, "IMAGE", ViTConfig(**ENCODER))
    monkeypatch.setattr(frozen, "BATCH", 2)
    return frozen


@pytest.mark.parametrize("variant", ["both encoders train", "text frozen", "both frozen", "both frozen, cached"])
def test_variants_of_freezing(frozen, quick, variant):
    measured = frozen.measure_variant("frozen", variant, quick)
    assert measured["step_ms"] > 0 and measured["step_mb"] >= 0
    model, batch = frozen.VARIANTS["frozen"][variant]()
    names = {name for name, part in model.config.modalities.items() if part.frozen}
    assert len(names) == {"both encoders train": 0, "text frozen": 1}.get(variant, 2)
    assert ("image_hidden_states" in batch) == ("cached" in variant)


def test_int8_encoders_are_smaller(frozen, quick, here):
    pytest.importorskip("torchao")
    results = frozen.measure_quantized(quick)
    whole, small = (variant["encoder_mb"] for variant in results["variants"].values())
    assert small < whole
    assert 0 < results["hidden_states_change"] < 1e-2


def test_the_table_has_ratios_to_the_first(frozen):
    variants = {
        "one": {"step_ms": 200.0, "step_mb": 100.0, "encoder_mb": 10.0},
        "other": {"step_ms": 50.0, "step_mb": 20.0, "encoder_mb": 10.0},
    }
    lines = frozen.report_variants({"variants": variants, "hidden_states_change": 0.007}).splitlines()
    assert "| other | 50 | 0.25 | 20 | 0.20 | 10 |" in lines
    assert lines[-1] == "hidden states change by 0.70 % of their length (median)"


# the program


def test_the_middle_and_the_spread(script):
    values = [4.0, 1.0, 2.0, 3.0, 100.0]
    summary = sys.modules["benchmark_tools"].summarize(values)
    assert summary == {"median": statistics.median(values), "spread": 2.0}


def test_functions_take_turns(script):
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = sys.modules["benchmark_tools"].alternate(functions, repeats=2)
    assert calls == ["a", "b"] * 3  # the first ones are not timed
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}


def test_a_cell_of_a_table(script):
    show = sys.modules["benchmark_tools"].show
    shown = [show(value) for value in ({"median": 12.34, "spread": 1.0}, 0.567, 1234.5, 1_234, "never")]
    assert shown == ["12.3 ± 1.0", "0.57", "1234", "1,234", "never"]


def test_memory_is_what_a_call_adds(script):
    """In a process of its own, as the program measures it."""
    tools = sys.modules["benchmark_tools"]
    megabytes = tools.run_alone(tools.extra_memory, partial(torch.ones, 2**24))
    assert 60 < megabytes < 90


def test_the_program(script, frozen, monkeypatch, tmp_path, capsys):
    figures = dict.fromkeys(("step_ms", "step_mb", "encoder_mb"), 1.0)
    monkeypatch.setattr(frozen, "measure_variants", lambda *arguments: {"one": figures})
    script.main(["frozen", "--output", str(tmp_path / "figures.json"), "--threads", "1"])
    assert json.loads((tmp_path / "figures.json").read_text())["variants"]["one"]["step_ms"] == 1.0
    assert "| one |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frozen", "--repeats", "0"], "--repeats: 0 is not above 0"),
        (["frozen", "--output", "nowhere/figures.json"], "--output: there is no folder nowhere"),
        (["peers", "--plot", "nowhere/peers.png"], "--plot: there is no folder nowhere"),
        (["peers", "--plot", "."], "--plot: . is a folder; expected a file"),
        (
            ["latent", "--task", "speech"],
            "--task: the group latent has no tasks; expected one of peers, loading, compile",
        ),
        (["frozen", "--plot", "frozen.png"], "--plot: the group frozen has no plot; expected one of peers"),
        (["peers", "--device", "abacus"], "--device is 'abacus', which this machine does not have"),
        (["peers", "--device", "meta"], "--device is 'meta'; expected cpu or cuda"),
        (["peers", "--attn_implementation", "no_attention"], "no_attention"),
    ],
)
def test_wrong_arguments(script, capsys, arguments, message):
    assert_refused(capsys, script.main, arguments, message)


def test_a_plot_needs_matplotlib_before_anything_is_measured(script, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["peers", "--plot", str(tmp_path / "peers.png")]
    assert_refused(capsys, script.main, arguments, "drawing needs matplotlib")
