#include "numbers.h"

#include <stdint.h>
#include <string.h>

#include "float8.h"
#include "half.h"
#include "scratch.h"

enum { ONE_BY_ONE = 8 }; /* as many terms are added one after the other; longer sums are halved */

real *reals(size_t count)
{
    return take(count, sizeof(real));
}

static uint64_t load(const unsigned char *bytes, size_t size)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < size; i++)
        bits |= (uint64_t)bytes[i] << (8 * i);
    return bits;
}

static void store(unsigned char *bytes, size_t size, uint64_t bits)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(bits >> (8 * i));
}

static real from_bits(enum dtype dtype, uint64_t bits)
{
    uint32_t low = (uint32_t)bits;
    double wide;
    float narrow;
    switch (dtype) {
    case F64:
        memcpy(&wide, &bits, sizeof wide);
        return (real)wide;
    case F32:
        memcpy(&narrow, &low, sizeof narrow);
        return narrow;
    case BF16:
        return from_bfloat16((uint16_t)bits);
    default:
        return from_float16((uint16_t)bits);
    }
}

static uint64_t to_bits(enum dtype dtype, real x)
{
    uint64_t bits = 0;
    uint32_t low = 0;
    double wide = x;
    float narrow = (float)x;
    switch (dtype) {
    case F64:
        memcpy(&bits, &wide, sizeof bits);
        return bits;
    case F32:
        memcpy(&low, &narrow, sizeof low);
        return low;
    case BF16:
        return bfloat16_of(narrow);
    case E4M3:
        return float8_of(narrow, 3);
    case E5M2:
        return float8_of(narrow, 2);
    case I8:
        return (uint8_t)(int8_t)rintf(narrow);
    default:
        return float16_of(narrow);
    }
}

real *decode(const struct tensor *tensor)
{
    real *values = reals(tensor->count);
    size_t size = size_of[tensor->dtype];
    for (size_t i = 0; i < tensor->count; i++)
        values[i] = from_bits(tensor->dtype, load(tensor->bytes + i * size, size));
    return values;
}

const unsigned char *encode(enum dtype dtype, size_t count, const real *values)
{
    size_t size = size_of[dtype];
    unsigned char *bytes = take(count, size);
    for (size_t i = 0; i < count; i++)
        store(bytes + i * size, size, to_bits(dtype, values[i]));
    return bytes;
}

real round_to(enum dtype dtype, real x)
{
    return from_bits(dtype, to_bits(dtype, x));
}

void round_all(enum dtype dtype, size_t count, real *values)
{
    for (size_t i = 0; i < count; i++)
        values[i] = round_to(dtype, values[i]);
}

real *added(size_t count, const real *a, const real *b)
{
    real *total = reals(count);
    for (size_t i = 0; i < count; i++)
        total[i] = a[i] + b[i];
    return total;
}

real sum(size_t n, const real *a, size_t step)
{
    if (n > ONE_BY_ONE)
        return sum(n / 2, a, step) + sum(n - n / 2, a + n / 2 * step, step);
    real total = 0;
    for (size_t i = 0; i < n; i++)
        total += a[i * step];
    return total;
}

real dot(size_t n, const real *a, size_t a_step, const real *b, size_t b_step)
{
    if (n > ONE_BY_ONE) {
        size_t half = n / 2;
        return dot(half, a, a_step, b, b_step) + dot(n - half, a + half * a_step, a_step, b + half * b_step, b_step);
    }
    real total = 0;
    for (size_t i = 0; i < n; i++)
        total += a[i * a_step] * b[i * b_step];
    return total;
}
