"""All settings, with the paper's values where the paper gives them (section 4, appendix A).

The other configs state only their differences; `--print_config` marks them. Any field can be set
from the command line. A tuple, a schedule or a prior needs quotes:

    --config.train.batch_size=64 --config.data.flip --noconfig.data.cache
    --config.eval.samplers="('direct', 'tacos')" --config.eval.counts="()"
    --config.degradation.std="{'schedule': 'linear', 'start': 0.5, 'step': 0.1}"
    --config.prior.name=pattern --config.prior.noise_std=0.0
    --config.model="{'name': 'resnet_unet', 'width': 32, ...}"

The last form replaces a whole section. A config file of your own may be in any folder; it begins
with `from colddiff.configs import default`, or another config.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the data and every training step

    config.data = data = ConfigDict()
    data.source = "digits"  # digits | color_digits | tfds:NAME | folder:PATH | arrays:PATH
    data.train_split = "train"
    data.test_split = "test"
    # Scored at checkpoints (train.scored), such as 'train[-1000:]' beside the train_split
    # 'train[:-1000]', so that train.best never sees the test split; '' for the test split.
    data.validation_split = ""
    # Pixels a side, or (height, width); `object` lets either replace the other.
    data.image_size = FieldReference(32, field_type=object)
    data.channels = 1  # 1 (gray) or 3 (RGB); an arrays: source may have any number
    data.value_range = ()  # (low, high) of an arrays: source; () for all of an integer's values
    data.background = (0, 0, 0)  # (R, G, B) in 0..255, behind transparent pixels
    data.crop_margin = 0  # pixels added to the side of training images before they are cropped
    data.pad = 0  # black pixels put around a training image before it is cropped
    data.crop = "random"  # random | center
    data.flip = False  # mirror training images at random
    data.cache = True  # keep the decoded training images in memory
    data.threads = 4  # threads that prepare batches
    data.eight_bit = False  # truncate xt in training, and the xT of images to restore, to 8 bits

    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=20,  # T
            kernel_size=11,
            std=1.0,  # a number, T numbers, or dict(schedule='linear' | 'exponential', ...)
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
            remat=False,  # recompute blocks in the backward pass: less memory, more time
            dtype="float32",  # dtype of the computation: float32 | bfloat16
        )
    )

    config.train = train = ConfigDict()
    train.num_steps = 700_000
    train.batch_size = 32  # images, over all devices
    train.accumulation = 2  # batches a step; their gradients are averaged
    train.optimizer = "adam"
    train.learning_rate = 2e-5
    train.lr_schedule = "constant"  # constant | cosine (to 0 at num_steps)
    train.warmup_steps = 0  # steps in which the learning rate rises from 0
    train.clip_norm = 0.0  # largest norm of the gradient; larger ones are scaled down; 0 for any
    train.weight_decay = 0.0  # AdamW's: each step scales weights by 1 - learning rate × this
    # Further terms of the loss (colddiff/training/further.py), with their weights; 0 for none.
    # unfold restores iterates of Algorithm 2 too, with gradients through the iterate or not.
    train.unfold = ConfigDict(dict(weight=0.0, through=False))
    train.degraded_loss = 0.0  # |D(x̂, s) - D(x0, s)| at a severity s < t
    train.ema_decay = 0.995
    train.ema_every = 10  # steps
    train.ema_start = 2000  # before this step the average is a copy of the parameters
    train.ema_decays = ()  # decays of further averages, such as (0.99, 0.9999); --ema loads one
    train.log_every = 100  # steps
    train.sample_every = 5000  # steps between pictures; 0 for none
    train.checkpoint_every = 5000  # steps
    train.checkpoints_kept = 3
    train.scored = 0  # images to score at every checkpoint; 0 for none
    train.best = ""  # score whose best checkpoint is kept, such as tacos/rmse or tacos/fd/pca
    train.profile_steps = ()  # (first, last) step to trace into WORKDIR/profile, such as (10, 15)
    train.sinks = ()  # trackers that get the numbers of training too: wandb, trackio

    # Number of devices that share one copy of the parameters, their EMA and the moments (FSDP). Use
    # 1 if a device has memory for all of it. Batches are always split over all devices.
    config.mesh = ConfigDict(dict(fsdp=1))

    # steps: number of sampler steps; 0 for every t of T..1. ddim also takes eta, in 0..1
    # (--config.sampler.eta=0.5).
    config.sampler = sampler = ConfigDict()
    # direct | naive | tacos | tacos_x0 | second_order | momentum | ddim | ddpm
    sampler.name = "tacos"
    sampler.steps = 0
    # even: steps of equally many severities. change: steps in which D changes equally much, as
    # measured on training images. Restoring files always takes even steps.
    sampler.spacing = "even"
    # Data consistency (colddiff/sampling/consistency.py): conjugate-gradient steps that make each
    # estimate of x0 agree with the image to restore, such as 32; 0 for none.
    sampler.consistency = 0
    # Standard deviation of the noise in the image to restore, on [-1, 1]; that of 8-bit rounding.
    sampler.noise_std = 2 / 255 / 12**0.5

    # The prior, which draws xT in --mode=generate (colddiff.sampling.priors):
    # dict(name="pattern", noise_std=0.0): D(0, T), which is noise, a colour or an image
    # dict(name="gaussian_mixture", size=1, components=1, noise_std=0.002): fitted to size² pixels;
    # size is the number of blocks a side, or (rows, columns) of them
    config.prior = ConfigDict(dict(name="none"))

    # The severity head, which estimates t of images (colddiff/training/severity.py). It is trained
    # after the restorer; num_steps=0 trains none. Its learning rate rises for a tenth of the steps
    # and then falls to 0 along a cosine.
    config.severity = ConfigDict(
        dict(num_steps=0, batch_size=64, learning_rate=1e-3, width=32)  # steps, images, -, channels
    )

    config.eval = evaluation = ConfigDict()
    # Images scored or generated at a time, rounded up to a multiple of the number of devices.
    evaluation.batch_size = 64
    # Images that a device generates at a time; may be larger where memory allows. Another number
    # changes the rounding of sums, which is visible in generated images but not in restored ones.
    evaluation.chunk = 16
    evaluation.num_images = 0  # test images to score; 0 for all
    evaluation.samplers = ("direct", "naive", "tacos")
    evaluation.pictures = 8  # test images in the pictures
    # Feature spaces of Fréchet and kernel distances (colddiff/evaluation/features.py): pixels, pca,
    # classifier (of the source's labels), inception (FID; downloads its weights).
    evaluation.features = ("pca",)
    # Resamples of the test images, whose scores are written too, for confidence intervals; at most
    # 10,000 images; 0 for none.
    evaluation.bootstrap = 0
    evaluation.counts = ()  # subset sizes for additional Fréchet distances

    # The paper's (FID, SSIM, RMSE) by row (degraded, direct, tacos), shown beside ours.
    config.paper = ConfigDict()

    return config.lock()  # so that setting an unknown field is an error
