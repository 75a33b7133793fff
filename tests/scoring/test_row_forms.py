"""Rows for a GPU: ranges in place of masks, attention by blocks, and which rows are computed faster."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from tdpo.batches import PromptResponses, ResponseBatch, ResponseCollator, RowCosts, TokenizedPair, shared_prefix_batch
from tdpo.batches.visibility import BLOCK, dense_mask, few_widths
from tdpo.models import response_hidden
from tdpo.models.block_attention import FORMS, block_mask
from tdpo.models.span_attention import attention_restored
from tdpo.scoring import layout, row_forms

IDS = st.integers(1, 150).map(lambda n: [5 + i % 9 for i in range(n)])

FEW = st.integers(1, 6).map(lambda n: [5 + i % 9 for i in range(n)])


def seen_by_hand(pairs: list[TokenizedPair], width: int) -> Tensor:
    """The mask of pairs in rows of their own, position by position."""
    mask = torch.zeros(len(pairs), width, width, dtype=torch.bool)
    for r, pair in enumerate(pairs):
        prompt, chosen, rejected = (len(ids) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
        owner = [0] * prompt + [1] * chosen + [2] * rejected
        for q in range(width):
            for k in range(width):
                if q >= len(owner):
                    mask[r, q, k] = k == 0
                elif k <= q:
                    mask[r, q, k] = owner[k] in (0, owner[q])
    return mask[:, None]


@examples(max_examples=10, deadline=None)
@given(st.lists(st.builds(TokenizedPair.of, FEW, st.just([]) | FEW, FEW), min_size=1, max_size=3))
def test_masks_say_what_a_position_sees(pairs: list[TokenizedPair]) -> None:
    dense = shared_prefix_batch(pairs, 0)
    assert torch.equal(dense.attention_mask, seen_by_hand(pairs, dense.input_ids.shape[1]))


@examples(max_examples=25, deadline=None)
@given(
    st.lists(st.builds(TokenizedPair.of, IDS | st.just([4, 7]), st.just([]) | IDS, IDS), min_size=1, max_size=5),
    st.integers(100, 600) | st.none(),
)
def test_ranges_and_blocks_are_the_mask(pairs: list[TokenizedPair], budget: int | None) -> None:
    """In rows of pairs, of groups and of packed pairs; the blocks are those that torch finds in the whole mask."""
    made: dict[str, Any] = {"share_prefixes": True, "max_tokens_per_row": budget, "group_prompts": budget is None}
    dense, ranged = (
        ResponseBatch.from_inputs(ResponseCollator(0, **made, ranged=r)(pairs)) for r in (False, True)
    )  # fmt: skip
    width = dense.input_ids.shape[1]
    whole = dense_mask(ranged.attention_mask)
    assert torch.equal(whole[..., :width, :width], dense.attention_mask)
    assert not whole[..., width:].any(), "nothing sees what the rows are widened by"
    assert ranged.input_ids.shape[1] == few_widths(width) and ranged.num_tokens == dense.num_tokens
    rows, blocks = len(whole), whole.shape[-1] // BLOCK
    mask = block_mask(ranged.attention_mask)
    by_block = whole.unflatten(3, (blocks, BLOCK)).unflatten(2, (blocks, BLOCK)).movedim(4, 3)
    assert torch.equal(mask.to_dense().bool(), by_block.any(-1).any(-1))
    for r in range(rows):
        for q in range(blocks):
            listed = mask.full_kv_indices[r, 0, q, : mask.full_kv_num_blocks[r, 0, q]]
            assert by_block[r, 0, q, listed].all(), "what is listed as seen whole is seen whole"
    positions = torch.arange(whole.shape[-1])
    seen = torch.vmap(lambda k: mask.mask_mod(torch.tensor(0), torch.tensor(0), positions, k), out_dims=1)(positions)
    assert torch.equal(seen, whole[0, 0])


def test_few_widths_hold_every_row_with_little_padding() -> None:
    widths = [few_widths(n) for n in range(1, 8193)]
    assert all(w >= n and w % BLOCK == 0 and (w - n < max(BLOCK, n / 8)) for n, w in enumerate(widths, 1))
    assert len(set(widths)) <= 50


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as torch defines it, not compiled, and with a gradient: what torch refuses on a CPU is speed."""
    from transformers.integrations import flex_attention

    def eager(q: Tensor, k: Tensor, v: Tensor, training: bool = False, **options: Any) -> Any:
        return torch_flex.flex_attention(q, k, v, **options)

    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", eager)


def made_up(seed: int, *lengths: tuple[int, int, int]) -> list[TokenizedPair]:
    draw = random.Random(seed)
    return [TokenizedPair.of(*([draw.randint(5, 300) for _ in range(n)] for n in each)) for each in lengths]


@pytest.mark.slow
def test_attention_by_blocks_gives_the_states_and_gradients_of_the_mask(
    eager_flex: None, tiny_model: Callable[..., Any]
) -> None:
    pairs = made_up(0, (70, 40, 50), (20, 100, 70), (90, 3, 0))
    model = tiny_model("llama", dtype=torch.float64)
    found = []
    with attention_restored():
        for ranged in (False, True):
            batch = shared_prefix_batch(pairs, 0, ranged=ranged)
            hidden = response_hidden(model, batch.model_inputs(), batch.response_index)
            weights = [p for p in model.base_model.parameters() if p.requires_grad]
            found.append((hidden, *torch.autograd.grad(hidden.square().sum(), weights)))
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max()))


