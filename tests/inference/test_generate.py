import pytest
import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.inference import generate as generate_module
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.generate import Generation
from synthe_core.inference.generation import write
from synthe_core.inference.sampler import SamplingState, sample
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.language_model import LanguageModel, ModelSpec
from synthe_core.model.session import Session

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


def test_greedy_equals_reading_everything_again(model):
    generation = Generation(model, [[1, 2, 3]], sampling=SamplingParams(temperature=0))
    tokens = [1, 2, 3]
    for _ in range(12):
        expected = model(torch.tensor([tokens]))[0][0, -1].argmax().item()
        assert generation.step().item() == expected
        tokens.append(expected)


def test_a_row_does_not_depend_on_the_rows_beside_it(model):
    prompts = [[5, 6, 7, 8, 9, 10, 11], [1], [200, 3]]
    together = Generation(model, prompts, seed=4)
    rows = torch.stack([together.step().clone() for _ in range(9)])
    alone = Generation(model, prompts[:1], seed=4)
    assert rows[:, 0].tolist() == [alone.step().item() for _ in range(9)]
    third = Generation(model, prompts[2:], seed=6)
    assert rows[:, 2].tolist() == [third.step().item() for _ in range(9)]


def test_long_prompts_are_read_in_pieces(model, monkeypatch):
    prompt = torch.randint(0, 256, (50,)).tolist()
    whole = Generation(model, [prompt, prompt[:7]], sampling=SamplingParams(temperature=0))
    monkeypatch.setattr(generate_module, "PREFILL", 16)
    pieces = Generation(model, [prompt, prompt[:7]], sampling=SamplingParams(temperature=0))
    for _ in range(5):
        assert whole.step().tolist() == pieces.step().tolist()


def test_a_saved_session_goes_on_exactly(model, tmp_path):
    tokenizer = ByteTokenizer()
    greedy = SamplingParams(temperature=0)
    whole, _ = run(write(model, tokenizer, ["hello wor"], 20, sampling=greedy))
    first, session = run(write(model, tokenizer, ["hello wor"], 8, sampling=greedy))
    session.save(tmp_path / "s.safetensors", model)
    restored = Session.load(tmp_path / "s.safetensors", model)
    second, _ = run(write(model, tokenizer, [""], 12, sampling=greedy, session=restored))
    ids = [b for pieces in (first, second) for b in text_of(pieces).encode()]
    assert bytes(ids) == text_of(whole).encode() or text_of(first) + text_of(second) == text_of(whole)


def test_a_session_of_another_model_is_refused(model, tmp_path):
    _, session = run(write(model, ByteTokenizer(), ["a"], 2))
    session.save(tmp_path / "s.safetensors", model)
    other = LanguageModel(ModelSpec.model_validate({"width": 8, "blocks": 1, "block": ["mlp"]}), 257)
    with pytest.raises(InputError, match="another model"):
        Session.load(tmp_path / "s.safetensors", other)
    (tmp_path / "bad.safetensors").write_bytes(b"not a session")
    with pytest.raises(InputError, match="no session"):
        Session.load(tmp_path / "bad.safetensors", model)
    with pytest.raises(InputError, match="no such session"):
        Session.load(tmp_path / "missing.safetensors", model)


