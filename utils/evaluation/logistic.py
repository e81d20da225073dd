"""Logistic regression on embeddings, by scikit-learn. Legend: n clips, D embedding features, C classes."""

import logging
import warnings

import numpy as np

from utils.evaluation.linear import Predictor
from utils.evaluation.neighbours import as_list

logger = logging.getLogger(__name__)
MOST_STEPS = 1000
UNKNOWN = -1e4  # logit of a class without training clips: a probability of 0


def logistic(train, valid, n_classes, balanced, *, logistic_c=(0.01, 0.1, 1.0, 10.0)):
    """Fit scikit-learn's logistic regression to features of mean 0 and deviation 1; validation picks C.

    Parameters
    ----------
    train, valid : utils.evaluation.linear.Embedded
    n_classes : int
        C, all classes of the data set.
    balanced : bool
        Give all classes the same weight in sum.
    logistic_c : float or list of float
        C, the inverse of the L2 penalty's weight. Of several, the one of best validation accuracy is used; among
        equals, the smallest.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    vectors, labels = train.inputs, train.labels.numpy()
    if len(np.unique(labels)) == 1:
        return LogisticPredictor(None, None, {"C": float(min(as_list(logistic_c)))}, int(labels[0]))
    scaler = StandardScaler().fit(vectors)
    inputs, held_out = scaler.transform(vectors), scaler.transform(valid.inputs)
    best, accuracy, weights = None, -1.0, None
    for c in sorted(as_list(logistic_c)):
        model = LogisticRegression(
            C=c, max_iter=MOST_STEPS, class_weight="balanced" if balanced else None, warm_start=True
        )
        if weights is not None:  # begin where the fit with a smaller C ended
            model.coef_, model.intercept_ = weights
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(inputs, labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            logger.warning("Logistic regression with C = %g has not converged in %d steps.", c, MOST_STEPS)
        weights = model.coef_.copy(), model.intercept_.copy()
        found = float((model.predict(held_out) == valid.labels.numpy()).mean()) if len(held_out) else 0.0
        if found > accuracy:
            best, accuracy = model, found
    return LogisticPredictor(scaler, best, {"C": float(best.C)})


class LogisticPredictor(Predictor):
    """Logistic regression. The score is the probability of the predicted class.

    Parameters
    ----------
    scaler : sklearn.preprocessing.StandardScaler or None
    model : sklearn.linear_model.LogisticRegression or None
    about : dict of str to number
    only : int, optional
        The one class that there is, if no model can be fitted.
    """

    def __init__(self, scaler, model, about, only=None):
        self.scaler, self.model, self.about, self.only = scaler, model, about, only

    def scored(self, vectors):
        """Predict labels [n] and scores [n] of embeddings [n, D]."""
        if self.model is None:
            return np.full(len(vectors), self.only), np.ones(len(vectors), np.float32)
        if not len(vectors):
            return np.zeros(0, int), np.zeros(0, np.float32)
        shares = self.model.predict_proba(self.scaler.transform(vectors))  # [n, classes with training clips]
        return self.model.classes_[shares.argmax(1)], shares.max(1)

    def linear(self, n_classes):
        """Return weight [C, D] and bias [C], of classes without training clips -1e4; None if there is no model."""
        if self.model is None:
            return None
        weight, bias = self.model.coef_, self.model.intercept_
        if len(weight) == 1:  # of two classes scikit-learn keeps the second's alone
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        weight = weight / self.scaler.scale_
        full, shift = np.zeros((n_classes, weight.shape[1])), np.full(n_classes, UNKNOWN)
        full[self.model.classes_], shift[self.model.classes_] = weight, bias - weight @ self.scaler.mean_
        return full, shift
