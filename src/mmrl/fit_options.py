"""What `mmrl.fit`, `mmrl.train` and `mmrl.advise` take by name, for editors and type checkers; written by tools/fit_options.py.

Options of methods from outside the package are not here: they are taken all the same, and a checker accepts them in `overrides={...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from mmrl.clip import Clip
    from mmrl.data import Draw
    from mmrl.data.given import Labelled
    from mmrl.engine.progress import Watch
    from mmrl.templates import Template


class FitOptions(TypedDict, total=False):
    """All optional. Which options of methods and of training apply depends on the method: `mmrl methods NAME`."""

    root: str | Path | None
    """folder with the downloaded datasets; default: the environment variable DATA."""
    shots: int | None
    """training images a class; 0 takes all. Default: 16, or all with `holdout`."""
    classes: str
    """train on "all" classes or on the "base" half."""
    allow_fewer: bool
    """take all images of a class that has fewer than `shots`."""
    draw: Draw | str | Path | None
    """the training images: a draw made before, its `draw.json`, or CoOp's `shot_16-seed_1.pkl`; then `shots` does not matter."""
    template: Template | str | None
    """prompt with one `{}`, or several, whose class features are averaged; default: the dataset's; clip-lora, mma, rpo: prompt for
    every data set; null: the data set's own; provp: prompt of the classes; default: the data set's own; tcp: what follows the context
    in the prompt, {} for the class name."""
    holdout: float | Labelled | None
    """of data without test images, what tests: a share of each class's images that is set apart, such as 0.2; 0 for nothing, so that
    everything may train, and there is no score; or a folder of images, or other data, to test on. Default: all images that are not
    drawn to train."""
    skip_broken: bool
    """leave out images that are missing or broken, for training and testing; the record names them."""
    calibrate: bool
    """fit probabilities, thresholds and prediction sets to held-out images, where there are at least 10: validation images, else
    training images that were not drawn, else, of photos without a test part of their own, up to 4 a class (at most half) of those that
    would test."""
    method: str
    """a name of `mmrl methods`."""
    backbone: str | Clip | None
    """a CLIP, or its name for `load_clip`; default: `tiny`, which ships with the package and is for trying."""
    seed: int
    """decides the draw, the initial values, order and augmentation."""
    protocol: str | None
    """whose published values to use; default: few-shot for all classes of a known dataset, else base-to-novel."""
    overrides: Mapping[str, Any]
    """options of the method and of training, by name."""
    source: str
    """of these, for the record."""
    out: str | Path | None
    """folder for adapter, checkpoints, `draw.json` and `run.json`; None writes nothing."""
    resume: bool
    """go on with the run in `out`."""
    device: str
    """auto (the best there is), cpu, cuda, cuda:1, ..."""
    workers: int | None
    """threads that prepare images; default: one a core, at most 8, and none for sets in memory."""
    progress: bool
    """whether a bar is shown on a terminal."""
    watch: Watch | None
    """a function that is told how far the run is (`mmrl.engine.progress.Progress`), at every training step and every batch of images
    that is looked at once. What it raises ends the run."""
    epochs: int
    """passes over the training images."""
    iterations: int | None
    """steps in all, instead of epochs; the last epoch may end early."""
    batch_size: int
    """images a batch."""
    drop_last: bool
    """leave out the last incomplete batch of an epoch."""
    optimizer: Literal["adamw", "adam", "sgd"]
    """adam has weight decay as an L2 penalty, adamw decoupled."""
    lr: float
    """learning rate after warm-up."""
    momentum: float
    """of sgd."""
    eps: float
    """of adam and adamw: added to the root of the second moment."""
    weight_decay: float
    """weight decay."""
    schedule: Literal["cosine", "constant"]
    """how the learning rate goes on after warm-up."""
    schedule_step: Literal["epoch", "step"]
    """when the learning rate changes."""
    final_lr: float
    """what the cosine falls to."""
    warmup_epochs: int
    """first epochs, at the constant rate warmup_lr; fewer than epochs."""
    warmup_lr: float
    """learning rate of the warm-up epochs."""
    crop_scale: tuple[float, float]
    """share of an image's area that a random crop of it has, from and to."""
    pixels: Literal["exact", "fast"]
    """how training images are cropped, flipped and resized: exact by Pillow, one by one, as in the published runs; fast by products of
    matrices on the device, a batch at once, with the same crops and flips."""
    views: int | None
    """augmented views of an image, shown in turn, one an epoch; what frozen layers make of a view is computed once. Default: a new one
    in every epoch."""
    views_gib: float
    """memory for what is kept of views, in GiB."""
    views_disk_gib: float
    """room beyond it in a temporary file (of the output folder), in GiB."""
    precision: Literal["fp32", "bf16", "fp16", "auto"]
    """of the frozen CLIP's arithmetic in training; trained tensors, and tests, are float32. fp16 needs a CUDA device; auto is bf16
    where the device computes in it natively, else fp32."""
    text_precision: Literal["fp32", "bf16", "fp16"]
    """of the states of class prompts between steps; half precision takes half of the memory, for long lists of classes."""
    compile: Literal["auto", "off"]
    """auto: on a CUDA device a step is recorded once, as a CUDA graph, and replayed, where the method allows it; off: never."""
    accumulate: int
    """batches whose gradients are averaged before each step."""
    checkpoint_every: int | None
    """steps between checkpoints, besides the one after every epoch."""
    log: Literal["tensorboard"] | None
    """where else to log every step; tensorboard writes into the output folder."""
    memory_gib: float | None
    """memory for the class prompts' activations, in GiB; default: half of what is free."""
    templates: tuple[str, ...] | None
    """ape, ape-t, clap, gda, lpp, tip-adapter, tip-adapter-f: prompts whose features are averaged; null: the data set's own."""
    channels: float
    """ape: share of the feature's channels that the cache compares: the authors' of 1024, RN50's; ape-t: share of the feature's
    channels that are trained: the authors' of 1024, RN50's."""
    criterion_weights: tuple[float, float]
    """ape, ape-t: weights, in a channel's score, of how little alike classes are there, and of the variance over the classes."""
    alpha: float
    """ape, ape-t, tip-adapter, tip-adapter-f: weight of the cache beside the zero-shot logits, until one is selected; clip-lora: a
    change is multiplied with alpha / sqrt(rank); gda: weight of the Gaussian classifier beside the zero-shot logits, until one is
    selected; mmrl, mmrlpp: weight of the class token's loss and logits against the representation tokens'."""
    beta: float
    """ape, ape-t, tip-adapter, tip-adapter-f: sharpness of the cache, until one is selected: higher, fewer keys count; mmrlpp: share of
    a layer's own tokens; 1 - beta comes from the previous layer's output at their positions."""
    gamma: float
    """ape: how much images count more that class features tell badly, until one is selected."""
    augment_epoch: int
    """ape, ape-t, tip-adapter, tip-adapter-f: augmented views of a training image, whose mean is its key; 0: the image as at test;
    clap: augmented views of a training image, each a sample; 0: the image as at test; gda: augmented views of a training image, each a
    sample of its class; 0: the image as at test."""
    search_scale: tuple[float, float, float] | tuple[float, float]
    """ape: upper ends of the grids of beta, alpha and gamma; the first two start at 0.1, the last at 0; ape-t, tip-adapter, tip-
    adapter-f: upper ends of the grids of beta and alpha; they start at 0.1."""
    search_step: tuple[int, int, int] | tuple[int, int]
    """ape: numbers of values in the grids of beta, alpha and gamma; ape-t, tip-adapter, tip-adapter-f: numbers of values in the grids
    of beta and alpha."""
    selection: Literal["validation", "fixed", "authors"] | Literal["validation", "fixed"]
    """ape: where alpha, beta and gamma come from: a grid, by accuracy on the validation images, or the options as they are (fixed, and
    where there are no ...; ape-t: where epoch, alpha and beta come from: the best epoch, then a grid, by accuracy on the validation
    images, or the last epoch and the options ...; gda: where the final alpha comes from: the grid, by accuracy on the validation
    images, or the option alpha as it is (fixed, and where there are no ...; linear-probe: where C comes from: the search, by accuracy
    on the validation images, or the option c as it is (fixed, and where there are no validation images), ...; lpp: which step is kept:
    the one most accurate on the validation images, of equal ones the latest, or the last of all (fixed, and where there are no ...;
    tip-adapter, tip-adapter-f: where the final alpha and beta come from: a grid, by accuracy on the validation images, or the options
    as they are (fixed, and where there are no ..."""
    criterion: Literal["text", "text-and-images"]
    """ape-t: what the likeness of classes is of: their class features, as the authors' code asks for, or keys too, as it has where APE
    ran before."""
    penalty: Literal["l2", "none"]
    """clap: what holds a prototype to its class feature: the squared distance, weighted by class; none is ZS-LP."""
    probe_epochs: int
    """clap: epochs, each of as many samples as there are images."""
    probe_batch: int
    """clap: samples a step."""
    probe_lr: float
    """clap: learning rate of SGD after the first epoch; it falls along a cosine."""
    probe_momentum: float
    """clap: momentum of SGD; lpp: momentum of weights and biases; the multipliers have none."""
    reduction: int
    """clip-adapter: how many times narrower the hidden layer is than the image feature; cocoop, tcp: the meta-net's hidden layer is the
    joint space's width divided by this."""
    ratio: float
    """clip-adapter: share of the adapter's output in the image feature; the rest is the frozen one."""
    last_relu: bool
    """clip-adapter: whether the adapter ends in a ReLU, as in the authors' code; in the paper it does not."""
    rank: int
    """clip-lora: rank of each change of a weight matrix."""
    dropout: float
    """clip-lora: share of the changes' inputs left out in training."""
    matrices: Literal["q", "k", "v", "qk", "qv", "kv", "qkv"]
    """clip-lora: what is changed: query, key, value projections."""
    encoder: Literal["both", "text", "vision"]
    """clip-lora: towers that are changed."""
    position: Literal["all", "bottom", "mid", "up", "half-bottom", "half-up", "top3"]
    """clip-lora: layers that are changed: all, a third (bottom, mid, up), a half (half-bottom, half-up), or the last three."""
    detach_input: bool
    """clip-lora: no gradient through what a change reads: what the authors' code does where dropout is 0, and only there."""
    n_ctx: int | None
    """cocoop: number of context tokens, the first of ctx_init; default: as many as it has, 4 where it is empty; coop, kgcoop: number of
    context tokens; with ctx_init, as many as it has; maple: number of learned tokens in each layer of each tower; plot: number of
    context tokens of each prompt; with ctx_init, as many as its texts have; plotpp: number of context tokens of each prompt, where
    ctx_init is empty; proda: number of context tokens of each prompt; prograd: number of context tokens; tcp: number of context tokens,
    and of each class's own; with ctx_init, as many as it has."""
    ctx_init: str
    """cocoop, kgcoop: text that the context starts from; empty: random; coop, tcp: text that the context starts from; default: random;
    maple: text in front of the class name; its first n_ctx tokens start the context, the rest stays; empty: random context; plot: texts
    that the contexts start from, one for each prompt, divided by '|'; default: random; plotpp: texts in front of the class name, one
    for each prompt, divided by '|'; of each as many tokens are learned as the first has: the rest of a longer ...; promptsrc: text in
    front of the class name; its first n_ctx_text tokens start the prompts, the rest stays; empty: random prompts."""
    csc: bool
    """coop, kgcoop, plot: class-specific context: each class learns its own, and no new class can be named."""
    class_token_position: Literal["end", "middle", "front"] | Literal["mixed", "end", "middle", "front"]
    """coop, kgcoop, plot: where the class name stands in the context; proda: where the class name stands in the context; mixed: a
    quarter in front, a quarter in the middle."""
    alpha_grid: tuple[float, ...]
    """gda: values of alpha to select from; of those equally accurate the first."""
    covariance: Literal["shrunk", "mean"] | Literal["full", "diagonal"]
    """gda: whose inverse is used: that of all samples around their class means, shrunk towards its trace (few-shot runs), or the mean
    of the classes' own ...; proda: of the class weights over the prompts; diagonal: as if the numbers of a feature were independent."""
    pinv_cut: float | None
    """gda: directions whose variance is at most this share of the largest are left out of the pseudo-inverse; null: embed_dim x 2^-23,
    the authors' in ..."""
    neighbours: int
    """gda: training samples that stand for a new class, nearest to its class feature."""
    text_copies: int
    """gda: how often its class feature counts in its mean beside them."""
    keep_samples: bool
    """gda: whether the features of all training samples are kept, which new classes need: views x images x embed_dim numbers; without
    them it knows the ..."""
    teacher_template: str | None
    """kgcoop: prompt of the frozen class features that learned ones are held to; default: the data set's own; prograd: prompt of the
    zero-shot teacher; default: the data set's own (of several, the first starts the context); tcp: prompt of the frozen class features,
    of which class tokens are made; the learned ones are held to them; default: the data set's own."""
    reg_weight: float
    """kgcoop, tcp: weight of the distance to the frozen class features."""
    c: float
    """linear-probe: C of scikit-learn, the inverse of the L2 penalty, where none is selected."""
    c_grid: tuple[float, ...]
    """linear-probe: values of C to select from; of those equally accurate the first."""
    c_search_steps: int
    """linear-probe: steps of the bisection around the best of them, on a logarithmic scale."""
    max_iter: int
    """linear-probe: most iterations of L-BFGS."""
    probe_steps: int
    """lpp: steps of gradient descent, each on all training images."""
    alpha_every: int
    """lpp: steps from one update of the multipliers of the text to the next."""
    alpha_scale: float
    """lpp: a multiplier starts as this times the mean cosine of image and own class."""
    depth: int | None
    """maple: number of layers, from the first, with own tokens; default: 9, or all; metaprompt: number of layers, from the first, with
    prompts; default: all; provp: number of image layers, from the first, with prompts; default: all."""
    n_ctx_text: int
    """metaprompt: number of prompts in each text layer that has some; promptsrc: number of prompts in every text layer that has
    some."""
    n_ctx_vision: int
    """metaprompt, provp: number of prompts in each image layer that has some; plotpp: number of tokens of each image prompt; promptsrc:
    number of prompts in every image layer that has some."""
    meta_step: float
    """metaprompt: size of the step along the held-out gradients, in learning rates; 0: none."""
    frozen_templates: tuple[str, ...] | None
    """metaprompt: prompts whose features are averaged to the frozen class features; default: the data set's own."""
    keep_underscores: bool
    """metaprompt: whether class names keep their underscores in those prompts, as in the authors' code; rpo: whether class names keep
    their underscores in the prompt, as in the authors' code."""
    vision_between: Literal["drift", "still"]
    """metaprompt: image prompts in the steps on half of the classes, which do not use them: moved by momentum and weight decay alone,
    as by the torch 1.10 of the ..."""
    adapter_start: int | None
    """mma: first layer with adapters, from 1; default: 5, or the last."""
    adapter_end: int | None
    """mma: last layer with adapters, from 1; default: 12, or the last."""
    adapter_dim: int
    """mma: width inside the adapters, which both towers share."""
    adapter_scale: float
    """mma: factor of an adapter's output; it learns as if this were 1."""
    rep_tokens: int
    """mmrl, mmrlpp: K, number of representation tokens."""
    rep_dim: int
    """mmrl, mmrlpp: d_r, width of the shared representation space."""
    first_layer: int | None
    """mmrl, mmrlpp: J, first image layer with representation tokens, from 1; default: half the depth (6 of 12)."""
    first_text_layer: int | None
    """mmrl, mmrlpp: the same for the text tower; default: the same share of its depth as J."""
    lam: float
    """mmrl, mmrlpp: lambda, weight of the regularisation towards zero-shot features."""
    regulariser: Literal["cosine", "l1", "mse"]
    """mmrl, mmrlpp: distance to the zero-shot features (Table 9)."""
    fusion: Literal["logits", "probabilities"]
    """mmrl, mmrlpp: what is averaged at test: logits as in the authors' code, or probabilities as in the paper."""
    inference: Literal["decoupled", "class", "both"]
    """mmrl, mmrlpp: decoupled: both features for trained classes, the class token alone for new ones; class: the class token always
    (Table 4, w/o DS1); both: both ..."""
    visual: bool
    """mmrl, mmrlpp: representation tokens in the image tower (off: Table 4, w/o V)."""
    textual: bool
    """mmrl, mmrlpp: representation tokens in the text tower (off: Table 4, w/o L)."""
    space: Literal["shared", "free", "text-to-visual"]
    """mmrl: where tokens come from: one space shared by both towers; free tokens of each tower (Table 4, w/o RS); free text tokens,
    mapped to visual ones ..."""
    layer_rank: int
    """mmrlpp: rank of each layer's residual to the shared map."""
    projection_rank: int
    """mmrlpp: rank of the residual of the representation projection."""
    n_prompts: int
    """plot, plotpp: N, number of prompts of each class; proda: K, number of prompts of each class; they are shared by all classes; rpo:
    K, number of read-only prompts of each tower; they are compared in pairs."""
    sinkhorn_eps: float
    """plot, plotpp: entropic regularisation of the transport; smaller is sharper."""
    sinkhorn_max_iter: int
    """plot, plotpp: most iterations of Sinkhorn's algorithm."""
    sinkhorn_threshold: float
    """plot, plotpp: it stops where its scaling changes by less than this, on average."""
    add_pooled_logits: bool
    """plot, plotpp: add the logits of the pooled features, as PLOT's authors do on ImageNet and PLOT++'s in their first stage."""
    n_vision_prompts: int
    """plotpp: M, number of image prompts; each is a pass of the image tower."""
    trained: Literal["joint", "vision"]
    """plotpp: the prompts of both towers, or the image's alone."""
    prompts_per_step: int
    """proda: number of prompts that a training step takes; divides n_prompts, and more count as all of them."""
    orthogonality_weight: float
    """proda: lambda, weight of the mean absolute cosine between prompts that name no class."""
    init: Literal["template", "random"]
    """prograd: start of the context: zeros and, in the last positions, the teacher's words in front of the class name."""
    prograd_lambda: float
    """prograd: share of the part against the teacher's direction that is taken away."""
    temperature: float
    """prograd: of teacher and student in the teacher's loss."""
    depth_text: int | None
    """promptsrc: text layers with prompts, from the first; default: 9, or all."""
    depth_vision: int | None
    """promptsrc: image layers with prompts, from the first; default: 9, or all."""
    text_loss_weight: float
    """promptsrc: weight of the distance to the frozen class features."""
    image_loss_weight: float
    """promptsrc: weight of the distance to the frozen image features."""
    logit_loss_weight: float
    """promptsrc: weight of the divergence from the frozen model's probabilities."""
    gpa_mean: float
    """promptsrc: epoch that counts most in the average of the prompts over epochs."""
    gpa_std: float
    """promptsrc: standard deviation of the epochs' weights in that average, in epochs."""
    teacher_templates: tuple[str, ...]
    """promptsrc: prompts whose features are averaged to the frozen class features."""
    progressive_alpha: float
    """provp: share of what the layer below put out that stays in a prompt."""
    ref_loss_weight: float
    """provp: weight of the contrast with the frozen image features; 0: without it."""
    insert_layer: int | None
    """tcp: text layer, from 0, where class tokens take the context's place; default: at two thirds of the depth, 8 of 12."""
    insert_weight: float
    """tcp: share of the class tokens there; the rest is what the layer below put out."""
