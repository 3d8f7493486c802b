"""The losses as explicit formulas in float64: all pairs, one row at a time. Nothing of the package is used."""

import itertools
import math

import torch


def language_logits(rows, columns, seed, dtype=torch.float64):
    """Logits of two similar language models: a peaked head over a Gaussian bulk."""
    generator = torch.Generator().manual_seed(seed)
    normal = [torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(3)]
    teacher = 2.2 * normal[0] + normal[1].exp()
    return teacher.to(dtype), (teacher + normal[2]).to(dtype)


def value_and_gradient(loss, teacher, student, **parameters):
    student = student.detach().clone().requires_grad_()
    value = loss(teacher, student, **parameters)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def expected(name, teacher, student, **parameters):
    """Return value [N] and gradient [N, V] of the loss of that name in this file, computed in float64."""
    rows = globals()[name]

    def loss(teacher, student):
        return torch.stack([rows(t, s, **parameters) for t, s in zip(teacher, student, strict=True)])

    return value_and_gradient(loss, teacher.double(), student.double())


def knee(sorted_row: list[float]) -> int:
    """The rank with the largest gap between the anti-diagonal and the normalised curve."""
    n, high, low = len(sorted_row), max(sorted_row), min(sorted_row)
    if n < 2 or high == low:
        return 0
    gaps = [1 - rank / (n - 1) - (value - low) / (high - low) for rank, value in enumerate(sorted_row)]
    return gaps.index(max(gaps))


def knee_k(row, window=None, min_k=3, max_k=None) -> int:
    """k of one row of logits without padding."""
    ordered = sorted(row.tolist(), reverse=True)
    k = max(1 + knee(ordered[:window]), min_k)
    return min(k, len(ordered), max_k or len(ordered))


def pair_log_probabilities(values):
    """Log-softmax over v_i - v_j of all pairs i < j."""
    i, j = torch.triu_indices(len(values), len(values), offset=1)
    return (values[i] - values[j]).log_softmax(0)


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


def led_side(leader, weight, other, k, temperature):
    """KL(weight || other) over the differences of the leader's top k."""
    ids = sorted(range(len(leader)), key=lambda column: -float(leader[column]))[:k]
    return kl(pair_log_probabilities(weight[ids] / temperature), pair_log_probabilities(other[ids] / temperature))


def dbild(teacher, student, *, temperature=3.0, window=None, min_k=3, max_k=None):
    """One row of each, float64."""
    k_teacher, k_student = (knee_k(leader.detach(), window, min_k, max_k) for leader in (teacher, student))
    led_by_teacher = led_side(teacher.detach(), student, teacher, k_teacher, temperature)
    return led_by_teacher + led_side(student.detach(), student, teacher, k_student, temperature)


def dbild_teacher_led(teacher, student, *, temperature=3.0, window=None, min_k=3, max_k=None):
    """One row of each, float64."""
    k = knee_k(teacher.detach(), window, min_k, max_k)
    return led_side(teacher.detach(), student, teacher, k, temperature)


def dbild_student_led(teacher, student, *, temperature=3.0, window=None, min_k=3, max_k=None):
    """One row of each, float64."""
    k = knee_k(student.detach(), window, min_k, max_k)
    return led_side(student.detach(), student, teacher, k, temperature)


def dbild_forward(teacher, student, *, temperature=3.0, window=None, min_k=3, max_k=None):
    """One row of each, float64."""
    leaders = teacher.detach(), student.detach()
    ks = [knee_k(leader, window, min_k, max_k) for leader in leaders]
    return sum(led_side(z, teacher, student, k, temperature) for z, k in zip(leaders, ks, strict=True))


def knee_kl(teacher, student, *, temperature=3.0, window=None, min_k=3, max_k=None):
    """One row of each, float64."""
    total = 0.0
    for leader in (teacher.detach(), student.detach()):
        ids = leader.argsort(descending=True, stable=True)[: knee_k(leader, window, min_k, max_k)]
        p_student, p_teacher = ((z[ids] / temperature).softmax(0) for z in (student, teacher))
        total = total + (p_student * (p_student / p_teacher).log()).sum()
    return total


def bild(teacher, student, *, temperature=3.0, k=8):
    """One row of each, float64."""
    return sum(led_side(leader.detach(), teacher, student, k, temperature) for leader in (teacher, student))


