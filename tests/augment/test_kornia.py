"""KorniaModule: every module of Kornia's, keyed by row, and everything else one row at a time."""

import copy
import inspect
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from kornia.augmentation import auto
from kornia.augmentation.presets.ada import AdaptiveDiscriminatorAugmentation
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from augsubset import KorniaModule, RandomOps, RowKeys, SubsetAugmentLoader
from augsubset import check_rows_independent as check
from augsubset.augment import keyed
from augsubset.augment.kornia import as_policy
from augsubset.augment.random import hash_rows
from tests.contracts import assert_resumable
from tests.stand_in import DEVICE, StandInDevice

SIDE = 16
RANGE = torch.tensor([-0.3, 0.3])
# Arguments of each class, beside p.
CLASSES = {
    "CenterCrop": ((12, 12),),
    "ColorJiggle": (0.2, 0.2, 0.2, 0.2),
    "ColorJitter": (0.2, 0.2, 0.2, 0.2),
    "LongestMaxSize": (20,),
    "PadTo": ((20, 20),),
    "RandomAffine": (20.0, (0.1, 0.1), (0.8, 1.2), 10.0),
    "RandomAutoContrast": (),
    "RandomBoxBlur": (),
    "RandomBrightness": ((0.8, 1.2),),
    "RandomChannelDropout": (),
    "RandomChannelShuffle": (),
    "RandomClahe": ((1.0, 40.0), (4, 4)),
    "RandomContrast": ((0.8, 1.2),),
    "RandomCrop": ((SIDE, SIDE), 2),
    "RandomElasticTransform": ((7, 7), (2.0, 2.0)),
    "RandomEqualize": (),
    "RandomErasing": (),
    "RandomFisheye": (RANGE, RANGE, torch.tensor([0.9, 1.1])),
    "RandomGamma": ((0.7, 1.3), (0.8, 1.2)),
    "RandomGaussianBlur": ((5, 5), (0.1, 2.0)),
    "RandomGaussianIllumination": (),
    "RandomGaussianNoise": (0.0, 0.1),
    "RandomGrayscale": (),
    "RandomHorizontalFlip": (),
    "RandomHue": ((-0.3, 0.3),),
    "RandomInvert": (),
    "RandomJPEG": ((10.0, 90.0),),
    "RandomLinearCornerIllumination": (),
    "RandomLinearIllumination": (),
    "RandomMedianBlur": (),
    "RandomMotionBlur": ((3, 7), 35.0, 0.5),
    "RandomPerspective": (),
    "RandomPlanckianJitter": (),
    "RandomPlasmaBrightness": (),
    "RandomPlasmaContrast": (),
    "RandomPlasmaShadow": (),
    "RandomPosterize": ((1.0, 6.0),),
    "RandomRGBShift": (),
    "RandomRain": ((20, 60), (3, 6), (-3, 3)),
    "RandomResizedCrop": ((SIDE, SIDE),),
    "RandomRotation": (30.0,),
    "RandomRotation90": ((0, 3),),
    "RandomSaltAndPepperNoise": (),
    "RandomSaturation": ((0.5, 1.5),),
    "RandomSharpness": (1.0,),
    "RandomShear": (10.0,),
    "RandomSnow": ((0.2, 0.6), (1.0, 2.0)),
    "RandomSolarize": (0.3, 0.1),
    "RandomThinPlateSpline": (),
    "RandomTranslate": ((0.1, 0.2), (0.1, 0.2)),
    "RandomVerticalFlip": (),
    "Resize": ((12, 12),),
    "SmallestMaxSize": (20,),
}
RESIZING = {"CenterCrop", "LongestMaxSize", "PadTo", "Resize", "SmallestMaxSize"}
# Sums in an order that depends on the batch's size; RandomJPEG's on processors without AVX-512.
TOLERANCE = {"RandomElasticTransform": 1e-5, "RandomJPEG": 1e-6}
MIXING = {"PatchMix", "RandomCutMixV2", "RandomJigsaw", "RandomMixUpV2", "RandomMosaic"}
MIXING |= {"RandomTransplantation"}
NORMALISING = {"Normalize", "Denormalize"}
ABSTRACT = {"AugmentationBase2D", "GeometricAugmentationBase2D", "IntensityAugmentationBase2D"}
ABSTRACT |= {"MixAugmentationBaseV2", "RigidAffineAugmentationBase2D"}
# One runs a diffusion model that it downloads; dispatchers hand several inputs to several modules.
LEFT_OUT = {"RandomDissolving", "ManyToManyAugmentationDispather", "ManyToOneAugmentationDispather"}
CONTAINERS = {"AugmentationSequential", "ImageSequential", "PatchSequential"}


