#include "half.h"

#include <float.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float must be computed in float: on 32-bit x86, -msse2 -mfpmath=sse"
#endif

static const uint32_t SIGN = 0x80000000, INFINITE = 0x7F800000;
static const uint32_t REBIAS = (127 - 15) << 23; /* from float16's exponents to float's */

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Drop the lowest bits. A carry out of the fraction is right: it steps to the next exponent, and from the last to infinity. */
static uint16_t without(int dropped, uint32_t bits)
{
    uint32_t odd = (bits >> dropped) & 1, just_below_half = (UINT32_C(1) << (dropped - 1)) - 1;
    return (uint16_t)((bits + just_below_half + odd) >> dropped);
}

uint16_t bfloat16_of(float x)
{
    uint32_t bits = bits_of(x);
    if ((bits & ~SIGN) > INFINITE) /* a NaN, whose carry would make it infinite, or zero */
        return (uint16_t)(bits >> 16 | 0x40);
    return without(16, bits);
}

uint16_t float16_of(float x)
{
    uint32_t sign = (bits_of(x) & SIGN) >> 16, size = bits_of(x) & ~SIGN;
    if (size > INFINITE)
        return (uint16_t)(sign | 0x7E00);
    if (size >= bits_of(65520.0f)) /* halfway from the largest number, 65504, to the next power of two */
        return (uint16_t)(sign | 0x7C00);
    if (size >= bits_of(0x1p-14f))
        return (uint16_t)(sign | without(13, size - REBIAS));
    /* Subnormal: a whole number of 2^-24, which is what the last bit of numbers from 1/2 to 1 is worth. */
    return (uint16_t)(sign | (bits_of(from_bits(size) + 0.5f) - bits_of(0.5f)));
}

float from_bfloat16(uint16_t bits)
{
    return from_bits((uint32_t)bits << 16);
}

float from_float16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, size = bits & 0x7FFF;
    if (size >= 0x7C00)
        return from_bits(sign | INFINITE | size << 13);
    if (size >= 0x0400)
        return from_bits(sign | ((size << 13) + REBIAS));
    return from_bits(sign | bits_of((float)size * 0x1p-24f));
}
