#!/usr/bin/env bash
# scikit-learn: the temperature that it fits for two classes is not the temperature to divide the logits by.
#
# Guess:    `CalibratedClassifierCV(method="temperature")` learns `beta_` = 1/T, so a server divides its logits by 1/beta_.
# Happens:  for two classes a decision function is one number z, and it is spread to (-z, z): twice the difference that the
#           logits had. `beta_` comes out half as large, and 1/beta_ is twice T. A model that gives probabilities instead
#           gets the right `beta_`. `predict_proba` of scikit-learn itself is right in both cases.
# Matters:  who fits the temperature here and carries it into a server (or a registry, or a card) gets probabilities that
#           are far too timid; with three classes the same code is right.
# Instead:  take T = 1/(2 beta_) for two classes with a decision function, or serve the calibrated object; compare the
#           log loss of what is served with the one of what was fitted.
#
# Seen (scikit-learn 1.9.1), logits made with T = 2: by the decision function 1/beta_ = 3.98, by probabilities 1.99, by hand
# 1.99. Log loss: as it was 0.537, with 3.98 0.502, with 1.99 0.461.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 1; }
cd "$work"
cat >try.py <<'PY'
from importlib.metadata import version

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss

T = 2.0
rng = np.random.default_rng(0)
logit = rng.normal(size=20000) * 4  # logit of class 1 less logit of class 0, as a language model's head gives it
label = (rng.random(20000) < expit(logit / T)).astype(int)


class Model(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        return self

    def predict(self, X):
        return (np.asarray(X)[:, 0] > 0).astype(int)


class ByDecision(Model):
    def decision_function(self, X):
        return np.asarray(X)[:, 0]


class ByProbability(Model):
    def predict_proba(self, X):
        one = expit(np.asarray(X)[:, 0])
        return np.column_stack([1 - one, one])


X = logit[:, None]
fitted, given = {}, {}
for model in (ByDecision(), ByProbability()):
    whole = CalibratedClassifierCV(FrozenEstimator(model.fit(X, label)), method="temperature").fit(X, label)
    (part,) = whole.calibrated_classifiers_
    fitted[type(model).__name__] = 1 / part.calibrators[0].beta_
    given[type(model).__name__] = whole.predict_proba(X)
hand = minimize_scalar(lambda t: log_loss(label, expit(logit / t)), bounds=(0.1, 10), method="bounded").x


def loss(temperature):
    return log_loss(label, expit(logit / temperature))


print("versions:  scikit-learn", version("scikit-learn"), "scipy", version("scipy"), "numpy", version("numpy"))
print("guess:     1/beta_ is the temperature")
print("behaviour: it is twice the temperature for two classes with a decision function, and right with probabilities")
print(f"seen:      1/beta_ by decision function {fitted['ByDecision']:.2f}, by probabilities {fitted['ByProbability']:.2f},")
print(f"           by hand {hand:.2f}; the logits were made with {T}")
print(f"           log loss as it was {loss(1):.3f}, with {fitted['ByDecision']:.2f} {loss(fitted['ByDecision']):.3f},", end=" ")
print(f"by hand {loss(hand):.3f}, scikit-learn's own {log_loss(label, given['ByDecision']):.3f}")
assert abs(fitted["ByDecision"] / hand - 2) < 0.02, "changed: 1/beta_ by the decision function"
assert abs(fitted["ByProbability"] / hand - 1) < 0.02, "changed: 1/beta_ by probabilities"
assert np.allclose(given["ByDecision"], given["ByProbability"], atol=1e-3), "changed: the probabilities"
PY
"$work/venv/bin/python" try.py