def make(name, p=0.5):
    options = {} if name == "PadTo" else {"p": 1.0 if name in RESIZING else p}
    return getattr(K, name)(*CLASSES[name], **options)


def four(*_, **options):
    parts = K.RandomHorizontalFlip(), K.RandomAffine(15.0, p=0.7), K.RandomErasing(p=0.5)
    return K.AugmentationSequential(*parts, K.RandomGaussianNoise(std=0.05), **options)


BRIGHTER = K.RandomBrightness((0.8, 1.2))
MODULES = {name: lambda name=name: make(name) for name in CLASSES} | {
    "MotionBlur of one size": lambda: K.RandomMotionBlur(5, 35.0, 0.5),
    "ResizedCrop resampled": lambda: K.RandomResizedCrop((SIDE, SIDE), cropping_mode="resample"),
    "AugmentationSequential": four,
    "AugmentationSequential of two": lambda: four(random_apply=2),
    "ImageSequential": lambda: K.ImageSequential(
        K.ImageSequential(K.RandomHorizontalFlip(), BRIGHTER), K.RandomRotation(20.0)
    ),
    "ImageSequential of one to three": lambda: K.ImageSequential(
        K.RandomHorizontalFlip(), BRIGHTER, K.RandomRotation(20.0), random_apply=(1, 3)
    ),
    "ImageSequential of four from two": lambda: K.ImageSequential(
        K.RandomHorizontalFlip(), BRIGHTER, random_apply=4
    ),
    "ImageSequential of filters": lambda: K.ImageSequential(
        K.RandomInvert(), __import__("kornia").filters.GaussianBlur2d((3, 3), (1.0, 1.0))
    ),
    "PatchSequential": lambda: K.PatchSequential(
        *(K.RandomHorizontalFlip(), BRIGHTER, K.RandomRotation(20.0), K.RandomErasing()),
        grid_size=(2, 2),
    ),
    "PatchSequential of all": lambda: K.PatchSequential(
        *(K.RandomHorizontalFlip(), BRIGHTER), grid_size=(2, 2), patchwise_apply=False
    ),
    "PatchSequential of any": lambda: K.PatchSequential(
        *(K.RandomHorizontalFlip(), BRIGHTER), grid_size=(2, 2), random_apply=True
    ),
    "auto.AutoAugment": auto.AutoAugment,
    "auto.RandAugment": lambda: auto.RandAugment(n=2, m=10),
    "auto.TrivialAugment": auto.TrivialAugment,
    "nn.Sequential": lambda: nn.Sequential(
        K.RandomHorizontalFlip(), nn.Sequential(nn.Identity(), K.ColorJiggle(0.2, 0.2, p=0.8))
    ),
}


def images(n=17, side=SIDE, channels=3, **options):
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, channels, side, side, generator=generator, **options)


def keys(n=17, seed=0, epoch=0, copy=1):
    return RowKeys(seed, epoch, torch.arange(n) * 3 + 5, copy)


def augment(module, x, rows):
    """Run a policy's module on rows, also one that changes their size."""
    policy = KorniaModule(module)
    assert policy.strategy == "keyed"
    return policy._run_keyed(hash_rows(rows, policy._stream), (x,))[0]


def classes_of(module):
    return {name for name, found in inspect.getmembers(module, inspect.isclass) if is_2d(found)}


def is_2d(found):
    names = ("_3d", "video", "kornia.augmentation.random_generator")
    return issubclass(found, nn.Module) and not any(name in found.__module__ for name in names)


