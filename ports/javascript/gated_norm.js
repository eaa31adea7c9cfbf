// RMSNorm and a gate: the gate's activation multiplies what the norm makes, or what it reads.
// `how` is that of norms.js, and { silu, normFirst }.

import { sigmoid } from "./feed_forward.js";
import { norm, normVjp } from "./norms.js";
import { array, round } from "./numbers.js";

// g sigmoid(g), or sigmoid(g).
const activation = ({ silu }, g) => (silu ? g : 1) * sigmoid(g);

// sigmoid(g) (1 + g sigmoid(-g)), or sigmoid(g) sigmoid(-g).
const slope = ({ silu }, g) => sigmoid(g) * (silu ? 1 + g * sigmoid(-g) : sigmoid(-g));

const gated = (how, x, gate) => array(x, x.length, (i) => x[i] * activation(how, gate[i]));

function normed(how, x, weight) {
  const z = norm(how, x, weight);
  return how.castsFirst ? round(how.dtype, z) : z;
}

export function gatedNorm(how, x, gate, weight) {
  return how.normFirst ? gated(how, normed(how, x, weight), gate) : norm(how, gated(how, x, gate), weight);
}

// With z what the norm makes: dz = dy a, dgate = dy z a'. Or with s what it reads: dx = ds a, dgate = ds x a'.
export function gatedNormVjp(how, dy, x, gate, weight) {
  if (how.normFirst) {
    const z = normed(how, x, weight);
    const dgate = array(x, x.length, (i) => dy[i] * z[i] * slope(how, gate[i]));
    return { ...normVjp(how, gated(how, dy, gate), x, weight), dgate };
  }
  const { dx: ds, ...ofParameters } = normVjp(how, dy, gated(how, x, gate), weight);
  const dgate = array(x, x.length, (i) => ds[i] * x[i] * slope(how, gate[i]));
  return { ...ofParameters, dx: gated(how, ds, gate), dgate };
}