def test_a_place_where_no_session_can_be_written_is_refused(model, tmp_path):
    _, session = run(write(model, ByteTokenizer(), ["a"], 1))
    with pytest.raises(InputError, match="no such folder"):
        session.save(tmp_path / "missing" / "s", model)
    with pytest.raises(InputError, match="is a folder"):
        session.save(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_every_row_goes_on_from_a_session_of_one(model):
    greedy = SamplingParams(temperature=0)
    _, session = run(write(model, ByteTokenizer(), ["hello wor"], 4, sampling=greedy))
    alone = [
        text_of(run(write(model, ByteTokenizer(), [p], 9, sampling=greedy, session=session))[0]) for p in ("x", "yz")
    ]
    both, _ = run(write(model, ByteTokenizer(), ["x", "yz"], 9, sampling=greedy, session=session))
    assert [text_of(both, row) for row in (0, 1)] == alone
    assert alone[0] != text_of(run(write(model, ByteTokenizer(), ["x"], 9, sampling=greedy))[0])
    with pytest.raises(InputError, match="the session has 2 rows"):
        run(write(model, ByteTokenizer(), ["a", "b", "c"], 1, session=session.spread(2)))


def test_ended_rows_are_frozen_in_the_session(model):
    generation = Generation(model, [[1, 2], [3, 4]], sampling=SamplingParams(temperature=0))
    generation.step()
    generation.stop(1)
    frozen = generation.pending[1].item()
    for _ in range(4):
        generation.step()
    assert generation.pending[1].item() == frozen
    assert generation.state.position.tolist() == [6, 2]


def test_an_empty_prompt_is_refused_by_tokens_and_begins_a_document_in_text(model):
    with pytest.raises(InputError, match="empty"):
        Generation(model, [[]])
    _, session = run(write(model, ByteTokenizer(), [""], 3))
    assert session.state.position.item() >= 1


def test_stop_strings_are_cut_and_never_shown():
    tokenizer = ByteTokenizer()
    row = Detokenizer(tokenizer.decoder(), ["END", "\n\n"])
    shown = "".join(row.push(b) for b in b"one EN two E")
    assert shown == "one EN two "
    assert "".join(row.push(b) for b in b"ND three"[:2]) == "" and row.stopped
    partial = Detokenizer(tokenizer.decoder(), ["END"])
    assert "".join(partial.push(b) for b in b"xEN") + partial.flush() == "xEN"


def test_characters_of_several_bytes_come_whole():
    row = Detokenizer(ByteTokenizer().decoder(), [])
    assert [row.push(b) for b in "é€".encode()] == ["", "é", "", "", "€"]


@pytest.mark.parametrize(
    "sampling,allowed",
    [
        (SamplingParams(temperature=0), {3}),
        (SamplingParams(top_k=2), {3, 2}),
        (SamplingParams(top_p=0.6), {3}),
        (SamplingParams(top_p=0.7), {3, 2}),
        (SamplingParams(min_p=0.3), {3, 2}),
        (SamplingParams(), {0, 1, 2, 3}),
    ],
)
def test_filters_keep_what_they_say(sampling, allowed):
    logits = torch.log(torch.tensor([[0.04, 0.08, 0.24, 0.64]])).expand(400, -1)
    rows = [SamplingState.create(sampling, seed, 4, [], logits.device) for seed in range(400)]
    assert set(sample(logits, rows)) == allowed


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=4e-259),
        SamplingParams(temperature=1e-40),
        SamplingParams(top_p=1e-300),
        SamplingParams(min_p=5e-324),
    ],
)
def test_settings_too_small_for_float32_are_no_error(sampling):
    logits = torch.tensor([[3.0, 2.0, -80.0, 1.0], [0.0, -1.0, -2.0, -torch.inf]])
    rows = [SamplingState.create(sampling, seed, 4, [], logits.device) for seed in range(2)]
    picked = torch.tensor(sample(logits, rows))
    assert (logits.gather(1, picked[:, None]) > -torch.inf).all()
    if sampling.min_p == 0:
        assert picked.tolist() == [0, 0]


def test_repetition_penalty_lowers_what_was_seen():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    greedy = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert sample(logits, [SamplingState.create(greedy, 0, 3, [0, 2], logits.device)]) == [1]
    assert sample(logits, [SamplingState.create(SamplingParams(temperature=0), 0, 3, [0, 2], logits.device)]) == [0]


def test_a_prompt_that_ends_in_a_space_goes_on_with_a_word():
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
        pieces, session = run(write(small, tokenizer, ["de ", "de"], 1, seed=seed))
        assert session.state.position.tolist() == [2, 2]
        assert session.pending[0].item() in (3, 4, 5)
        assert text_of(pieces) == tokenizer.decode([session.pending[0].item()])[1:]