def test_every_class_of_kornia_has_its_place_here():
    named = CLASSES.keys() | MIXING | NORMALISING | ABSTRACT | LEFT_OUT | CONTAINERS
    assert classes_of(K) == named
    bases = {"PolicyAugmentBase", "PolicySequential"}
    assert {f"auto.{name}" for name in set(auto.__all__) - bases} <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_a_row_depends_on_its_key_and_image_alone(name):
    x, rows, before = images(), keys(), images()
    results, atol = [], TOLERANCE.get(name, 0.0)
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        results.append(augment(MODULES[name](), x, rows))
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == random.getstate()
        assert np.array_equal(states[2], np.random.get_state()[1])
    assert torch.equal(*results)
    assert torch.equal(x, before)  # a policy's inputs are not cloned for Kornia
    module, whole = MODULES[name](), results[0]
    everyone = torch.arange(len(x))
    parts = [everyone.flip(0), *(everyone[:size] for size in (1, 3, 4, SIDE)), everyone[-1:]]
    for part in parts:
        torch.testing.assert_close(
            augment(module, x[part], rows[part]), whole[part], rtol=0, atol=atol
        )
    if not (name in RESIZING or "ormalize" in name):
        other = augment(module, x, keys(epoch=1))
        changed = (other != whole).flatten(1).any(1)
        assert changed.sum() > len(x) / 4, f"{int(changed.sum())} rows"
    pickle.loads(pickle.dumps(module))


def parameters(name, words, n):
    """Return columns of the parameters that a class draws, by keys and as it does by itself."""
    side = 64 if "Crop" in name or "Erasing" in name else 4 if "Plasma" in name else 8
    shape = torch.Size((n, 3, side, side))
    module = make(name, p=1.0 if name in P_BATCH else 0.5)
    ours = keyed.draw_parameters(module, keyed.Draws(words, torch.empty(shape)))
    torch.manual_seed(5)
    return columns(ours, n), columns(module.forward_parameters(shape), n)


def columns(params, n):
    found = {}
    for name, value in params.items():
        if isinstance(value, torch.Tensor) and name != "forward_input_shape":
            value = getattr(value, "rows", value)
            if value.ndim and len(value) == n:
                flat = value.double().reshape(n, -1)[:, :6].numpy()
                found |= {f"{name} {i}": column for i, column in enumerate(flat.T)}
    return found


N = 20_000
# At p < 1 these draw once for the batch whether they run: one number, not 20,000.
P_BATCH = {"RandomCrop", "RandomResizedCrop"}


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - RESIZING - {"RandomMotionBlur"}))
def test_parameters_are_distributed_as_kornia_draws_them(name):
    words = hash_rows(RowKeys(5, 0, torch.arange(N), 1), 3)
    ours, plain = parameters(name, words, N)
    assert ours.keys() >= plain.keys()
    for column, theirs in plain.items():
        mine = ours[column]
        values = np.union1d(mine, theirs)
        if len(values) == 1:
            continue
        if len(values) <= 40:
            counts = [[np.sum(side == value) for value in values] for side in (mine, theirs)]
            p = stats.chi2_contingency(np.array(counts) + 0.5).pvalue
        else:
            p = stats.ks_2samp(mine, theirs).pvalue
        assert p > 1e-4, f"{column}: p = {p:.2g}"
        if "idx" not in column:  # positions in the batch
            assert abs(np.corrcoef(mine[1:], mine[:-1])[0, 1]) < 0.04


