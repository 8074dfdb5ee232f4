"""ViT against transformers, both ways; resolutions, positions, the class token, and what must be refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from allyouneed.hub import UnsupportedError, WeightsError
from allyouneed.papers.vit import (
    AxisPositions,
    HybridEmbedding,
    ImageClassifier,
    LearnedPositions,
    PatchEmbedding,
    PatchPositions,
    RelativePositions,
    ResNetStem,
    Vit,
    VitConfig,
    resize,
)

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 15,
    "patch_size": 5,
    "num_channels": 2,
    "layer_norm_eps": 1e-5,
    # So that a mistake in any part shows.
    "initializer_range": 0.5,
}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "fish"}, "label2id": {"cat": 0, "dog": 1, "fish": 2}}
SMALL = VitConfig(image=12, patch=4, channels=1, width=16, layers=2, heads=2, hidden=24)


def their(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**{**SIZES, **LABELS, **changes})
    model = {"encoder": transformers.ViTModel, "classifier": transformers.ViTForImageClassification}[kind](config)
    for parameter in model.parameters():
        # Biases and gains of norms too.
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def small(**parts: Any) -> Vit:
    """Make a small model in float64 whose weights are all random."""
    torch.manual_seed(1)
    model = Vit(SMALL, **parts).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def images(count: int = 2, side: tuple[int, int] = (12, 12), channels: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, *side, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_encoder_reads_theirs(activation: str, tmp_path: Path):
    reference = their("encoder", hidden_act=activation)
    reference.save_pretrained(tmp_path)
    ours = Vit.from_pretrained(tmp_path)
    pictures = torch.randn(3, 2, 15, 15)
    with torch.no_grad():
        expected, found = reference(pictures), ours(pictures)
        torch.testing.assert_close(found, expected.last_hidden_state, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(ours.pooled(found), expected.pooler_output, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [(25, 25), (10, 10), (20, 35), (15, 20)])
def test_interpolated_positions_are_theirs(side: tuple[int, int], tmp_path: Path):
    reference = their("classifier").double()
    reference.save_pretrained(tmp_path)
    ours = ImageClassifier.from_pretrained(tmp_path).double()
    pictures = images(2, side, channels=2)
    with torch.no_grad():
        expected = reference(pictures, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(ours(pictures), expected, atol=1e-10, rtol=1e-10)
    assert ours.labels == ("cat", "dog", "fish")


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_theirs_reads_ours(kind: str, tmp_path: Path):
    torch.manual_seed(3)
    config = VitConfig(image=21, patch=7, channels=1, width=20, layers=3, heads=5, hidden=12, epsilon=1e-4)
    vit = Vit(config, pooler=kind == "encoder")
    ours: Any = vit if kind == "encoder" else ImageClassifier(vit, ("a", "b"))
    for parameter in ours.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    ours.eval().save_pretrained(tmp_path)
    theirs: Any = transformers.ViTModel if kind == "encoder" else transformers.ViTForImageClassification
    reference, loading = theirs.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    pictures = torch.randn(2, 1, 21, 21)
    with torch.no_grad():
        expected = reference.eval()(pictures)
        expected = expected.last_hidden_state if kind == "encoder" else expected.logits
        torch.testing.assert_close(ours(pictures), expected, atol=2e-5, rtol=1e-5)
        again = type(ours).from_pretrained(tmp_path)
        torch.testing.assert_close(again(pictures), ours(pictures))
    for (name, weight), other in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_a_classifier_s_encoder_and_what_it_lacks(tmp_path: Path):
    their("classifier").save_pretrained(tmp_path)
    assert Vit.from_pretrained(tmp_path).pooler is None
    their("encoder").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="ViTModel"):
        ImageClassifier.from_pretrained(tmp_path)


def test_a_missing_weight_is_named(tmp_path: Path):
    reference = their("encoder", num_hidden_layers=1)
    reference.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"encoder\.layer\.1"):
        Vit.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qkv_bias", False),
        ("image_size", [15, 15]),
        ("pooler_act", "relu"),
        ("pooler_output_size", 7),
        ("hidden_act", "mish"),
    ],
)
def test_other_configurations_are_refused(key: str, value: Any):
    with pytest.raises(UnsupportedError, match=key):
        Vit.from_config({**SIZES, "model_type": "vit", key: value})


def test_a_row_of_a_batch_is_itself():
    model, pictures = small(), images(5)
    whole = model(pictures)
    for row in range(5):
        torch.testing.assert_close(model(pictures[row : row + 1])[0], whole[row], atol=1e-12, rtol=0)


def permuted(pictures: torch.Tensor, order: list[int], patch: int = 4) -> torch.Tensor:
    """Lay the patches of pictures in another order."""
    columns = F.unfold(pictures, patch, stride=patch)
    return F.fold(columns[..., order], pictures.shape[2:], patch, stride=patch)


@settings(max_examples=20)
@given(st.permutations(range(9)))
def test_without_positions_patches_are_a_bag(order: list[int]):
    model, pictures = small(positions=PatchPositions()), images()
    before, after = model(pictures), model(permuted(pictures, order))
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(after[:, 1:], before[:, 1:][:, order], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "positions", [LearnedPositions((3, 3), 16), AxisPositions((3, 3), 16), RelativePositions((3, 3), 8)]
)
def test_with_positions_the_order_counts(positions: PatchPositions):
    model, pictures = small(positions=positions), images()
    order = [1, 0, *range(2, 9)]
    assert (model(permuted(pictures, order))[:, 0] - model(pictures)[:, 0]).abs().amax() > 1e-4


@pytest.mark.parametrize("kind", ["learned", "relative"])
def test_every_patch_reaches_the_class_token_and_is_reached(kind: str):
    positions = RelativePositions((3, 3), 8) if kind == "relative" else None
    model = small(positions=positions)
    pictures = images(1).requires_grad_()
    model(pictures)[0, 0].square().sum().backward()
    assert pictures.grad is not None
    assert F.unfold(pictures.grad, 4, stride=4).abs().sum(1).min() > 0
    assert model.class_token.grad is not None and model.class_token.grad.abs().sum() > 0
    # And the class token every patch.
    model.zero_grad()
    model(images(1))[0, 5].square().sum().backward()
    assert model.class_token.grad is not None and model.class_token.grad.abs().sum() > 0


def test_patches_are_flattened_and_mapped_by_one_matrix():
    embedding, pictures = PatchEmbedding(2, 3, 7).double(), images(2, (6, 9), channels=2)
    matrix, bias = embedding.projection.weight.flatten(1), embedding.projection.bias
    assert bias is not None
    found = embedding(pictures)
    for row in range(2):
        for column in range(3):
            patch = pictures[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            torch.testing.assert_close(found[:, 3 * row + column], patch.flatten(1) @ matrix.T + bias)


def test_relative_positions_are_a_plain_loop():
    positions = RelativePositions((1, 2), 4).double().requires_grad_(False)
    torch.nn.init.normal_(positions.table)
    query, key, value = torch.randn(3, 2, 3, 3, 4, dtype=torch.float64)
    found = positions.attend(query, key, value)
    for batch in range(2):
        for head in range(3):
            for place in range(3):
                logits = [
                    float(query[batch, head, place] @ (key[batch, head, other] + positions.table[place - other + 2]))
                    / 2
                    for other in range(3)
                ]
                weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
                torch.testing.assert_close(found[batch, head, place], weights @ value[batch, head])


def test_axes_put_columns_and_rows_side_by_side():
    positions = AxisPositions((2, 3), 6)
    added = positions.added((2, 3))
    for row in range(2):
        for column in range(3):
            assert torch.equal(
                added[0, 1 + 3 * row + column], torch.cat((positions.columns[column], positions.rows[row]))
            )
    assert torch.equal(added[:, :1], positions.first)


def test_interpolation_keeps_the_grid_and_what_is_even():
    table = torch.randn(1, 6, 5)
    assert resize(table, (2, 3), (2, 3)) is table
    even = torch.ones(1, 6, 5)
    torch.testing.assert_close(resize(even, (2, 3), (5, 4)), torch.ones(1, 20, 5))
    # What grows to the right still does, and rows are alike.
    slope = torch.arange(3.0).repeat(2)[None, :, None]
    wide = resize(slope, (2, 3), (4, 6)).unflatten(1, (4, 6))[0, ..., 0]
    assert (wide.diff(dim=1) > 0).all()
    torch.testing.assert_close(wide, wide[:1].expand(4, -1))


def test_fine_tuning_at_a_higher_resolution():
    model = ImageClassifier(small(), ("a", "b", "c"))
    larger = images(2, (20, 20))
    tuned = model.for_task(("x", "y"), image=20)
    # A single layer at zero, on the encoder as it was.
    assert tuned.vit.pooler is None and model.vit.pooler is not None
    assert torch.equal(tuned(larger), torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(tuned.vit(larger), model.vit(larger), atol=1e-12, rtol=0)
    assert isinstance(tuned.vit.positions, LearnedPositions)
    assert tuned.vit.positions.table.shape == (1, 26, 16)
    assert tuned.vit.config.image == 20
    # It learns, positions among the rest, and the original stays.
    before = model.vit.positions.table.clone()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    optimizer = torch.optim.SGD(tuned.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(tuned(larger), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert tuned.vit.positions.table.grad is not None and tuned.vit.positions.table.grad.abs().sum() > 0
    assert torch.equal(model.vit.positions.table, before)  # pyright: ignore[reportArgumentType]


def test_a_tuned_model_is_saved_at_its_resolution(tmp_path: Path):
    tuned = ImageClassifier(small().float(), ("a", "b")).for_task(("x", "y", "z"), image=20)
    torch.nn.init.normal_(tuned.classifier.weight)
    tuned.save_pretrained(tmp_path)
    reference = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    pictures = images(2, (20, 20)).float()
    with torch.no_grad():
        torch.testing.assert_close(tuned(pictures), reference(pictures).logits, atol=1e-5, rtol=1e-5)
    assert reference.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_a_copy_with_relative_positions_has_tables_of_its_own():
    model = ImageClassifier(small(positions=RelativePositions((3, 3), 8)), ("a", "b"))
    copy = model.for_task(("a", "b"))
    before = copy.vit(images())
    model.vit.positions.table.data.zero_()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    assert torch.equal(copy.vit(images()), before)


def test_the_head_starts_at_zero_and_has_a_hidden_layer_in_pretraining():
    model = ImageClassifier(small(), ("a", "b")).double()
    assert torch.equal(model(images()), torch.zeros(2, 2, dtype=torch.float64))
    torch.nn.init.normal_(model.classifier.weight)
    pooler = model.vit.pooler
    assert pooler is not None
    hidden = torch.tanh(model.vit(images())[:, 0] @ pooler.weight.T + pooler.bias)
    torch.testing.assert_close(model(images()), hidden @ model.classifier.weight.T)


@pytest.mark.parametrize("stages", [(4,), (4, 8)])
def test_a_hybrid_reads_maps_of_features(stages: tuple[int, ...]):
    torch.manual_seed(0)
    stem = ResNetStem(1, stages)
    hybrid = Vit(SMALL, embedding=HybridEmbedding(stem, 3, 16)).double()
    side = {1: 6, 2: 3}[len(stages)]
    assert stem(torch.randn(1, 1, 12, 12, dtype=torch.float64)).shape == (1, stages[-1], side, side)
    assert stem.grid(12, 12) == (side, side)
    assert hybrid(images()).shape == (2, 1 + (side // 3) ** 2, 16)
    pictures = images(1).requires_grad_()
    hybrid(pictures)[0, 0].square().sum().backward()
    assert pictures.grad is not None and (pictures.grad != 0).all()
    with pytest.raises(UnsupportedError, match="HybridEmbedding"):
        hybrid.to_config()


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40))
def test_a_stem_says_the_sides_of_its_maps(height: int, width: int):
    stem = ResNetStem(1, (4, 4), groups=2)
    assert tuple(stem(torch.zeros(1, 1, height, width)).shape[2:]) == stem.grid(height, width)


@pytest.mark.parametrize("side", [(13, 12), (12, 10), (3, 12)])
def test_images_that_leave_a_part_of_a_patch_are_refused(side: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"image of {side[0]} × {side[1]} cannot be cut into patches of 4 × 4"):
        small()(images(1, side))


def test_what_else_is_refused():
    model = ImageClassifier(small(), ("a", "b"))
    with pytest.raises(ValueError, match="3 channels; the model takes 1"):
        model(images(1, channels=3))
    with pytest.raises(ValueError, match="multiples of 4"):
        model.for_task(("a",), image=18)
    with pytest.raises(ValueError, match="each once"):
        model.for_task(("a", "a"))
    with pytest.raises(ValueError, match=r"28 × 28|multiples of 5"):
        Vit(VitConfig(image=28, patch=5))
    with pytest.raises(ValueError, match="width 15 is odd"):
        AxisPositions((3, 3), 15)
    with pytest.raises(ValueError, match="made for 9 patches, and an image has 5 × 5"):
        small(positions=RelativePositions((3, 3), 8))(images(1, (20, 20)))
    with pytest.raises(ValueError, match="not AxisPositions"):
        ImageClassifier(small(positions=AxisPositions((3, 3), 16)), ("a",)).for_task(("a",), image=20)
    with pytest.raises(ValueError, match="groups"):
        ResNetStem(1, (6,), groups=4)
    with pytest.raises(UnsupportedError, match="AxisPositions"):
        small(positions=AxisPositions((3, 3), 16)).to_config()
    with pytest.raises(UnsupportedError, match="for_task"):
        model.to_config()
    with pytest.raises(UnsupportedError, match="pooler"):
        small(pooler=False).to_config()


def test_axes_are_interpolated_as_a_grid():
    positions = AxisPositions((3, 3), 16)
    full = positions.added((3, 3))
    torch.testing.assert_close(positions.added((6, 4))[:, 1:], resize(full[:, 1:], (3, 3), (6, 4)))
