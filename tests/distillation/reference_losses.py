"""The papers' formulas once more, in float64 numpy with plain loops."""

import itertools

import numpy as np


def softmax(z, temperature=1.0):
    e = np.exp((z - z.max(-1, keepdims=True)) / temperature)
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q) if a > 0)


def soft_targets(s, t, temperature=1.0):
    return temperature**2 * np.mean([kl(softmax(b, temperature), softmax(a, temperature)) for a, b in zip(s, t)])


def top_k(s, t, temperature, k):
    total = 0.0
    for a, b in zip(s, t):
        best = np.argsort(-b)[:k]
        q, p = softmax(a, temperature)[best], softmax(b, temperature)[best]
        total += kl([*p, 1 - p.sum()], [*q, 1 - q.sum()])
    return temperature**2 * total / len(s)


def dkd(s, t, labels, temperature, alpha, beta):
    total = 0.0
    for a, b, y in zip(s, t, labels):
        q, p = softmax(a, temperature), softmax(b, temperature)
        target = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        p, q = (np.delete(x, y) / np.delete(x, y).sum() for x in (p, q))
        total += alpha * target + beta * kl(p, q)
    return temperature**2 * total / len(s)


def dist(s, t, temperature, inter, intra):
    s, t = softmax(s, temperature), softmax(t, temperature)
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T)])
    return temperature**2 * (inter * rows + intra * columns)


def teacher_free(s, labels, temperature, confidence):
    classes = s.shape[1]
    virtual = np.full(s.shape, (1 - confidence) / (classes - 1))
    virtual[np.arange(len(s)), labels] = confidence
    return soft_targets(s, np.log(virtual), temperature)


def token_kl(s, t, mask, temperature):
    return soft_targets(s[mask], t[mask], temperature)


def hints(s, t):
    return ((s - t) ** 2).sum() / (2 * s.size)


def attention_transfer(s, t, power=2.0):
    total = 0.0
    for a, b in zip(s, t):
        maps = []
        for x in (a, b):
            q = np.abs(x) ** power
            q = q.sum(-1).ravel() if x.ndim > 1 else q
            maps.append(q / np.linalg.norm(q))
        total += ((maps[0] - maps[1]) ** 2).sum() / 2
    return total / len(s)


def fsp(s, t):
    """Maps of one size."""

    def flow(a, b):
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        return sum(np.outer(x, y) for x, y in zip(a, b)) / len(a)

    return np.mean([((flow(*x) - flow(*y)) ** 2).sum() for x, y in zip(zip(*s), zip(*t))])


def vid(mean, raw, t, floor):
    variance = np.log1p(np.exp(raw)) + floor
    total = sum(0.5 * np.log(v) + (t[..., c] - mean[..., c]) ** 2 / (2 * v) for c, v in enumerate(variance))
    return total.sum() / t.size


def nst(s, t, kernel, degree=2, offset=0.0):
    total = 0.0
    for a, b in zip(s, t):
        a, b = (x.reshape(-1, x.shape[-1]).T for x in (a, b))
        a, b = ([v / np.linalg.norm(v) for v in x] for x in (a, b))
        variance = np.mean([((x - y) ** 2).sum() for x in a for y in b])
        k = {
            "linear": lambda x, y: x @ y,
            "polynomial": lambda x, y: (x @ y + offset) ** degree,
            "gaussian": lambda x, y, v=variance: np.exp(-((x - y) ** 2).sum() / (2 * v)),
        }[kernel]
        total += np.mean([k(x, y) for x in b for y in b]) + np.mean([k(x, y) for x in a for y in a])
        total -= 2 * np.mean([k(x, y) for x in a for y in b])
    return total / len(s)


def huber(d, delta):
    return d * d / 2 if abs(d) <= delta else delta * (abs(d) - delta / 2)


def rkd_distance(s, t, delta=1.0):
    pairs = list(itertools.permutations(range(len(s)), 2))
    relative = []
    for x in (s, t):
        d = {(i, j): np.linalg.norm(x[i] - x[j]) for i, j in pairs}
        relative.append({pair: value / np.mean(list(d.values())) for pair, value in d.items()})
    return np.mean([huber(relative[0][p] - relative[1][p], delta) for p in pairs])


def rkd_angle(s, t, delta=1.0):
    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    triples = list(itertools.permutations(range(len(s)), 3))
    return np.mean([huber(cosine(s, *ijk) - cosine(t, *ijk), delta) for ijk in triples])


def similarity_preserving(s, t):
    grams = []
    for x in (s, t):
        g = x.reshape(len(x), -1) @ x.reshape(len(x), -1).T
        grams.append(g / np.linalg.norm(g, axis=1, keepdims=True))
    return ((grams[0] - grams[1]) ** 2).sum() / len(s) ** 2


def pkt(s, t):
    def neighbours(x, i):
        k = [(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) + 1) / 2 for j in range(len(x)) if j != i]
        return np.array(k) / sum(k)

    return np.mean([kl(neighbours(t, i), neighbours(s, i)) for i in range(len(s))])


def crd(s, t, negatives, population, temperature):
    """``negatives[i]``: those of example i."""
    total = 0.0
    for a, b, others in zip(s, t, negatives):
        ratio = len(others) / population

        def h(x, a=a, ratio=ratio):
            e = np.exp(a @ x / np.linalg.norm(a) / np.linalg.norm(x) / temperature)
            return e / (e + ratio)

        total -= np.log(h(b)) + sum(np.log(1 - h(x)) for x in others)
    return total / len(s)