def test_numbers_of_a_batch_draw_are_distributed_as_they_should_be():
    words = hash_rows(RowKeys(5, 0, torch.arange(N), 1), 3)

    def draw(function):
        with keyed.KeyedMode(keyed.Draws(words, torch.empty(N, 1, 1, 1))):
            found = function()
        return getattr(found, "rows", found).reshape(N, -1).numpy()

    order = draw(lambda: torch.randperm(3)) @ np.array([9, 3, 1])
    assert stats.chisquare(np.unique(order, return_counts=True)[1]).pvalue > 1e-3
    assert len(np.unique(order)) == 6
    weights = torch.tensor([1.0, 2.0, 3.0, 0.0, 4.0])
    for replacement in (False, True):
        two = draw(lambda: torch.multinomial(weights, 2, replacement))  # noqa: B023
        first = np.bincount(two[:, 0], minlength=5)[[0, 1, 2, 4]]
        assert stats.chisquare(first, np.array([1, 2, 3, 4]) * N / 10).pvalue > 1e-3
        assert not (two == 3).any()
        assert (two[:, 0] != two[:, 1]).all() != replacement
    one = draw(lambda: torch.distributions.Categorical(weights).sample((N,)))[:, 0]
    counts = np.bincount(one, minlength=5)[[0, 1, 2, 4]]
    assert stats.chisquare(counts, np.array([1, 2, 3, 4]) * N / 10).pvalue > 1e-3
    chance = draw(lambda: torch.bernoulli(torch.full((N,), 0.3))).mean()
    assert chance == pytest.approx(0.3, abs=0.02)
    assert draw(lambda: torch.randint(2, 9, (N,))).min() == 2
    assert draw(lambda: torch.randint(9, (N,), dtype=torch.int32)).max() == 8
    assert stats.kstest(draw(lambda: torch.randn(N))[:, 0], "norm").pvalue > 1e-3
    for dtype, bits in ((torch.float16, 11), (torch.bfloat16, 8), (torch.float64, 53)):
        with keyed.KeyedMode(keyed.Draws(words, torch.empty(N, 1, 1, 1))):
            found = torch.rand(N, 50, dtype=dtype)
        assert found.max() < 1
        assert torch.equal(found.double() * 2.0**bits % 1, torch.zeros(N, 50).double())


def test_layers_copies_epochs_and_streams_are_uncorrelated():
    twice = K.ImageSequential(K.RandomRotation(30.0, p=1.0), K.RandomRotation(30.0, p=1.0))
    drawn = []
    for stream, epoch, copy_number in ((0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1)):
        policy = KorniaModule(twice, stream=stream)
        words = hash_rows(RowKeys(5, epoch, torch.arange(N), copy_number), policy._stream)
        draws = keyed.Draws(words, torch.empty(N, 3, 4, 4))
        found = keyed.draw_parameters(twice, draws)
        drawn += [item.data["degrees"].numpy() for item in found]
    correlations = np.corrcoef(np.stack(drawn)) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 0.03


def test_a_draw_is_a_matter_of_its_number_alone():
    words = hash_rows(keys(5), 0)

    def draw(*shapes):
        with keyed.KeyedMode(keyed.Draws(words, images(5))):
            return [torch.rand(shape).reshape(5, -1) for shape in shapes]

    floats = draw(*[(5,)] * 20)
    assert torch.cat(floats).unique().numel() == 100
    mixed = draw(*[(5,), (5, 3), (10,), (5,)] * 5)
    for one, other in zip(floats, mixed, strict=True):
        assert torch.equal(one, other[:, :1])


def test_stages_of_a_plain_sequential_draw_other_numbers():
    x, rows = images(), keys()
    noise = K.RandomGaussianNoise(std=0.01, p=1.0)
    twice = augment(nn.Sequential(noise, noise), x, rows) - x
    once = augment(noise, x, rows) - x
    assert not torch.allclose(twice, 2 * once, atol=1e-4)


def test_rows_repeat_for_as_many_epochs_as_asked_for():
    policy, x = KorniaModule(K.RandomAffine(30.0, p=1.0), every=2), images()
    assert torch.equal(policy(x, keys(epoch=0)), policy(x, keys(epoch=1)))
    assert not torch.equal(policy(x, keys(epoch=2)), policy(x, keys(epoch=1)))


def test_patches_are_one_call():
    """Draws for an image's four patches are split among the rows: no further calls."""
    ran = []
    module = MODULES["PatchSequential of all"]()
    module.register_forward_hook(lambda *_: ran.append(1))
    augment(module, images(), keys())
    assert len(ran) == 1


def test_uint8_is_converted_and_rounded_back():
    x = (images() * 255).to(torch.uint8)
    assert torch.equal(KorniaModule(K.RandomHorizontalFlip(p=1.0))(x, keys()), x.flip(3))


def test_what_comes_back_unchanged_is_a_copy():
    x, mask = images(), images(channels=1)
    flip = K.AugmentationSequential(
        K.RandomHorizontalFlip(), data_keys=["input", "mask"], random_apply=(0, 0)
    )
    for out, before in zip(KorniaModule(flip)(x, keys(), mask), (x, mask), strict=True):
        assert torch.equal(out, before)
        assert out.data_ptr() != before.data_ptr()