def forward_kl(teacher, student, *, temperature=1.0):
    return kl((teacher / temperature).log_softmax(0), (student / temperature).log_softmax(0))


def reverse_kl(teacher, student, *, temperature=1.0):
    return forward_kl(student, teacher, temperature=temperature)


def jensen_shannon(teacher, student, *, temperature=1.0, beta=0.5):
    p, q = (teacher / temperature).softmax(0), (student / temperature).softmax(0)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()


def skewed_kl(teacher, student, *, temperature=1.0, alpha=0.1):
    p, q = (teacher / temperature).softmax(0), (student / temperature).softmax(0)
    return (p * (p / (alpha * p + (1 - alpha) * q)).log()).sum()


def skewed_reverse_kl(teacher, student, *, temperature=1.0, alpha=0.1):
    p, q = (teacher / temperature).softmax(0), (student / temperature).softmax(0)
    return (q * (q / (alpha * q + (1 - alpha) * p)).log()).sum()


def decoupled_kd(teacher, student, target, *, temperature=1.0, alpha=1.0, beta=1.0):
    """One row of each and its target, float64: both halves by their definitions."""
    p, q = (teacher / temperature).softmax(0), (student / temperature).softmax(0)
    b, c = p[target], q[target]
    others = [column for column in range(len(p)) if column != target]
    rest_p, rest_q = p[others] / (1 - b), q[others] / (1 - c)
    of_target = b * (b / c).log() + (1 - b) * ((1 - b) / (1 - c)).log()
    return alpha * of_target + beta * (rest_p * (rest_p / rest_q).log()).sum()


def top_k_kl(teacher, student, *, temperature=1.0, k=8):
    """One row of each, float64: the rest's probability is what the top k's lacks of 1."""
    p, q = (teacher / temperature).softmax(0), (student / temperature).softmax(0)
    best = sorted(range(len(p)), key=lambda column: -float(teacher[column]))[:k]
    p, q = (torch.cat([of[best], (1 - of[best].sum())[None]]) for of in (p, q))
    return (p * (p / q).log()).sum()


def plackett_luce(teacher, student, target, *, temperature=1.0):
    """One row of each and its target, float64: choice by choice."""
    weights = (teacher / temperature).softmax(0)
    others = sorted((column for column in range(len(teacher)) if column != target), key=lambda c: -float(teacher[c]))
    order = [target, *others]
    return sum(-weights[c] * student[order[i:]].log_softmax(0)[0] for i, c in enumerate(order))


def partial_ranking(teacher, student, *, k=8):
    """One row of each, float64: choice by choice."""
    likely = sorted(range(len(student)), key=lambda column: -float(student.detach()[column]))[:k]
    order = sorted(likely, key=lambda column: -float(teacher[column]))
    return sum(-student[order[i:]].log_softmax(0)[0] for i in range(k - 1)) / (k - 1)


def swing_kl(teacher, student, target, *, temperature=1.0, hottest=4.0, noise=0.5):
    """One row of each and its target, float64: id by id."""
    score = max(0.0, float(teacher.softmax(0)[target]) - float(student.detach().softmax(0)[target]))
    heat = temperature * (1 + (hottest - 1) * score)
    p, q = (teacher / heat).softmax(0), (student / heat).softmax(0)
    p = [(1 - noise * score) * p[v] + noise * score / len(p) for v in range(len(p))]
    return sum(p[v] * torch.log(p[v] / q[v]) for v in range(len(p)))


def taid(teacher, student, progress, *, temperature=1.0, start=0.4, end=1.0):
    """One row of each, float64."""
    t = start * (1 - progress) + end * progress
    between = teacher * t + student.detach() * (1 - t)
    return forward_kl(between, student, temperature=temperature)


def taid_steps(losses, *, start=0.4, end=1.0, alpha=5e-4, beta=0.99):
    """The t of each step of a stage with these losses: Algorithm 1 of 2501.16937, its formulas one by one."""
    t, momentum, found = start, 0.0, [start]
    for n in range(1, len(losses)):
        line = start + (end - start) * n / len(losses)
        if n > 1:
            change = (losses[n - 2] - losses[n - 1]) / (losses[n - 2] + 1e-15)
            momentum = beta * momentum + (1 - beta) * change
            t = t + alpha / (1 + math.exp(-momentum)) * (1 - t)
        t = min(end, max(line, t))
        found.append(t)
    return found


