"""Text from the offline engine: rows, chunks, sessions, and prompts that end in a space."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.offline import generate, offline_engine
from synthe_core.inference.outputs import TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.scheduler_config import offline
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session
from synthe_core.model.spec import ModelSpec
from tests.inference.conftest import offline_tokens

BLOCK = [
    {"type": "momentum"},
    {"type": "delta", "heads": 2},
    {"type": "attention", "heads": 2, "window": 6},
    {"type": "mlp"},
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = LanguageModel(ModelSpec.model_validate({"width": 16, "blocks": 2, "block": BLOCK, "tie": False}), 257)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model.eval()


def load(model, tokenizer=None):
    return LoadedModel("model", model, tokenizer or ByteTokenizer())


def text_of(pieces, row=0):
    return "".join(piece.text for piece in pieces if piece.row == row)


def run(generator):
    """All pieces, and the session that the generator returns."""
    pieces = []
    while True:
        try:
            pieces.append(next(generator))
        except StopIteration as stop:
            return pieces, stop.value


def test_greedy_equals_recomputing_the_whole_text(model):
    tokens = [1, 2, 3]
    for _ in range(12):
        tokens.append(model(torch.tensor([tokens]))[0][0, -1].argmax().item())
    assert offline_tokens(model, [[1, 2, 3]], 12) == [tokens[3:]]


def test_a_row_does_not_depend_on_the_rows_beside_it(model):
    prompts = [[5, 6, 7, 8, 9, 10, 11], [1], [200, 3]]
    together = offline_tokens(model, prompts, 9, SamplingParams(), seed=4)
    alone = [
        offline_tokens(model, [prompt], 9, SamplingParams(), seed=4 + row)[0] for row, prompt in enumerate(prompts)
    ]
    assert together == alone


def test_long_prompts_are_read_in_chunks(model):
    prompt = torch.randint(0, 256, (50,)).tolist()
    whole = offline_tokens(model, [prompt, prompt[:7]], 5)
    chunks = replace(offline("cpu"), chunk_size=16)
    assert offline_tokens(model, [prompt, prompt[:7]], 5, config=chunks) == whole


def test_a_saved_session_continues_exactly(model, tmp_path):
    tokenizer = ByteTokenizer()
    greedy = SamplingParams(temperature=0)
    whole, _ = run(generate(LoadedModel("model", model, tokenizer), ["hello wor"], 20, sampling=greedy))
    first, session = run(generate(LoadedModel("model", model, tokenizer), ["hello wor"], 8, sampling=greedy))
    session.save(tmp_path / "s.safetensors", model)
    restored = Session.load(tmp_path / "s.safetensors", model)
    second, _ = run(generate(LoadedModel("model", model, tokenizer), [""], 12, sampling=greedy, session=restored))
    ids = [b for pieces in (first, second) for b in text_of(pieces).encode()]
    assert bytes(ids) == text_of(whole).encode() or text_of(first) + text_of(second) == text_of(whole)


def test_a_session_of_another_model_is_refused(model, tmp_path):
    _, session = run(generate(load(model), ["a"], 2))
    session.save(tmp_path / "s.safetensors", model)
    other = LanguageModel(ModelSpec.model_validate({"width": 8, "blocks": 1, "block": ["mlp"]}), 257)
    with pytest.raises(InputError, match="another model"):
        Session.load(tmp_path / "s.safetensors", other)
    (tmp_path / "bad.safetensors").write_bytes(b"not a session")
    with pytest.raises(InputError, match="no session"):
        Session.load(tmp_path / "bad.safetensors", model)
    with pytest.raises(InputError, match="no such session"):
        Session.load(tmp_path / "missing.safetensors", model)


def test_a_session_path_that_cannot_be_written_is_refused(model, tmp_path):
    _, session = run(generate(load(model), ["a"], 1))
    with pytest.raises(InputError, match="no such folder"):
        session.save(tmp_path / "missing" / "s", model)
    with pytest.raises(InputError, match="is a folder"):
        session.save(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_every_row_continues_from_a_session_of_one_row(model):
    greedy = SamplingParams(temperature=0)
    _, session = run(generate(load(model), ["hello wor"], 4, sampling=greedy))
    alone = [text_of(run(generate(load(model), [p], 9, sampling=greedy, session=session))[0]) for p in ("x", "yz")]
    both, _ = run(generate(load(model), ["x", "yz"], 9, sampling=greedy, session=session))
    assert [text_of(both, row) for row in (0, 1)] == alone
    assert alone[0] != text_of(run(generate(load(model), ["x"], 9, sampling=greedy))[0])
    with pytest.raises(InputError, match="the session has 2 rows"):
        run(generate(load(model), ["a", "b", "c"], 1, session=session.spread(2)))


def test_a_row_that_ends_early_keeps_its_state(model):
    engine = offline_engine(load(model), 2)
    greedy = SamplingParams(temperature=0)
    long = engine.add_request(Request("model", (1, 2), 5, greedy), lambda output: False, keep_state=True)
    short = engine.add_request(
        Request("model", (3, 4), 5, greedy), lambda output: isinstance(output, TokenOutput), keep_state=True
    )
    while engine.has_unfinished:
        engine.step()
    assert (long.finish_reason, short.finish_reason) == ("length", "stop")
    assert short.output_token_ids == offline_tokens(model, [[3, 4]], 1)[0]
    assert [int(sequence.state.position) for sequence in (long, short)] == [6, 2]


def test_prefill_only_leaves_the_last_token_uncomputed(model):
    greedy = SamplingParams(temperature=0)
    whole, _ = run(generate(load(model), ["hello"], 6, sampling=greedy))
    for prompt, rest in (("hello", ""), ("h", "ello")):
        deltas, session = run(generate(load(model), [prompt], 0, sampling=greedy))
        assert deltas == [] and session.state.position.tolist() == [len(prompt) - 1]
        assert run(generate(load(model), [rest], 6, sampling=greedy, session=session))[0] == whole


def test_errors_are_raised_unchanged(model, monkeypatch):
    class Broken(Exception):
        pass

    def forward(*_):
        raise Broken

    loaded = load(model)
    monkeypatch.setattr(loaded, "forward", forward)
    with pytest.raises(Broken):
        list(generate(loaded, ["a", "bcd"], 3))


def test_an_empty_prompt_is_refused_as_tokens_and_starts_a_document_as_text(model):
    with pytest.raises(InputError, match="empty"):
        offline_tokens(model, [[]], 3)
    _, session = run(generate(load(model), [""], 3))
    assert session.state.position.item() >= 1


def test_a_prompt_that_ends_with_a_space_continues_with_a_word():
    import tokenizers

    from synthe_core.data.tokenizers import FileTokenizer

    vocab = {"d": 0, "e": 1, "f": 2, "\u0120": 3, "\u0120d": 4, "\u0120e": 5}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("\u0120", "d"), ("\u0120", "e")]))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = FileTokenizer(bpe, "test")
    assert tokenizer.encode("de ") == [0, 1, 3]
    torch.manual_seed(1)
    small = LanguageModel(ModelSpec.model_validate({"width": 8, "blocks": 1, "block": ["momentum"]}), 7)
    for seed in range(8):
        pieces, session = run(generate(load(small, tokenizer), ["de ", "de"], 1, seed=seed))
        assert session.state.position.tolist() == [2, 2]
        assert session.pending[0].item() in (3, 4, 5)
        assert text_of(pieces) == tokenizer.decode([session.pending[0].item()])[1:]