def test_attention_by_blocks_is_compiled_beyond_torchs_limit(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit torch would compute scores of all T × T pairs, and say so once in its own log."""
    from transformers.integrations import flex_attention

    limits, config = [], torch._dynamo.config
    before = config.recompile_limit

    def noted(query: Tensor, *_: Any, **__: Any) -> Tensor:
        limits.append(config.recompile_limit)
        return query

    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", noted)
    batch = shared_prefix_batch(made_up(3, (5, 6, 7)), 0, ranged=True)
    with attention_restored():
        response_hidden(tiny_model("llama"), batch.model_inputs(), batch.response_index)
    assert limits == [64, 64], "in both layers"
    assert config.recompile_limit == before == 8


@pytest.mark.parametrize(("family", "takes"), [("llama", True), ("gpt2", False)])
def test_models_are_asked_whether_they_take_ranges(
    eager_flex: None, tiny_model: Callable[..., Any], family: str, takes: bool
) -> None:
    """GPT-2 looks into its mask, which blocks do not allow."""
    with attention_restored():
        assert row_forms.takes_ranges(tiny_model(family)) == takes


@pytest.mark.parametrize(("ranged", "maker"), [(False, "_additive"), (True, "block_mask")])
def test_a_mask_is_made_once_a_batch(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, eager_flex: None, ranged: bool, maker: str
) -> None:
    from tdpo.models import hidden_states

    made = []
    plain = getattr(hidden_states, maker)
    monkeypatch.setattr(hidden_states, maker, lambda *args: made.append(args) or plain(*args))
    with attention_restored():
        for seed in (1, 2):
            batch = shared_prefix_batch(made_up(seed, (5, 6, 7)), 0, ranged=ranged)
            for model in (tiny_model("llama"), tiny_model("llama", seed=1)):  # with two layers each
                response_hidden(model, batch.model_inputs(), batch.response_index)
            assert len(made) == seed


def test_rows_of_ten_widths_compile_little(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than three: nothing is compiled for the fourth width or a later one, and torch does not give up."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from transformers.integrations import flex_attention

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(torch_flex.flex_attention, backend=counter)

    def counted(q: Tensor, k: Tensor, v: Tensor, training: bool = False, **options: Any) -> Any:
        return compiled(q, k, v, **options)

    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", counted)
    model, forms = tiny_model("llama"), []
    torch._dynamo.reset()
    # not by monkeypatch, which would delete the setting for all later tests
    with attention_restored(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for width in range(1, 11):
            batch = shared_prefix_batch(made_up(width, (BLOCK * width - 20, 5, 6)), 0, ranged=True)
            assert batch.input_ids.shape[1] == BLOCK * width
            response_hidden(model, batch.model_inputs(), batch.response_index)
            forms.append(counter.frame_count)
    assert len(set(forms[2:])) == 1 and forms[-1] <= 3 < FORMS, forms


def test_the_rule_repeats_the_steps_that_were_measured() -> None:
    """Qwen3-1.7B's shape on an H200: 351 ms a step with a shared prompt under a dense mask, 357 ms padded."""
    pairs = [PromptResponses([1] * 512, [[2] * 512, [3] * 512]) for _ in range(8)]
    products = 28 * (2048 * (2048 + 2 * 1024) + 2048 * 2048 + 3 * 2048 * 6144)
    dense, blocks = (RowCosts(products, 2 * 2048 * 28, ranged) for ranged in (False, True))
    per_ms = 110 / (8 * 1536 * products)  # the body's products took 110 ms
    difference = (dense.padded(pairs) - dense.shared(pairs, [1536] * 8)) * per_ms
    assert 0 < difference < 15, difference
    assert blocks.shared(pairs, [1536] * 8) < dense.shared(pairs, [1536] * 8)


def test_a_batch_is_padded_where_that_is_faster() -> None:
    short, long = [PromptResponses([1] * 4, [[2] * n, [3] * n]) for n in (40, 2000)]
    costs = RowCosts(per_token=1, per_pair=1, ranged=False)  # attention is everything
    collate = ResponseCollator(0, share_prefixes=True, costs=costs)
    assert collate([long])["attention_mask"].dim() == 2, "twice as wide a row has four times the pairs"
    assert ResponseCollator(0, share_prefixes=True)([long])["attention_mask"].dim() == 4
    many = RowCosts(per_token=10**6, per_pair=1, ranged=False)  # tokens are everything
    assert ResponseCollator(0, share_prefixes=True, costs=many)([short])["attention_mask"].dim() == 4


def test_on_a_cpu_rows_keep_their_masks(tiny_model: Callable[..., Any]) -> None:
    assert row_forms.row_form(tiny_model("llama")) == row_forms.RowForm()


def test_a_layout_on_a_gpu_has_ranges_and_costs(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, eager_flex: None
) -> None:
    pairs = made_up(2, (30, 40, 50), (20, 30, 20))
    form = row_forms.RowForm(True, row_forms.costs_of(tiny_model("llama"), True))
    monkeypatch.setattr(layout, "row_form", lambda *_, by_cost=True: form if by_cost else row_forms.RowForm(True))
    with attention_restored():
        assert layout.choose_layout(tiny_model("llama"), pairs, 0, "auto").costs == form.costs
        asked_for = layout.choose_layout(tiny_model("llama"), pairs, 0, "on")
        assert asked_for.ranged and asked_for.costs is None and asked_for.share_prefixes
        assert layout.choose_layout(tiny_model("llama"), pairs, 0, "auto", 400).ranged
        assert layout.grouped_collator(tiny_model("llama"), pairs, 0).ranged