def focus_weights(scores, share, mass=0.5):
    """Of the scores of one example, a list: each position's weight, by what is said of them."""
    n = len(scores)
    if share is None:
        gates = [max(score, 0.0) for score in scores]
        return [n * gate / sum(gates) if sum(gates) else 0.0 for gate in gates]
    ordered = sorted(range(n), key=lambda i: -round(scores[i], 6))
    k = math.ceil(share * n - 1e-9)
    high = max(1.0, mass * n / k)
    even = [high] * k + [(n - k * high) / (n - k)] * (n - k) if n > k else [1.0] * n
    place = {position: place for place, position in enumerate(ordered)}
    equal = [[j for j in range(n) if round(scores[j], 6) == round(scores[i], 6)] for i in range(n)]
    return [sum(even[place[j]] for j in equals) / len(equals) for equals in equal]


def sinkhorn(teacher, student, *, temperature=2.0, smoothing=0.1, iterations=20):
    """All positions [L, V] of one example, float64: costs in a double loop, the kernel scaled itself."""
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    cost = torch.stack([torch.stack([(a - b).abs().sum() for b in q]) for a in p])
    plan = (-cost / smoothing).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum(1)


def self_correlation(teacher, student):
    """All positions [L, V] of one example, float64: entry by entry."""
    pairs = [(i, j) for i in range(len(teacher)) for j in range(len(teacher))]
    r, s = (torch.stack([(z[i] * z[j]).sum() for i, j in pairs]) for z in (teacher, student))
    return (1 - (r * s).sum() / ((r**2).sum() * (s**2).sum()) ** 0.5).expand(len(teacher))


def cka(teacher, student):
    """All positions [L, D] of one example, float64: HSIC with the centring matrix; one alone costs 1."""
    if len(teacher) == 1:
        return 1 + 0 * student.sum(1)
    centring = torch.eye(len(teacher), dtype=torch.float64) - 1 / len(teacher)
    k, l = (z / z.norm(dim=1, keepdim=True) for z in (teacher, student))
    k, l = (centring @ (z @ z.T) @ centring for z in (k, l))
    hsic = [torch.trace(a @ b) for a, b in ((k, l), (k, k), (l, l))]
    return (1 - hsic[0] / (hsic[1] * hsic[2]) ** 0.5).expand(len(student))


def token_graph(teacher, student, *, temperature=0.1):
    """All positions [L, D] of one example, float64: position by position, without itself; one alone costs 0."""
    if len(teacher) == 1:
        return 0 * student.sum(1)
    divergences = []
    for i in range(len(teacher)):
        others = [j for j in range(len(teacher)) if j != i]
        both = [torch.stack([torch.cosine_similarity(z[i], z[j], 0) for j in others]) for z in (teacher, student)]
        divergences.append(kl(*((cosines / temperature).log_softmax(0) for cosines in both)))
    return torch.stack(divergences)


def contrastive(teacher, student, *, temperature=0.1, consistency=0.5):
    """All positions [L, D] of one example, float64: both directions, state by state."""
    cosines = torch.stack([torch.stack([torch.cosine_similarity(s, t, 0) for t in teacher]) for s in student])
    p, q = (cosines / temperature).softmax(1), (cosines / temperature).softmax(0).T
    return torch.stack([consistency * (q[i] * (q[i] / p[i]).log()).sum() - p[i, i].log() for i in range(len(teacher))])


def pseudo_classes(teacher, student, *, components=4, temperature=1.0):
    """All positions [L, D] of one example, float64: eigenvectors of the covariance, component by component."""
    mean = teacher.mean(0)
    covariance = (teacher - mean).T @ (teacher - mean) / len(teacher)
    values, vectors = torch.linalg.eigh(covariance)
    kept = [i for i in range(len(values) - 1, -1, -1) if values[i] > 1e-9][:components]
    if not kept:
        return 0 * student.sum(1)
    along = [torch.stack([(z - mean) @ vectors[:, i] / values[i] ** 0.5 for i in kept], 1) for z in (teacher, student)]
    logs = [(torch.cat([a, -a], 1) / temperature).log_softmax(1) for a in along]
    return (logs[0].exp() * (logs[0] - logs[1])).sum(1)