ALL_KEYS = ["input", "mask", "bbox_xyxy", "keypoints", "class"]


def everything(n=6):
    boxes = [torch.tensor([[1.0, 2.0, 6.0, 9.0]]).repeat(row % 3 + 1, 1) for row in range(n)]
    points = torch.tensor([[[0.0, 3.0], [4.0, 5.0]]]).repeat(n, 1, 1)
    return (images(n) > 0.5)[:, 0].long(), boxes, points, torch.arange(n)


def test_masks_boxes_keypoints_and_classes_go_along():
    flip = K.AugmentationSequential(K.RandomHorizontalFlip(p=1.0), data_keys=ALL_KEYS)
    x, others = images(6), everything()
    out, mask, boxes, points, labels = KorniaModule(flip)(x, keys(6), *others)
    assert torch.equal(out, x.flip(3))
    assert torch.equal(mask, others[0].flip(2))
    assert mask.dtype == torch.int64
    assert [len(box) for box in boxes] == [1, 2, 3, 1, 2, 3]
    assert float(boxes[1][1, 0]) == pytest.approx(SIDE - 1 - 6, abs=1.01)
    assert points[:, 0, 0].tolist() == [SIDE - 1] * 6
    assert torch.equal(labels, others[3])


def test_parts_of_rows_that_choose_apart_come_back_in_order():
    parts = K.RandomAffine(20.0, p=1.0), K.ColorJiggle(0.2, 0.2, 0.2)
    extra = {"MASK": {"resample": "nearest", "align_corners": True}}
    module = K.AugmentationSequential(*parts, data_keys=ALL_KEYS, extra_args=extra, random_apply=1)
    x, others = images(6), everything()
    check(KorniaModule(module), x, *others)
    mask = KorniaModule(module)(x, keys(6), *others)[1]
    assert not torch.equal(mask, others[0])
    assert set(mask.unique().tolist()) == {0, 1}


def test_a_function_gets_its_masks_as_they_are():
    def invert(x, mask):
        assert mask.dtype == torch.bool
        return 1 - x, ~mask

    mask = images(channels=1) > 0.5
    assert torch.equal(KorniaModule(invert)(images(), keys(), mask)[1], ~mask)


def test_others_that_the_module_does_not_name_are_refused():
    with pytest.raises(ValueError, match="module takes images alone, got 1 others"):
        KorniaModule(K.RandomInvert())(images(), keys(), images(channels=1))
    module = K.AugmentationSequential(K.RandomInvert(), data_keys=["input", "mask"])
    with pytest.raises(ValueError, match=r"data_keys=\['image', 'mask'\], got the images and 0 o"):
        KorniaModule(module)(images(), keys())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: K.PatchMix(), "mixes the images of a batch"),
        (lambda: K.RandomMixUpV2(), "RandomMixUpV2, which mixes the images of a batch"),
        (lambda: K.RandomCutMixV2(use_correct_lambda=True), "mixes the images of a batch"),
        (lambda: K.RandomMosaic(), "mixes the images of a batch"),
        (lambda: K.RandomJigsaw(), "mixes the images of a batch"),
        (lambda: K.RandomTransplantation(), "mixes the images of a batch"),
        (lambda: K.AugmentationSequential(K.RandomMixUpV2()), "mixes the images of a batch"),
        (lambda: AdaptiveDiscriminatorAugmentation(), "changes its probability from call to call"),
        (lambda: K.RandomAffine3D(10.0), r"takes volumes \(B, C, D, H, W\)"),
        (lambda: K.VideoSequential(K.RandomAffine(10.0)), "takes videos"),
        (lambda: K.RandomAffine(10.0, same_on_batch=True), "must have same_on_batch=False"),
        (lambda: four(same_on_batch=True), "must have same_on_batch=False"),
    ],
)
def test_modules_for_other_things_are_refused_with_the_reason(module, reason):
    with pytest.raises(TypeError, match=reason):
        KorniaModule(module())


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize(
    "made", [*(getattr(K, name) for name in sorted(NORMALISING)), v2.Normalize]
)
def test_modules_that_leave_the_range_for_good_are_refused(made, per_row):
    """Bytes would be clamped, without a word."""
    module = made(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.2]))
    for each in (module, torch.nn.Sequential(K.RandomAffine(20.0), module)):
        with pytest.raises(ValueError, match=r"got (N|Den)ormalize\. Take it out, and pass norm"):
            KorniaModule(each, per_row=per_row)


