"""Every setting there is, at the paper's values where the paper has one (section 4, appendix A).

The other configs state what differs. Any field can be set from the command line:
`--config.train.batch_size=64`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the data and every training step

    config.data = data = ConfigDict()
    data.source = "digits"  # digits | color_digits | tfds:NAME | folder:PATH
    data.train_split = "train"
    data.test_split = "test"
    data.image_size = 32  # pixels a side
    data.channels = 1
    data.background = (0, 0, 0)  # (R, G, B) in 0..255, behind transparent pixels
    data.crop_margin = 0  # training images are this much larger, then cropped
    data.pad = 0  # black pixels put around a training image before it is cropped
    data.crop = "random"  # random | center
    data.flip = False  # training images are mirrored at random
    data.cache = True  # decode the training images once, into memory
    data.threads = 4  # that prepare batches
    data.eight_bit = False  # cut training's xt, and the xT to restore, to 8 bits

    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=20,  # T
            kernel_size=11,
            std=1.0,  # a number, T numbers, or dict(schedule='linear' | 'exponential', ...);
            # a flag keeps a field's type: from number to dict it takes a config file
            padding="reflect",  # reflect | circular
            mean_at_end=False,
        )
    )

    config.model = ConfigDict(
        dict(
            name="convnext_unet",
            width=64,
            multipliers=(1, 2, 4, 8),
            time_embedding=True,
            residual=False,
            dtype="float32",  # of the computation: float32 | bfloat16
        )
    )

    config.train = train = ConfigDict()
    train.num_steps = 700_000
    train.batch_size = 32  # over all devices
    train.accumulation = 2  # batches whose mean gradient makes one step
    train.optimizer = "adam"
    train.learning_rate = 2e-5
    train.lr_schedule = "constant"  # constant | cosine (to 0 at num_steps)
    train.ema_decay = 0.995
    train.ema_every = 10  # steps
    train.ema_start = 2000  # before this step the average is a plain copy
    train.log_every = 100  # steps
    train.sample_every = 5000  # steps between pictures; 0 for none
    train.checkpoint_every = 5000  # steps
    train.checkpoints_kept = 3
    train.scored = 0  # test images that are scored at every checkpoint; 0 for none
    train.best = ""  # a score, such as tacos/rmse or tacos/fd/pca: its best checkpoint is kept

    # Devices that share one copy of parameters, average and moments, each holding its part (FSDP);
    # 1 where a device has room for all of it. Batches are split over all devices either way.
    config.mesh = ConfigDict(dict(fsdp=1))

    # steps: 0 for every t of T..1; a ddim may also have its eta, in 0..1.
    config.sampler = ConfigDict(dict(name="tacos", steps=0))  # direct | naive | tacos | ddim | ddpm

    # Where xT comes from in --mode=generate (colddiff.sampling.priors):
    # dict(name="pattern", noise_std=0.0): what the degradation ends with, noise, colour or image
    # dict(name="gaussian_mixture", size=1, components=1, noise_std=0.002): fitted to size² pixels
    config.prior = ConfigDict(dict(name="none"))

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 64  # in scoring and generating; rounded up to share it among devices
    # Images that a device generates at a time, more where memory allows. Another number rounds sums
    # otherwise, and a generated image, though not a restored one, shows it.
    evaluation.chunk = 16
    evaluation.num_images = 0  # so many of the test split; 0 for all
    evaluation.samplers = ("direct", "naive", "tacos")
    evaluation.pictures = 8  # test images in the pictures
    # Spaces for Fréchet and kernel distances (colddiff/evaluation/features.py): pixels, pca,
    # classifier (of the source's labels), inception (FID; downloads its weights).
    evaluation.features = ("pca",)
    evaluation.counts = ()  # sizes of subsets to give Fréchet distances of as well

    # The paper's (FID, SSIM, RMSE) by row: degraded, direct, tacos. Shown beside ours.
    config.paper = ConfigDict()

    return config.lock()  # a field that does not exist here is a mistake
