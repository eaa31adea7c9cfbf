#include "scratch.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

jmp_buf given_up;
char reason[1024];

/* What is taken, each block with the one before it; the alignment is that of any item. */
union block {
    union block *before;
    max_align_t alignment;
};
static union block *last;

void *take(size_t count, size_t size)
{
    if (count > ((size_t)-1 - sizeof *last) / size)
        refuse("%zu items of %zu bytes are more than memory can hold", count, size);
    union block *taken = calloc(1, sizeof *taken + count * size);
    if (!taken)
        refuse("out of memory: %zu items of %zu bytes", count, size);
    taken->before = last;
    last = taken;
    return taken + 1;
}

void release(void)
{
    while (last) {
        union block *before = last->before;
        free(last);
        last = before;
    }
}

void skip(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    longjmp(given_up, SKIPPED);
}

void refuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    longjmp(given_up, REFUSED);
}