def test_classes_that_set_same_on_batch_themselves_are_taken():
    for module in (K.CenterCrop(8), K.Resize((8, 8))):
        assert KorniaModule(K.ImageSequential(module)).strategy == "keyed"
    KorniaModule(K.RandomAffine(10.0, same_on_batch=True), per_row=False)


@pytest.mark.parametrize(
    "module",
    [
        K.Resize((12, 12), p=1e-6),
        K.CenterCrop((12, 12), p=1e-6),
        K.AugmentationSequential(K.RandomResizedCrop((8, 8), p=1e-6)),
    ],
)
def test_rows_that_would_leave_in_different_shapes_are_refused(module):
    for epoch in range(3):
        with pytest.raises(ValueError, match=r"one shape, got .* A resizing operation needs p=1"):
            KorniaModule(module)(images(), keys(epoch=epoch))
    in_between = K.ImageSequential(K.Resize((20, 20)), K.RandomCrop((SIDE, SIDE), p=0.5))
    with pytest.raises(ValueError, match="A resizing operation needs p=1"):
        KorniaModule(in_between)(images(), keys())


class Own(nn.Module):
    """Draws a number for the batch, of which a batch of four could be mistaken for the rows."""

    def forward(self, x):
        return (x * torch.rand(4).mean() * np.random.rand() * random.random()).clamp(0, 1)


EVERYTHING_ELSE = {
    "torchvision": v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.2)]),
    "torchvision RandAugment": v2.RandAugment(),
    "a function": lambda x: x * torch.rand(len(x), 1, 1, 1),
    "a module": Own(),
    "a module among Kornia's": K.ImageSequential(K.RandomHorizontalFlip(), Own()),
    "a compiled chain": torch.compile(nn.Sequential(K.RandomInvert()), backend="eager"),
    "dropout among Kornia's": nn.Sequential(K.RandomHorizontalFlip(), nn.Dropout(0.5)),
}


@pytest.mark.parametrize("name", EVERYTHING_ELSE)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_everything_else_runs_row_by_row(name, dtype):
    policy = KorniaModule(EVERYTHING_ELSE[name])
    assert policy.strategy == "row by row"
    x, rows = images(8), keys(8)
    x = (x * 255).to(dtype) if dtype == torch.uint8 else x
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    check(policy, x)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])
    assert (policy(x, rows) != policy(x, keys(8, epoch=1))).any()
    assert torch.equal(policy(x, rows)[:4], policy(x[:4], rows[torch.arange(4)]))


def test_a_generator_of_the_modules_own_is_noticed():
    generator = torch.Generator()
    policy = KorniaModule(lambda x: x * torch.rand((), generator=generator))
    with pytest.raises(
        ValueError, match=r"it has a generator of its own\. Seed that in a function"
    ):
        policy(images(), keys())

    def seeded(x):
        generator.manual_seed(int(torch.randint(2**31, ())))
        return x * torch.rand((), generator=generator)

    check(KorniaModule(seeded), images())


def test_a_call_for_the_whole_batch_repeats_but_depends_on_it():
    module = K.RandomAffine(30.0, p=1.0)
    policy, x, rows = KorniaModule(module, per_row=False), images(), keys()
    state = torch.get_rng_state()
    assert torch.equal(policy(x, rows), policy(x, rows))
    assert torch.equal(state, torch.get_rng_state())
    half = torch.arange(8)
    assert not torch.equal(policy(x, rows)[:8], policy(x[half], rows[half]))
    assert "whole batch" in repr(policy)


def test_check_rows_independent_names_what_is_to_blame():
    x = images(8)
    with pytest.raises(ValueError, match=r"torch.rand of shape \(8,\) at .* is drawn once for all"):
        check(KorniaModule(K.RandomAffine(9.0), per_row=False), x)
    with pytest.raises(ValueError, match="no draw differs, so it computes over the batch"):
        check(lambda x, rows: x - x.mean(), x)
    elastic, x = K.RandomElasticTransform((15, 15), (4.0, 4.0), p=1.0), images(12, 32)
    with pytest.raises(ValueError, match="got another for row"):
        check(elastic, x)
    check(elastic, x, tolerance=1e-5)
    check(RandomOps.paper(), x)