def codebook(teacher, student, prototypes, *, temperature=0.1):
    """All states [N, D], float64: each one's distribution, and where the prototypes' means lie."""
    values, members = [], [[] for _ in prototypes]
    for t, s in zip(teacher, student, strict=True):
        cosines = [torch.stack([torch.cosine_similarity(z, c, 0) for c in prototypes]) for z in (t, s)]
        values.append(kl(*((of / temperature).log_softmax(0) for of in cosines)))
        members[int(cosines[0].argmax())].append(t / t.norm())
    return torch.stack(values), [torch.stack(of).mean(0) if of else None for of in members]


def best_pairs(theirs, ours):
    """The pairs whose costs add up to least, by trying all."""
    few, many = (theirs, ours) if len(theirs) <= len(ours) else (ours, theirs)
    distance = lambda a, b: float((few[a] - many[b]).abs().sum())
    ways = itertools.permutations(range(len(many)), len(few))
    best = min(ways, key=lambda way: sum(distance(a, b) for a, b in enumerate(way)))
    return [(a, b) if few is theirs else (b, a) for a, b in enumerate(best)]


def matched_kl(teacher, student, *, temperature=1.0):
    """One example, float64: logits [M, V] and [L, V] of its visual tokens."""
    costs = [0 * z.sum() for z in student]
    for i, j in best_pairs(teacher, student.detach()):
        costs[j] = forward_kl(teacher[i], student[j], temperature=temperature)
    return torch.stack(costs)


def affinity(teacher, student, teacher_image, student_image):
    """One example, float64: hidden states [M, D] and [L, E], of which some are visual tokens."""
    cosines = []
    for states, image in ((teacher, teacher_image), (student, student_image)):
        seen, text = states[image], states[~image]
        cosines.append(torch.stack([torch.stack([torch.cosine_similarity(v, t, 0) for t in text]) for v in seen]))
    costs = [0 * z.sum() for z in student]
    places = student_image.nonzero()[:, 0].tolist()
    for i, j in best_pairs(cosines[0], cosines[1].detach()):
        apart = (cosines[0][i] - cosines[1][j]).abs()
        costs[places[j]] = torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
    return torch.stack(costs)


def mean_squares(teacher, student):
    """One image, float64: features [F, W] or tokens [M, D]."""
    entries = list(zip(teacher.reshape(-1), student.reshape(-1), strict=True))
    return sum((s - t) ** 2 for t, s in entries) / len(entries)


def attended_token_mse(teacher, student, attention, *, k=16):
    """One image, float64: tokens [M, D] and the teacher's attention [T, M, H]."""
    sums = [float(attention[:, token].sum()) for token in range(len(teacher))]
    best = sorted(range(len(teacher)), key=lambda token: -sums[token])[:k]
    return mean_squares(teacher[best], student[best])


def attention_kl(teacher, student, *, renormalise=True):
    """One image, float64: shares [T, M], the mean over heads; queries without any don't count."""
    divergences = []
    for t, s in zip(teacher, student, strict=True):
        if t.sum() > 0:
            p, q = (t / t.sum(), s / s.sum()) if renormalise else (t, s)
            divergences.append(sum(p[m] * torch.log(p[m] / q[m]) for m in range(len(p))))
    return sum(divergences) / len(divergences) if divergences else 0.0 * student.sum()


def attention_cosine(teacher, student, *, chosen):
    """One image, float64: attention [T, M, L]; `chosen`: the teacher's layers that each of some student layers is led by."""
    distances = []
    for t, s in zip(teacher, student, strict=True):
        if t.sum() > 0:
            each = [1 - torch.cosine_similarity(t[:, group].mean(1), s[:, own], 0) for own, group in chosen.items()]
            distances.append(sum(each) / len(each))
    return sum(distances) / len(distances) if distances else 0.0 * student.sum()


def attention_mse(teacher, student):
    """One image, float64: attention [T, M, H]; queries without any don't count."""
    sees_image = [t for t in range(len(teacher)) if teacher[t].sum() > 0]
    if not sees_image:
        return 0.0 * student.sum()
    return sum(mean_squares(teacher[t], student[t]) for t in sees_image) / len(sees_image)
