"""
MC dropout for a network you already have
=========================================

Many networks were trained with dropout, and run without it. With dropout left on at test time, each pass is a draw from
an approximate posterior, and passes disagree where the network does not know (Gal & Ghahramani 2016). ``from_torch``
turns such a network into a Pyro model and its posterior, without training it again.
"""

# %%
# A network, trained in plain PyTorch
# -----------------------------------
#
# Of MNIST we take 3,000 images for training, few enough to leave something unknown, and 2,000 to test.

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

from examples.common.data import load_mnist
from pyro_dropout import AutoConcreteDropout, DropoutPredictive, TraceDropout_ELBO, from_torch
from pyro_dropout.metrics import mutual_information, predictive_entropy, risk_coverage

pyro.settings.set(module_local_params=True)  # each guide keeps its own parameters
pyro.set_rng_seed(0)
SIZE, DECAY = 3000, 1e-4


def digits(part, count):
    images = load_mnist(part)
    return torch.tensor(images.x[:count], dtype=torch.float32)[:, None] / 255, torch.tensor(images.y[:count]).long()


x, y = digits("train", SIZE)
x_test, y_test = digits("test", 2000)
net = nn.Sequential(
    *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)),
)
adam = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=DECAY)
for _ in range(12):
    for rows in torch.randperm(SIZE).split(50):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        adam.step()
net.eval()
print(f"accuracy without dropout: {(net(x_test).argmax(-1) == y_test).float().mean():.3f}")

# %%
# The same network as a posterior
# -------------------------------
#
# Each ``nn.Dropout`` becomes the rate of the weight behind it, and the weight decay becomes the prior. A draw is one
# network for all images, with one mask for each weight.

module, guide = from_torch(net, x[:2], weight_decay=DECAY, size=SIZE)
print({site: round(rate.item(), 2) for site, rate in guide.rates().items()})
predict = DropoutPredictive(module, guide=guide, num_samples=50, return_sites=["_RETURN"], seed=0)
probs = predict(x_test)["_RETURN"].softmax(-1)  # [draws, images, classes]
print(f"accuracy of the mean over {len(probs)} draws: {(probs.mean(0).argmax(-1) == y_test).float().mean():.3f}")

# %%
# The mean over draws is as accurate as the network without dropout. What draws add is what follows.
#
# What it is unsure of
# --------------------
#
# The entropy of the mean prediction is all uncertainty about a label. The mutual information of label and weights is
# the part that is about the weights: it is large where draws are sure, but of different labels.

entropy, information = predictive_entropy(probs), mutual_information(probs)
figure, axes = plt.subplots(2, 6, figsize=(10, 4.6), layout="constrained")
for row, order, name in ((0, information.argsort(), "least"), (1, information.argsort(descending=True), "most")):
    for axis, image in zip(axes[row], order[:6], strict=True):
        axis.imshow(x_test[image, 0].numpy(), cmap="gray_r")
        answer = probs[:, image].mean(0).argmax()
        axis.set_title(f"{answer}, is {y_test[image]}\n{information[image]:.2f} nats", fontsize=10)
        axis.set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(f"{name}\nmutual information")
figure.suptitle("Test images: predicted label, true label, mutual information")
plt.show()

# %%
# Those of least mutual information are upright strokes, all labelled right. Of those of most three of six are labelled
# wrong.
#
# Answer only where it is certain
# -------------------------------
#
# ``risk_coverage`` sorts predictions by their uncertainty, and gives the error of the most certain ones, for every
# number of them.


def curves(axis, probs, label):
    wrong = probs.mean(0).argmax(-1) != y_test
    found = {name: risk_coverage(measure(probs), wrong) for name, measure in measures.items()}
    for name, curve in found.items():
        axis.plot(curve.coverage.numpy(), 100 * curve.risk.numpy(), label=f"{label}, {name}")
    return {name: [round(100 * curve.risk[count - 1].item(), 2) for count in counts] for name, curve in found.items()}


measures, counts = {"entropy": predictive_entropy, "mutual information": mutual_information}, (1600, 1800, 2000)
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
print("error of 80, 90 and 100 % of images, in %:", curves(axis, probs, "given rates"))
axis.set(xlabel="share of images that get an answer", ylabel="error among them, %")
axis.legend()
plt.show()

# %%
# Where a tenth of the images is left to a human the error of the others is less than half, where a fifth is, about a
# ninth. Entropy and mutual information do about equally well here.
#
# Go on with learned rates
# ------------------------
#
# With a likelihood around it the same network can be trained on, now with its rates: ``AutoConcreteDropout`` starts at
# the rates that the network had, and goes on where they are not 0.


def labels(module):
    def model(x, y=None):
        logits = module(x)
        with pyro.plate("data", max(SIZE, len(x)), subsample_size=len(x)):
            pyro.deterministic("probs", logits.softmax(-1), event_dim=1)
            return pyro.sample("obs", dist.Categorical(logits=logits), obs=y)

    return model


model, learned = from_torch(net, x[:2], labels, guide=AutoConcreteDropout, weight_decay=DECAY, size=SIZE)
svi = SVI(model, learned, pyro.optim.Adam({"lr": 2e-3}), TraceDropout_ELBO())
for _ in range(5):
    for rows in torch.randperm(SIZE).split(50):
        svi.step(x[rows], y[rows])
print({site: round(rate.item(), 2) for site, rate in learned.rates().items()})

predict = DropoutPredictive(model, guide=learned, num_samples=50, return_sites=["probs"], seed=0)
probs_learned = predict(x_test)["probs"].squeeze(1)
print(f"accuracy of the mean: {(probs_learned.mean(0).argmax(-1) == y_test).float().mean():.3f}")
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
curves(axis, probs, "given rates")
print("error of 80, 90 and 100 % of images, in %:", curves(axis, probs_learned, "learned rates"))
axis.set(xlabel="share of images that get an answer", ylabel="error among them, %")
axis.legend()
plt.show()

# %%
# In five epochs the rates went down a little, from 0.25 and 0.5. Accuracy and curves are about the same, since these
# rates were good to begin with. Learned rates spare one the choice; they need not beat a choice that was good.
#
# What to remember
# ----------------
#
# A network that was trained with dropout is a posterior already, and ``from_torch`` gives it the tools of one. Its
# uncertainty is worth something if errors are rare where it is small: ``risk_coverage`` shows whether they are.