class Mistaken(nn.Module):
    """As if Kornia had a class that draws four numbers for the batch."""

    def forward_parameters(self, shape):
        return {"factors": torch.rand(4).tolist()}

    def forward(self, x, params):
        return x * sum(params["factors"]) / 4


def test_a_draw_that_is_mistaken_for_the_rows_is_named(monkeypatch):
    monkeypatch.setattr(Mistaken, "__module__", "kornia.augmentation.mistaken")
    check(Mistaken(), images(3))
    with pytest.raises(ValueError, match=r"rand of shape \(4,\) .* taken for one number of each"):
        check(Mistaken(), images(4))


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        (lambda: torch.empty(3).uniform_(), "got uniform_, which has no form keyed by row"),
        (lambda: torch.rand(3, generator=torch.Generator()), "without generator= or .* got rand,"),
        (lambda: torch.randn(3, out=torch.empty(3)), "without generator= or out=, got randn,"),
        (lambda: torch.multinomial(torch.ones(2, 3), 1), "draw from 1 or 17 lines of weights"),
    ],
)
def test_draws_without_a_keyed_form_are_refused(monkeypatch, draw, reason):
    monkeypatch.setattr(Mistaken, "__module__", "kornia.augmentation.mistaken")
    monkeypatch.setattr(Mistaken, "forward_parameters", lambda self, shape: {"factors": draw()})
    with pytest.raises(RuntimeError, match=reason):
        KorniaModule(Mistaken())(images(), keys())


def test_a_module_that_draws_while_it_runs_is_refused(monkeypatch):
    monkeypatch.setattr(Own, "__module__", "kornia.augmentation.own")
    with pytest.raises(RuntimeError, match=r"Own must draw .* got torch.rand of shape \(4,\) at"):
        KorniaModule(Own())(images(), keys())


def test_choices_left_in_a_module_are_plain_tensors():
    module = K.ColorJiggle(0.2, 0.2, 0.2, 0.2, p=1.0)
    KorniaModule(K.RandomMotionBlur(3, 35.0, 0.5, p=1.0))(images(), keys())
    policy = KorniaModule(module)
    policy(images(), keys())
    order = module._params["order"]
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert torch.equal(copy.deepcopy(order) + 1, order + 1)
    assert torch.equal(pickle.loads(pickle.dumps(order)), order)
    again = copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))
    for other in again:
        assert torch.equal(other(images(), keys()), policy(images(), keys()))
    blur = K.RandomMotionBlur(3, 35.0, 0.5, p=1.0)
    KorniaModule(blur)(images(), keys())
    index = blur._params["idx"]  # a choice that nobody asked for
    assert type(pickle.loads(pickle.dumps(index))) is torch.Tensor
    assert type(copy.deepcopy(index)) is torch.Tensor
    assert index.tolist() == (index + 0).tolist()


def expect_same(policy, run):
    expected = policy(images(), keys())
    assert torch.equal(run(images(), keys()), expected)


