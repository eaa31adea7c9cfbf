/* RMSNorm and a gate: the gate's activation multiplies what the norm makes, or what it reads. */

#ifndef GATED_NORM_H
#define GATED_NORM_H

#include "norms.h"

struct gated_norm {
    struct norm norm;
    bool norm_first, silu; /* or else its sigmoid */
};

/* weight may be NULL; y is not yet rounded to a dtype of its own. */
void gated_norm(struct gated_norm how, const real *x, const real *gate, const real *weight, real *y);

/* The gradients of <y, dy>; dweight may be NULL. */
void gated_norm_vjp(struct gated_norm how, const real *dy, const real *x, const real *gate, const real *weight, real *dx,
                    real *dgate, real *dweight);

#endif
