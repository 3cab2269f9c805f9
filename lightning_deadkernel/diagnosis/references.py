"""The papers and pages that findings point to, each once, with its link."""

REDO = (
    "Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning, https://arxiv.org/abs/2302.12902"
)
MEHTA = (
    "Mehta et al. 2019, On Implicit Filter Level Sparsity in Convolutional Neural Networks,"
    " https://arxiv.org/abs/1811.12495"
)
LU = "Lu et al. 2019, Dying ReLU and Initialization: Theory and Numerical Examples, https://arxiv.org/abs/1903.06733"
HE = "He et al. 2015, Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852"
GLOROT = (
    "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks,"
    " https://proceedings.mlr.press/v9/glorot10a.html"
)
ADAMW = "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101"
BATCH_NORM = "Ioffe and Szegedy 2015, Batch Normalization, https://arxiv.org/abs/1502.03167"
WARMUP = "Goyal et al. 2017, Accurate, Large Minibatch SGD, https://arxiv.org/abs/1706.02677"
MIXED = "Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740"
BFLOAT16 = "Zamirai et al. 2020, Revisiting BFloat16 Training, https://arxiv.org/abs/2010.06192"
CLIPPING = (
    "Pascanu et al. 2013, On the difficulty of training Recurrent Neural Networks, https://arxiv.org/abs/1211.5063"
)
STABLE_ADAMW = (
    "Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language models (beta2, and steps"
    " after quiet gradients), https://arxiv.org/abs/2304.13013"
)
EPSILON = (
    "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities (epsilon of AdamW),"
    " https://arxiv.org/abs/2309.14322"
)
SPARSITY = "Hurley and Rickard 2009, Comparing Measures of Sparsity, https://arxiv.org/abs/0811.4706"
CS231N = (
    "CS231n course notes, Neural Networks Part 2 and 3 (initialization, ratio of weights:updates, dead ReLUs),"
    " https://cs231n.github.io/neural-networks-3/"
)
EFFICIENT_BACKPROP = (
    "LeCun et al. 1998, Efficient BackProp (4.3, Normalizing the Inputs), https://doi.org/10.1007/3-540-49430-8_2"
)
OPTIM_DOCS = (
    "PyTorch documentation, torch.optim (constructing an optimizer, per-parameter options),"
    " https://pytorch.org/docs/stable/optim.html"
)
PRUNE_DOCS = (
    "PyTorch documentation, torch.nn.utils.prune, https://pytorch.org/docs/stable/generated/torch.nn.utils.prune.html"
)
AUTOGRAD_DOCS = "PyTorch documentation, Autograd mechanics, https://pytorch.org/docs/stable/notes/autograd.html"
CODES = "Dhariwal et al. 2020, Jukebox (random restarts of codes), https://arxiv.org/abs/2005.00341"
EXPERTS = "Shazeer et al. 2017, Outrageously Large Neural Networks, https://arxiv.org/abs/1701.06538"
EMBEDDING_DOCS = (
    "PyTorch documentation, torch.nn.Embedding, https://pytorch.org/docs/stable/generated/torch.nn.Embedding.html"
)
MANUAL_DOCS = (
    "Lightning documentation, Manual Optimization,"
    " https://lightning.ai/docs/pytorch/stable/model/manual_optimization.html"
)
SCHEDULE_DOCS = (
    "PyTorch documentation, torch.optim (how to adjust the learning rate),"
    " https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"
)