def test_surroundings_change_nothing():
    policy = KorniaModule(nn.Sequential(four(), K.ColorJiggle(0.2, 0.2)))
    for surrounding in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with surrounding:
            found = policy(images(), keys())
        assert torch.equal(found.clone(), policy(images(), keys()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expect_same(policy, policy)
    assert not policy(images().requires_grad_(), keys()).requires_grad
    stripes = images().to(memory_format=torch.channels_last)
    assert torch.equal(policy(stripes, keys()), policy(images(), keys()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype):
    x = images().to(dtype)
    out = KorniaModule(four())(x, keys())
    assert out.dtype == dtype
    check(KorniaModule(K.AugmentationSequential(K.RandomInvert(), K.RandomGamma())), x)


def test_threads_do_not_mix_their_rows():
    modules = [KorniaModule(four()) for _ in range(4)]
    jobs = [(modules[job % 4], images(), keys(epoch=job)) for job in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: job[0](*job[1:]), jobs))
    for (policy, x, rows), out in zip(jobs, found, strict=True):
        assert torch.equal(out, policy(x, rows))


def test_a_compiled_module_has_one_graph():
    from torch._dynamo.testing import CompileCounter

    counter, plain = CompileCounter(), K.RandomAffine(20.0, p=0.5)
    policy = KorniaModule(torch.compile(plain, backend=counter))
    assert policy.strategy == "keyed"
    for epoch in range(3):
        found = policy(images(), keys(epoch=epoch))
        assert torch.equal(found, KorniaModule(plain)(images(), keys(epoch=epoch)))
    assert counter.frame_count == 1
    jiggle = KorniaModule(torch.compile(K.ColorJiggle(0.2, 0.2), backend="eager"))
    check(jiggle, images(4))


# In the loader.

PIXELS = (images(48, 8) * 255).to(torch.uint8)
LABELS = torch.arange(48) % 3


def loader(augment=None, *, batch_size=8, num_workers=0, **options):
    data = DataLoader(
        TensorDataset(PIXELS, LABELS),
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_workers,
    )
    module = K.AugmentationSequential(K.RandomAffine(20.0, p=1.0), K.ColorJiggle(0.2, 0.2, 0.2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    nn.init.zeros_(model[1].weight)
    given = {"fraction": 0.25, "copies": 2, "every": 1, "seed": 3} | options
    return SubsetAugmentLoader(data, model, augment or module, **given)


def test_a_module_is_taken_as_it_is():
    rows = {}
    for batch_size in (8, 5):
        made = loader(batch_size=batch_size, base=K.RandomHorizontalFlip())
        for x, _ in made:
            rows.setdefault(batch_size, []).extend(x)
    assert all(any(torch.equal(row, other) for other in rows[5]) for row in rows[8]), (
        "a row's augmentation depends on the batch size"
    )
    for module in (nn.Sequential(K.RandomInvert()), torch.compile(K.RandomInvert())):
        assert isinstance(as_policy(module), KorniaModule)
    with pytest.raises(TypeError, match=r"Wrap it: KorniaModule\(module\)"):
        loader(nn.Sequential(nn.Identity()))


def test_the_base_policy_draws_other_numbers_than_the_strong_one():
    flip = K.RandomHorizontalFlip()
    made = loader(flip, base=flip, fraction=1.0, originals="none", copies=1)
    rows = [row for x, _ in made for row in x]
    unflipped = sum(any(torch.equal(row, one) for one in PIXELS / 255) for row in rows)
    assert 12 < unflipped < 36, "the two flips agree, or undo each other, in every row"


def test_a_resumed_run_is_the_uninterrupted_one():
    assert_resumable(loader, stops=[1, 4, 9], num_epochs=2)


def test_workers_change_nothing():
    """Forked ones: that a policy can be pickled, for spawned ones, is tested above."""
    assert_resumable(loader, lambda: loader(num_workers=2), stops=[4], num_epochs=2)


@pytest.mark.parametrize(
    "module",
    [
        *(K.RandomGaussianNoise(std=0.1, p=1.0), K.RandomSaltAndPepperNoise(p=1.0)),
        *(K.RandomPlasmaShadow(p=1.0), K.RandomElasticTransform((7, 7), (2.0, 2.0), p=1.0)),
        K.ColorJiggle(0.2, 0.2, 0.2, 0.2, p=1.0),
    ],
)
def test_on_an_accelerator_the_numbers_are_the_same(module):
    x = images()
    with StandInDevice():
        found = augment(module, x.to(DEVICE), keys())
    assert found.device == DEVICE
    assert torch.equal(found.inner, augment(module, x, keys()))


@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_numbers_for_each_pixel_are_made_on_the_device(draw):
    words, x = hash_rows(keys(), 0), images()
    with StandInDevice(), keyed.KeyedMode(keyed.Draws(words, x.to(DEVICE))):
        pixels, factors = draw(x.shape), draw(len(x))
    with keyed.KeyedMode(keyed.Draws(words, x)):
        expected = draw(x.shape), draw(len(x))
    assert (pixels.device, factors.device) == (DEVICE, torch.device("cpu"))
    assert torch.equal(pixels.inner, expected[0])
    assert torch.equal(factors, expected[1])
