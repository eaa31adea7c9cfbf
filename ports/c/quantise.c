#include "quantise.h"

#include <string.h>

static const char *const names[] = {"float8_e4m3fn", "float8_e5m2", "int8"};
static const real most[] = {448, 57344, 127}; /* -128 is not used */

static real qmax(struct quantise how)
{
    return most[how.dtype - E4M3];
}

bool quantise_as(struct quantise *how, const char *dtype, const char *scaling, size_t rows, size_t d)
{
    for (how->dtype = E4M3; how->dtype <= I8 && strcmp(dtype, names[how->dtype - E4M3]) != 0;)
        how->dtype++;
    how->mx = strcmp(scaling, "mx") == 0;
    bool per_group = strcmp(scaling, "per_group_128") == 0;
    bool known = how->mx || per_group || strcmp(scaling, "per_row") == 0 || strcmp(scaling, "static") == 0;
    how->size = how->mx ? 32 : per_group ? 128 : d;
    how->groups = rows * (d / how->size);
    return known && how->dtype <= I8 && d % how->size == 0;
}

static int exponent_of(real x)
{
    int exponent;
    (void)frexp(x, &exponent);
    return exponent - 1;
}

static real scale_of(struct quantise how, real largest)
{
    if (how.mx && largest == 0)
        return 1; /* which the standard leaves open */
    if (how.mx) {
        int exponent = exponent_of(largest) - exponent_of(qmax(how));
        return ldexp((real)1, exponent < -126 ? -126 : exponent);
    }
    real least = how.dtype == I8 ? (real)0x1p-23 : 1 / (512 * qmax(how));
    return fmax(fmin(largest, how.bound) / qmax(how), least);
}

void find_scales(struct quantise how, const real *y, real *scales)
{
    for (size_t group = 0; group < how.groups; group++) {
        real largest = 0;
        for (size_t i = 0; i < how.size; i++)
            largest = fmax(largest, fabs(y[group * how.size + i]));
        scales[group] = scale_of(how, largest);
    }
}

void divide(struct quantise how, real *y, const real *scales)
{
    for (size_t i = 0; i < how.groups * how.size; i++)
        y[i] = fmin(fmax(y[i] / scales[i / how.size], -qmax(how)), qmax(how));
}
