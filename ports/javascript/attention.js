// Rotary position embedding, and attention with grouped queries.

import { array, dot, strided, sum } from "./numbers.js";

// x is [*batch, s, heads, dHead]. Every pair of features (a, b) becomes (a cos - b sin, b cos + a sin), by an angle of
// position / base^(2i / turned), of the first features of a head, so many. Turned `backwards`, a cotangent of y is that of x.
export function rope({ s, heads, dHead, position, base, interleaved, rotary_features: turned = dHead, backwards = false }, x) {
  const y = x.slice();
  const half = turned / 2;
  const [pair, apart] = interleaved ? [2, 1] : [1, half];
  for (let head = 0; head < x.length / dHead; head++) {
    const at = position + (Math.floor(head / heads) % s);
    for (let i = 0; i < half; i++) {
      const angle = (backwards ? -at : at) * base ** ((-2 * i) / turned);
      const a = head * dHead + pair * i;
      const b = a + apart;
      y[a] = x[a] * Math.cos(angle) - x[b] * Math.sin(angle);
      y[b] = x[b] * Math.cos(angle) + x[a] * Math.sin(angle);
    }
  }
  return y;
}

// q is [batch, s, h, dHead], k and v are [batch, t, hKv, dHead], scores and probs [batch, h, s, t]; keyMask, [batch, t], has a
// zero for a key that is padding; sink, [h], is one more score a head, of no key. What one query reads, numbered as the rows of
// scores are:
function query({ s, t, h, hKv, dHead, causal, window = Infinity, keyMask, sink }, number) {
  const i = number % s;
  const head = Math.floor(number / s) % h;
  const batch = Math.floor(number / s / h);
  const own = t - s + i; // the key that is its own
  const last = causal ? own : t - 1;
  return {
    scores: number * t,
    q: ((batch * s + i) * h + head) * dHead,
    kv: (batch * t * hKv + Math.floor(head / (h / hKv))) * dHead,
    head,
    sink: sink?.[head],
    visible: (j) => own - window < j && j <= last && (!keyMask || keyMask[batch * t + j] !== 0),
  };
}

const scaleOf = ({ dHead, attention_scale: scale = 1 / Math.sqrt(dHead) }) => scale;

// y = softmax(scale q k') v, the scores perhaps capped, softcap tanh(score / softcap); a query that sees no key gives zeros.
export function attention(how, q, k, v) {
  const { batch, s, t, h, hKv, dHead, softcap } = how;
  const row = hKv * dHead; // from one key to the next
  const [scores, probs, y] = [array(q, batch * h * s * t), array(q, batch * h * s * t), array(q, q.length)];
  const capped = softcap ? array(q, scores.length) : scores;
  for (let number = 0; number < batch * h * s; number++) {
    const at = query(how, number);
    let top = at.sink ?? -Infinity;
    for (let j = 0; j < t; j++) {
      scores[at.scores + j] = dot(dHead, strided(q, at.q), strided(k, at.kv + j * row)) * scaleOf(how);
      if (softcap) capped[at.scores + j] = softcap * Math.tanh(scores[at.scores + j] / softcap);
      if (at.visible(j)) top = Math.max(top, capped[at.scores + j]);
    }
    for (let j = 0; j < t; j++) probs[at.scores + j] = at.visible(j) ? Math.exp(capped[at.scores + j] - top) : 0;
    const total = sum(t, strided(probs, at.scores)) + (at.sink === undefined ? 0 : Math.exp(at.sink - top));
    for (let j = 0; j < t; j++) probs[at.scores + j] = total === 0 ? 0 : probs[at.scores + j] / total;
    for (let c = 0; c < dHead; c++) y[at.q + c] = dot(t, strided(probs, at.scores), strided(v, at.kv + c, row));
  }
  return { scores, capped, probs, y };
}

// With dp = dy v': ds = scale p (dp - sum(p dp)), times the cap's slope 1 - tanh^2, dq = ds k, dk = ds' q, dv = p' dy; of a sink,
// which has the share that the keys' probabilities lack of one, d = -share sum(p dp), summed over the queries.
export function attentionVjp(how, dy, q, k, v, { capped, probs }) {
  const { batch, s, t, h, hKv, dHead, softcap } = how;
  const row = hKv * dHead;
  const [ds, dq, dk, dv] = [probs, q, k, v].map((like) => array(like, like.length));
  const dsink = how.sink && array(how.sink, h);
  for (let number = 0; number < batch * h * s; number++) {
    const at = query(how, number);
    for (let j = 0; j < t; j++) ds[at.scores + j] = dot(dHead, strided(dy, at.q), strided(v, at.kv + j * row));
    const total = dot(t, strided(probs, at.scores), strided(ds, at.scores));
    if (dsink) dsink[at.head] -= (1 - sum(t, strided(probs, at.scores))) * total;
    for (let j = at.scores; j < at.scores + t; j++) {
      const slope = softcap ? 1 - (capped[j] / softcap) ** 2 : 1;
      ds[j] = scaleOf(how) * slope * probs[j] * (ds[j] - total);
    }
    for (let c = 0; c < dHead; c++) dq[at.q + c] = dot(t, strided(ds, at.scores), strided(k, at.kv + c, row));
  }
  for (let number = 0; number < batch * h * s; number += s) {
    const at = query(how, number); // the first of a head's queries
    for (let j = 0; j < t; j++) {
      for (let c = 0; c < dHead; c++) {
        const to = at.kv + j * row + c; // the heads of a group add up
        dk[to] += dot(s, strided(ds, at.scores + j, t), strided(q, at.q + c, h * dHead));
        dv[to] += dot(s, strided(probs, at.scores + j, t), strided(dy, at.q + c, h * dHead));
      }
    }
  }
  return { dq, dk, dv, dsink };
}
