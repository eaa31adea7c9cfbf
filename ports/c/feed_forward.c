#include "feed_forward.h"

#include "numbers.h"

static const real PI = (real)3.14159265358979323846, CUBIC = (real)0.044715;

void linear(struct linear how, const real *x, const real *weight, const real *bias, real *y)
{
    for (size_t row = 0; row < how.rows; row++)
        for (size_t o = 0; o < how.out; o++)
            y[row * how.out + o] = dot(how.in, x + row * how.in, 1, weight + o * how.in, 1) + (bias ? bias[o] : 0);
}

void linear_vjp(struct linear how, const real *dy, const real *x, const real *weight, real *dx, real *dweight, real *dbias)
{
    for (size_t row = 0; row < how.rows; row++)
        for (size_t i = 0; i < how.in; i++)
            dx[row * how.in + i] += dot(how.out, dy + row * how.out, 1, weight + i, how.in);
    for (size_t o = 0; o < how.out; o++) {
        for (size_t i = 0; i < how.in; i++)
            dweight[o * how.in + i] = dot(how.rows, dy + o, how.out, x + i, how.in);
        if (dbias)
            dbias[o] = sum(how.rows, dy + o, how.out);
    }
}

/* 1 / (1 + exp(-x)), and exp(x) / (1 + exp(x)) below zero: neither overflows. */
real sigmoid(real x)
{
    real e = exp(-fabs(x));
    return (x < 0 ? e : 1) / (1 + e);
}

void swiglu(size_t count, const real *gate, const real *up, real *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

void swiglu_vjp(size_t count, const real *dy, const real *gate, const real *up, real *dgate, real *dup)
{
    for (size_t i = 0; i < count; i++) {
        real share = sigmoid(gate[i]);
        dgate[i] = dy[i] * up[i] * share * (1 + gate[i] * sigmoid(-gate[i]));
        dup[i] = dy[i] * gate[i] * share;
    }
}

/* (1 + tanh(a)) / 2 is sigmoid(2a), which does not cancel. */
static real twice_the_angle(real x)
{
    return sqrt(8 / PI) * (x + CUBIC * x * x * x);
}

void gelu(bool approximate, size_t count, const real *x, real *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = x[i] * (approximate ? sigmoid(twice_the_angle(x[i])) : erfc(-x[i] / sqrt((real)2)) / 2);
}

void gelu_vjp(bool approximate, size_t count, const real *dy, const real *x, real *dx)
{
    for (size_t i = 0; i < count; i++) {
        real share, slope, a = twice_the_angle(x[i]);
        if (approximate) {
            share = sigmoid(a);
            slope = share * sigmoid(-a) * sqrt(8 / PI) * (1 + 3 * CUBIC * x[i] * x[i]);
        } else {
            share = erfc(-x[i] / sqrt((real)2)) / 2;
            slope = exp(-x[i] * x[i] / 2) / sqrt(2 * PI);
        }
        dx[i] = dy[i] * (share + x[i] * slope);
    }
}

void geglu(bool approximate, size_t count, const real *gate, const real *up, real *y)
{
    gelu(approximate, count, gate, y);
    for (size_t i = 0; i < count; i++)
        y[i] *= up[i];
}

void geglu_vjp(bool approximate, size_t count, const real *dy, const real *gate, const real *up, real *dgate, real *dup)
{
    gelu(approximate, count, gate, dup); /* the activated gate, until dy multiplies it */
    for (size_t i = 0; i < count; i++) {
        dgate[i] = dy[i] * up[i];
        dup[i] *= dy[i];
    }
    gelu_vjp(approximate, count, dgate, gate, dgate);
}
