# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The whole loop with the Hub: the real client, and a server of the tests' own that speaks the Hub's protocol."""

import json
import time
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    pipeline,
)

from crossfuse.main import main, run
from modeling_crossfuse import CrossFuseDataCollator, CrossFuseProcessor, CrossFuseTrainer
from modeling_crossfuse.training import train_tokenizer
from modeling_crossfuse.training.model_card import write_model_card

from .helpers import MODALITIES, run_python, tiny_config, tiny_model
from .hub_server import TOKEN, Fault


CODE = {"modeling_crossfuse.py", "configuration_crossfuse.py", "processing_crossfuse.py"}


@pytest.fixture
def model():
    modalities = {"text": {"vocab_size": 300}, "image": MODALITIES["image"]}
    return tiny_model(tiny_config(modalities=modalities, decoder={"vocab_size": 300}))


@pytest.fixture
def processor(model):
    return CrossFuseProcessor.from_config(
        model.config, tokenizer=train_tokenizer(["what is it?", "a cat"], vocab_size=300)
    )


def weights_of(server, name: str = "me/fusion", revision: str = "main") -> bytes:
    return server.repositories[name].files(revision)["model.safetensors"]


def test_push_takes_all_in_one_commit(hub, model):
    model.push_to_hub("fusion", tags=["emoji"])
    repository = hub.repositories["me/fusion"]
    assert repository.messages == ["Upload CrossFuseForConditionalGeneration"]
    files = repository.files()
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} | CODE <= files.keys()
    assert all(name.endswith((".json", ".md", ".py", ".safetensors")) for name in files)
    config = json.loads(files["config.json"])
    assert config["auto_map"]["AutoModelForSeq2SeqLM"] == "heads.CrossFuseForConditionalGeneration"
    assert "_name_or_path" not in config


def test_loaded_by_id_and_revision(hub, model, processor):
    model.push_to_hub("me/fusion")
    processor.push_to_hub("me/fusion")
    first = HfApi(endpoint=hub.endpoint).repo_info("me/fusion").sha
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.push_to_hub("me/fusion", revision="zero")
    weights = AutoModelForSeq2SeqLM.from_pretrained("me/fusion").lm_head.weight
    assert weights.abs().sum() > 0
    assert torch.equal(AutoModelForSeq2SeqLM.from_pretrained("me/fusion", revision=first).lm_head.weight, weights)
    assert AutoModelForSeq2SeqLM.from_pretrained("me/fusion", revision="zero").lm_head.weight.abs().sum() == 0
    sample = {"text": ["what is it?"], "image": [Image.new("RGB", (9, 9), "red")], "return_tensors": "pt"}
    expected, batch = processor(**sample), AutoProcessor.from_pretrained("me/fusion")(**sample)
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    zero = pipeline("crossfuse", model="me/fusion", revision="zero")
    assert zero.model.lm_head.weight.abs().sum() == 0
    assert zero({"text": "what is it?"})[0].keys() == {"generated_text"}


def test_card_of_a_push(hub, model, processor, monkeypatch):
    """Whichever goes first, the repository has one commit each and the card of the model, which is kept afterwards."""
    # Older versions of huggingface_hub ask huggingface.co, whatever the endpoint is.
    monkeypatch.setattr(ModelCard, "validate", lambda card, **_: None)
    processor.push_to_hub("me/fusion")
    assert "README.md" not in hub.repositories["me/fusion"].files()
    model.push_to_hub("me/fusion", tags=["emoji"])
    card = ModelCard.load("me/fusion")
    assert {"crossfuse", "emoji", "image", "text"} <= set(card.data.tags)
    assert "trust_remote_code=True" in card.text
    assert 'from_pretrained("me/fusion")' in card.text
    card.text += "\nA word of its author.\n"
    card.push_to_hub("me/fusion")
    model.push_to_hub("me/fusion")
    assert "A word of its author." in ModelCard.load("me/fusion", ignore_metadata_errors=False).text


