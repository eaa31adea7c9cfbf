// Rotary position embedding, and attention with grouped queries.

import { array, dot, strided, sum } from "./numbers.js";

// x is [*batch, s, heads, dHead]. Every pair of features (a, b) becomes (a cos - b sin, b cos + a sin), by an angle of
// position / base^(2i / dHead). Turned `backwards`, a cotangent of y is that of x.
export function rope({ s, heads, dHead, position, base, interleaved, backwards = false }, x) {
  const y = array(x, x.length);
  const half = dHead / 2;
  const [pair, apart] = interleaved ? [2, 1] : [1, half];
  for (let head = 0; head < x.length / dHead; head++) {
    const at = position + (Math.floor(head / heads) % s);
    for (let i = 0; i < half; i++) {
      const angle = (backwards ? -at : at) * base ** ((-2 * i) / dHead);
      const a = head * dHead + pair * i;
      const b = a + apart;
      y[a] = x[a] * Math.cos(angle) - x[b] * Math.sin(angle);
      y[b] = x[b] * Math.cos(angle) + x[a] * Math.sin(angle);
    }
  }
  return y;
}

// q is [batch, s, h, dHead], k and v are [batch, t, hKv, dHead], scores and probs [batch, h, s, t]; keyMask, [batch, t], has a
// zero for a key that is padding. What one query reads, numbered as the rows of scores are:
function query({ s, t, h, hKv, dHead, causal, keyMask }, number) {
  const i = number % s;
  const head = Math.floor(number / s) % h;
  const batch = Math.floor(number / s / h);
  const sees = causal ? t - s + i : t - 1; // the last key it may see
  return {
    scores: number * t,
    q: ((batch * s + i) * h + head) * dHead,
    kv: (batch * t * hKv + Math.floor(head / (h / hKv))) * dHead,
    visible: (j) => j <= sees && (!keyMask || keyMask[batch * t + j] !== 0),
  };
}

// y = softmax(q k' / sqrt(dHead)) v; a query that sees no key gives zeros.
export function attention(how, q, k, v) {
  const { batch, s, t, h, hKv, dHead } = how;
  const row = hKv * dHead; // from one key to the next
  const [scores, probs, y] = [array(q, batch * h * s * t), array(q, batch * h * s * t), array(q, q.length)];
  for (let number = 0; number < batch * h * s; number++) {
    const at = query(how, number);
    let top = -Infinity;
    for (let j = 0; j < t; j++) {
      const score = dot(dHead, strided(q, at.q), strided(k, at.kv + j * row)) / Math.sqrt(dHead);
      scores[at.scores + j] = score;
      if (at.visible(j)) top = Math.max(top, scores[at.scores + j]);
    }
    for (let j = 0; j < t; j++) probs[at.scores + j] = at.visible(j) ? Math.exp(scores[at.scores + j] - top) : 0;
    const total = sum(t, strided(probs, at.scores));
    for (let j = 0; j < t; j++) probs[at.scores + j] = total === 0 ? 0 : probs[at.scores + j] / total;
    for (let c = 0; c < dHead; c++) y[at.q + c] = dot(t, strided(probs, at.scores), strided(v, at.kv + c, row));
  }
  return { scores, probs, y };
}

// With dp = dy v': ds = p (dp - sum(p dp)) / sqrt(dHead), dq = ds k, dk = ds' q, dv = p' dy.
export function attentionVjp(how, dy, q, k, v, probs) {
  const { batch, s, t, h, hKv, dHead } = how;
  const row = hKv * dHead;
  const [ds, dq, dk, dv] = [probs, q, k, v].map((like) => array(like, like.length));
  for (let number = 0; number < batch * h * s; number++) {
    const at = query(how, number);
    for (let j = 0; j < t; j++) ds[at.scores + j] = dot(dHead, strided(dy, at.q), strided(v, at.kv + j * row));
    const total = dot(t, strided(probs, at.scores), strided(ds, at.scores));
    for (let j = at.scores; j < at.scores + t; j++) ds[j] = (probs[j] * (ds[j] - total)) / Math.sqrt(dHead);
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
  return { dq, dk, dv };
}
