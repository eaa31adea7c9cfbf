// The complementary error function, which Math lacks: https://dlmf.nist.gov/7.6.E2 and https://dlmf.nist.gov/7.9.E1.

const TERMS = 120; // of the fraction: from x = 3/2 on, more change nothing

export function erfc(x) {
  if (x < 0) return 2 - erfc(-x);
  if (Number.isNaN(x)) return x;
  return x < 1.5 ? 1 - erfBySeries(x) : erfcByFraction(x);
}

// erf(x) = 2 / sqrt(pi) exp(-x^2) sum_n 2^n x^(2n + 1) / (1 3 5 … (2n + 1)), all terms of one sign
function erfBySeries(x) {
  let term = x;
  let total = 0;
  for (let n = 1; total + term !== total; n++) {
    total += term;
    term *= (2 * x * x) / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * total;
}

// erfc(x) = exp(-x^2) / sqrt(pi) / (x + (1/2) / (x + 1 / (x + (3/2) / (x + …
function erfcByFraction(x) {
  let below = x;
  for (let n = TERMS; n > 0; n--) below = x + n / 2 / below;
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / below;
}