def test_saving_with_push_to_hub(hub, model, tmp_path):
    """The other files of the folder stay where they are."""
    folder = tmp_path / "fusion"
    folder.mkdir()
    (folder / "notes.txt").write_text("private\n")
    model.save_pretrained(folder, push_to_hub=True)
    files = hub.repositories["me/fusion"].files()
    assert CODE | {"config.json", "model.safetensors"} <= files.keys()
    assert "notes.txt" not in files
    assert "A CrossFuse model" in files["README.md"].decode()


def test_a_processor_leaves_the_card_of_a_folder_alone(hub, processor, tmp_path):
    folder = tmp_path / "fusion"
    folder.mkdir()
    (folder / "README.md").write_text("mine\n")
    processor.save_pretrained(str(folder), push_to_hub=True)
    assert (folder / "README.md").read_text() == "mine\n"
    assert "README.md" not in hub.repositories["me/fusion"].files()


def test_shards(hub, model):
    model.push_to_hub("me/fusion", max_shard_size="50KB")
    files = hub.repositories["me/fusion"].files()
    assert len([name for name in files if name.startswith("model-0")]) > 2
    loaded = AutoModelForSeq2SeqLM.from_pretrained("me/fusion")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_private_repository(hub, model, monkeypatch):
    model.push_to_hub("me/secret", private=True, token=TOKEN)
    assert hub.repositories["me/secret"].private
    AutoModel.from_pretrained("me/secret")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-of-another")
    with pytest.raises(OSError, match="me/secret is not a local folder and is not a valid model identifier"):
        AutoModel.from_pretrained("me/secret")
    AutoModel.from_pretrained("me/secret", token=TOKEN)


