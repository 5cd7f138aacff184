"""
Out-of-distribution images
==========================

A digit classifier must give one of ten labels to whatever it is shown. Can it say that an image is no digit? We show a
dropout posterior, and the same network without dropout, photographs and rotated digits, and ask how well their
uncertainty tells these from upright digits.
"""

# %%
# Images
# ------
#
# The networks learn from 3,000 images of MNIST; 1,000 more fit a temperature later. The known images are 1,000 of its
# test part. The others are the same images turned by a quarter, and the middles of 1,000 photographs of CIFAR-10, in
# grey.

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI
from sklearn.metrics import roc_auc_score
from torch import nn

from examples.common.data import load_cifar10, load_mnist
from models.classification import Classification, lenet
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive, TraceDropout_ELBO
from pyro_dropout.calibration import fit_temperature
from pyro_dropout.metrics import mutual_information, predictive_entropy

pyro.settings.set(module_local_params=True)  # each guide keeps its own parameters
pyro.set_rng_seed(0)


def as_input(images):
    return torch.tensor(images, dtype=torch.float32)[:, None] / 255


train, test = load_mnist("train"), load_mnist("test")
x, y = as_input(train.x[:4000]), torch.tensor(train.y[:4000]).long()
(x, x_fit), (y, y_fit) = x.split([3000, 1000]), y.split([3000, 1000])
digits, labels = as_input(test.x[:1000]), torch.tensor(test.y[:1000]).long()
photographs = as_input(load_cifar10("test").x[:, 2:30, 2:30].mean(-1))
images = {"digits": digits, "turned digits": digits.rot90(1, (2, 3)), "photographs": photographs}

figure, axes = plt.subplots(1, 9, figsize=(10, 1.8), layout="constrained")
for i, axis in enumerate(axes):
    name = list(images)[i // 3]
    axis.imshow(images[name][i % 3, 0].numpy(), cmap="gray")
    axis.set(xticks=[], yticks=[], xlabel=name)
plt.show()

# %%
# Two networks
# ------------
#
# The architecture is LeNet's, with rate 0.2 in the linear layers for the posterior, and 0 in the convolutions. The
# other is trained by cross-entropy with a small weight decay, for as many steps.


def batches(epochs=12):
    for _ in range(epochs):
        yield from torch.randperm(len(x)).split(50)


model = Classification(lenet(width=8), size=len(x), lengthscale=0.3)
rate = {"net.0.weight": 0.0, "net.3.weight": 0.0, "net.7.weight": 0.2, "net.9.weight": 0.2}
guide = AutoBernoulliDropout(model, rate=rate)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-3}), TraceDropout_ELBO())
for rows in batches():
    svi.step(x[rows], y[rows])

plain = lenet(width=8)
adam = torch.optim.Adam(plain.parameters(), lr=2e-3, weight_decay=1e-4)
for rows in batches():
    adam.zero_grad()
    nn.functional.cross_entropy(plain(x[rows]), y[rows]).backward()
    adam.step()


# %%
# Entropy and mutual information
# ------------------------------
#
# Logits of 50 networks for all images; the plain network is a posterior of one draw. The entropy of the mean prediction
# has both kinds of uncertainty. The mutual information has the part that is about weights, and is 0 for one network.

predict = DropoutPredictive(lambda x: model.net(x), guide=guide, num_samples=50, return_sites=["_RETURN"], seed=0)


def logits(kind, x):
    return predict(x)["_RETURN"] if kind == "dropout" else plain(x).detach()[None]


drawn = {kind: {name: logits(kind, part) for name, part in images.items()} for kind in ("dropout", "plain")}


def score(temperatures):
    for kind, parts in drawn.items():
        probs = {name: (part / temperatures[kind]).softmax(-1) for name, part in parts.items()}
        mean = probs["digits"].mean(0)
        right, likely = (mean.argmax(-1) == labels).float().mean(), mean.gather(-1, labels[:, None]).log().mean()
        print(f"{kind}: accuracy {right:.3f}, log-likelihood {likely:.3f}")
        for measure in (predictive_entropy, mutual_information) if kind == "dropout" else (predictive_entropy,):
            known = measure(probs["digits"])
            for name in ("turned digits", "photographs"):
                other = measure(probs[name])
                auroc = roc_auc_score([0] * len(known) + [1] * len(other), torch.cat([known, other]))
                medians = f"median {other.median():.2f}, of digits {known.median():.2f}"
                print(f"  {measure.__name__:19} {name:14} {medians}, AUROC {auroc:.3f}")


score({"dropout": 1.0, "plain": 1.0})

# %%
# The two are about equally accurate on upright digits. By entropy the posterior tells both kinds of other images from
# digits better than the plain network does. Mutual information is better still on turned digits, and poor on
# photographs: there the draws agree, that any of many labels may be right. Agreement is no knowledge. The histograms
# show it: photographs are far to the right by entropy, and among the digits by mutual information.

figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", sharey=True)
for axis, (kind, measure) in zip(
    axes, [("plain", predictive_entropy), ("dropout", predictive_entropy), ("dropout", mutual_information)], strict=True
):
    for name, part in drawn[kind].items():
        values = measure(part.softmax(-1))
        axis.hist(values.numpy(), 30, range=(0, 2.31), density=True, histtype="step", linewidth=1.5, label=name)
    axis.set(title=kind, xlabel=f"{measure.__name__.replace('_', ' ')}, nats", yscale="log")
axes[0].set_ylabel("density of images")
axes[0].legend()
plt.show()

# %%
# Temperature
# -----------
#
# On held-out digits the temperature of each network's logits can be fitted: above 1 where it is too sure of labels,
# below 1 where it is not sure enough.

temperatures = {kind: fit_temperature(logits(kind, x_fit), y_fit) for kind in drawn}
print({kind: round(value, 2) for kind, value in temperatures.items()})
score(temperatures)

# %%
# The plain network was too sure, the posterior not sure enough. On the test digits the temperature raises the
# posterior's log-likelihood, and hardly moves the plain network's. But what was fitted on digits is not made for other
# images: the posterior's AUROC of photographs goes down by entropy, and up by mutual information.
#
# What to remember
# ----------------
#
# Look at entropy as well as mutual information: a network whose draws agree may still know nothing. Have more than one
# kind of other images, as scores differ between them. Calibration on known images, by a temperature, says nothing of
# how well others are found.
