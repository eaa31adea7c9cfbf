#include "float8.h"

#include <math.h>

uint8_t float8_of(float x, int digits)
{
    int sign = signbit(x) ? 0x80 : 0, least = digits == 3 ? -6 : -14, exponent; /* of the smallest normal number */
    if (isnan(x))
        return 0x7F;
    (void)frexpf(x, &exponent);
    exponent = x == 0 || exponent - 1 < least ? least : exponent - 1;
    int steps = (int)rintf(ldexpf(fabsf(x), digits - exponent)); /* a carry out of the digits steps to the next exponent */
    return (uint8_t)(sign | (((exponent - least) << digits) + steps));
}