ELSEWHERE = """
import huggingface_hub, torch, transformers
from safetensors.torch import save_file

model = transformers.AutoModelForSeq2SeqLM.from_pretrained("me/fusion", **trust)
processor = transformers.AutoProcessor.from_pretrained("me/fusion", **trust)
config = transformers.AutoConfig.from_pretrained("me/fusion", **trust)
batch = processor(text=["what is it?"], return_tensors="pt")
with torch.no_grad():
    answers = {"logits": model(**batch, decoder_input_ids=torch.tensor([[1, 5]])).logits}
base = transformers.AutoModel.from_pretrained("me/fusion", revision="main", **trust)
save_file(answers, "answers.safetensors")
if trust:
    # The example of the card, as the card says.
    card = huggingface_hub.ModelCard.load("me/fusion").text
    example = card.split("```python")[1].split("```")[0].replace("import modeling_crossfuse", "")
    exec(example.replace('("me/fusion")', '("me/fusion", trust_remote_code=True)'))
    model.push_to_hub("me/again")  # fine-tuned, say, where CrossFuse is not installed
    processor.push_to_hub("me/again")
"""


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_from_another_process(installed, hub, model, processor, tmp_path):
    """With an empty cache, by id, whether CrossFuse is installed there or not."""
    model.push_to_hub("me/fusion")
    processor.push_to_hub("me/fusion")
    start = "import modeling_crossfuse\ntrust = {}" if installed else "trust = {'trust_remote_code': True}"
    done = run_python(f"{start}\n{ELSEWHERE}", tmp_path, installed, HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    batch = processor(text=["what is it?"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=torch.tensor([[1, 5]])).logits
    assert torch.equal(load_file(tmp_path / "answers.safetensors")["logits"], logits)
    assert TOKEN not in done.stdout + done.stderr
    if not installed:
        first, again = (hub.repositories[name].files() for name in ("me/fusion", "me/again"))
        assert first.keys() == again.keys()
        compared = [name for name in first if name == "config.json" or name.endswith((".py", ".safetensors"))]
        assert {name: first[name] for name in compared} == {name: again[name] for name in compared}


def push_to_hub(argv):
    main(["push", *argv])


@pytest.fixture
def saved(model, processor, tmp_path):
    """A folder of a trained model, and what may lie in it beside."""
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_model_card(folder, model, processor, metrics={"exact_match": 0.5}, dataset="me/emoji")
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json"):
        (folder / name).write_text("no one's business")
    return folder


def test_the_card_loads_the_model_from_where_it_was_pushed(hub, saved, model, processor):
    write_model_card(saved, model, processor, model_id="another/place")
    push_to_hub([str(saved), "me/fusion"])
    card = hub.repositories["me/fusion"].files()["README.md"].decode()
    assert card.count('from_pretrained("me/fusion")') == 2 and "another/place" not in card


def test_script(hub, saved, capsys):
    commit = run(["push", str(saved), "me/fusion", "--private", "--message", "First"])
    repository = hub.repositories["me/fusion"]
    assert repository.messages == ["First"] and repository.private
    assert commit.oid == repository.branches["main"]
    assert commit.oid in capsys.readouterr().out
    files = repository.files()
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files.keys()
    assert files.keys() >= CODE
    assert not {"optimizer.pt", "training_args.bin", "trainer_state.json"} & files.keys()
    card = ModelCard(files["README.md"].decode())
    assert card.data.eval_results[0].metric_value == 0.5
    assert 'from_pretrained("me/fusion")' in card.text


def test_script_onto_a_branch(hub, saved):
    push_to_hub([str(saved), "me/fusion", "--revision", "experiment"])
    repository = hub.repositories["me/fusion"]
    assert repository.files() == {}
    assert "model.safetensors" in repository.files("experiment")


def test_script_removes_weights_of_before(hub, model, saved):
    """Left where they are, shards and their index would stay beside the new weights, or be read in their place."""
    model.push_to_hub("me/fusion", max_shard_size="50KB")
    push_to_hub([str(saved), "me/fusion"])
    weights = [name for name in hub.repositories["me/fusion"].files() if "safetensors" in name]
    assert weights == ["model.safetensors"]


@pytest.mark.parametrize(
    ("repo_id", "change", "message"),
    [
        ("me/a/b", lambda folder: None, "me/a/b"),
        ("me/fusion", lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        ("me/fusion", lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        ("me/fusion", lambda folder: (folder / "model.safetensors").unlink(), "no weights in safetensors"),
        ("me/fusion", lambda folder: (folder / "README.md").write_text("---\nlicense: [a]\n---\n"), "license"),
    ],
)
def test_script_refuses(repo_id, change, message, hub, saved, capsys):
    """On one line, and nothing has been pushed."""
    change(saved)
    with pytest.raises(SystemExit, match="2"):
        push_to_hub([str(saved), repo_id])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("crossfuse push: error: ") and message in error
    assert not any(repository.messages for repository in hub.repositories.values())


@pytest.mark.parametrize("token", ["hf_another", None])
def test_script_without_the_right(token, hub, saved, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(saved / "no-token"))
    with pytest.raises(SystemExit, match="2"):
        push_to_hub([str(saved), "me/fusion", *(["--token", token] if token else [])])
    error = capsys.readouterr().err
    assert "the push to me/fusion failed: " in error and "401" in error
    assert "hf_another" not in error
    assert not hub.repositories


FAULTS = {
    "creation refused": Fault("repos/create", 500),
    "upload refused": Fault("PUT /lfs/", 403),
    "upload breaks off": Fault("PUT /lfs/", times=9),
    "commit refused": Fault("/commit/", 500),
    "gone before the commit": Fault("/commit/"),
    "slow, then gone": Fault("/commit/", delay=0.3),
    "gone after the commit": Fault("/commit/", after=True),
}


@pytest.fixture
def short_pauses(monkeypatch):
    """The client waits for a second and more between attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(seconds if seconds < 1 else 0.02))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_interrupted_push(fault, hub, model, saved, capsys, short_pauses):
    """The repository has the old model or the new one, whole; and the next push completes."""
    push_to_hub([str(saved), "me/fusion"])
    repository = hub.repositories["me/fusion"]
    before = dict(repository.files())
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(saved)
    hub.faults.append(replace(fault))
    with pytest.raises(SystemExit, match="2"):
        push_to_hub([str(saved), "me/fusion", "--message", "Second"])
    assert "Run it again" in capsys.readouterr().err
    new = (saved / "model.safetensors").read_bytes()
    assert repository.files() == before or repository.files() == {**before, "model.safetensors": new}
    assert AutoModelForSeq2SeqLM.from_pretrained("me/fusion").config.architectures  # it loads
    hub.faults.clear()
    push_to_hub([str(saved), "me/fusion", "--message", "Third"])
    assert repository.files() == {**before, "model.safetensors": new}
    assert AutoModelForSeq2SeqLM.from_pretrained("me/fusion").lm_head.weight.abs().sum() == 0


def test_passing_faults_are_overcome(hub, saved, short_pauses):
    hub.faults += [Fault("preupload", 503), Fault("objects/batch", 503), Fault("PUT /lfs/", 500)]
    push_to_hub([str(saved), "me/fusion"])
    assert not hub.faults
    assert "model.safetensors" in hub.repositories["me/fusion"].files()


class Patience(TrainerCallback):
    """Waits for pushes, which read the folder that the next save writes to: these steps take milliseconds."""

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer.push_in_progress is not None:
            self.trainer.push_in_progress.wait_until_done()

    on_train_end = on_step_begin


def make_trainer(trainer_class, model, processor, folder, **settings):
    rows = [{"question": "what is it?", "answer": answer} for answer in ("a cat", "what", "it", "is a")]
    patience = Patience()
    patience.trainer = trainer_class(
        model=model,
        args=Seq2SeqTrainingArguments(
            str(folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            push_to_hub=True,
            **{"hub_model_id": "me/trained", "hub_token": TOKEN, "hub_strategy": "checkpoint", **settings},
        ),
        data_collator=CrossFuseDataCollator(processor, inputs={"text": "question"}, target="answer"),
        train_dataset=rows,
        processing_class=processor,
        callbacks=[patience],
    )
    return patience.trainer


@pytest.mark.parametrize("trainer_class", [Seq2SeqTrainer, CrossFuseTrainer])
def test_trainer_pushes(trainer_class, hub, model, processor, tmp_path, monkeypatch):
    """With checkpoints, from which a training elsewhere goes on as if it had never ended."""
    monkeypatch.delenv("HF_TOKEN")
    trainer = make_trainer(trainer_class, model, processor, tmp_path / "first")
    trainer.train()
    trainer.push_to_hub()
    repository = hub.repositories["me/trained"]
    assert any("step 2" in message for message in repository.messages)
    files = repository.files()
    assert {"config.json", "model.safetensors", "processor_config.json", "README.md"} <= files.keys()
    loaded = AutoModelForSeq2SeqLM.from_pretrained("me/trained")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    revision, middle = next(item for item in repository.commits.items() if "last-checkpoint/config.json" in item[1])
    assert files.keys() >= CODE and middle.keys() >= CODE
    assert "auto_map" in json.loads(middle["config.json"])
    if trainer_class is CrossFuseTrainer:
        assert "A CrossFuse model" in files["README.md"].decode()
        contents = [content for commit in repository.commits.values() for content in commit.values()]
        assert not any(TOKEN.encode() in content for content in contents)

    checkpoint = snapshot_download("me/trained", revision=revision, allow_patterns="last-checkpoint/*")
    again = AutoModelForSeq2SeqLM.from_pretrained(f"{checkpoint}/last-checkpoint")
    resumed = make_trainer(trainer_class, again, processor, tmp_path / "second", hub_model_id="me/resumed")
    resumed.train(resume_from_checkpoint=f"{checkpoint}/last-checkpoint")
    assert resumed.state.global_step == 4
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
